"""Datasets as they come on disk, as lists of examples whose images are read when they are asked for.

    python data.py --data flowers --root DIR              what is there: counts, pictures, odd files
    python data.py --data flowers --root DIR --download   fetch it first

As a library: `load("cub", "train", root="data", limit=3000)`. A dataset's name is one of

    cub                                    read here
    flowers, food, pets, cars, aircraft    read by the folder readers/
    toy (= toy-bird), toy-flower, toy-vehicle, toy-fish    drawn by the folder toy/
    a folder of class folders: CLASS/IMAGE or SPLIT/CLASS/IMAGE
    a .jsonl file of {"image": path, "label": name}, and if wanted "split": train, val or test

Where this departs from the official release:
1. Images are read as the archives unpack; the release re-encodes them into parquet. The EXIF rotation is
   applied, transparency becomes white, grey of 16 or 32 bits is scaled.
2. Sets are split as published. protocol="coop" takes CoOp's split for flowers, food and pets, as the release
   does. For flowers and food the two share images across train and test: use one protocol for a run.
3. Where no validation set is published, it is the training images that the official subset of 3,000 leaves
   unused. The release chooses its checkpoint on test images.

This file can be copied alone; readers/ and toy/ are imported only when one of their sets is asked for.
"""

import argparse
import hashlib
import io
import json
import os
import random
import re
import stat
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

OFFICIAL_SUBSET = 3000  # CUB images the paper trains on: random.seed(42), random.sample
TOY_SIZES = {"train": 1000, "val": 200, "test": 300}  # images of each domain of the embedded world
IN_READERS = ("flowers", "food", "pets", "cars", "aircraft")  # the sets that the folder readers/ adds

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {  # what publishers call a split: what it is called here
    "train": "train", "trnid": "train", "trainval": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "tstid": "test",
}


class BadImage(Exception):
    """An image that can't be read; the message is one line and names it."""


@dataclass(frozen=True)
class Example:
    """One image with its fine-grained truth."""

    id: str      # unique, and the same in every run: it seeds the image's rollouts
    label: str   # the truth
    domain: str  # the dataset's short name
    open: Callable[[], Image.Image] = field(repr=False, compare=False)

    def image(self) -> Image.Image:
        """RGB image, upright. Raises BadImage."""
        return self.open()


class Row(NamedTuple):
    """One image in a dataset's list, before its file is looked for."""

    split: str  # in a reader's rows the publisher's name for it, in all others one of SPLITS
    path: str   # below the folder of the images
    label: str


# ------------------------------------------------------------------------------------------------------------
# Reading an image

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
UPRIGHT = {  # its value: what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
THINNEST = 200  # longest side / shortest side: above this Qwen2.5-VL's image processor refuses a picture

# Pillow knows these by name, but needs another program to draw them (of a PostScript file one that may never
# end), or can't.
NO_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}


def read_image(path) -> Image.Image:
    """RGB, turned as its EXIF tag says, on white, fully decoded; whatever it is named. Raises BadImage."""
    try:
        refuse_special(path)
        return _upright_rgb(path)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        image = _without_texts(path)
        if image is None:
            raise BadImage(f"cannot read the image {path}: {_reason(error, path)}") from None
        return image


def refuse_special(path) -> None:
    """ValueError for a pipe or a device, whatever its name: reading it may never end. OSError where nothing
    is there."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to open a folder is an error with a message
        raise ValueError("it is a pipe or a device, no file")


def picture_formats() -> list[str]:
    """What Pillow can decode here, in the order in which it tries them."""
    Image.init()
    return [name for name in Image.ID if name not in NO_PICTURES]


def _upright_rgb(source) -> Image.Image:
    """The picture in a file, or in a stream of one. Raises whatever Pillow does."""
    with Image.open(source, formats=picture_formats()) as file:
        _refuse_thin(file)

        # Decode first: a cut or damaged file fails here, and Pillow turns a TIFF by itself and then drops its
        # orientation, so the tag is looked up afterwards.
        file.load()
        orientation = stored_orientation(file)

        image = _eight_bit(file)
        image = _on_white(image)
        image = image.convert("RGB")
        return _turned(image, orientation)


def stored_orientation(file: Image.Image) -> int | None:
    """The EXIF tag's value. None without one, and where the EXIF data is broken: the pixels may be whole."""
    try:
        return file.getexif().get(ORIENTATION)
    except Exception:  # as many kinds as there are ways to break it
        return None


