"""The MATLAB reader on the publishers' own small files and on files of this project's own writer."""

import numpy as np
import pytest

import trees
from readers import matlab

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
    year_first = []
    for name in names.ravel():
        car, year = name.rsplit(" ", 1)
        year_first.append(f"{year} {car}")
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
