"""The published sets: their readers, the names their folders go by, where the images are, the files with
their MD5 as public readers state it."""

from functools import partial
from pathlib import Path

from data import Published, _class_folders, _csv, _fields, _json
from readers.matlab import read_mat


def _text_files(name: str, splits: str, pattern: str, example: str, folder: Path):
    """A file for each split; a line's groups are the image's path less .jpg, and its label."""
    for split in splits.split():
        for stem, label in _fields(folder / name.format(split), pattern, example):
            yield split, f"{stem}.jpg", label


def _flowers(folder: Path):
    """The publisher names no class: metadata.csv does, from 0, or cat_to_name.json, from 1."""
    if (folder / "metadata.csv").is_file():
        names = {int(i) + 1: name for i, name in _csv(folder / "metadata.csv", "idx", "class_name")}
    else:
        names = {int(i): name for i, name in _json(folder / "cat_to_name.json").items()}
    classes = dict(enumerate(read_mat(folder / "imagelabels.mat", "labels").ravel().tolist(), 1))
    for split in ("trnid", "valid", "tstid"):
        for i in read_mat(folder / "setid.mat", split).astype(int).ravel().tolist():
            yield split, f"image_{i:05d}.jpg", names[classes[i]]


def _cars(folder: Path):
    """The devkit, the older cars_annos.mat with all images in car_ims, or a re-host in class folders."""
    old, kit = folder / "cars_annos.mat", folder / "devkit"
    if old.is_file():
        names = dict(enumerate(read_mat(old, "class_names").flat, 1))
        for car in read_mat(old, "annotations").flat:
            split = "test" if car["test"].item() else "train"
            yield split, car["relative_im_path"], names[car["class"].item()]
    elif kit.is_dir() or not (folder / "train").is_dir():
        names = dict(enumerate(read_mat(kit / "cars_meta.mat", "class_names").flat, 1))
        labelled = [f / "cars_test_annos_withlabels.mat" for f in (folder, kit)]  # the devkit's own has none
        for file in [kit / "cars_train_annos.mat", *filter(Path.is_file, labelled)][:2]:  # one of each
            split = "test" if file in labelled else "train"
            for car in read_mat(file, "annotations").flat:
                yield split, f"cars_{split}/{car['fname']}", names[car["class"].item()]
    else:
        yield from _class_folders(folder)


def coop(name: str, folder: Path):
    """CoOp's {split: [[path, class, name], ...]}; or split_coop.csv, where the path starts with the class,
    except for flowers: labels.csv and metadata.csv."""
    file = next(filter(Path.is_file, (folder / COOP[name], folder.parent / COOP[name])), None)
    if file:
        for split, part in _json(file).items():
            for row in part:
                yield split, row[0], row[2]
        return
    if name == "flowers":
        names = dict(_csv(folder / "metadata.csv", "idx", "class_name"))
        classes = dict(_csv(folder / "labels.csv", "filename", "class_idx"))
    for split, path in _csv(folder / "split_coop.csv", "split", "filename"):
        label = names[classes[path]] if name == "flowers" else path.split("/")[0]
        yield split, Path(path).name if name == "pets" else path, label

COOP = {"flowers": "split_zhou_OxfordFlowers.json", "food": "split_zhou_Food101.json",
        "pets": "split_zhou_OxfordPets.json"}
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
SETS = {
    "flowers": Published(
        _flowers, "Oxford Flowers-102", "flowers-102 flowers102 oxford_flowers flowers", "jpg",
        OXFORD + "flowers/102/",
        {"102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
         "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
         "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
         "https://raw.githubusercontent.com/udacity/pytorch_challenge/master/cat_to_name.json": None},
        COOP["flowers"]),
    "food": Published(
        partial(_text_files, "meta/{}.txt", "train test", r"(([^/]+)/[^/]+)", "apple_pie/1005649"),
        "Food-101", "food-101 food101 food", "images",
        "http://data.vision.ee.ethz.ch/cvl/", {"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"},
        COOP["food"]),
    "pets": Published(
        partial(_text_files, "annotations/{}.txt", "trainval test", r"((\S+)_\d+) [\d ]+", "Pug_1 1 1 1"),
        "Oxford-IIIT Pets", "oxford-iiit-pet oxford_pets pets", "images", OXFORD + "pets/data/",
        {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
         "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}, COOP["pets"]),
    "cars": Published(
        _cars, "Stanford Cars", "stanford_cars stanford-cars cars", ".",
        "someone's copy (Stanford's host is gone; a re-host in folders train/CLASS and test/CLASS will do)",
        ("cars_train.tgz", "cars_test.tgz", "car_devkit.tgz", "cars_test_annos_withlabels.mat")),
    "aircraft": Published(
        partial(_text_files, "images_variant_{}.txt", "train val test", r"(\d+) (.+)", "1025794 707-320"),
        "FGVC-Aircraft", "fgvc-aircraft-2013b fgvc_aircraft aircraft data", "images",
        OXFORD + "fgvc-aircraft/archives/",
        {"fgvc-aircraft-2013b.tar.gz": "d4acdd33327262359767eeaa97a4f732"}),
}
