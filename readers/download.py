"""Fetches and unpacks the published sets. A transfer that broke off goes on where it stopped."""

import gzip
import hashlib
import http.client
import tarfile
import urllib.parse
import urllib.request
import zlib
from pathlib import Path

from tqdm import tqdm

import data


def download(name: str, root=None) -> None:
    """Fetches and unpacks a published set into root/name; nothing, once that is done and can be read.
    Raises ValueError for a set that no server has, OSError for all that goes wrong on the way."""
    sets = data.published()
    if name not in sets:
        raise ValueError(f"{name} cannot be downloaded: choose " + ", ".join(sets))
    known = sets[name]
    if not known.url.startswith("http"):
        raise ValueError(f"cannot download {', '.join(known.files)}: take {known.title} from {known.url}")

    folder = Path(root or "data") / name
    if not is_whole(name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, md5 in known.files.items():
            url = urllib.parse.urljoin(known.url, file)
            fetch(url, folder / Path(file).name, md5)
        for archive in folder.glob("*gz"):
            unpack(archive, folder)
        (folder / ".complete").touch()
    print(f"{known.title} is in {folder}")


def is_whole(name: str, folder: Path) -> bool:
    """Whether a set was unpacked there once and can still be read."""
    if not (folder / ".complete").exists():
        return False
    try:
        return len(data.load(name, root=folder)) > 0
    except (OSError, ValueError):  # something was lost since
        return False


def fetch(url: str, file: Path, md5: str | None = None) -> None:
    """Into FILE.part, where a broken transfer goes on if there is an MD5 to tell a whole from two halves;
    FILE once size and MD5 are right. Raises OSError."""
    if file.exists():
        return

    # What an earlier try left is kept only where an MD5 will tell whether the halves fit.
    part = file.with_name(file.name + ".part")
    start = 0
    if md5 and part.exists():
        start = part.stat().st_size

    try:
        transfer(url, part, start, file.name)
    except (OSError, http.client.HTTPException) as error:
        # 416: nothing lies behind `start`. All of it was there, or more: the MD5 tells.
        nothing_left = start > 0 and getattr(error, "code", None) == 416
        if not nothing_left:
            raise OSError(f"{url}: {error}; run it again to go on") from None

    if md5:
        check_md5(url, part, md5)
    part.rename(file)


def transfer(url: str, part: Path, start: int, title: str) -> None:
    """What the URL holds from byte `start` on, behind the `start` bytes that `part` holds."""
    headers = {"User-Agent": "Mozilla/5.0", "Range": f"bytes={start}-"}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        if reply.status != 206:  # the server ignores ranges and sends all of it
            start = 0
        total = start + int(reply.headers["Content-Length"] or 0)  # bytes
        with open(part, "ab" if start else "wb") as f:
            with tqdm(desc=title, total=total, initial=start, unit="B", unit_scale=True,
                      leave=False, disable=None) as progress:
                while block := reply.read(1 << 18):
                    f.write(block)
                    progress.update(len(block))
    # A connection that closes early ends the loop like a whole reply.
    size = part.stat().st_size
    if size < total:
        raise OSError(f"broke off at {size} of {total} bytes")


def check_md5(url: str, part: Path, md5: str) -> None:
    """Drops a file of another MD5 and raises OSError: going on from it would never end well."""
    with open(part, "rb") as f:
        found = hashlib.file_digest(f, "md5").hexdigest()
    if found != md5:
        part.unlink()
        raise OSError(f"{url}: the MD5 is {found}, not {md5}: dropped, fetch it again")


def unpack(archive: Path, folder: Path) -> None:
    """Files and folders only, none of them outside `folder`, whatever links lie there. Raises ValueError for
    an archive with other things in it, OSError for a damaged one and for a full disk."""
    home = folder.resolve()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tqdm(tar, desc=f"unpacking {archive.name}", unit=" files",
                               leave=False, disable=None):
                if not is_harmless(member, home):
                    raise ValueError(f"{archive}: {member.name!r} is a link, a device or outside: refused")
                if member.isreg():
                    # It could be a hard link to something outside, which would be written through.
                    (home / member.name).unlink(missing_ok=True)
                tar.extract(member, home, filter="data")
            # The archive's end may lie before the file's: read on, so that gzip's checksum is looked at.
            while tar.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise OSError(f"{archive} is damaged ({error}): delete it and fetch it again") from None
    except OSError as error:  # a full disk
        raise OSError(f"cannot unpack {archive}: {error}") from None


def is_harmless(member: tarfile.TarInfo, home: Path) -> bool:
    """A file or a folder that lands below `home` without passing through a link on the way."""
    target = home / member.name
    if not target.is_relative_to(home):
        return False
    if target.resolve() != target:
        return False
    return member.isreg() or member.isdir()
