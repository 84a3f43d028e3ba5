"""Food-101: a text file for each split, whose lines are an image's path without .jpg.

    food-101/images/apple_pie/1005649.jpg
    food-101/meta/train.txt, test.txt    "apple_pie/1005649"
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row, match_lines


def read(folder: Path) -> Iterator[Row]:
    for split in ("train", "test"):
        lines = match_lines(folder / "meta" / f"{split}.txt", r"(([^/]+)/[^/]+)", "apple_pie/1005649")
        for path, label in lines:
            yield Row(split, f"{path}.jpg", label)
