"""data.py copied without the project: what it reads, and the line that names the folder it lacks."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import data
import trees

PROJECT = Path(data.__file__).parent

# A stand-in that cannot be imported for each package that data.py and its readers do without.
BLOCKED = "import sys\nfor name in ('torch', 'transformers', 'tqdm', 'scipy'): sys.modules[name] = None\n"


def python(folder: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=folder, capture_output=True, text=True)


def copied(folder: Path, *folders: str) -> None:
    """data.py, and these folders of the project beside it."""
    shutil.copy(PROJECT / "data.py", folder)
    for name in folders:
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def test_alone_it_reads_cub_class_folders_and_jsonl(tmp_path):
    copied(tmp_path)
    trees.cub(tmp_path)
    trees.picture(tmp_path / "mine/train/grey_heron/1.jpg")
    (tmp_path / "own.jsonl").write_text(
        '{"image": "mine/train/grey_heron/1.jpg", "label": "heron", "split": "test"}')
    code = BLOCKED + "\n".join([
        "import data",
        "for name, split in [('cub', 'train'), ('mine', 'train'), ('own.jsonl', 'test')]:",
        "    example = data.load(name, split, root='.')[0]",
        "    print(example.label, example.domain, example.image().size)",
        "print(sorted(name for name in sys.modules if name in ('readers', 'toy')))"])
    done = python(tmp_path, "-c", code)
    assert done.stdout.splitlines() == ["Black footed Albatross cub (70, 56)", "grey heron mine (24, 16)",
                                        "heron own (24, 16)", "[]"], done.stderr


def test_with_readers_beside_it_it_reads_the_others_with_numpy_and_pillow_only(tmp_path):
    copied(tmp_path, "readers")
    trees.cars(tmp_path)
    code = BLOCKED + "\n".join([
        "sys.modules['toy'] = None",
        "import data",
        "print(data.load('cars', root='.')[0].image().size)",
        "print(data.load('cars', 'test', '.')[0].label)"])
    done = python(tmp_path, "-c", code)
    assert done.stdout == "(24, 16)\nAcura TL Type-S 2008\n", done.stderr


@pytest.mark.parametrize("name, folder", [
    ("flowers", "readers"), ("food", "readers"), ("pets", "readers"), ("cars", "readers"),
    ("aircraft", "readers"), ("toy", "toy"), ("toy-fish", "toy")])
def test_a_set_whose_folder_is_missing_names_it_in_one_line(tmp_path, name, folder):
    copied(tmp_path)
    code = BLOCKED + "\n".join([
        "import data",
        "try:",
        f"    data.load({name!r}, root='.')",
        "except ValueError as error:",
        "    print(error)"])
    done = python(tmp_path, "-c", code)
    assert done.stdout == (f"{name} needs the folder {folder}/, which is not beside data.py: copy it there\n"
                           ), done.stderr


def test_the_command_without_its_folders_ends_in_one_line(tmp_path):
    copied(tmp_path)
    done = python(tmp_path, "data.py", "--data", "cub")
    assert done.returncode == 1
    assert done.stderr == ("data.py: python data.py needs the folder readers/, which is not beside data.py: "
                           "copy it there\n")
    copied(tmp_path, "readers")
    done = python(tmp_path, "data.py", "--data", "toy")
    assert done.returncode == 1
    assert done.stderr == "data.py: toy needs the folder toy/, which is not beside data.py: copy it there\n"


def test_it_names_all_sets_that_readers_adds():
    assert list(data.published()) == ["cub", *data.IN_READERS]


def test_the_command_counts_an_unreadable_picture_that_readers_meets(tmp_path):
    """data.py runs as __main__ and readers/ imports it back: an error of either is known to both."""
    folder = trees.pets(tmp_path) / "images"
    (folder / "Bengal_101.jpg").write_bytes(b"no picture")
    done = python(PROJECT, "data.py", "--data", "pets", "--root", str(tmp_path), "--split", "train",
                  "--sheet", str(tmp_path / "s.png"))
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.endswith(
        "train: 8 read, 1 unreadable\n"
        f"  cannot read the image {folder}/Bengal_101.jpg: cannot identify image file\n"
        "  8 JPEG RGB named .jpg, under 28 pixels: pets/Abyssinian_100.jpg, pets/Abyssinian_101.jpg, "
        "pets/Abyssinian_102.jpg, pets/american_bulldog_100.jpg, pets/american_bulldog_101.jpg\n")
