"""Stanford Cars, in any of the three forms it is passed on in: the first whose pictures are there.

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

Some bundles hold one form's lists beside another form's pictures, and most have a folder within a folder of
the same name: cars_train/cars_train/00001.jpg, car_devkit/devkit/cars_meta.mat.
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row, class_folders
from readers.matlab import read_mat


def read(folder: Path) -> list[Row]:
    forms = [read_devkit, read_old]
    if (folder / "train").is_dir():
        forms.append(class_folders)
    for form in forms:
        try:
            rows = list(form(folder))
        except FileNotFoundError:
            continue
        if any(find_image(folder, row.path).exists() for row in rows):
            return rows

    # No pictures: the devkit is what is said to be missing.
    return list(read_devkit(folder))


def find_image(folder: Path, path: str) -> Path:
    """cars_train/00001.jpg, or cars_train/cars_train/00001.jpg."""
    top = path.split("/")[0]
    nested = folder / top / path
    if nested.exists():
        return nested
    return folder / path


def read_devkit(folder: Path) -> Iterator[Row]:
    kit = folder / "devkit"
    nested = folder / "car_devkit" / "devkit"
    if nested.is_dir():
        kit = nested
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


def read_old(folder: Path) -> Iterator[Row]:
    file = folder / "cars_annos.mat"
    names = class_names(file)
    for car in read_mat(file, "annotations").flat:
        split = "test" if car["test"].item() else "train"
        yield Row(split, car["relative_im_path"], names[car["class"].item()])


def year_first(name: str) -> str:
    """As lmms-owc and CaSED call a car: "2012 Acura TL Sedan" for "Acura TL Sedan 2012". A name that does not
    end in a year stays."""
    model, _, year = name.rpartition(" ")
    is_year = len(year) == 4 and year.isdecimal()
    return f"{year} {model}" if model and is_year else name


def class_names(file: Path) -> dict[int, str]:
    """Class number, from 1: name."""
    return dict(enumerate(read_mat(file, "class_names").flat, 1))
