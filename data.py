"""Datasets as they come on disk, and the embedded world, as lists of examples whose images are read when
asked for.

    python data.py --data flowers --root DIR              what is there: counts, pictures, odd files
    python data.py --data flowers --root DIR --download   fetch it first

As a library: `load("cub", "train", root="data", limit=3000)`. Names: cub, flowers, food, pets, cars,
aircraft; the embedded world's toy (= toy-bird), toy-flower, toy-vehicle, toy-fish; a folder of class folders;
a .jsonl file of {"image": path, "label": name}, and if wanted "split": train, val or test.

Where this departs from the official release:
1. Images are read as the archives unpack, not re-encoded into parquet; the EXIF rotation is applied,
   transparency becomes white, 16-bit grey is scaled.
2. Sets are split as published; protocol="coop" takes CoOp's split for flowers, food and pets, as the release
   does. For flowers and food the two share images across train and test: one protocol for a run.
3. Where no validation set is published, it is the training images that the official subset of 3,000 leaves
   unused (the release chooses on test images).
"""

import argparse
import csv
import glob
import hashlib
import json
import random
import re
import sys
from collections import Counter, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

OFFICIAL_SUBSET = 3000  # CUB images the paper trains on: random.seed(42), random.sample
OURS = {"train": "train", "trnid": "train", "trainval": "train", "val": "val", "valid": "val",
        "validation": "val", "test": "test", "tstid": "test"}  # what publishers call a split: what it is here
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation: Image.Transpose
PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".avif", ".bmp", ".tif", ".tiff"}
TOY_SIZES = {"train": 1000, "val": 200, "test": 300}  # images a domain of the embedded world
SPLITS = ("train", "val", "test")


class BadImage(Exception):
    """An image that can't be read; the message is one line and names it."""


@dataclass(frozen=True)
class Example:
    """One image with its fine-grained truth. id: unique, stable over runs (it seeds the image's rollouts)."""
    id: str
    label: str
    domain: str
    open: Callable[[], Image.Image] = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """RGB image, upright. Raises BadImage."""
        return self.open()


