"""Miniature trees of the published sets, format-exact, with drawn pictures; and a writer of MATLAB files."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures"  # verbatim samples of the sets' metadata


def copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((FIXTURES / source).read_bytes())


def picture(file: Path, colour=(200, 80, 30)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), colour).save(file)


def lines(source: str) -> list[list[str]]:
    """The words of each line of a sample."""
    return [line.split() for line in (FIXTURES / source).read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------
# CUB

BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "014.Indigo_Bunting", "087.Mallard"]


def cub(root: Path, per_class: int = 6, size=(70, 56)) -> Path:
    """CUB-200-2011 as its archive unpacks, with four classes; the odd images of each class are for
    training."""
    folder = root / "CUB_200_2011"
    width, height = size
    rng = np.random.default_rng(0)
    images = []
    labels = []
    split = []
    number = 0
    for class_number, name in enumerate(BIRDS, 1):
        for k in range(per_class):
            number += 1
            # The file's casing differs from the folder's, as in the real set.
            bird = name.split(".")[1].title()
            path = f"{name}/{bird}_{k:04d}_{number}.jpg"
            file = folder / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(noise).save(file)
            images.append(f"{number} {path}")
            labels.append(f"{number} {class_number}")
            split.append(f"{number} {(k + 1) % 2}")
    classes = [f"{class_number} {name}" for class_number, name in enumerate(BIRDS, 1)]
    cub_lists(folder, classes, images, labels, split)
    return folder


def judge_of_cub(root: Path) -> Path:
    """A taxonomy of the four classes, as a judge's file: a bird, or one of four birds."""
    names = {label.split(".")[1].replace("_", " "): "bird" for label in BIRDS}
    file = root / "tree.json"
    file.write_text(json.dumps({"parents": names | {"bird": None}}))
    return file