# ------------------------------------------------------------------------------------------------------------
# A PNG or a WebP whose pixels are whole, but not what stands beside them
#
# Pillow refuses the whole file where a text or a profile is long, broken or cut off. Both formats are rows of
# chunks, so that the pixels can be taken out and read alone.

PNG = b"\x89PNG\r\n\x1a\n"  # its first eight bytes


def _without_texts(path) -> Image.Image | None:
    """A picture read without its texts and profiles. None for a file of another format, and where the pixels
    themselves are broken."""
    try:
        content = file_bytes(Path(path))
        if content.startswith(PNG):
            pixels = _png_pixels(content)
        elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            pixels = _webp_pixels(content)
        else:
            return None
        return _upright_rgb(io.BytesIO(pixels))
    except Exception:  # the first try's error is the one that is told
        return None


def _png_pixels(content: bytes) -> bytes:
    """A PNG's chunks with pixels and, if they are whole, its transparency and EXIF tags."""
    kept = [PNG]
    at = len(PNG)
    while at + 12 <= len(content):
        # length of the body, kind, body, checksum of kind and body
        size, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at:at + 12 + size]
        at += 12 + size
        checksum = zlib.crc32(chunk[4:-4]).to_bytes(4, "big")
        is_whole = chunk[-4:] == checksum
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(chunk)
        if kind in (b"tRNS", b"eXIf") and is_whole:
            kept.append(chunk)
    return b"".join(kept)


def _webp_pixels(content: bytes) -> bytes:
    """A WebP's chunks with pixels, and its header without the flags of the others."""
    profile, exif, xmp = 0x20, 0x08, 0x04
    kept = [b"WEBP"]
    at = 12
    while at + 8 <= len(content):
        # kind, length of the body, body, a zero where it is odd
        kind, size = struct.unpack_from("<4sI", content, at)
        chunk = bytearray(content[at:at + 8 + size + size % 2])
        at += len(chunk)
        if kind == b"VP8X":
            chunk[8] &= ~(profile | exif | xmp)
        if kind in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(chunk)
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# ------------------------------------------------------------------------------------------------------------
# What an image is made of, one thing at a time

def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, Pillow's modes I;16, I and F, scaled to 8 bits: convert() would clip it at
    255."""
    if not image.mode.startswith(("I", "F")):
        return image
    grey = np.asarray(image)  # (height, width)
    if image.mode == "I" and _is_unsigned(image):
        grey = grey.view(np.uint32)

    black, white = 0, 65535
    if not image.mode.startswith("I;16"):
        black, white = _grey_range(grey)
    shares = (grey.astype(np.float32) - black) / (white - black)
    shares = np.nan_to_num(shares, copy=False).clip(0, 1)
    return Image.fromarray((255 * shares).round().astype(np.uint8))


def _is_unsigned(image: Image.Image) -> bool:
    """Whether the 32-bit integers of a TIFF are: Pillow's mode I makes negative numbers of the large ones."""
    bits, sample_format = 258, 339  # tags
    tags = getattr(image, "tag_v2", {})
    return tags.get(bits) == (32,) and tags.get(sample_format, (1,)) == (1,)


