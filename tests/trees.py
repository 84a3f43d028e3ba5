"""Miniature dataset trees, format-exact, with drawn pictures."""

from pathlib import Path

import numpy as np
from PIL import Image

BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "014.Indigo_Bunting", "087.Mallard"]


def cub(root: Path, per_class: int = 6, size=(70, 56)) -> Path:
    """CUB-200-2011 as its archive unpacks, with four classes; the odd images of each class are for
    training."""
    folder = root / "CUB_200_2011"
    rng = np.random.default_rng(0)
    images, labels, split = [], [], []
    for c, name in enumerate(BIRDS):
        for k in range(per_class):
            number = c * per_class + k + 1
            # the file's casing differs from the folder's
            path = f"{name}/{name.split('.')[1].title()}_{k:04d}_{number}.jpg"
            file = folder / "images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)
            images.append(f"{number} {path}")
            labels.append(f"{number} {c + 1}")
            split.append(f"{number} {(k + 1) % 2}")
    lines = {"classes.txt": [f"{i + 1} {n}" for i, n in enumerate(BIRDS)], "images.txt": images,
             "image_class_labels.txt": labels, "train_test_split.txt": split}
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    return folder