def read_image(path) -> Image.Image:
    """RGB, turned as its EXIF tag says, on white, fully decoded; whatever it is named. Raises BadImage."""
    try:
        with Image.open(path) as file:
            file.load()  # Pillow turns a TIFF by itself here
            turn, image = UPRIGHT.get(file.getexif().get(0x0112)), file
            if file.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
                image = Image.fromarray((np.asarray(file).clip(0, 65535) / 257).round().astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB")
            image = image if turn is None else image.transpose(Image.Transpose(turn))
            if max(image.size) > 200 * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels are too thin for a grid of patches")
            return image
    except Exception as e:  # Pillow's decoders raise nearly anything on damaged files
        reason = (str(e) or type(e).__name__).splitlines()[0].replace(f"'{path}'", "").rstrip(": ")
        raise BadImage(f"cannot read the image {path}: {reason}") from None


def read_images(examples: list[Example]) -> tuple[list[Example], list[Image.Image], list[str]]:
    """The examples whose image can be read, their images, and a line for each image that can't: it is named
    and counted, never sampled."""
    readable = []
    images = []
    unreadable = []
    for example in examples:
        try:
            image = example.image()
        except BadImage as error:
            unreadable.append(str(error))
            continue
        readable.append(example)
        images.append(image)
    return readable, images, unreadable


def load(name: str, split: str = "train", root=None, limit: int | None = None,
         seed: int | random.Random = 42, protocol: str = "official") -> list[Example]:
    """The examples of one split: "train", "val", "test", or the publisher's own name for one ("trainval").

    root: the dataset's folder or one above it (default: ./data). limit: a random subset of that many images,
    drawn by `seed` as the release draws it: load("cub", limit=3000) is the paper's training set in its order;
    a mixed set's parts are drawn one after the other from one random.Random(42).
    protocol: "official", or "coop": what the paper used, CoOp's split for flowers, food and pets.
    Raises ValueError for an unknown name, split or protocol and for malformed files, FileNotFoundError with
    what to fetch and where to put it.
    """
    if split not in OURS:
        raise ValueError(f"unknown split {split!r}: choose train, val or test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if protocol not in ("official", "coop"):
        raise ValueError(f"unknown protocol {protocol!r}: choose official or coop")
    if name == "toy" or name.startswith("toy-"):
        examples = _toy(name, OURS[split])
    elif name in published():
        examples = _listed(name, split, *_find(name, Path(root or "data"), protocol))
    elif name.endswith(".jsonl"):
        examples = _listed(name, split, Path(name).parent, list(_jsonl(Path(name))))
    elif name and Path(name).is_dir():
        examples = _listed(name, split, Path(name), list(_class_folders(Path(name))))
    else:
        raise ValueError(f"unknown dataset {name!r}: choose {', '.join(published())}, toy-bird, -flower, "
                         "-vehicle, -fish, a folder of class folders or a .jsonl file")
    return examples if limit is None or limit >= len(examples) else _subset(examples, limit, seed)


def _subset(examples: list, k: int, seed: int | random.Random) -> list:
    """random.sample over the indices, in sampled order: with seed 42 the release's own choice."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    return [examples[i] for i in rng.sample(range(len(examples)), k)]


def spread(examples: list, limit: int) -> list:
    """An even spread over the set: the first few hundred images of CUB are a handful of its classes."""
    count = min(limit, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _toy(name: str, split: str) -> list[Example]:
    from toy import world
    domain = name.removeprefix("toy").removeprefix("-") or "bird"
    if domain not in world.DOMAINS:
        raise ValueError(f"unknown dataset {name!r}: choose " + ", ".join("toy-" + d for d in world.DOMAINS))
    return [Example(f"toy-{domain}/{split}/{i}", world.label(domain, split, i), domain,
                    lambda i=i: world.draw(domain, split, i)[0]) for i in range(TOY_SIZES[split])]


def _listed(name: str, split: str, folder: Path, rows: list) -> list[Example]:
    """One split of the rows of all splits, no path of which may be in two."""
    for path, times in Counter(path for _, path, _ in rows).most_common(1):
        if times > 1:
            raise ValueError(f"{name}: {path} is listed twice in train, val and test together: keep one")
    parts = {ours: [row for row in rows if row[0] == ours] for ours in SPLITS}
    chosen = parts[OURS[split]] + parts["val"] * (split == "trainval")
    if OURS[split] == "val" and not chosen:  # what the official subset leaves, of a small set half
        train = parts["train"]
        used = OFFICIAL_SUBSET if len(train) > OFFICIAL_SUBSET else len(train) // 2
        used = set(_subset(train, used, seed=42))
        chosen = [row for row in train if row not in used]
    if not chosen:
        hint = (": is cars_test_annos_withlabels.mat missing?" if name == "cars"
                else "" if name in published()
                else ": it takes lines in a .jsonl file, or images in folders CLASS or SPLIT/CLASS")
        there = ", ".join(filter(parts.get, parts)) or "none"
        raise FileNotFoundError(f"{name} has no {split} images in {folder} (there are: {there}){hint}")
    examples, domain = [], title(name)
    for _, path, label in chosen:
        file, nested = folder / path, folder / path.rsplit("_", 1)[0] / path
        if name == "pets" and nested.exists():  # the release sorts them into class folders on first use
            file = nested
        examples.append(Example(f"{Path(name).as_posix()}/{path}", label, domain, partial(read_image, file)))
    return examples


def title(name: str) -> str:
    """A dataset's short name: of a path its last part."""
    return name if name in published() else Path(name).resolve().name.removesuffix(".jsonl")


def _find(name: str, root: Path, protocol: str) -> tuple[Path, list]:
    """A set's images folder and rows, from the first that holds it of root and up to three levels of the
    folders it goes by."""
    known, missing = published()[name], ""
    read, advice = known.read, f"fetch {', '.join(known.files)} from {known.url} and unpack it there"
    if known.url.startswith("http"):
        advice += f" (python data.py --data {name} --download does)"
    if protocol == "coop" and known.coop:
        from readers.published import coop
        read = partial(coop, name)
    folders = level = [root]
    for _ in range(3):
        level = [folder / n for folder in level for n in known.folders.split() if (folder / n).is_dir()]
        folders = level + folders  # the innermost first: a folder of that name is surely meant
    for folder in folders:
        try:
            next((folder / known.images).iterdir(), None)  # is it there?
            rows = [(OURS[split], Path(path).as_posix(), _words(label.lower() if name == "pets" else label))
                    for split, path, label in read(folder)]
            return folder / known.images, rows
        except (FileNotFoundError, NotADirectoryError) as e:
            missing = missing or e.filename
        except (TypeError, LookupError, AttributeError) as e:  # JSON or .mat of another shape
            raise ValueError(f"{folder}: a list there is not as published, fetch it again "
                             f"({type(e).__name__}: {e})") from None
    if root.is_file():
        raise FileNotFoundError(f"{root} is a file: unpack it and say --root FOLDER")
    if read is not known.read and Path(missing).suffix:  # a list; the pictures are there
        advice = f"put CoOp's {known.coop} there"
    raise FileNotFoundError(f"{known.title} is not in {root} as its archive unpacks: {missing} is missing; "
                            f"{advice}, or say --root FOLDER")


def _words(label: str) -> str:
    label = " ".join(label.replace("_", " ").split())
    return {"lotus lotus": "lotus", "Ram C-V Cargo Van Minivan 2012": "Ram C/V Cargo Van Minivan 2012"
            }.get(label, label)


# ------------------------------------------------------------------------------------------------------------
# Readers: (publisher's split, path of an image, label) for each image, in the publisher's order

def _lines(file: Path, parse: Callable, expected: str):
    """What `parse` makes of each line that is neither blank nor a comment."""
    for n, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip() and not line.startswith(b"#"):
            try:
                yield parse(line.decode().strip())
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                got = line[:60].decode(errors="replace")
                raise ValueError(f"{file}, line {n}: expected {expected}, got {got!r}") from None


def _fields(file: Path, pattern: str, example: str):
    return _lines(file, lambda line: re.fullmatch(pattern, line).groups(), f"a line like {example!r}")


def _csv(file: Path, *columns: str):
    try:
        with open(file, encoding="utf-8-sig", newline="") as f:
            return [[row[column] for column in columns] for row in csv.DictReader(f)]
    except (ValueError, csv.Error) as e:
        raise ValueError(f"{file} is no CSV file in UTF-8: {e}") from None


def _json(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError, RecursionError) as e:
        raise ValueError(f"{file} is no JSON object, delete it and fetch it again: {e}") from None


def _cub(folder: Path):
    def column(file):
        return dict(_fields(folder / file, r"(\d+)\s+(.+)", "12 value"))
    classes, labels = column("classes.txt"), column("image_class_labels.txt")
    is_train = column("train_test_split.txt")
    for number, path in column("images.txt").items():
        split = {"1": "train", "0": "test"}[is_train[number]]
        yield split, path, classes[labels[number]].split(".", 1)[-1]  # 001.Black_footed_Albatross


def _class_folders(folder: Path):
    """SPLIT/CLASS/IMAGE; or CLASS/IMAGE, split by a hash of the path. Hidden files and others are skipped."""
    split_first = any(f.name.lower() in OURS for f in folder.iterdir() if f.is_dir())
    for file in sorted(Path(f) for f in glob.glob("**/*", root_dir=folder, recursive=True)):
        parts = file.parts if split_first else (_hashed(file.as_posix()), *file.parts)
        split = OURS.get(parts[0].lower())
        if split and len(parts) > 2 and file.suffix.lower() in PICTURES:
            yield split, file.as_posix(), _words(parts[1])


def _jsonl(file: Path):
    def parse(line):
        row = json.loads(line)
        path, label = Path(row["image"]).as_posix(), row["label"].strip()
        if not label:
            raise ValueError("no label")
        return OURS[row.get("split") or _hashed(path)], path, label
    return _lines(file, parse, 'UTF-8: {"image": path, "label": name}, if wanted "split": train, val or test')


def _hashed(path: str) -> str:
    """70 % train, 10 % val, 20 % test; an image keeps its place whatever else is added."""
    place = int(hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest(), 16) % 10
    return "test" if place < 2 else "val" if place < 3 else "train"


# ------------------------------------------------------------------------------------------------------------
# What is published: its reader, the names its folder goes by, where the images are, the files with their MD5
# as public readers state it

Published = namedtuple("Published", "read title folders images url files coop", defaults=[None])
CUB = Published(_cub, "CUB-200-2011", "CUB_200_2011 cub cub200", "images",
                "https://data.caltech.edu/records/65de6-vp158/files/",
                {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"})


def published() -> dict[str, Published]:
    """CUB, and the five sets that the folder readers/ adds."""
    try:
        from readers.published import SETS
    except ModuleNotFoundError:  # this file was copied alone
        SETS = {}
    return {"cub": CUB} | SETS


# ------------------------------------------------------------------------------------------------------------
# What is there


def main() -> None:
    parser = argparse.ArgumentParser(description="What a dataset holds.")
    parser.add_argument("--data", required=True, help="a set's name, a class-folder tree, a .jsonl file")
    parser.add_argument("--root", help="the dataset's folder or one above it (default: data)")
    parser.add_argument("--split", help="only this one")
    parser.add_argument("--protocol", default="official", help="official or coop")
    parser.add_argument("--sheet", help="where the sheet of pictures goes (default: runs/DATA-SPLIT.png)")
    parser.add_argument("--limit", type=int, help="decode no more of a split than these, evenly spread")
    parser.add_argument("--download", action="store_true", help="fetch it into ROOT/DATA first")
    args = parser.parse_args()
    try:
        if args.limit is not None and args.limit < 1:
            raise ValueError("--limit must be at least 1")
        if args.download:
            from readers.download import download
            download(args.data, args.root)
        from readers.census import show
        show(args)
    except (ValueError, OSError, ImportError) as e:
        sys.exit(f"data.py: {(str(e) or type(e).__name__).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on")


if __name__ == "__main__":
    import data
    data.main()
