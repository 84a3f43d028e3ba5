"""What a dataset holds: counts, pictures, odd files."""

import textwrap
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from data import SPLITS, UPRIGHT, BadImage, Example, load, spread, title
from readers.download import _bar


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
