"""Two ways to write a file: whole or not at all, and JSON lines behind those that are there.

config.json, state.pt, eval.json, a report, a sheet of pictures are written beside their place and then put
into it: whoever reads them never meets half a file, and a kill or a full disk leaves the old one. (lora.py
does the same for an adapter, in lines of its own: it can be copied alone.) log.jsonl, samples.jsonl and an
evaluation's answers grow by lines: what a kill leaves is all whole lines but perhaps the last.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"  # how the names begin that are written to first


@contextmanager
def replacing(path) -> Iterator[Path]:
    """Yields another path, in the same folder; what is written there takes the place of `path` when the block
    ends. Raises OSError, naming `path` and leaving what is there as it was, where that can't be."""
    path = Path(path)
    place = Path(os.path.realpath(path))  # behind a link: the link stays
    temporary = place.with_name(TEMPORARY + place.name)  # the suffix stays: Pillow goes by it
    try:
        if place.exists() and not place.is_file():
            raise OSError("it is no file")
        temporary.unlink(missing_ok=True)
        yield temporary

        # A disk may say only now that it is full. Within one folder a rename is done at once.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot_write(path, error) from None
        raise


def clear_leftovers(folder: Path) -> None:
    """Removes what a kill has left of files that were not yet whole."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Writes a JSON file, and the folders above it. Whole or not at all. Raises OSError naming the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(utf8(text))


def append(path: Path, lines: list[dict]) -> None:
    """Appends a JSON object a line; they are on disk when it returns. Raises OSError naming the file."""
    text = b"".join(json_line(line) for line in lines)
    try:
        with path.open("ab") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def json_line(value: dict) -> bytes:
    """A line of a .jsonl file, as it is written."""
    return utf8(json.dumps(value, ensure_ascii=False) + "\n")


def utf8(text: str) -> bytes:
    """JSON's bytes. Half a surrogate pair, which UTF-8 can't hold, becomes JSON's own escape for it."""
    return text.encode("utf-8", "backslashreplace")


def cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"cannot write {path}: {error.strerror or error}")
