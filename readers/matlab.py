"""MATLAB files, level 5, little-endian, as MathWorks' "MAT-File Format" describes them."""

import struct
import zlib
from pathlib import Path

import numpy as np

STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "i1 u1 i2 u2 i4 u4 f4 f8 i8 u8".split(), strict=True))


def read_mat(path, variable: str):
    """A variable in MATLAB's shape: real numbers as an array, a line of char as str, a cell as an object
    array of values, a struct as one of dicts. Raises ValueError that names the file."""
    data = Path(path).read_bytes()
    try:
        if data[124:128] != b"\0\1IM":
            raise ValueError("it is another format")
        return dict(_matrix(body) for _, body in _elements(data[128:]))[variable]
    except (ValueError, TypeError, LookupError, struct.error, zlib.error) as e:
        raise ValueError(f"{path} is no whole MATLAB v5 file with {variable!r} in it: {e}") from None


def _elements(data: bytes):
    """(type, bytes) of each element, the compressed ones unpacked."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        at += 8
        if kind >> 16:  # four bytes or fewer stand in the tag itself
            yield kind & 0xffff, data[at - 4:at - 4 + (kind >> 16)]
            continue
        if at + size > len(data):
            raise ValueError("cut off")
        if kind == 15:
            yield from _elements(zlib.decompress(data[at:at + size]))
        else:
            yield kind, data[at:at + size]
        at += size if kind == 15 else size + -size % 8


def _matrix(data: bytes):
    """(name, value) of an array: its flags, shape and name, then what its class wants."""
    if not data:
        return "", np.empty((0, 0))
    (_, flags), (_, shape), (_, name), *parts = _elements(data)
    kind, shape, name = flags[0], np.frombuffer(shape, "<i4"), name.decode()
    if kind in (1, 2):  # cell, struct
        if kind == 2:
            (_, width), (_, fields), *parts = parts
            width = int.from_bytes(width, "little")
            names = [fields[i:i + width].split(b"\0")[0].decode() for i in range(0, len(fields), width)]
        values = [_matrix(body)[1] for _, body in parts]
        if kind == 2:
            starts = range(0, len(values), len(names))
            values = [dict(zip(names, values[i:i + len(names)], strict=True)) for i in starts]
        return name, np.fromiter(values, object, len(values)).reshape(shape, order="F")
    (stored, body), = parts
    if kind == 4 and shape[0] < 2:  # char
        return name, body.decode("utf-16-le" if stored in (4, 17) else "utf-8")
    if not 6 <= kind <= 15:
        raise ValueError(f"an array of class {kind} is not read")
    return name, np.frombuffer(body, "<" + STORED[stored]).reshape(shape, order="F")
