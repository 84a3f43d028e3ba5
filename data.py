"""Datasets as they come on disk, and the embedded world, as lists of examples whose images are read when
asked for.

    python data.py --data flowers --root DIR              what is there: counts, examples, a sheet of pictures
    python data.py --data flowers --root DIR --download   fetch it first

As a library: `load("cub", "train", root="data", limit=3000)`. Names: cub, flowers, food, pets, cars,
aircraft; the embedded world's toy (= toy-bird), toy-flower, toy-vehicle, toy-fish; a folder of class folders;
a .jsonl file of {"image": path, "label": name}, and if wanted "split": train, val or test.

Where this departs from the official release:
1. Images are read as the archives unpack, not re-encoded into parquet; the EXIF rotation is applied,
   transparency becomes white, 16-bit grey is scaled.
2. Flowers, food and pets are split as published; protocol="coop" is the release's split. For flowers and food
   the two share images across train and test: one protocol for a run.
3. Where no validation set is published, it is the training images that the official subset of 3,000 leaves
   unused (the release chooses on test images).
"""

import argparse
import csv
import functools
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
import urllib.request
import zlib
from collections import Counter, defaultdict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

OFFICIAL_SUBSET = 3000  # CUB images the paper trains on: random.seed(42), random.sample
SPLITS = {"train": ("train", "trnid", "trainval"), "val": ("val", "valid", "validation"),
          "test": ("test", "tstid")}  # ours: what publishers call them
OURS = {published: ours for ours, names in SPLITS.items() for published in names}
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation: Image.Transpose
PICTURES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"}


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
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise BadImage(f"cannot read the image {path}: {reason}") from None


