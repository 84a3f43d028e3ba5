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
import gzip
import hashlib
import http.client
import json
import random
import re
import struct
import sys
import tarfile
import textwrap
import urllib.request
import zlib
from collections import Counter, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

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
    elif name in SETS:
        examples = _listed(name, split, *_find(name, Path(root or "data"), protocol))
    elif name.endswith(".jsonl"):
        examples = _listed(name, split, Path(name).parent, list(_jsonl(Path(name))))
    elif name and Path(name).is_dir():
        examples = _listed(name, split, Path(name), list(_class_folders(Path(name))))
    else:
        raise ValueError(f"unknown dataset {name!r}: choose {', '.join(SETS)}, toy-bird, -flower, -vehicle, "
                         "-fish, a folder of class folders or a .jsonl file")
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
    import toy
    domain = name.removeprefix("toy").removeprefix("-") or "bird"
    if domain not in toy.DOMAINS:
        raise ValueError(f"unknown dataset {name!r}: choose " + ", ".join("toy-" + d for d in toy.DOMAINS))
    return [Example(f"toy-{domain}/{split}/{i}", toy.label(domain, split, i), domain,
                    lambda i=i: toy.draw(domain, split, i)[0]) for i in range(TOY_SIZES[split])]


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
        hint = (": is cars_test_annos_withlabels.mat missing?" if name == "cars" else "" if name in SETS else
                ": it takes lines in a .jsonl file, or images in folders CLASS or SPLIT/CLASS")
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
    return name if name in SETS else Path(name).resolve().name.removesuffix(".jsonl")


def _find(name: str, root: Path, protocol: str) -> tuple[Path, list]:
    """A set's images folder and rows, from the first that holds it of root and up to three levels of the
    folders it goes by."""
    known, missing = SETS[name], ""
    read, advice = known.read, f"fetch {', '.join(known.files)} from {known.url} and unpack it there"
    if known.url.startswith("http"):
        advice += f" (python data.py --data {name} --download does)"
    if name in COOP and protocol == "coop":
        read = partial(_coop, name)
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
        advice = f"put CoOp's {COOP[name]} there"
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


def _coop(name: str, folder: Path):
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

