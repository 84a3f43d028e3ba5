"""Fetches and unpacks the published sets."""

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
    """Fetches and unpacks a published set into root/name; nothing, once that is done and can be read."""
    if name not in data.published():
        raise ValueError(f"{name} cannot be downloaded: choose " + ", ".join(data.published()))
    known, folder = data.published()[name], Path(root or "data") / name
    if not known.url.startswith("http"):
        raise ValueError(f"cannot download {', '.join(known.files)}: take {known.title} from {known.url}")
    try:
        whole = (folder / ".complete").exists() and data.load(name, root=folder)
    except (OSError, ValueError):  # something was lost since
        whole = False
    if not whole:
        folder.mkdir(parents=True, exist_ok=True)
        for file, md5 in known.files.items():
            fetch(urllib.parse.urljoin(known.url, file), folder / Path(file).name, md5)
        for archive in folder.glob("*gz"):
            unpack(archive, folder)
        (folder / ".complete").touch()
    print(f"{known.title} is in {folder}")


def fetch(url: str, file: Path, md5: str | None = None) -> None:
    """Into FILE.part, where a broken transfer goes on if there is an MD5 to tell a whole from two halves;
    FILE once size and MD5 are right. Raises OSError."""
    part = file.with_name(file.name + ".part")
    if file.exists():
        return
    start = part.stat().st_size if md5 and part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0", "Range": f"bytes={start}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            start = start if reply.status == 206 else 0  # 200: the server ignores ranges
            total = start + int(reply.headers["Content-Length"] or 0)
            with open(part, "ab" if start else "wb") as f, _bar(
                    desc=file.name, total=total, initial=start, unit="B", unit_scale=True) as progress:
                while block := reply.read(1 << 18):
                    progress.update(f.write(block))
        if part.stat().st_size < total:
            raise OSError(f"broke off at {part.stat().st_size} of {total} bytes")
    except (OSError, http.client.HTTPException) as e:
        if not start or getattr(e, "code", None) != 416:  # all of it was there, or more: the MD5 tells
            raise OSError(f"{url}: {e}; run it again to go on") from None
    with open(part, "rb") as f:
        found = hashlib.file_digest(f, "md5").hexdigest()
    if md5 and found != md5:
        part.unlink()
        raise OSError(f"{url}: the MD5 is {found}, not {md5}: dropped, fetch it again")
    part.rename(file)


def unpack(archive: Path, folder: Path) -> None:
    """Files and folders only, none of them outside `folder`, whatever links lie there. Raises ValueError."""
    home = folder.resolve()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in _bar(tar, desc=f"unpacking {archive.name}", unit=" files"):
                target = home / member.name
                inside = target.is_relative_to(home) and target.resolve() == target  # no link on the way
                if not inside or not (member.isreg() or member.isdir()):
                    raise ValueError(f"{archive}: {member.name!r} is a link, a device or outside: refused")
                if member.isreg():
                    target.unlink(missing_ok=True)  # it could be a hard link to something outside
                tar.extract(member, home, filter="data")
            while tar.fileobj.read(1 << 20):  # to the checksum at the end
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise OSError(f"{archive} is damaged ({e}): delete it and fetch it again") from None
    except OSError as e:  # a full disk
        raise OSError(f"cannot unpack {archive}: {e}") from None


def _bar(items=None, **kwargs):
    return tqdm(items, leave=False, disable=None, **kwargs)