def load(name: str, split: str = "train", root=None, limit: int | None = None, seed: int = 42,
         protocol: str = "official") -> list[Example]:
    """The examples of one split: "train", "val", "test", or the publisher's own name for one ("trainval").

    root: the dataset's folder or one above it (default: ./data). limit: a random subset of that many images,
    drawn by `seed` as the release draws it: load("cub", limit=3000) is the paper's training set in its order.
    Raises ValueError for an unknown name, split or protocol and for malformed files, FileNotFoundError with
    what to fetch and where to put it.
    """
    if split not in OURS:
        raise ValueError(f"unknown split {split!r}: choose train, val or test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    toy = name == "toy" or name.startswith("toy-")
    if not (toy or name in SETS or name.endswith(".jsonl") or name and Path(name).is_dir()):
        raise ValueError(f"unknown dataset {name!r}: choose {', '.join(SETS)}, toy-bird, -flower, -vehicle, "
                         "-fish, a folder of class folders or a .jsonl file")
    if protocol != "official" and not (protocol == "coop" and name in COOP):
        raise ValueError(f"unknown protocol {protocol!r} for {name}: choose official, or coop for "
                         + ", ".join(COOP))
    examples = _toy(name, OURS[split]) if toy else _listed(name, split, Path(root or "data"), protocol)
    return examples if limit is None or limit >= len(examples) else _subset(examples, limit, seed)


def _listed(name: str, split: str, root: Path, protocol: str) -> list[Example]:
    """Reads the lists of all splits, to be sure that no image is in two, and returns one split."""
    folder, domain = Path(name), Path(name).resolve().stem
    try:
        if name in SETS:
            folder, domain = _find(name, root, protocol), name
            rows = SETS[name].read(folder) if protocol == "official" else _coop(name, folder)
        elif name.endswith(".jsonl"):
            folder, rows = folder.parent, _jsonl(folder)
        else:
            rows = _class_folders(folder)
    except (TypeError, LookupError, AttributeError) as e:  # JSON or .mat of another shape
        raise ValueError(f"{folder}: a file is not as published ({type(e).__name__}: {e})") from None
    published = {ours: next((n for n in names if rows.get(n)), None) for ours, names in SPLITS.items()}
    listed = Counter(path for n in published.values() for path, _ in rows.get(n, ()))
    for path, times in listed.most_common(1):
        if times > 1:
            raise ValueError(f"{name}: {path} is listed twice in train, val and test together")
    chosen = rows.get(published[OURS[split]], [])
    if split == "trainval":
        chosen = chosen + rows.get(published["val"], [])
    if OURS[split] == "val" and not chosen and published["train"]:
        chosen = rows[published["train"]]  # what the official subset leaves; train.py drops any in use
        used = set(_subset(chosen, min(OFFICIAL_SUBSET, len(chosen) // 2), seed=42))
        chosen = [row for row in chosen if row not in used]
    if not chosen:
        there = ", ".join(n for n in rows if rows[n]) or "none in folders SPLIT/CLASS or CLASS"
        raise FileNotFoundError(f"{name} has no {split} images in {folder} (there are: {there})" +
                                ": is cars_test_annos_withlabels.mat missing?" * (name == "cars"))
    return [Example(f"{Path(name).as_posix()}/{path}", label, domain,
                    functools.partial(read_image, _file(name, folder, path))) for path, label in chosen]


def _subset(examples: list, k: int, seed: int) -> list:
    """random.sample over the indices, in sampled order: with seed 42 the release's own choice."""
    return [examples[i] for i in random.Random(seed).sample(range(len(examples)), k)]


def spread(examples: list, limit: int) -> list:
    """An even spread over the set: the first few hundred images of CUB are a handful of its classes."""
    if len(examples) <= limit:
        return examples
    return [examples[i * len(examples) // limit] for i in range(limit)]


TOY_SIZES = {"train": 1000, "val": 200, "test": 300}  # images a domain of the embedded world


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
# Readers: a set's folder -> {publisher's split: [(path of an image, label), ...]}, in the publisher's order

def _lines(file: Path, pattern: str, example: str):
    """The groups of every line that is neither blank nor a comment."""
    for n, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            match = re.fullmatch(pattern, line.strip())
            if not match:
                raise ValueError(f"{file}, line {n}: expected a line like {example!r}, got {line[:60]!r}")
            yield match.groups()


def _csv(file: Path, *columns: str):
    with open(file, encoding="utf-8-sig", newline="") as f:
        for n, row in enumerate(csv.DictReader(f), 2):
            if not all(row.get(column) for column in columns):
                raise ValueError(f"{file}, line {n}: expected the columns {', '.join(columns)}")
            yield [row[column] for column in columns]


def _json(file: Path) -> dict:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError) as e:
        raise ValueError(f"{file} is no JSON object: {e}") from None


def _counted(names) -> dict:
    return {str(i): name for i, name in enumerate(names, 1)}  # as the publishers count, from 1


def _pick(names: dict, number, file: Path, whose: str):
    number = str(int(number))  # an array's may be a float
    if number not in names:
        raise ValueError(f"{file}: the class of {whose} is number {number}, not one of 1 to {len(names)}")
    return names[number]


def _words(name: str) -> str:
    name = " ".join(name.replace("_", " ").split())
    return {"lotus lotus": "lotus", "Ram C-V Cargo Van Minivan 2012": "Ram C/V Cargo Van Minivan 2012"
            }.get(name, name)


def _cub(folder: Path) -> dict:
    classes, paths, labels, is_train = (dict(_lines(folder / file, r"(\d+) (.+)", "12 value"))
                                        for file in SETS["cub"].needs.split()[:4])
    rows = {"train": [], "test": []}
    for number, path in paths.items():
        try:
            label = _words(classes[labels[number]].split(".", 1)[-1])
            rows["train" if is_train[number] == "1" else "test"].append((path, label))
        except KeyError as e:
            raise ValueError(f"{folder}: image {number} needs {e}, which no file lists") from None
    return rows


def _flowers(folder: Path) -> dict:
    """The publisher names no class: cat_to_name.json does, or metadata.csv, which counts from 0."""
    file, ids, rows = folder / "cat_to_name.json", folder / "setid.mat", {}
    names = _json(file) if file.is_file() else _counted(
        name for _, name in _csv(folder / "metadata.csv", "idx", "class_name"))
    classes = read_mat(folder / "imagelabels.mat", "labels").ravel()
    for split in ("trnid", "valid", "tstid"):
        numbers = read_mat(ids, split).ravel().astype(int)
        if not ((numbers > 0) & (numbers <= len(classes))).all():
            raise ValueError(f"{ids}: {split} has images beyond the {len(classes)} of imagelabels.mat")
        rows[split] = [(f"image_{i:05d}.jpg", _words(_pick(names, classes[i - 1], ids, f"image {i}")))
                       for i in numbers]
    return rows


def _food(folder: Path) -> dict:
    return {split: [(f"{name}/{i}.jpg", _words(name)) for name, i in _lines(
        folder / f"meta/{split}.txt", r"([^/]+)/([^/]+?)(?:\.jpg)?", "apple_pie/1005649")]
        for split in ("train", "test")}


def _pets(folder: Path) -> dict:
    rows, classes = {}, _counted([""] * 37)
    for split in ("trainval", "test"):
        file, pattern = folder / f"annotations/{split}.txt", r"((\S+)_\d+) (\d+) [12] \d+"
        rows[split] = [(f"{stem}.jpg", _words(breed).lower() + _pick(classes, n, file, stem))
                       for stem, breed, n in _lines(file, pattern, "Abyssinian_100 1 1 1")]
    return rows


def _cars(folder: Path) -> dict:
    """The devkit, the older cars_annos.mat with all images in car_ims, or a re-host in class folders."""
    old, kit, rows = folder / "cars_annos.mat", folder / "devkit", {"train": [], "test": []}
    if not (old.is_file() or kit.is_dir()):
        return _class_folders(folder)
    labelled = [f / "cars_test_annos_withlabels.mat" for f in (folder, kit)]  # the devkit's own has no labels
    files = [old] if old.is_file() else [kit / "cars_train_annos.mat", *filter(Path.is_file, labelled)][:2]
    names = _counted(read_mat(old if old.is_file() else kit / "cars_meta.mat", "class_names").flat)
    for file in files:
        for car in read_mat(file, "annotations").flat:
            split = "test" if file in labelled or "test" in car and car["test"].item() else "train"
            path = car.get("relative_im_path") or f"cars_{split}/{car['fname']}"
            rows[split].append((path, _words(_pick(names, car["class"].item(), file, path))))
    return rows


def _aircraft(folder: Path) -> dict:
    return {split: [(f"{i}.jpg", _words(label)) for i, label in _lines(
        folder / f"images_variant_{split}.txt", r"(\d+) (.+)", "1025794 707-320")] for split in SPLITS}


def _coop(name: str, folder: Path) -> dict:
    """CoOp's {split: [[path, class, name], ...]}; or split_coop.csv, with labels.csv and metadata.csv."""
    file, rows = folder / f"split_zhou_{COOP[name]}.json", {split: [] for split in SPLITS}
    file = next((f for f in (file, folder.parent / file.name) if f.is_file()), folder / "split_coop.csv")
    if file.suffix == ".json":
        listed = [(split, *row) for split, part in _json(file).items() for row in map(tuple, part)]
    else:
        names, known = {}, {}  # food and pets say it in the path
        if name not in ("food", "pets"):
            names = dict(_csv(folder / "metadata.csv", "idx", "class_name"))
            known = dict(_csv(folder / "labels.csv", "filename", "class_idx"))
        by_path = re.compile({"food": "([^/]+)/.*", "pets": r".*?([^/]+)_\d+\.jpg"}.get(name, "()"))
        listed = [(split, path, 0, names.get(known.get(path)) or (by_path.fullmatch(path) or [0, None])[1])
                  for split, path in _csv(file, "split", "filename")]
    for row in listed:
        if len(row) != 4 or row[0] not in rows or not all(isinstance(row[i], str) for i in (1, 3)):
            raise ValueError(f"{file}: expected a split, a path, a class and its name, got {row}")
        split, path, _, label = row
        if name == "pets":
            path, label = Path(path).name, label.lower()
        elif name == "cars":  # to the devkit's paths, and the year last
            path = re.sub(r"^(train|test)/([^/]+)$", r"cars_\1/\2", path)
            label = re.sub(r"^(\d{4}) (.+)", r"\2 \1", label)
        rows[split].append((path, _words(label)))
    return rows


def _class_folders(folder: Path) -> dict:
    """SPLIT/CLASS/IMAGE; or CLASS/IMAGE, split by a hash of the path. Hidden files and others are skipped."""
    split_first, rows = any((folder / split).is_dir() for split in OURS), defaultdict(list)
    for file in sorted(Path(f) for f in glob.glob("**/*", root_dir=folder, recursive=True)):
        split, *inner = file.parts if split_first else (_hashed(file.as_posix()), *file.parts)
        if len(inner) > 1 and file.suffix.lower() in PICTURES and split in OURS:
            rows[split].append((file.as_posix(), _words(inner[0])))
    return rows


def _jsonl(file: Path) -> dict:
    rows = defaultdict(list)
    for n, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").split("\n"), 1):
        try:
            if line.strip():
                row = json.loads(line)
                path, label, split = Path(row["image"]).as_posix(), row["label"].strip(), row.get("split")
                rows[OURS[split or _hashed(path)]].append((path, label or row["no label"]))
        except (ValueError, TypeError, LookupError, AttributeError):
            raise ValueError(f'{file}, line {n}: expected {{"image": path, "label": name}} and, if wanted, '
                             f'"split": train, val or test, got {line[:60]!r}') from None
    return rows


def _hashed(path: str) -> str:
    """70 % train, 10 % val, 20 % test; an image keeps its place whatever else is added."""
    return ("test", "test", "val", *["train"] * 7)[int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10]


def _file(name: str, folder: Path, path: str) -> Path:
    """Where an image lies. The release sorts the pets into class folders on first use: both are read."""
    file = folder / (SETS[name].images if name in SETS else ".") / path
    nested = file.parent / path.rsplit("_", 1)[0] / path
    return nested if name == "pets" and not file.exists() and nested.exists() else file


# ------------------------------------------------------------------------------------------------------------
# What is published: the names its folder goes by; what must lie there ("a|b": either); where the images are;
# the files with their MD5 as public readers state it

COOP = {"flowers": "OxfordFlowers", "food": "Food101", "pets": "OxfordPets", "cars": "StanfordCars"}
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
Published = namedtuple("Published", "read title folders needs images url files")
SETS = {
    "cub": Published(
        _cub, "CUB-200-2011", "CUB_200_2011 cub cub200",
        "classes.txt images.txt image_class_labels.txt train_test_split.txt images", "images",
        "https://data.caltech.edu/records/65de6-vp158/files/",
        {"CUB_200_2011.tgz": "97eceeb196236b17998738112f37df78"}),
    "flowers": Published(
        _flowers, "Oxford Flowers-102", "flowers-102 flowers102 oxford_flowers flowers",
        "imagelabels.mat setid.mat cat_to_name.json|metadata.csv jpg", "jpg", OXFORD + "flowers/102/",
        {"102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
         "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
         "setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
         "https://raw.githubusercontent.com/udacity/pytorch_challenge/master/cat_to_name.json": None}),
    "food": Published(
        _food, "Food-101", "food-101 food101 food", "meta/train.txt meta/test.txt images", "images",
        "http://data.vision.ee.ethz.ch/cvl/", {"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"}),
    "pets": Published(
        _pets, "Oxford-IIIT Pets", "oxford-iiit-pet oxford_pets pets",
        "annotations/trainval.txt annotations/test.txt images", "images", OXFORD + "pets/data/",
        {"images.tar.gz": "5c4f3ee8e5d25df40f4fd59a7f44e54c",
         "annotations.tar.gz": "95a8c909bbe2e81eed6a22bccdf3f68f"}),
    "cars": Published(
        _cars, "Stanford Cars", "stanford_cars stanford-cars cars",
        "devkit/cars_meta.mat|cars_annos.mat|train devkit/cars_train_annos.mat|cars_annos.mat|train", ".",
        "someone's copy (Stanford's host is gone; a re-host in folders train/CLASS and test/CLASS will do)",
        dict.fromkeys("cars_train.tgz cars_test.tgz car_devkit.tgz cars_test_annos_withlabels.mat".split())),
    "aircraft": Published(
        _aircraft, "FGVC-Aircraft", "fgvc-aircraft-2013b fgvc_aircraft aircraft data",
        "images_variant_train.txt images_variant_val.txt images_variant_test.txt images", "images",
        OXFORD + "fgvc-aircraft/archives/",
        {"fgvc-aircraft-2013b.tar.gz": "d4acdd33327262359767eeaa97a4f732"}),
}


def _find(name: str, root: Path, protocol: str) -> Path:
    """Of root and up to three levels of the folders the set goes by, the one with most of what is needed."""
    known, folders, needs = SETS[name], [root], SETS[name].needs
    advice = (f"fetch {', '.join(known.files)} from {known.url} and unpack it there, or say --root FOLDER"
              + f", or python data.py --data {name} --download" * known.url.startswith("http"))
    if protocol == "coop":
        file = f"split_zhou_{COOP[name]}.json"
        needs, advice = f"{known.images} {file}|../{file}|split_coop.csv", "see CoOp's DATASETS.md"
    for folder in folders:
        if len(folder.parts) < len(root.parts) + 3:
            folders += [folder / n for n in known.folders.split() if (folder / n).is_dir()]

    def missing(folder):
        return [n for n in needs.split() if not any((folder / o).exists() for o in n.split("|"))]
    folder = min(folders, key=lambda f: len(missing(f)))
    if missing(folder):
        raise FileNotFoundError(f"{known.title} is not in {folder} as its archive unpacks: "
                                f"{missing(folder)[0].replace('|', ' or ')} is missing; {advice}")
    return folder


def download(name: str, root=None) -> None:
    """Fetches and unpacks a published set into root/name; once that is done, nothing."""
    known, folder = SETS.get(name), Path(root or "data") / name
    if not known or not known.url.startswith("http"):
        raise ValueError(f"{name} cannot be downloaded" + (
            f": {known.title} comes as {', '.join(known.files)} from {known.url}" if known else ""))
    if not (folder / ".complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for file, md5 in known.files.items():
            fetch(urllib.parse.urljoin(known.url, file), folder / Path(file).name, md5)
        for archive in (file for file in known.files if file.endswith("gz")):
            unpack(folder / archive, folder)
        (folder / ".complete").touch()
    print(f"{known.title} is in {folder}")


def fetch(url: str, file: Path, md5: str | None = None) -> None:
    """Into FILE.part, where a broken transfer goes on; FILE once size and MD5 are right. Raises OSError."""
    part = file.with_name(file.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    if file.exists():
        return
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0", "Range": f"bytes={start}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            start = start if reply.status == 206 else 0  # 200: the server ignores ranges
            total = start + int(reply.headers["Content-Length"] or 0)
            with open(part, "ab" if start else "wb") as f, _bar(
                    desc=file.name, total=total, initial=start, unit="B", unit_scale=True) as bar:
                while block := reply.read(1 << 18):
                    bar.update(f.write(block))
        if part.stat().st_size < total:
            raise OSError(f"broke off at {part.stat().st_size} of {total} bytes")
    except (OSError, http.client.HTTPException) as e:
        beyond = getattr(e, "code", None) == 416  # all of it was there, or it was of another file
        if beyond and e.headers["Content-Range"] != f"bytes */{start}":
            part.unlink(missing_ok=True)
        if not beyond or not part.exists():
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
                inside = (home / member.name).resolve().is_relative_to(home)
                if not inside or not (member.isreg() or member.isdir()):
                    raise ValueError(f"{archive}: {member.name!r} is a link, a device or outside: refused")
                tar.extract(member, home, filter="data")
            while tar.fileobj.read(1 << 20):  # to the checksum at the end
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise OSError(f"{archive} is damaged ({e}): delete it and fetch it again") from None


def _bar(items=None, **kwargs):
    from tqdm import tqdm  # only here: the readers want numpy and Pillow alone
    return tqdm(items, leave=False, disable=None, **kwargs)


# ------------------------------------------------------------------------------------------------------------
# MATLAB files, level 5, as MathWorks' "MAT-File Format" describes them

STORED = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "i1 u1 i2 u2 i4 u4 f4 f8 i8 u8".split(), strict=True))


def read_mat(path, variable: str):
    """A variable in MATLAB's shape: numbers as an array, char as str (several rows: an array), a cell as an
    object array of values, a struct as one of dicts. Raises ValueError that names the file."""
    data = Path(path).read_bytes()
    try:
        order = {b"\0\1IM": "<", b"\1\0MI": ">"}[data[124:128]]
        return dict(_matrix(body, order) for _, body in _elements(data[128:], order))[variable]
    except (ValueError, TypeError, LookupError, struct.error, zlib.error) as e:
        raise ValueError(f"{path} is no whole MATLAB v5 file with {variable!r} in it: {e}") from None


def _elements(data: bytes, order: str):
    """(type, bytes) of each element, the compressed ones unpacked."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        at += 8
        if kind >> 16:  # four bytes or fewer stand in the tag itself
            yield kind & 0xffff, data[at - 4:at - 4 + (kind >> 16)]
            continue
        if at + size > len(data):
            raise ValueError("cut off")
        if kind == 15:
            yield from _elements(zlib.decompress(data[at:at + size]), order)
        else:
            yield kind, data[at:at + size]
        at += size if kind == 15 else size + -size % 8


def _matrix(data: bytes, order: str):
    """(name, value) of an array: its flags, shape and name, then what its class wants."""
    if not data:
        return "", np.empty((0, 0))
    (_, flags), (_, shape), (_, name), *parts = _elements(data, order)
    kind, shape = np.frombuffer(flags, order + "u4")[0] & 255, np.frombuffer(shape, order + "i4")
    if kind == 4:  # char, down the columns
        (stored, text), = parts
        wide = {4: "utf-16", 17: "utf-16", 18: "utf-32"}.get(stored)
        text = text.decode(f"{wide}-{'le' if order == '<' else 'be'}" if wide else "utf-8")
        return name.decode(), np.array([text[r::shape[0]] for r in range(shape[0])]) if shape[0] > 1 else text
    if kind in (1, 2):  # cell, struct
        names = []
        if kind == 2:
            (_, width), (_, fields), *parts = parts
            width = np.frombuffer(width, order + "i4")[0]
            names = [fields[i:i + width].split(b"\0")[0].decode() for i in range(0, len(fields), width)]
        values = [_matrix(body, order)[1] for _, body in parts]
        if names:
            rows = zip(*[iter(values)] * len(names), strict=True)
            values = [dict(zip(names, row, strict=True)) for row in rows]
        return name.decode(), np.fromiter(values, object, len(values)).reshape(shape, order="F")
    if not 6 <= kind <= 15:
        raise ValueError(f"class {kind} is not read")
    real, *imaginary = (np.frombuffer(body, order + STORED[stored]) for stored, body in parts)
    return name.decode(), (real + 1j * imaginary[0] if imaginary else real).reshape(shape, order="F")


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
        small = ImageOps.contain(image, (width, height), int(max(image.size) > 99))  # drawings by pixel
        page.paste(small, (x + (width - small.width) // 2, y + (height - small.height) // 2))
        while font.getlength(label) > width:
            label = label[:-2] + "…"
        ImageDraw.Draw(page).text((x + width // 2, y + height + 8), label, "#222", font, "ma")
    return page


def check(examples: list[Example]) -> str:
    """Decodes them all: a line for each unreadable image, and how the others are stored, with examples."""
    bad, kinds = [], defaultdict(list)
    for example in _bar(examples, desc="decoding", unit=" images"):
        try:
            example.image()
            for path in getattr(example.open, "args", ()):  # the embedded world's have none
                with Image.open(path) as file:
                    turned = ", turned by EXIF" * (file.getexif().get(0x0112, 1) != 1)
                    tiny = ", under 28 pixels" * (min(file.size) < 28)
                    kinds[f"{file.format} {file.mode} named {path.suffix}{turned}{tiny}"].append(example.id)
        except BadImage as e:
            bad.append(f"  {e}")
    kinds = [f"  {len(ids)} {kind}: {', '.join(ids[:2])}" for kind, ids in kinds.items()]
    return "\n".join([f"{len(examples)} decoded, {len(bad)} unreadable", *bad, *sorted(kinds)])


def main() -> None:
    parser = argparse.ArgumentParser(description="What a dataset holds.")
    parser.add_argument("--data", required=True, help="a set's name, a class-folder tree, a .jsonl file")
    parser.add_argument("--root", help="the dataset's folder or one above it (default: data)")
    parser.add_argument("--split", help="only this one")
    parser.add_argument("--protocol", default="official", help="official or coop")
    parser.add_argument("--sheet", help="where the sheet of pictures goes (default: runs/DATA-SPLIT.png)")
    parser.add_argument("--check", action="store_true", help="decode every image, name the odd ones")
    parser.add_argument("--limit", type=int, help="decode no more of a split than these, evenly spread")
    parser.add_argument("--download", action="store_true", help="fetch it into ROOT/DATA first")
    args = parser.parse_args()
    try:
        if args.download:
            download(args.data, args.root)
        sets, missing = {}, []
        for split in [args.split] if args.split else SPLITS:
            try:
                sets[split] = load(args.data, split, args.root, protocol=args.protocol)
            except FileNotFoundError as e:
                missing.append(e)
        if not sets:
            raise missing[0]
        for split, examples in sets.items():
            each = Counter(e.label for e in examples).values()
            unused = split == "val" and set(examples) <= set(sets.get("train", ()))
            print(f"{split:6}{len(examples):7} images{len(each):5} classes of {min(each)} to {max(each)}"
                  + ", those of train that the official subset leaves" * unused)
        first = next(iter(sets))
        ten = (f"  {e.id}: {e.label}" for e in spread(sets[first], 10))
        print(*missing, f"ten of {first}:", *ten, sep="\n")
        for split, examples in sets.items() if args.check else ():
            print(f"{split}: {check(spread(examples, args.limit or len(examples)))}")
        file = Path(args.sheet or f"runs/{Path(args.data).resolve().stem}-{first}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet(spread(sets[first], 24)).save(file)
        print(f"24 pictures of {first}: {file}")
    except (ValueError, OSError) as e:
        sys.exit(f"data.py: {(str(e).splitlines() or [type(e).__name__])[0]}")
    except KeyboardInterrupt:
        sys.exit("data.py: stopped; the same command goes on")


if __name__ == "__main__":
    main()
