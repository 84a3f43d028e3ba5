"""Stanford Cars, in any of the three forms it is passed on in.

The devkit:
    stanford_cars/cars_train/00001.jpg, cars_test/00001.jpg
    stanford_cars/devkit/cars_meta.mat                 class_names
    stanford_cars/devkit/cars_train_annos.mat          annotations: fname, class (from 1), a box
    stanford_cars/cars_test_annos_withlabels.mat       the same for the test images, here or in devkit/
The older form:
    stanford_cars/car_ims/000001.jpg
    stanford_cars/cars_annos.mat                       class_names; annotations: relative_im_path, class, test
A re-host in class folders:
    stanford_cars/train/AM General Hummer SUV 2000/00001.jpg, test/...
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row, class_folders
from readers.matlab import read_mat


def read(folder: Path) -> Iterator[Row]:
    if (folder / "cars_annos.mat").is_file():
        return read_old(folder / "cars_annos.mat")
    # Another dataset's train/ may lie beside the devkit: the devkit goes first. With neither of them the
    # devkit is what is said to be missing.
    if (folder / "devkit").is_dir() or not (folder / "train").is_dir():
        return read_devkit(folder)
    return class_folders(folder)


def read_old(file: Path) -> Iterator[Row]:
    names = class_names(file)
    for car in read_mat(file, "annotations").flat:
        split = "test" if car["test"].item() else "train"
        yield Row(split, car["relative_im_path"], names[car["class"].item()])


def read_devkit(folder: Path) -> Iterator[Row]:
    kit = folder / "devkit"
    names = class_names(kit / "cars_meta.mat")
    yield from annotated("train", kit / "cars_train_annos.mat", names)
    # The devkit's own cars_test_annos.mat has no classes. Without the file that has, there is no test split.
    for place in (folder, kit):
        file = place / "cars_test_annos_withlabels.mat"
        if file.is_file():
            yield from annotated("test", file, names)
            break


def annotated(split: str, file: Path, names: dict[int, str]) -> Iterator[Row]:
    for car in read_mat(file, "annotations").flat:
        yield Row(split, f"cars_{split}/{car['fname']}", names[car["class"].item()])


def class_names(file: Path) -> dict[int, str]:
    """Class number, from 1: name."""
    return dict(enumerate(read_mat(file, "class_names").flat, 1))