COOP = {"flowers": "split_zhou_OxfordFlowers.json", "food": "split_zhou_Food101.json",
        "pets": "split_zhou_OxfordPets.json"}
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
Published = namedtuple("Published", "read title folders images url files")
SETS = {
    "cub": Published(
        _cub, "CUB-200-2011", "CUB_200_2011 cub cub200", "images",
        "https://data.caltech.edu/records/65de6-vp158/files/",
        {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}),
    "flowers": Published(
        _flowers, "Oxford Flowers-102", "flowers-102 flowers102 oxford_flowers flowers", "jpg",
        OXFORD + "flowers/102/",
        {"102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
         "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
         "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
         "https://raw.githubusercontent.com/udacity/pytorch_challenge/master/cat_to_name.json": None}),
    "food": Published(
        partial(_text_files, "meta/{}.txt", "train test", r"(([^/]+)/[^/]+)", "apple_pie/1005649"),
        "Food-101", "food-101 food101 food", "images",
        "http://data.vision.ee.ethz.ch/cvl/", {"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"}),
    "pets": Published(
        partial(_text_files, "annotations/{}.txt", "trainval test", r"((\S+)_\d+) [\d ]+", "Pug_1 1 1 1"),
        "Oxford-IIIT Pets", "oxford-iiit-pet oxford_pets pets", "images", OXFORD + "pets/data/",
        {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
         "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}),
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


def download(name: str, root=None) -> None:
    """Fetches and unpacks a published set into root/name; nothing, once that is done and can be read."""
    if name not in SETS:
        raise ValueError(f"{name} cannot be downloaded: choose " + ", ".join(SETS))
    known, folder = SETS[name], Path(root or "data") / name
    if not known.url.startswith("http"):
        raise ValueError(f"cannot download {', '.join(known.files)}: take {known.title} from {known.url}")
    try:
        whole = (folder / ".complete").exists() and load(name, root=folder)
    except (OSError, ValueError):  # something was lost since
        whole = False
    if not whole:
        folder.mkdir(parents=True, exist_ok=True)
        for file, md5 in known.files.items():
            fetch(urllib.parse.urljoin(known.url, file), folder / Path(file).name, md5)
        for archive in folder.glob("*gz"):
            unpack(archive, folder)
        (folder / ".complete").touch()
    print(f"{known.title} is in {folder}")


def fetch(url: str, file: Path, md5: str | None = None) -> None:
    """Into FILE.part, where a broken transfer goes on if there is an MD5 to tell a whole from two halves;
    FILE once size and MD5 are right. Raises OSError."""
    part = file.with_name(file.name + ".part")
    if file.exists():
        return
    start = part.stat().st_size if md5 and part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0", "Range": f"bytes={start}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            start = start if reply.status == 206 else 0  # 200: the server ignores ranges
            total = start + int(reply.headers["Content-Length"] or 0)
            with open(part, "ab" if start else "wb") as f, _bar(
                    desc=file.name, total=total, initial=start, unit="B", unit_scale=True) as progress:
                while block := reply.read(1 << 18):
                    progress.update(f.write(block))
        if part.stat().st_size < total:
            raise OSError(f"broke off at {part.stat().st_size} of {total} bytes")
    except (OSError, http.client.HTTPException) as e:
        if not start or getattr(e, "code", None) != 416:  # all of it was there, or more: the MD5 tells
            raise OSError(f"{url}: {e}; run it again to go on") from None
    with open(part, "rb") as f:
        found = hashlib.file_digest(f, "md5").hexdigest()
    if md5 and found != md5:
        part.unlink()
        raise OSError(f"{url}: the MD5 is {found}, not {md5}: dropped, fetch it again")
    part.rename(file)


def unpack(archive: Path, folder: Path) -> None:
    """Files and folders only, none of them outside `folder`, whatever links lie there. Raises ValueError."""
    home = folder.resolve()
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in _bar(tar, desc=f"unpacking {archive.name}", unit=" files"):
                target = home / member.name
                inside = target.is_relative_to(home) and target.resolve() == target  # no link on the way
                if not inside or not (member.isreg() or member.isdir()):
                    raise ValueError(f"{archive}: {member.name!r} is a link, a device or outside: refused")
                if member.isreg():
                    target.unlink(missing_ok=True)  # it could be a hard link to something outside
                tar.extract(member, home, filter="data")
            while tar.fileobj.read(1 << 20):  # to the checksum at the end
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise OSError(f"{archive} is damaged ({e}): delete it and fetch it again") from None
    except OSError as e:  # a full disk
        raise OSError(f"cannot unpack {archive}: {e}") from None


def _bar(items=None, **kwargs):
    from tqdm import tqdm  # only here: the readers want numpy and Pillow alone
    return tqdm(items, leave=False, disable=None, **kwargs)


# ------------------------------------------------------------------------------------------------------------
# MATLAB files, level 5, little-endian, as MathWorks' "MAT-File Format" describes them

STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "i1 u1 i2 u2 i4 u4 f4 f8 i8 u8".split(), strict=True))


def read_mat(path, variable: str):
    """A variable in MATLAB's shape: real numbers as an array, a line of char as str, a cell as an object
    array of values, a struct as one of dicts. Raises ValueError that names the file."""
    data = Path(path).read_bytes()
    try:
        if data[124:128] != b"\0\1IM":
            raise ValueError("it is another format")
        return dict(_matrix(body) for _, body in _elements(data[128:]))[variable]
    except (ValueError, TypeError, LookupError, struct.error, zlib.error) as e:
        raise ValueError(f"{path} is no whole MATLAB v5 file with {variable!r} in it: {e}") from None


def _elements(data: bytes):
    """(type, bytes) of each element, the compressed ones unpacked."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        at += 8
        if kind >> 16:  # four bytes or fewer stand in the tag itself
            yield kind & 0xffff, data[at - 4:at - 4 + (kind >> 16)]
            continue
        if at + size > len(data):
            raise ValueError("cut off")
        if kind == 15:
            yield from _elements(zlib.decompress(data[at:at + size]))
        else:
            yield kind, data[at:at + size]
        at += size if kind == 15 else size + -size % 8


def _matrix(data: bytes):
    """(name, value) of an array: its flags, shape and name, then what its class wants."""
    if not data:
        return "", np.empty((0, 0))
    (_, flags), (_, shape), (_, name), *parts = _elements(data)
    kind, shape, name = flags[0], np.frombuffer(shape, "<i4"), name.decode()
    if kind in (1, 2):  # cell, struct
        if kind == 2:
            (_, width), (_, fields), *parts = parts
            width = int.from_bytes(width, "little")
            names = [fields[i:i + width].split(b"\0")[0].decode() for i in range(0, len(fields), width)]
        values = [_matrix(body)[1] for _, body in parts]
        if kind == 2:
            starts = range(0, len(values), len(names))
            values = [dict(zip(names, values[i:i + len(names)], strict=True)) for i in starts]
        return name, np.fromiter(values, object, len(values)).reshape(shape, order="F")
    (stored, body), = parts
    if kind == 4 and shape[0] < 2:  # char
        return name, body.decode("utf-16-le" if stored in (4, 17) else "utf-8")
    if not 6 <= kind <= 15:
        raise ValueError(f"an array of class {kind} is not read")
    return name, np.frombuffer(body, "<" + STORED[stored]).reshape(shape, order="F")


# ------------------------------------------------------------------------------------------------------------
# What is there

def sheet(examples: list[Example], columns: int = 6, width: int = 200, height: int = 160) -> Image.Image:
    """A grid of pictures over their labels."""
    lines, font = -(-len(examples) // columns), ImageFont.load_default(15)
    page = Image.new("RGB", (columns * (width + 16) + 16, lines * (height + 48)), "white")
    for i, example in enumerate(examples):
        x, y, label = 16 + i % columns * (width + 16), 16 + i // columns * (height + 48), example.label
        try:
            image = example.image()
        except BadImage:
            image, label = Image.new("RGB", (width, height), "#ddd"), f"unreadable: {label}"
        method = Image.Resampling.LANCZOS if max(image.size) > 99 else Image.Resampling.NEAREST  # drawings
        page.paste(ImageOps.pad(image, (width, height), method, "white"), (x, y))
        while font.getlength(label) > width:
            label = label[:-2] + "…"
        ImageDraw.Draw(page).text((x + width // 2, y + height + 8), label, "#222", font, "ma")
    return page


def odd_files(examples: list[Example]) -> str:
    """Decodes them all: the unreadable ones by name, and how the others are stored, with examples of each."""
    bad, kinds = [], defaultdict(list)
    for example in _bar(examples, desc="decoding", unit=" images"):
        try:
            example.image()
            for path in getattr(example.open, "args", ()):  # the embedded world's have none
                with Image.open(path) as file:
                    turned = ", turned by EXIF" * (file.getexif().get(0x0112) in UPRIGHT)
                    tiny = ", under 28 pixels" * (min(file.size) < 28)
                    kinds[f"{file.format} {file.mode} named {path.suffix}{turned}{tiny}"].append(example.id)
        except BadImage as e:
            bad.append(f"  {e}")
    lines = [f"{len(examples) - len(bad)} read, {len(bad)} unreadable", *bad[:50]]
    if len(bad) > 50:
        lines.append(f"  and {len(bad) - 50} more")
    lines += [f"  {len(ids)} {kind}: {', '.join(ids[:5])}" for kind, ids in sorted(kinds.items())]
    return "\n".join(lines)


def show(args) -> None:
    """Prints what is there and writes the sheet; decodes the images at the end, which takes longest."""
    sets, missing = {}, []
    for split in [args.split] if args.split else SPLITS:
        try:
            sets[split] = load(args.data, split, args.root, protocol=args.protocol)
        except FileNotFoundError as e:
            missing.append(e)
    if not sets:
        raise missing[0]
    counts = {split: Counter(e.label for e in examples) for split, examples in sets.items()}
    for split, each in counts.items():
        least, most = min(each.values()), max(each.values())
        print(f"{split:6}{each.total():7} images{len(each):5} classes of {least} to {most}")
    if "val" in sets and set(sets["val"]) <= set(sets.get("train", ())):
        del sets["val"]  # not decoded twice
        print("val, as none is published: what the official subset leaves of train")
    classes = (f"{label} {'/'.join(str(each[label]) for each in counts.values())}"
               for label in sorted(set().union(*counts.values())))
    table = f"images of each class ({'/'.join(counts)}): {', '.join(classes)}"
    print(*missing, textwrap.fill(table, 110), sep="\n")
    first, examples = next(iter(sets.items()))
    print(f"some of {first}:", *(f"  {e.id}: {e.label}" for e in spread(examples, 10)), sep="\n")
    picture = Path(args.sheet or f"runs/{title(args.data)}-{first}.png")
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        sheet(spread(examples, 24)).save(picture)
    except (OSError, ValueError) as e:
        raise OSError(f"cannot write the sheet of pictures ({e}): say --sheet FILE.png") from None
    print(f"pictures of {first}: {picture}", flush=True)
    for split, examples in sets.items():
        print(f"{split}: {odd_files(spread(examples, args.limit or len(examples)))}", flush=True)


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
            download(args.data, args.root)
        show(args)
    except (ValueError, OSError, ImportError) as e:
        sys.exit(f"data.py: {(str(e) or type(e).__name__).splitlines()[0]}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on")


if __name__ == "__main__":
    main()
