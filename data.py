"""Datasets as they come on disk, and the embedded world, as lists of examples whose images are read when
asked for.

As a library: `load("cub", "train", root="data", limit=3000)`.

Names: `cub` (CUB-200-2011 as its archive unpacks) and the embedded world's `toy` (= `toy-bird`),
`toy-flower`, `toy-vehicle`, `toy-fish`.

Where this departs from the official release:
1. JPEGs are read from the unpacked archive, not re-encoded into parquet; the EXIF rotation is applied.
2. There is a validation set, of training images that the official subset of 3,000 leaves unused (the release
   chooses on test images).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

OFFICIAL_SUBSET = 3000  # CUB images the paper trains on: random.seed(42), random.sample


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
    """RGB, rotated as its EXIF tag says, fully decoded; whatever the file is named. Raises BadImage."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
            if max(image.size) > 200 * min(image.size):
                raise ValueError(f"{image.width} x {image.height} pixels are too thin for a grid of patches")
            return image
    except Exception as e:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise BadImage(f"cannot read the image {path}: {reason}") from None


def load(name: str, split: str = "train", root=None, limit: int | None = None, seed: int = 42,
         protocol: str = "official") -> list[Example]:
    """The examples of one split ("train", "val" or "test").

    root: the dataset's folder or one above it (default: ./data). limit: a random subset of that many images,
    drawn by `seed` as the release draws it: load("cub", limit=3000) is the paper's training set in its order.
    Raises ValueError for an unknown name, split or protocol, FileNotFoundError with what to fetch and where
    to put it.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"unknown split {split!r}: choose train, val or test")
    if protocol != "official":
        raise ValueError(f"unknown protocol {protocol!r}: only 'official' so far")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if name == "toy" or name.startswith("toy-"):
        examples = _toy(name, split)
    elif name == "cub":
        examples = _cub(split, Path(root or "data"))
    else:
        raise ValueError(f"unknown dataset {name!r}: choose cub or toy-bird, -flower, -vehicle, -fish")
    if limit is not None and limit < len(examples):
        examples = _subset(examples, limit, seed)
    return examples


def _subset(examples: list, k: int, seed: int) -> list:
    """random.sample over the indices, in sampled order: with seed 42 the release's own choice."""
    return [examples[i] for i in random.Random(seed).sample(range(len(examples)), k)]


def spread(examples: list, limit: int) -> list:
    """An even spread over the set: the first few hundred images of CUB are a handful of its classes."""
    if len(examples) <= limit:
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]


# ------------------------------------------------------------------------------------------------------------
# The embedded world

TOY_SIZES = {"train": 1000, "val": 200, "test": 300}  # images a domain


def _toy(name: str, split: str) -> list[Example]:
    import toy
    domain = name.removeprefix("toy").removeprefix("-") or "bird"
    if domain not in toy.DOMAINS:
        raise ValueError(f"unknown dataset {name!r}: choose " + ", ".join("toy-" + d for d in toy.DOMAINS))

    def opener(i):
        return lambda: toy.draw(domain, split, i)[0]
    return [Example(f"toy-{domain}/{split}/{i}", toy.label(domain, split, i), domain, opener(i))
            for i in range(TOY_SIZES[split])]


# ------------------------------------------------------------------------------------------------------------
# CUB-200-2011

CUB_FILES = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")


def _cub(split: str, root: Path) -> list[Example]:
    """Rows in the order of images.txt, as in the release; label = folder name without its number, _ ->
    space."""
    folder = next((f for f in (root, root / "CUB_200_2011", root / "cub" / "CUB_200_2011", root / "cub")
                   if (f / "images.txt").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"CUB-200-2011 is not in {root}: fetch CUB_200_2011.tgz (1.1 GB) from "
                                "https://data.caltech.edu/records/65de6-vp158 and unpack it there, "
                                "or say --root FOLDER")
    missing = [name for name in CUB_FILES if not (folder / name).is_file()]
    if missing or not (folder / "images").is_dir():
        raise FileNotFoundError(f"{folder} is not CUB-200-2011 as its archive unpacks: "
                                f"{(missing or ['images/'])[0]} is missing")
    classes, paths, labels, is_train = (_table(folder / name) for name in CUB_FILES)
    examples = []
    for number, path in paths.items():
        try:
            label = classes[labels[number]].split(".", 1)[-1].replace("_", " ")
            in_train = is_train[number] == "1"
        except KeyError as e:
            raise ValueError(f"{folder}: image {number} needs {e}, which no file lists") from None
        if in_train != (split == "test"):
            file = folder / "images" / path
            examples.append(Example(f"cub/{path}", label, "cub", lambda file=file: read_image(file)))
    if split == "val":  # training images that the official subset leaves unused; train.py drops any in use
        used = {e.id for e in _subset(examples, min(OFFICIAL_SUBSET, len(examples) // 2), seed=42)}
        examples = [e for e in examples if e.id not in used]
    return examples


def _table(path: Path) -> dict[str, str]:
    """Lines "key value" to a dict, in file order; the value may hold spaces."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)