def _grey_range(grey: np.ndarray) -> tuple[float, float]:
    """What is black and what is white in 32-bit grey, which no file says: the smallest usual range that holds
    the picture, or else its own. A pixel in a hundred may lie beyond it: resampling overshoots."""
    finite = grey[np.isfinite(grey)]
    if finite.size == 0:
        return 0, 1
    darkest, brightest = np.percentile(finite, [1, 99]).tolist()
    if darkest < 0:
        return darkest, brightest if brightest > darkest else darkest + 1
    for white in (1, 255, 65535):
        if brightest <= white:
            return 0, white
    return 0, brightest


def _on_white(image: Image.Image) -> Image.Image:
    """What is transparent laid on white: convert() would show the colour hidden behind it."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image)


def _turned(image: Image.Image, orientation: int | None) -> Image.Image:
    """Upright, as the EXIF tag says; an unknown value leaves the picture as it is."""
    if orientation not in UPRIGHT:
        return image
    return image.transpose(UPRIGHT[orientation])


def _refuse_thin(image: Image.Image) -> None:
    """ValueError for a picture so thin that the policy could not take it."""
    if max(image.size) > THINNEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels are too thin for a grid of patches")


def _reason(error: Exception, path) -> str:
    """An error's first line, without the path, which the message around it names."""
    text = str(error) or type(error).__name__
    first_line = text.splitlines()[0]
    return first_line.replace(f"'{path}'", "").rstrip(": ")


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


# ------------------------------------------------------------------------------------------------------------
# Loading a dataset


