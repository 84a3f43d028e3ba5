"""The MATLAB reader on the publishers' own small files and on files of this project's own writer."""

import random
import struct
import zlib

import numpy as np
import pytest

import trees
from readers import cars, matlab

FLOWERS = trees.FIXTURES / "flowers102"
CARS = trees.FIXTURES / "stanford_cars"


def test_the_flowers_files_hold_what_their_readme_says():
    labels = matlab.read_mat(FLOWERS / "imagelabels.mat", "labels")
    assert labels.shape == (1, 8189)
    assert labels.dtype == np.uint8
    assert set(labels.ravel()) == set(range(1, 103))
    train, val, test = (matlab.read_mat(FLOWERS / "setid.mat", name) for name in ("trnid", "valid", "tstid"))
    assert train.shape == val.shape == (1, 1020)
    assert test.shape == (1, 6149)
    assert train.dtype == np.uint16
    assert sorted(np.concatenate([train, val, test], 1).ravel()) == list(range(1, 8190))
    of_each_class = np.bincount(labels.ravel()[train.ravel() - 1])[1:]
    assert (of_each_class == 10).all()


def test_the_cars_classes_equal_another_list_of_them():
    names = matlab.read_mat(CARS / "cars_meta.mat", "class_names")
    assert names.shape == (1, 196)
    for number, name in trees.CLASSES.items():
        assert names[0, number - 1] == name
    year_first = [cars.year_first(name) for name in names.ravel()]
    rows = (CARS / "metadata.csv").read_text().splitlines()[1:]
    assert year_first == [row.split(",,")[1] for row in rows]


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_written_is_read(tmp_path, compress):
    grid = np.arange(6, dtype=np.float64).reshape(2, 3) - .5
    cell = np.array([["a", np.array([[7]], np.uint8)], ["two words", grid]], object)
    struct = [{"fname": "00001.jpg", "class": np.array([[14]], np.uint8)},
              {"fname": "é.jpg", "class": np.array([[-2**40]], np.int64)}]
    trees.write_mat(tmp_path / "x.mat", {"grid": grid, "word": "Übung", "cell": cell, "struct": struct,
                                         "none": np.zeros((0, 3))}, compress)

    def read(name):
        return matlab.read_mat(tmp_path / "x.mat", name)
    assert read("grid").shape == (2, 3)
    assert (read("grid") == grid).all()
    assert read("word") == "Übung"
    assert read("cell")[0, 0] == "a"
    assert read("cell")[0, 1].item() == 7
    assert read("cell")[1, 0] == "two words"
    assert (read("cell")[1, 1] == grid).all()
    assert read("none").shape == (0, 3)
    assert [entry["fname"] for entry in read("struct").ravel()] == ["00001.jpg", "é.jpg"]
    assert [entry["class"].item() for entry in read("struct").ravel()] == [14, -2**40]


def test_other_files_are_refused_by_name(tmp_path):
    whole = (FLOWERS / "setid.mat").read_bytes()
    bad = {"cut.mat": whole[:9000],
           "flipped.mat": whole[:5000] + b"\0\0\0\0" + whole[5004:],
           "empty.mat": b"",
           "big.mat": whole[:126] + b"MI" + whole[128:],  # big-endian
           "page.mat": b"<html>" * 50,
           "hdf5.mat": b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM\x89HDF"}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no whole MATLAB v5 file") as e:
            matlab.read_mat(tmp_path / name, "trnid")
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="with 'names' in it"):
        matlab.read_mat(FLOWERS / "setid.mat", "names")


def packed(content: bytes) -> bytes:
    """A file of one compressed element."""
    small = zlib.compress(content)
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<II", 15, len(small)) + small


def matrix(content: bytes) -> bytes:
    return struct.pack("<II", 14, len(content)) + content


def head(kind: int, rows: int, columns: int) -> bytes:
    """Class, shape and name, x, of an array."""
    flags = struct.pack("<IIII", 6, 8, kind, 0)
    shape = struct.pack("<IIii", 5, 8, rows, columns)
    return flags + shape + struct.pack("<I", 1 << 16 | 1) + b"x\0\0\0"


def refused(file, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} .*{message}") as e:
        matlab.read_mat(file, "x")
    assert "\n" not in str(e.value)


def test_a_file_made_to_fill_the_memory_is_refused(tmp_path):
    """Some hundred kilobytes that unpack to more than any list is, at once or one within the other."""
    file = tmp_path / "bomb.mat"
    refused(file, packed(bytes(100 << 20)), "more than 16777216 bytes are no list of images")
    refused(file, packed(matrix(bytes(matlab.MOST))), "more than 16777216 bytes")
    size = 6 << 20
    array = packed(matrix(head(9, 1, size) + struct.pack("<II", 2, size) + bytes(size)))
    refused(file, array + 2 * array[128:], "more than 16777216 bytes")  # each of the three may be so long
    refused(file, packed(packed(packed(bytes(9 << 20))[128:])[128:]), "an element of type 15 is no variable")
    with open(file, "wb") as f:
        f.truncate(matlab.MOST + 1)  # not compressed at all
    with pytest.raises(ValueError, match="bomb.mat: 16777217 bytes are no list of images"):
        matlab.read_mat(file, "x")


def test_a_file_made_to_take_for_ever_is_refused(tmp_path):
    file = tmp_path / "slow.mat"
    deep = b""
    for _ in range(5000):  # cells in cells
        deep = matrix(head(1, 1, 1) + deep)
    refused(file, packed(deep), "recursion")
    names = b"f" * (8 << 20)  # eight million fields of one letter
    fields = struct.pack("<I", 4 << 16 | 5) + struct.pack("<i", 1) + struct.pack("<II", 1, len(names)) + names
    refused(file, packed(matrix(head(2, 1, 1) + fields)), "no list of images has so many fields")


def test_thousands_of_spoilt_files_are_read_or_named(tmp_path):
    """Bytes changed in the packed file and in what it unpacks to."""
    file = tmp_path / "x.mat"
    values = {"x": [{"fname": "1.jpg", "class": np.array([[7]], np.uint8)}] * 3,
              "y": np.array([["a", np.eye(2)]], object), "z": np.arange(6.).reshape(2, 3)}
    trees.write_mat(file, values)
    whole = file.read_bytes()
    rng = random.Random(0)
    read = 0
    for number in range(3000):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 6])):
            at = rng.randrange(128, len(content))
            if rng.random() < .8:
                content[at] = rng.choice([0, 1, 2, 4, 5, 6, 14, 15, 127, 255, rng.randrange(256)])
            else:
                content[at:at + rng.randrange(9)] = rng.randbytes(rng.randrange(9))
        file.write_bytes(packed(content[128:]) if number % 3 == 0 else content)
        try:
            matlab.read_mat(file, "x")
            read += 1
        except ValueError as error:
            assert "x.mat is no whole MATLAB v5 file with 'x' in it: " in str(error)
            assert "\n" not in str(error)
    assert 300 < read < 2700  # neither all nor nothing
