"""MATLAB files, level 5, little-endian, as MathWorks' "MAT-File Format" describes them.

Such a file is a header of 128 bytes and then elements: a tag (type and size), and that many bytes. A variable
is one element of type "matrix", whose bytes are elements again: its flags, shape, name and contents.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data import file_bytes

MOST = 1 << 24     # bytes, unpacked: twice the largest list of a published set
HEADER = 128       # bytes
VERSION = b"\0\1"  # level 5
LITTLE_ENDIAN = b"IM"

# Types of elements
MATRIX = 14
COMPRESSED = 15
UTF16 = (4, 17)    # char arrays are stored as uint16, or as UTF-16 by that name
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}

# Classes of arrays
CELL = 1
STRUCT = 2
CHAR = 4
NUMBERS = range(6, 16)  # double, single, and the integers of 8 to 64 bits


def read_mat(path, variable: str):
    """A variable in MATLAB's shape: real numbers as an array, a line of char as str, a cell as an object
    array of values, a struct as one of dicts. Raises ValueError that names the file."""
    content = file_bytes(Path(path), MOST)
    try:
        if content[HEADER - 4:HEADER] != VERSION + LITTLE_ENDIAN:
            raise ValueError("it is another format")
        variables = dict(_array(body) for body in _matrices(content[HEADER:]))
        return variables[variable]
    except (ValueError, TypeError, LookupError, RecursionError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} is no whole MATLAB v5 file with {variable!r} in it: {error}") from None


def _matrices(content: bytes) -> Iterator[bytes]:
    """The bytes of each variable, unpacked where it is compressed."""
    room = MOST - len(content)
    for kind, body in _elements(content):
        elements = [(kind, body)]
        if kind == COMPRESSED:
            body = _unpacked(body, room)
            room -= len(body)
            elements = _elements(body)
        for inner_kind, matrix in elements:
            if inner_kind != MATRIX:
                raise ValueError(f"an element of type {inner_kind} is no variable")
            yield matrix


def _unpacked(body: bytes, room: int) -> bytes:
    """Raises ValueError for more than `room` bytes: a thousand zeros can be packed into one byte."""
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(body, room + 1)
    if len(content) > room:
        raise ValueError(f"more than {MOST} bytes are no list of images")
    if not unpacker.eof:
        raise ValueError("cut off")
    return content


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, bytes) of each element."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        at += 8

        # The short form: a size in the type's upper half, and four bytes or fewer within the tag itself.
        short_size = kind >> 16
        if short_size:
            yield kind & 0xffff, content[at - 4:at - 4 + short_size]
            continue

        if at + size > len(content):
            raise ValueError("cut off")
        yield kind, content[at:at + size]
        at += size
        if kind != COMPRESSED:  # all others are padded to eight bytes
            at += -size % 8


def _array(content: bytes) -> tuple[str, object]:
    """(name, value) of an array: its flags, shape and name, then what its class wants."""
    if not content:
        return "", np.empty((0, 0))
    (_, flags), (_, shape), (_, name), *parts = _elements(content)
    kind = flags[0]
    shape = np.frombuffer(shape, "<i4")
    name = name.decode()

    if kind == CELL:
        return name, _objects(_values(parts), shape)
    if kind == STRUCT:
        return name, _objects(_dicts(parts), shape)
    ((stored, body),) = parts
    if kind == CHAR and shape[0] < 2:  # one line; a block of several is not read
        return name, body.decode("utf-16-le" if stored in UTF16 else "utf-8")
    if kind in NUMBERS:
        return name, np.frombuffer(body, "<" + STORED[stored]).reshape(shape, order="F")
    raise ValueError(f"an array of class {kind} is not read")


def _values(parts: list[tuple[int, bytes]]) -> list:
    """A cell's contents, column by column: arrays without a name."""
    return [_array(body)[1] for _, body in parts]


def _dicts(parts: list[tuple[int, bytes]]) -> list[dict]:
    """A struct array's entries: the width of a field's name, the names padded to it, then the fields of the
    first entry, of the second, ..."""
    (_, width), (_, padded), *parts = parts
    width = int.from_bytes(width, "little")
    if len(padded) > 1000 * width:
        raise ValueError("no list of images has so many fields")
    fields = []
    for start in range(0, len(padded), width):
        field = padded[start:start + width].split(b"\0")[0]
        fields.append(field.decode())
    values = _values(parts)
    entries = []
    for start in range(0, len(values), len(fields)):
        entry = dict(zip(fields, values[start:start + len(fields)], strict=True))
        entries.append(entry)
    return entries


def _objects(values: list, shape: np.ndarray) -> np.ndarray:
    """An object array in MATLAB's shape; np.array() would make one array of equal ones."""
    return np.fromiter(values, object, len(values)).reshape(shape, order="F")