def load(name: str, split: str = "train", root=None, limit: int | None = None,
         seed: int | random.Random = 42, protocol: str = "official") -> list[Example]:
    """The examples of one split: "train", "val", "test", or the publisher's own name for one ("trainval").

    root: the dataset's folder or one above it (default: ./data). limit: a random subset of that many images,
    drawn by `seed` as the release draws it: load("cub", limit=3000) is the paper's training set in its order;
    a mixed set's parts are drawn one after the other from one random.Random(42).
    protocol: "official", or "coop": what the paper used, CoOp's split for flowers, food and pets.
    Raises ValueError for an unknown name, split or protocol, for malformed files and for a set whose folder
    of code is missing; FileNotFoundError with what to fetch and where to put it.
    """
    if split not in SPLIT_NAMES:
        raise ValueError(f"unknown split {split!r}: choose train, val or test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if protocol not in ("official", "coop"):
        raise ValueError(f"unknown protocol {protocol!r}: choose official or coop")
    refuse_undecodable("--data", name)
    refuse_undecodable("--root", str(root))

    if name == "toy" or name.startswith("toy-"):
        examples = _toy(name, SPLIT_NAMES[split])
    else:
        folder, rows = _rows(name, root, protocol)
        examples = _one_split(name, split, folder, rows)

    if limit is None or limit >= len(examples):
        return examples
    return subset(examples, limit, seed)


def _rows(name: str, root, protocol: str) -> tuple[Path, list[Row]]:
    """The folder that a dataset's paths start at, and the rows of all its splits."""
    if name in published():
        return _find(name, Path(root or "data"), protocol)
    if name in IN_READERS:
        raise _missing_folder("readers", name)
    path = Path(name)
    if name.endswith(".jsonl"):
        return path.parent, list(jsonl_rows(path))
    if name and path.is_dir():
        return path, list(class_folders(path))
    raise ValueError(f"unknown dataset {name!r}: choose {', '.join(published())}, toy-bird, -flower, "
                     "-vehicle, -fish, a folder of class folders or a .jsonl file")


def _one_split(name: str, split: str, folder: Path, rows: list[Row]) -> list[Example]:
    """The examples of one split, out of the rows of all splits."""
    # Where the file of a row is, and what to add where the split is empty.
    known = published().get(name)
    if known is None:
        find_image = Path.joinpath
        hint = ": it takes lines in a .jsonl file, or images in folders CLASS or SPLIT/CLASS"
    else:
        find_image = known.find_image
        hint = known.hint

    _refuse_repeats(name, rows)
    for row in rows:
        _check_row(name, row)
    chosen = _choose(split, rows)
    if not chosen:
        present = {row.split for row in rows}
        there = ", ".join(each for each in SPLITS if each in present) or "none"
        raise FileNotFoundError(f"{name} has no {split} images in {folder} (there are: {there}){hint}")

    prefix = Path(name).as_posix()
    domain = title(name)
    refuse_undecodable("the folder", domain)
    examples = []
    for row in chosen:
        file = find_image(folder, row.path)
        examples.append(Example(f"{prefix}/{row.path}", row.label, domain, partial(read_image, file)))
    return examples


def _refuse_repeats(name: str, rows: list[Row]) -> None:
    """ValueError where an image is listed twice: it could be trained on and tested on."""
    times = Counter(row.path for row in rows)
    if not times:
        return
    path, most = times.most_common(1)[0]
    if most > 1:
        raise ValueError(f"{name}: {path} is listed twice in train, val and test together: keep one")


LONGEST_LABEL = 300  # characters: a label is a name, and goes to the judge with every answer


def _check_row(name: str, row: Row) -> None:
    """ValueError for a label or a path that rollouts, judges or logs could not take."""
    refuse_undecodable(f"{name}: the path", row.path)
    refuse_undecodable(f"{name}: the label of {row.path},", row.label)
    if not row.label.strip():
        raise ValueError(f"{name}: {row.path} has no label")
    if len(row.label) > LONGEST_LABEL:
        raise ValueError(f"{name}: the label of {row.path} has {len(row.label)} characters, "
                         f"more than {LONGEST_LABEL}")


def refuse_undecodable(what: str, text: str) -> None:
    """ValueError for half a character: Python puts those where a file's name is not UTF-8, JSON can hold them
    too, and neither a log nor a tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} {text!r:.200} is not UTF-8: rename it") from None


def refuse_odd_words(argv: list[str] | None, repeatable: tuple[str, ...] = ()) -> None:
    """ValueError for what argparse takes without a word: an option that is given twice, of which it keeps the
    last (but for the repeatable ones, of which it keeps all); a value that is empty or not UTF-8. argv: of a
    command; None: this program's."""
    given = set()
    option = "the command line"
    for word in sys.argv[1:] if argv is None else argv:
        value = word
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            if option in given and option not in repeatable:
                raise ValueError(f"{option} is given twice")
            given.add(option)
            value = value if equals else option
        if value == "":
            raise ValueError(f"{option} must not be empty")
        refuse_undecodable(option, value)


def _choose(split: str, rows: list[Row]) -> list[Row]:
    """The rows of one split, by any of its names, in the list's order."""
    wanted = SPLIT_NAMES[split]
    chosen = [row for row in rows if row.split == wanted]
    if split == "trainval":
        chosen += [row for row in rows if row.split == "val"]
    if wanted == "val" and not chosen:  # none is published
        chosen = _unused(rows)
    return chosen


def _unused(rows: list[Row]) -> list[Row]:
    """The training rows that the official subset leaves; of a smaller set half of them."""
    train = [row for row in rows if row.split == "train"]
    if len(train) > OFFICIAL_SUBSET:
        count = OFFICIAL_SUBSET
    else:
        count = len(train) // 2
    used = set(subset(train, count, seed=42))
    return [row for row in train if row not in used]


def _toy(name: str, split: str) -> list[Example]:
    """A domain of the embedded world, drawn when it is looked at."""
    if not _has_folder("toy"):
        raise _missing_folder("toy", name)
    from toy import world
    domain = name.removeprefix("toy").removeprefix("-") or "bird"
    if domain not in world.DOMAINS:
        raise ValueError(f"unknown dataset {name!r}: choose " + ", ".join("toy-" + d for d in world.DOMAINS))
    examples = []
    for index in range(TOY_SIZES[split]):
        label = world.label(domain, split, index)
        open_image = partial(_toy_image, domain, split, index)
        examples.append(Example(f"toy-{domain}/{split}/{index}", label, domain, open_image))
    return examples


def _toy_image(domain: str, split: str, index: int) -> Image.Image:
    from toy import world
    image, _, _ = world.draw(domain, split, index)
    return image


def _has_folder(folder: str) -> bool:
    """Whether a folder of this project stands beside this file, or this file was copied without it."""
    return (Path(__file__).parent / folder / "__init__.py").is_file()


def _missing_folder(folder: str, wanted_by: str) -> ValueError:
    return ValueError(f"{wanted_by} needs the folder {folder}/, which is not beside data.py: copy it there")


def title(name: str) -> str:
    """A dataset's short name: of a path its last part."""
    if name in published():
        return name
    return Path(name).resolve().name.removesuffix(".jsonl")


# ------------------------------------------------------------------------------------------------------------
# Some of the examples: at random, or evenly spread


def subset(examples: list, count: int, seed: int | random.Random) -> list:
    """random.sample over the indices, in sampled order: with seed 42 the release's own choice."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    return [examples[i] for i in rng.sample(range(len(examples)), count)]


def spread(examples: list, limit: int) -> list:
    """An even spread over the set: the first few hundred images of CUB are a handful of its classes."""
    count = min(limit, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


# ------------------------------------------------------------------------------------------------------------
# CUB, and what is known of a published set
#
# A reader takes the set's folder and yields a Row for each image, in the publisher's order and with the
# publisher's own name for the split.


def read_cub(folder: Path) -> Iterator[Row]:
    """Caltech-UCSD Birds-200-2011: text files with a line "NUMBER VALUE" for each class or image."""
    classes = _numbered(folder / "classes.txt")            # "1 001.Black_footed_Albatross"
    labels = _numbered(folder / "image_class_labels.txt")  # image number, class number
    is_train = _numbered(folder / "train_test_split.txt")  # image number, 1 for training
    paths = _numbered(folder / "images.txt")               # "1 001.Black_footed_Albatross/NAME.jpg"
    lost = labels.keys() - paths.keys()
    if lost:  # a list that was cut off
        raise ValueError(f"{folder / 'images.txt'} lacks {len(lost)} images of image_class_labels.txt")
    for number, path in paths.items():
        split = {"1": "train", "0": "test"}[is_train[number]]
        class_name = classes[labels[number]]
        yield Row(split, path, class_name.split(".", 1)[-1])  # without "001."


def _numbered(file: Path) -> dict[str, str]:
    return dict(match_lines(file, r"(\d+)\s+(.+)", "12 value"))


@dataclass(frozen=True)
class Published:
    """A published set: how it is read, and how it is fetched."""

    # Its reader: the set's folder -> its rows.
    read: Callable[[Path], Iterable[Row]]
    # Its full name.
    title: str
    # Names that its folder goes by.
    folders: tuple[str, ...]
    # The folder in it that the paths of its rows start at.
    images: str
    # Where its files are; in words where no public server has them.
    url: str
    # Each file, below that URL or with one of its own: its MD5 as public readers state it, where they do.
    files: dict[str, str | None]
    # The images folder and the path of a row -> the image's file.
    find_image: Callable[[Path, str], Path] = Path.joinpath
    # Ends the message that a split has no images.
    hint: str = ""
    # A reader of CoOp's split of it, and the file that CoOp's authors share it in.
    read_coop: Callable[[Path], Iterable[Row]] | None = None
    coop_file: str = ""


CUB = Published(
    read=read_cub,
    title="CUB-200-2011",
    folders=("CUB_200_2011", "cub", "cub200"),
    images="images",
    url="https://data.caltech.edu/records/65de6-vp158/files/",
    files={"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"},
)


def published() -> dict[str, Published]:
    """The published sets by name: CUB, and the five that the folder readers/ adds where it is there."""
    if not _has_folder("readers"):
        return {"cub": CUB}
    from readers.published import SETS
    return {"cub": CUB} | SETS


# ------------------------------------------------------------------------------------------------------------
# Your own images: class folders

MOST_BARREN = 10_000  # folders without a picture, ten to each with some: above this it is another tree


def class_folders(folder: Path) -> Iterator[Row]:
    """SPLIT/CLASS/IMAGE; or CLASS/IMAGE, split by a hash of the path. Hidden files are left out; what else is
    skipped is named on the error output. Raises ValueError for a folder of other things."""
    pictures, others = _files_below(folder)
    split_first = _are_splits(folder, pictures)
    labels = set()
    in_no_class = []
    for file in pictures:
        split, label = _split_and_label(file, split_first)
        if split is None:
            in_no_class.append(file)
            continue
        labels.add(label)
        yield Row(split, file.as_posix(), label)

    # What is not read, and what may be wrong with what is.
    if others:
        counts = Counter(file.suffix.lower() or "no suffix" for file in others)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
        _warn_of_skipped(folder, others, f"not pictures that Pillow reads here ({kinds})")
    if in_no_class:
        layout = "SPLIT/CLASS" if split_first else "CLASS"
        _warn_of_skipped(folder, in_no_class, f"not in a folder {layout}")
    lost = set()
    for file in others:
        split, label = _split_and_label(file, split_first)
        if split is not None and label not in labels:
            lost.add(label)
    if lost:
        _warn(f"{folder}: there is no picture of {', '.join(sorted(lost)[:10])}")
    if len(labels) == 1 and len(pictures) > 1:
        _warn(f"{folder}: all pictures have one label, {labels.pop()}: is a folder above or below it meant?")


def _split_and_label(file: Path, split_first: bool) -> tuple[str | None, str | None]:
    """What the path of a file says; (None, None) for one that lies in no class, or in no split."""
    if split_first:
        parts = file.parts
    else:
        parts = (_hashed_split(file.as_posix()), *file.parts)
    split = SPLIT_NAMES.get(parts[0].lower())
    in_class = len(parts) > 2
    if split is None or not in_class:
        return None, None
    return split, _clean_label(parts[1])


def picture_suffixes() -> set[str]:
    """How the names of files end that Pillow reads here."""
    formats = picture_formats()
    return {suffix for suffix, name in Image.registered_extensions().items() if name in formats}


def _files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the other files below a folder, links followed, without the hidden ones: their paths
    from there. Raises ValueError where it is plainly no folder of pictures: one's home, or the whole disk."""
    suffixes = picture_suffixes()
    pictures = []
    others = []
    closed = []
    fruitful = 0  # folders with pictures
    barren = 0    # and without
    todo = [(Path(), ())]  # folders, each with the identities of those above it
    while todo:
        below, above = todo.pop()
        try:
            status = os.stat(folder / below)
            entries = list(os.scandir(folder / below))
        except OSError:
            if not above:
                raise
            closed.append(below)
            continue

        # A link to a folder above itself would lead round and round.
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            closed.append(below)
            continue

        # What lies in the folder; those in it come later.
        before = len(pictures)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = below / entry.name
            if entry.is_dir():
                todo.append((path, (*above, identity)))
            elif path.suffix.lower() in suffixes:
                pictures.append(path)
            else:
                others.append(path)

        # A disk has pictures too, but few folders of them.
        if len(pictures) > before:
            fruitful += 1
        else:
            barren += 1
        if barren > MOST_BARREN and barren > 10 * fruitful:
            raise ValueError(f"{folder} holds over {MOST_BARREN} folders without a picture: say the folder "
                             "of the class folders")
    if closed:
        _warn_of_skipped(folder, sorted(closed), "folders that can't be opened, or link to one above them")
    return sorted(pictures), sorted(others)


def _are_splits(folder: Path, pictures: list[Path]) -> bool:
    """Whether the folders named train, val or test are splits: they may be classes, as of trains.

    They are where two of them hold class folders, or where no more folders of pictures stand beside them
    than in them.
    """
    classes = {}  # each folder of pictures: the folders in it
    for file in pictures:
        if len(file.parts) > 1:
            within = classes.setdefault(file.parts[0], set())
            if len(file.parts) > 2:
                within.add(file.parts[1])
    named = [name for name in classes if name.lower() in SPLIT_NAMES]
    beside = [name for name in classes if name not in named]
    if not named:
        return False
    with_classes = [name for name in named if classes[name]]
    inside = sum(len(classes[name]) for name in named)
    if len(with_classes) > 1 or inside >= len(beside):
        return True
    _warn(f"{folder}: {' and '.join(named)} taken for a class, as {', '.join(beside[:3])} beside it hold "
          "pictures too")
    return False


def _warn_of_skipped(folder: Path, files: list[Path], why: str) -> None:
    first = ", ".join(file.as_posix() for file in files[:3])
    more = ", ..." if len(files) > 3 else ""
    _warn(f"{folder}: {len(files)} skipped, {why}: {first}{more}")


@cache
def _warn(line: str) -> None:
    """Says it on the error output, once: the splits of a set are loaded one after the other."""
    print(f"warning: {line}", file=sys.stderr)


def _hashed_split(path: str) -> str:
    """70 % train, 10 % val, 20 % test; an image keeps its place whatever else is added."""
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()
    place = int(digest, 16) % 10
    if place < 2:
        return "test"
    if place < 3:
        return "val"
    return "train"


def _clean_label(label: str) -> str:
    """A label in words, and two that public copies misspell as the publisher spells them."""
    words = " ".join(label.replace("_", " ").split())
    corrected = {
        # In the common list of flower names.
        "lotus lotus": "lotus",
        # In class folders, whose names can't hold a slash.
        "Ram C-V Cargo Van Minivan 2012": "Ram C/V Cargo Van Minivan 2012",
    }
    return corrected.get(words, words)


# ------------------------------------------------------------------------------------------------------------
# Your own images: a .jsonl file; and lists with an entry a line


def jsonl_rows(file: Path) -> Iterator[Row]:
    """A row for each line; paths start at the file's folder. Lines without a split get one by their path."""
    expected = 'UTF-8: {"image": path, "label": name}, if wanted "split": train, val or test'
    return parse_lines(file, _jsonl_row, expected)


def _jsonl_row(line: str) -> Row:
    entry = json.loads(line)
    path = Path(entry["image"]).as_posix()
    label = entry["label"].strip()
    if not label:
        raise ValueError("no label")
    split = entry.get("split") or _hashed_split(path)
    return Row(SPLIT_NAMES[split], path, label)


def parse_lines(file: Path, parse: Callable[[str], object], expected: str) -> Iterator:
    """What `parse` makes of each line that is neither blank nor a comment. Where it fails, ValueError with
    the line's number and what was `expected`."""
    content = file_bytes(file).removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put first
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        try:
            parsed = parse(line.decode().strip())
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            got = line[:60].decode(errors="replace")
            raise ValueError(f"{file}, line {number}: expected {expected}, got {got!r}") from None
        yield parsed


def file_bytes(file: Path, most: int | None = None) -> bytes:
    """What a file holds. Raises OSError, and ValueError for a pipe, a device, or more than `most` bytes."""
    try:
        refuse_special(file)
    except ValueError as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    size = file.stat().st_size
    if most is not None and size > most:
        raise ValueError(f"cannot read {file}: {size} bytes are no list of images")
    return file.read_bytes()


def match_lines(file: Path, pattern: str, example: str) -> Iterator[tuple[str, ...]]:
    """The groups of a pattern that each line must match whole; `example` is a line that does."""
    def groups(line: str) -> tuple[str, ...]:
        match = re.fullmatch(pattern, line)
        if match is None:
            raise ValueError("another form")
        return match.groups()
    return parse_lines(file, groups, f"a line like {example!r}")


# ------------------------------------------------------------------------------------------------------------
# Finding a published set's folder


def _find(name: str, root: Path, protocol: str) -> tuple[Path, list[Row]]:
    """A published set's images folder and the rows of all its splits, from the first folder that holds it:
    root, or one of those below it that go by the set's name.

    Raises FileNotFoundError with what is missing and where to fetch it, ValueError for a malformed list.
    """
    known = published()[name]
    by_coop = protocol == "coop" and known.read_coop is not None
    read = known.read_coop if by_coop else known.read

    missing = None
    without_pictures = None
    for folder in _candidates(root, known.folders):
        images = folder / known.images
        try:
            next(images.iterdir(), None)  # raises where no such folder is
            rows = []
            for split, path, label in read(folder):
                rows.append(Row(SPLIT_NAMES[split], Path(path).as_posix(), _clean_label(label)))
        except (FileNotFoundError, NotADirectoryError) as error:
            # Said if no other folder holds the set: what the innermost lacks, which is surely meant.
            if missing is None:
                missing = error.filename
            continue
        except (TypeError, LookupError, AttributeError) as error:  # JSON or .mat of another shape
            raise ValueError(f"{folder}: a list there is not as published, fetch it again "
                             f"({type(error).__name__}: {error})") from None

        # Lists alone are a set only where no other folder has the pictures too.
        if any(known.find_image(images, row.path).exists() for row in rows):
            return images, rows
        if without_pictures is None:
            without_pictures = images, rows
    if without_pictures is not None:
        return without_pictures

    if root.is_file():
        raise FileNotFoundError(f"{root} is a file: unpack it and say --root FOLDER")
    raise FileNotFoundError(f"{known.title} is not in {root} as its archive unpacks: {missing} is missing; "
                            f"{_advice(name, missing, by_coop)}, or say --root FOLDER")


def _candidates(root: Path, names: tuple[str, ...]) -> list[Path]:
    """root, and up to three levels below it the folders of these names; the innermost first."""
    candidates = [root]
    level = [root]
    for _ in range(3):
        below = []
        for folder in level:
            for name in names:
                if (folder / name).is_dir():
                    below.append(folder / name)
        candidates = below + candidates
        level = below
    return candidates


def _advice(name: str, missing: str, by_coop: bool) -> str:
    """What to do about a file or folder that is missing."""
    known = published()[name]
    is_list = Path(missing).suffix != ""
    if by_coop and is_list:  # the pictures are there
        return f"put CoOp's {known.coop_file} there"
    advice = f"fetch {', '.join(known.files)} from {known.url} and unpack it there"
    if known.url.startswith("http"):
        advice += f" (python data.py --data {name} --download does)"
    return advice


# ------------------------------------------------------------------------------------------------------------
# The command


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a dataset holds.")
    parser.add_argument("--data", required=True, help="a set's name, a class-folder tree, a .jsonl file")
    parser.add_argument("--root", help="the dataset's folder or one above it (default: data)")
    parser.add_argument("--split", help="only this one")
    parser.add_argument("--protocol", default="official", help="official or coop")
    parser.add_argument("--sheet", help="where the sheet of pictures goes (default: runs/DATA-SPLIT.png)")
    parser.add_argument("--limit", type=int, help="decode no more of a split than these, evenly spread")
    parser.add_argument("--download", action="store_true", help="fetch it into ROOT/DATA first")
    args = parser.parse_args(argv)
    try:
        refuse_odd_words(argv)
        if args.limit is not None and not 1 <= args.limit <= 10 ** 9:
            raise ValueError("--limit must be at least 1, at most 1,000,000,000")
        if not _has_folder("readers"):
            raise _missing_folder("readers", "python data.py")
        if args.download:
            from readers.download import download
            download(args.data, args.root)
        from readers.census import show
        show(args)
    except (ValueError, OSError, ImportError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        sys.exit(f"data.py: {first_line}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on")


if __name__ == "__main__":
    # readers/ imports this file back as `data`: run that one, so that Example and BadImage exist once.
    import data
    data.main()
