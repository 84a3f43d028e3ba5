"""What a dataset holds: how many images of which classes, a sheet of pictures, odd and unreadable files."""

import argparse
import os
import textwrap
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from data import (SPLITS, UPRIGHT, BadImage, Example, load, picture_formats, read_image, spread,
                  stored_orientation, title)

PATCH = 28  # pixels: a smaller picture is less than one patch of Qwen2.5-VL's


def show(args: argparse.Namespace) -> None:
    """Prints what is there and writes the sheet; decodes the images at the end, which takes longest.
    args: data, root, split, protocol, sheet and limit of `python data.py`."""
    sets, missing = load_splits(args)
    counts = {}  # of each split: how many images each label has
    for split, examples in sets.items():
        counts[split] = Counter(example.label for example in examples)
    print_counts(counts)

    # A validation set that is a part of train is counted but not decoded twice.
    if is_from_train("val", sets):
        del sets["val"]
        print("val, as none is published: what the official subset leaves of train")
    for error in missing:
        print(error)
    print_classes(counts)

    # Examples and pictures of the first split that is there.
    first = next(iter(sets))
    examples = sets[first]
    print(f"some of {first}:")
    for example in spread(examples, 10):
        print(f"  {example.id}: {example.label}")
    picture = Path(args.sheet or f"runs/{title(args.data)}-{first}.png")
    save_sheet(spread(examples, 24), picture)
    print(f"pictures of {first}: {picture}", flush=True)

    # Every image, or an even spread of them, decoded.
    for split, examples in sets.items():
        some = spread(examples, args.limit or len(examples))
        print(f"{split}: {odd_files(some)}", flush=True)


def load_splits(args: argparse.Namespace) -> tuple[dict[str, list[Example]], list[FileNotFoundError]]:
    """The splits that are there, and why the others are not. Raises where there is none."""
    wanted = [args.split] if args.split else SPLITS
    sets = {}
    missing = []
    for split in wanted:
        try:
            sets[split] = load(args.data, split, args.root, protocol=args.protocol)
        except FileNotFoundError as error:
            missing.append(error)
    if not sets:
        raise missing[0]
    return sets, missing


def is_from_train(split: str, sets: dict[str, list[Example]]) -> bool:
    """Whether a split is a part of the training images."""
    return split in sets and set(sets[split]) <= set(sets.get("train", ()))


def print_counts(counts: dict[str, Counter]) -> None:
    """A line for each split."""
    for split, images in counts.items():
        least = min(images.values())
        most = max(images.values())
        print(f"{split:6}{images.total():7} images{len(images):5} classes of {least} to {most}")


def print_classes(counts: dict[str, Counter]) -> None:
    """Every label with its images in each split, as a paragraph."""
    labels = set().union(*counts.values())
    classes = []
    for label in sorted(labels):
        numbers = "/".join(str(images[label]) for images in counts.values())
        classes.append(f"{label} {numbers}")
    table = f"images of each class ({'/'.join(counts)}): {', '.join(classes)}"
    print(textwrap.fill(table, 110))


# ------------------------------------------------------------------------------------------------------------
# The sheet of pictures


def save_sheet(examples: list[Example], file: Path) -> None:
    # Written beside the file first: a full disk must not cost an older sheet. (support/files.py would do it,
    # but this folder works without that one.)
    temporary = file.with_name(".tmp-" + file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet(examples).save(temporary)
        os.replace(temporary, file)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write the sheet of pictures ({error}): say --sheet FILE.png") from None


def sheet(examples: list[Example], columns: int = 6, width: int = 200, height: int = 160) -> Image.Image:
    """A grid of pictures, each in a cell of width x height pixels, over their labels."""
    margin = 16   # beside each picture
    caption = 48  # below each picture
    rows = -(-len(examples) // columns)  # rounded up
    font = ImageFont.load_default(15)
    page = Image.new("RGB", (columns * (width + margin) + margin, rows * (height + caption)), "white")
    pen = ImageDraw.Draw(page)
    for place, example in enumerate(examples):
        row, column = divmod(place, columns)
        x = margin + column * (width + margin)
        y = margin + row * (height + caption)
        picture, label = thumbnail(example, width, height)
        page.paste(picture, (x, y))
        while font.getlength(label) > width:
            label = label[:-2] + "…"
        pen.text((x + width // 2, y + height + 8), label, "#222", font, "ma")
    return page


def thumbnail(example: Example, width: int, height: int) -> tuple[Image.Image, str]:
    """An example's picture, fit into width x height pixels, and its label; a grey field where it can't be
    read."""
    label = example.label
    try:
        image = example.image()
    except BadImage:
        image = Image.new("RGB", (width, height), "#ddd")
        label = f"unreadable: {label}"
    is_drawing = max(image.size) <= 99  # of the embedded world: its pixels are meant to be seen
    method = Image.Resampling.NEAREST if is_drawing else Image.Resampling.LANCZOS
    return ImageOps.pad(image, (width, height), method, "white"), label


# ------------------------------------------------------------------------------------------------------------
# Odd files


def odd_files(examples: list[Example]) -> str:
    """Decodes them all: the unreadable ones by name, and how the others are stored, with examples of each."""
    unreadable = []
    kinds = defaultdict(list)  # how a file is stored: ids
    for example in tqdm(examples, desc="decoding", unit=" images", leave=False, disable=None):
        try:
            example.image()
        except BadImage as error:
            unreadable.append(f"  {error}")
            continue
        file = stored_file(example)
        if file is not None:
            kinds[storage(file)].append(example.id)

    lines = [f"{len(examples) - len(unreadable)} read, {len(unreadable)} unreadable"]
    lines += unreadable[:50]
    if len(unreadable) > 50:
        lines.append(f"  and {len(unreadable) - 50} more")
    for kind, ids in sorted(kinds.items()):
        lines.append(f"  {len(ids)} {kind}: {', '.join(ids[:5])}")
    return "\n".join(lines)


def stored_file(example: Example) -> Path | None:
    """The file that an example is read from; None for the embedded world, whose pictures are drawn."""
    if getattr(example.open, "func", None) is read_image:
        return example.open.args[0]
    return None


def storage(file: Path) -> str:
    """How an image that can be read is stored: format, mode and suffix, and what is odd about it."""
    try:
        with Image.open(file, formats=picture_formats()) as image:
            kind = f"{image.format} {image.mode} named {file.suffix}"
            if stored_orientation(image) in UPRIGHT:
                kind += ", turned by EXIF"
            if min(image.size) < PATCH:
                kind += f", under {PATCH} pixels"
            return kind
    except Exception:  # whatever Pillow says to a text or a profile that read_image leaves out
        return f"with a broken or long text, named {file.suffix}"
