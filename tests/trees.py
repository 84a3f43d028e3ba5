"""Miniature dataset trees, format-exact, with drawn pictures."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "014.Indigo_Bunting", "087.Mallard"]


def cub(root: Path, per_class: int = 6, size=(70, 56)) -> Path:
    """CUB-200-2011 as its archive unpacks, with four classes; the odd images of each class are for
    training."""
    folder = root / "CUB_200_2011"
    rng = np.random.default_rng(0)
    images, labels, split = [], [], []
    for c, name in enumerate(BIRDS):
        for k in range(per_class):
            number = c * per_class + k + 1
            # the file's casing differs from the folder's
            path = f"{name}/{name.split('.')[1].title()}_{k:04d}_{number}.jpg"
            file = folder / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)
            images.append(f"{number} {path}")
            labels.append(f"{number} {c + 1}")
            split.append(f"{number} {(k + 1) % 2}")
    lines = {"classes.txt": [f"{i + 1} {n}" for i, n in enumerate(BIRDS)], "images.txt": images,
             "image_class_labels.txt": labels, "train_test_split.txt": split}
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder


# The other published sets, from verbatim samples of their metadata in tests/fixtures

FIXTURES = Path(__file__).parent / "fixtures"
CLASSES = {1: "AM General Hummer SUV 2000", 4: "Acura TL Type-S 2008", 99: "FIAT 500 Abarth 2012",
           174: "Ram C/V Cargo Van Minivan 2012", 196: "smart fortwo Convertible 2012"}  # cars_meta, by hand
CARS = {"train": {"00156": 174, "00163": 1, "00222": 196, "00223": 99, "00392": 4},  # as in cars_train_annos
        "test": {"00022": 4, "00076": 1, "00080": 174, "00255": 99, "00583": 196}}


def copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes((FIXTURES / source).read_bytes())


def picture(file: Path, colour=(200, 80, 30)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), colour).save(file)


def lines(source: str) -> list[list[str]]:
    return [line.split() for line in (FIXTURES / source).read_text().splitlines()]


def flowers(root: Path) -> Path:
    """The real .mat files and names; pictures for the thirty images of the CoOp sample."""
    folder = root / "flowers-102"
    for name in ("imagelabels.mat", "setid.mat", "cat_to_name.json"):
        copy(f"flowers102/{name}", folder / name)
    for line in (FIXTURES / "flowers102/labels.csv").read_text().splitlines()[1:]:
        picture(folder / "jpg" / line.split(",")[0])
    return folder


def food(root: Path) -> Path:
    folder = root / "food-101"
    for name in ("classes.txt", "train.txt", "test.txt"):
        copy(f"food101/{name}", folder / "meta" / name)
    for (line,) in lines("food101/train.txt") + lines("food101/test.txt"):
        picture(folder / f"images/{line}.jpg")
    return folder


def pets(root: Path, nested: bool = False) -> Path:
    folder = root / "oxford-iiit-pet"
    for split in ("trainval", "test"):
        copy(f"oxford_pets/{split}.txt", folder / f"annotations/{split}.txt")
        for stem, *_ in lines(f"oxford_pets/{split}.txt"):
            picture(folder / "images" / (stem.rsplit("_", 1)[0] if nested else ".") / f"{stem}.jpg")
    (folder / "images" / "Abyssinian_100.mat").write_bytes(b"stray")
    (folder / "annotations" / "trimaps").mkdir()
    (folder / "annotations" / "trimaps" / "._Abyssinian_100.png").write_bytes(b"\0\5\x16\7")
    return folder


def cars(root: Path, labelled: bool = True, compress: bool = True) -> Path:
    """The real class names; annotations written here for ten real cars."""
    folder = root / "stanford_cars"
    copy("stanford_cars/cars_meta.mat", folder / "devkit/cars_meta.mat")
    for split, numbers in CARS.items():
        annos = [{"bbox_x1": np.array([[39.]]), "class": np.array([[n]], np.uint8), "fname": f"{i}.jpg"}
                 for i, n in numbers.items()]
        bare = [{k: v for k, v in row.items() if k != "class"} for row in annos]
        for i in numbers:
            picture(folder / f"cars_{split}/{i}.jpg")
        write_mat(folder / f"devkit/cars_{split}_annos.mat",
                  {"annotations": bare if split == "test" else annos}, compress)
    if labelled:
        write_mat(folder / "cars_test_annos_withlabels.mat", {"annotations": annos}, compress)
    return folder


def old_cars(root: Path) -> Path:
    folder, both = root / "cars", [*CARS["train"].items(), *CARS["test"].items()]
    names = np.array([CLASSES.get(i, f"Car {i} 2012") for i in range(1, 197)], object)[None]
    annos = [{"relative_im_path": f"car_ims/{k + 1:06d}.jpg", "class": np.array([[n]], np.uint8),
              "test": np.array([[k >= 5]], np.uint8)} for k, (_, n) in enumerate(both)]
    for row in annos:
        picture(folder / row["relative_im_path"])
    write_mat(folder / "cars_annos.mat", {"annotations": annos, "class_names": names})
    return folder


def aircraft(root: Path) -> Path:
    folder = root / "fgvc-aircraft-2013b" / "data"
    for split in ("train", "val", "test"):
        copy(f"fgvc_aircraft/images_variant_{split}.txt", folder / f"images_variant_{split}.txt")
        for number, *_ in lines(f"fgvc_aircraft/images_variant_{split}.txt"):
            picture(folder / f"images/{number}.jpg")
    return folder


# A writer of MATLAB v5 files: an independent way to what the reader reads

def write_mat(file: Path, variables: dict, compress: bool = False) -> None:
    """Numbers as arrays, str, object arrays (cells), lists of dicts (a 1 x N struct)."""
    data = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    for name, value in variables.items():
        element = _array(name, value)
        if compress:
            packed = zlib.compress(element)
            element = struct.pack("<II", 15, len(packed)) + packed  # not padded, as MATLAB has it
        data += element
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _element(kind: int, body: bytes) -> bytes:
    if 0 < len(body) <= 4:  # MATLAB packs these into the tag
        return struct.pack("<I", len(body) << 16 | kind) + body.ljust(4, b"\0")
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def _array(name: str, value) -> bytes:
    def numbers(kind, values, code):
        return _element(kind, struct.pack(f"<{len(values)}{code}", *values))
    if isinstance(value, str):
        kind, shape, body = 4, (1, len(value)), numbers(4, [ord(c) for c in value], "H")
    elif isinstance(value, list):
        fields = list(value[0])
        names = b"".join(f.encode().ljust(32, b"\0") for f in fields)
        body = numbers(5, [32], "i") + _element(1, names)
        kind, shape, body = 2, (1, len(value)), body + b"".join(_array("", row[f]) for row in value
                                                                for f in fields)
    elif value.dtype == object:
        kind, shape, body = 1, value.shape, b"".join(_array("", v) for v in value.ravel("F"))
    else:
        kind, stored, code = {"u1": (9, 2, "B"), "u2": (11, 4, "H"), "f8": (6, 9, "d"),
                              "i8": (14, 12, "q")}[value.dtype.str[1:]]
        shape, body = value.shape, numbers(stored, value.ravel("F").tolist(), code)
    head = numbers(6, [kind, 0], "I") + numbers(5, shape, "i") + _element(1, name.encode())
    return _element(14, head + body)
