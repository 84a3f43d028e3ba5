"""FGVC-Aircraft 2013b, variant level: a text file for each split; all that follows the number is the label.

    fgvc-aircraft-2013b/data/images/1025794.jpg
    fgvc-aircraft-2013b/data/images_variant_train.txt, ..._val.txt, ..._test.txt    "0966109 BAE 146-200"

The copyright line at the foot of each picture stays, as in the official release.
"""

from collections.abc import Iterator
from pathlib import Path

from data import Row, match_lines


def read(folder: Path) -> Iterator[Row]:
    for split in ("train", "val", "test"):
        lines = match_lines(folder / f"images_variant_{split}.txt", r"(\d+) (.+)", "1025794 707-320")
        for number, variant in lines:
            yield Row(split, f"{number}.jpg", variant)
