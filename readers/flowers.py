"""Oxford Flowers-102: labels and splits in MATLAB files, class names from elsewhere.

    flowers-102/jpg/image_00001.jpg ... image_08189.jpg
    flowers-102/imagelabels.mat    labels: the class of each image, from 1
    flowers-102/setid.mat          trnid, valid, tstid: the numbers of a split's images, from 1
    flowers-102/cat_to_name.json   {"21": "fire lily", ...}; or metadata.csv
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row
from readers.lists import read_csv, read_json
from readers.matlab import read_mat


def read(folder: Path) -> Iterator[Row]:
    names = class_names(folder)
    labels = read_mat(folder / "imagelabels.mat", "labels").ravel().tolist()
    classes = dict(enumerate(labels, 1))  # image number: class number, both from 1
    for split in ("trnid", "valid", "tstid"):
        numbers = read_mat(folder / "setid.mat", split).astype(int).ravel().tolist()
        for number in numbers:
            yield Row(split, f"image_{number:05d}.jpg", names[classes[number]])


def class_names(folder: Path) -> dict[int, str]:
    """Class number, from 1: name. The publisher names no class; two public lists do."""
    table = folder / "metadata.csv"
    if table.is_file():
        return {int(index) + 1: name for index, name in read_csv(table, "idx", "class_name")}
    return {int(number): name for number, name in read_json(folder / "cat_to_name.json").items()}