def cub_lists(folder: Path, classes, images, labels, split) -> None:
    """The four lists of CUB, a string for each line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("\n".join(classes) + "\n")
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    (folder / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    (folder / "train_test_split.txt").write_text("\n".join(split) + "\n")


# ------------------------------------------------------------------------------------------------------------
# The five sets of readers/


def flowers(root: Path) -> Path:
    """The real .mat files and names; pictures for the thirty images of the CoOp sample."""
    folder = root / "flowers-102"
    for name in ("imagelabels.mat", "setid.mat", "cat_to_name.json"):
        copy(f"flowers102/{name}", folder / name)
    rows = (FIXTURES / "flowers102/labels.csv").read_text().splitlines()
    for row in rows[1:]:
        filename, _ = row.split(",")
        picture(folder / "jpg" / filename)
    return folder


def food(root: Path) -> Path:
    folder = root / "food-101"
    for name in ("classes.txt", "train.txt", "test.txt"):
        copy(f"food101/{name}", folder / "meta" / name)
    for (path,) in lines("food101/train.txt") + lines("food101/test.txt"):
        picture(folder / f"images/{path}.jpg")
    return folder


def pets(root: Path, nested: bool = False) -> Path:
    """nested: the images in class folders, as the official release leaves them. With the stray files that
    the real archives hold."""
    folder = root / "oxford-iiit-pet"
    for split in ("trainval", "test"):
        copy(f"oxford_pets/{split}.txt", folder / f"annotations/{split}.txt")
        for stem, *_ in lines(f"oxford_pets/{split}.txt"):
            breed = stem.rsplit("_", 1)[0]
            place = folder / "images" / breed if nested else folder / "images"
            picture(place / f"{stem}.jpg")
    (folder / "images" / "Abyssinian_100.mat").write_bytes(b"stray")
    (folder / "annotations" / "trimaps").mkdir()
    (folder / "annotations" / "trimaps" / "._Abyssinian_100.png").write_bytes(b"\0\5\x16\7")
    return folder


def aircraft(root: Path) -> Path:
    folder = root / "fgvc-aircraft-2013b" / "data"
    for split in ("train", "val", "test"):
        copy(f"fgvc_aircraft/images_variant_{split}.txt", folder / f"images_variant_{split}.txt")
        for number, *_ in lines(f"fgvc_aircraft/images_variant_{split}.txt"):
            picture(folder / f"images/{number}.jpg")
    return folder


# Some classes of cars_meta.mat, by hand; and the class of ten images as in the real annotations.
CLASSES = {1: "AM General Hummer SUV 2000", 4: "Acura TL Type-S 2008", 99: "FIAT 500 Abarth 2012",
           174: "Ram C/V Cargo Van Minivan 2012", 196: "smart fortwo Convertible 2012"}
CARS = {"train": {"00156": 174, "00163": 1, "00222": 196, "00223": 99, "00392": 4},
        "test": {"00022": 4, "00076": 1, "00080": 174, "00255": 99, "00583": 196}}


def cars(root: Path, labelled: bool = True, compress: bool = True) -> Path:
    """The devkit, with the real class names; annotations written here for ten real cars.
    labelled: with the file that holds the classes of the test images."""
    folder = root / "stanford_cars"
    copy("stanford_cars/cars_meta.mat", folder / "devkit/cars_meta.mat")
    for split, numbers in CARS.items():
        with_classes = []
        without = []
        for image, number in numbers.items():
            picture(folder / f"cars_{split}/{image}.jpg")
            box = np.array([[39.]])
            with_classes.append({"bbox_x1": box, "class": byte(number), "fname": f"{image}.jpg"})
            without.append({"bbox_x1": box, "fname": f"{image}.jpg"})
        own = with_classes if split == "train" else without  # the devkit hides the test images' classes
        write_mat(folder / f"devkit/cars_{split}_annos.mat", {"annotations": own}, compress)
        if split == "test" and labelled:
            file = folder / "cars_test_annos_withlabels.mat"
            write_mat(file, {"annotations": with_classes}, compress)
    return folder


def old_cars(root: Path) -> Path:
    """The older layout: all ten images in one folder, the first five for training."""
    folder = root / "cars"
    names = [CLASSES.get(number, f"Car {number} 2012") for number in range(1, 197)]
    numbers = [*CARS["train"].values(), *CARS["test"].values()]
    annotations = []
    for k, number in enumerate(numbers):
        path = f"car_ims/{k + 1:06d}.jpg"
        picture(folder / path)
        annotations.append({"relative_im_path": path, "class": byte(number), "test": byte(k >= 5)})
    cell = np.array(names, object)[None]  # (1, 196)
    write_mat(folder / "cars_annos.mat", {"annotations": annotations, "class_names": cell})
    return folder


# ------------------------------------------------------------------------------------------------------------
# A writer of MATLAB v5 files: an independent way to what the reader reads


def byte(number: int) -> np.ndarray:
    """A uint8 scalar as MATLAB has it: one row, one column."""
    return np.array([[number]], np.uint8)


def write_mat(file: Path, variables: dict, compress: bool = False) -> None:
    """Numbers as arrays, str, object arrays (cells), lists of dicts (a 1 x N struct)."""
    content = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    for name, value in variables.items():
        element = _array(name, value)
        if compress:
            packed = zlib.compress(element)
            element = struct.pack("<II", 15, len(packed)) + packed  # not padded, as MATLAB has it
        content += element
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _element(kind: int, body: bytes) -> bytes:
    """A tag and what it announces, padded to eight bytes."""
    if 0 < len(body) <= 4:  # MATLAB packs these into the tag
        return struct.pack("<I", len(body) << 16 | kind) + body.ljust(4, b"\0")
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def _numbers(kind: int, values, code: str) -> bytes:
    """An element of numbers, packed by their code in the module struct."""
    return _element(kind, struct.pack(f"<{len(values)}{code}", *values))


def _array(name: str, value) -> bytes:
    if isinstance(value, str):
        kind = 4
        shape = (1, len(value))
        body = _numbers(4, [ord(character) for character in value], "H")
    elif isinstance(value, list):
        kind = 2
        shape = (1, len(value))
        body = _struct(value)
    elif value.dtype == object:
        kind = 1
        shape = value.shape
        body = b"".join(_array("", entry) for entry in value.ravel("F"))
    else:
        # class of the array, type of its element, code in the module struct
        kind, stored, code = {"u1": (9, 2, "B"), "u2": (11, 4, "H"), "f8": (6, 9, "d"),
                              "i8": (14, 12, "q")}[value.dtype.str[1:]]
        shape = value.shape
        body = _numbers(stored, value.ravel("F").tolist(), code)
    head = _numbers(6, [kind, 0], "I") + _numbers(5, shape, "i") + _element(1, name.encode())
    return _element(14, head + body)


def _struct(entries: list[dict]) -> bytes:
    """The names of the fields, each 32 bytes wide, and each entry's values in their order."""
    fields = list(entries[0])
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    body = _numbers(5, [32], "i") + _element(1, names)
    for entry in entries:
        for field in fields:
            body += _array("", entry[field])
    return body


def with_options(argv: list[str], *more: str) -> list[str]:
    """argv and more; of an option that is in it twice the last: no command takes one twice."""
    options = {}
    name = ""
    for word in [*argv, *more]:
        if word.startswith("--"):
            name = word.split("=")[0]
            options[name] = []
        options.setdefault(name, []).append(word)
    words = []
    for option in options.values():
        words += option
    return words


# ------------------------------------------------------------------------------------------------------------
# All six sets, as the paper takes them


def all_sets(root: Path) -> Path:
    """The six sets with CoOp's splits of flowers, food and pets, and a picture for each image of theirs.
    Returns a taxonomy of all labels as a judge's file: a set's labels are below its name."""
    import data

    cub(root)
    for tree in (flowers, food, pets, cars, aircraft):
        tree(root)
    copy("flowers102/split_zhou_OxfordFlowers.json", root / "flowers-102/split_zhou_OxfordFlowers.json")
    copy("food101/split_coop.csv", root / "food-101/split_coop.csv")
    copy("oxford_pets/split_coop.csv", root / "oxford-iiit-pet/split_coop.csv")

    parents = {}
    for name, kind in (("cub", "bird"), ("flowers", "flower"), ("food", "food"), ("pets", "pet"),
                       ("cars", "car"), ("aircraft", "aircraft")):
        parents[kind] = None
        for split in ("train", "val", "test"):
            for example in data.load(name, split, root, protocol="coop"):
                parents[example.label] = kind
                if not Path(example.open.args[0]).exists():
                    picture(Path(example.open.args[0]))
    file = root / "six.json"
    file.write_text(json.dumps({"parents": parents}))
    return file
