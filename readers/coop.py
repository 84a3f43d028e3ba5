"""CoOp's splits of flowers, food and pets, which the paper uses (protocol="coop").

They come in one of two forms, beside the dataset's other files (the first also one folder above):

    split_zhou_*.json    {"train": [["image_00190.jpg", 76, "passion flower"], ...], "val": ..., "test": ...}
    split_coop.csv       split,filename; the filename starts with the class, but for flowers, whose classes
                         are in labels.csv (filename,class_idx) and metadata.csv (idx,class_name)
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row
from readers.lists import read_csv, read_json

FLOWERS = "split_zhou_OxfordFlowers.json"
FOOD = "split_zhou_Food101.json"
PETS = "split_zhou_OxfordPets.json"


def flowers(folder: Path) -> Iterator[Row]:
    file = find_json(folder, FLOWERS)
    if file is not None:
        yield from json_rows(file)
        return
    names = dict(read_csv(folder / "metadata.csv", "idx", "class_name"))
    classes = dict(read_csv(folder / "labels.csv", "filename", "class_idx"))
    for split, path in csv_rows(folder):
        yield Row(split, path, names[classes[path]])


def food(folder: Path) -> Iterator[Row]:
    file = find_json(folder, FOOD)
    if file is not None:
        yield from json_rows(file)
        return
    for split, path in csv_rows(folder):
        dish = path.split("/")[0]
        yield Row(split, path, dish)


def pets(folder: Path) -> Iterator[Row]:
    """Labels in lower case, and paths without the class folder, as in the official split."""
    file = find_json(folder, PETS)
    if file is not None:
        for row in json_rows(file):
            yield row._replace(label=row.label.lower())
        return
    for split, path in csv_rows(folder):
        breed = path.split("/")[0]
        yield Row(split, Path(path).name, breed.lower())


def find_json(folder: Path, name: str) -> Path | None:
    for place in (folder, folder.parent):
        if (place / name).is_file():
            return place / name
    return None


def json_rows(file: Path) -> Iterator[Row]:
    for split, entries in read_json(file).items():
        for entry in entries:
            yield Row(split, entry[0], entry[2])


def csv_rows(folder: Path) -> list[list[str]]:
    """(split, path) of each image."""
    return read_csv(folder / "split_coop.csv", "split", "filename")
