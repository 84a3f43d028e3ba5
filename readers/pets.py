"""Oxford-IIIT Pets: a text file for each split; the class is the file's name without its number.

    oxford-iiit-pet/images/Abyssinian_100.jpg
    oxford-iiit-pet/annotations/trainval.txt, test.txt    "Abyssinian_100 1 1 1"

Cats are capitalised and dogs are not, so all labels are in lower case.
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row, match_lines


def read(folder: Path) -> Iterator[Row]:
    for split in ("trainval", "test"):
        lines = match_lines(folder / "annotations" / f"{split}.txt", r"((\S+)_\d+) [\d ]+", "Pug_1 1 1 1")
        for stem, breed in lines:
            yield Row(split, f"{stem}.jpg", breed.lower())


def find_image(images: Path, path: str) -> Path:
    """images/Abyssinian_100.jpg, or images/Abyssinian/Abyssinian_100.jpg: the official release sorts them
    into class folders on first use."""
    breed = path.rsplit("_", 1)[0]
    nested = images / breed / path
    if nested.exists():
        return nested
    return images / path
