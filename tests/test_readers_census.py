"""`python data.py`: what it says about a folder, the sheet it draws, the one line it ends in."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import data
import trees
from readers import census


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, args)])
    data.main()
    return capsys.readouterr().out


def test_counts_examples_and_the_sheet(tmp_path, monkeypatch, capsys):
    trees.aircraft(tmp_path)
    sheet = tmp_path / "new/s.png"
    out = run(monkeypatch, capsys, "--data", "aircraft", "--root", tmp_path, "--sheet", sheet)
    rows = [line.split() for line in out.splitlines()[:3]]
    assert [row[:4] for row in rows] == [[s, "10", "images", "5"] for s in ("train", "val", "test")]
    assert "5 classes of 2 to 2\n" in out and "leaves" not in out and "707-320 2/2/2" in out
    assert "  aircraft/1025794.jpg: 707-320\n" in out
    assert out.count("\n  aircraft/") == 10 and str(sheet) in out
    page = Image.open(sheet)
    assert page.width == 6 * 216 + 16 and page.height == 2 * 208  # ten pictures: two rows of six
    colour = page.getpixel((16 + 100, 16 + 80))
    assert max(abs(a - b) for a, b in zip(colour, (200, 80, 30), strict=True)) < 8  # the first picture
    assert page.getpixel((page.width - 116, page.height - 100)) == (255, 255, 255)  # the twelfth place


def test_it_names_the_unreadable_and_counts_the_kinds_of_others(tmp_path, monkeypatch, capsys):
    folder = trees.pets(tmp_path) / "images"
    (folder / "Bengal_101.jpg").write_bytes(b"")
    Image.new("P", (40, 40)).save(folder / "Abyssinian_101.jpg", "GIF")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 40)).save(folder / "Bengal_100.jpg", exif=exif)
    out = run(monkeypatch, capsys, "--data", "pets", "--root", tmp_path, "--split", "train",
              "--sheet", tmp_path / "s.png")
    assert "train: 8 read, 1 unreadable\n" in out and "Bengal_101.jpg: cannot identify" in out
    for line in ("1 GIF P named .jpg: pets/Abyssinian_101.jpg",
                 "6 JPEG RGB named .jpg, under 28 pixels: pets/Abyssinian_100.jpg, pets/Abyssinian_102.jpg, ",
                 "1 JPEG L named .jpg, turned by EXIF: pets/Bengal_100.jpg"):
        assert f"  {line}" in out
    out = run(monkeypatch, capsys, "--data", "pets", "--root", tmp_path, "--limit", "3", "--sheet",
              tmp_path / "s.png")
    assert out.count(": 3 read") == 2 and "none is published: what the official subset leaves of train" in out
    for number in range(60):
        trees.picture(tmp_path / f"mine/train/x/{number}.png")
        (tmp_path / f"mine/train/x/{number}.png").write_bytes(b"")
    out = run(monkeypatch, capsys, "--data", tmp_path / "mine", "--sheet", tmp_path / "s.png")
    assert "train: 0 read, 60 unreadable\n" in out and out.count("cannot read") == 50 and "and 10 more" in out


def test_a_sheet_of_long_labels_and_of_unreadable_and_tiny_images(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("RGB", (20, 900), "red").save(tmp_path / "tall.png")
    page = census.sheet([data.Example(name, "a label that is much too long for a column of pictures", "",
                                    lambda name=name: data.read_image(tmp_path / name))
                       for name in ("one.png", "tall.png", "absent.png")], columns=3)
    assert page.getpixel((116, 96)) == page.getpixel((332, 96)) == (255, 0, 0)
    assert page.getpixel((548, 96)) == (221, 221, 221)
    for x in (12, 228, 444, 660):  # the labels stay in their columns
        assert all(page.getpixel((x, y)) == (255, 255, 255) for y in range(page.height))


def test_a_split_that_is_not_there_is_said_and_the_others_are_shown(tmp_path, monkeypatch, capsys):
    trees.cars(tmp_path, labelled=False)
    out = run(monkeypatch, capsys, "--data", "cars", "--root", tmp_path, "--sheet", tmp_path / "s.png")
    assert out.startswith("train       5 images") and "is cars_test_annos_withlabels.mat missing?" in out


@pytest.mark.parametrize("args, message", [
    (["--data", "dogs"], "unknown dataset 'dogs'"),
    (["--data", "pets", "--root", "/absent"], "fetch images.tar.gz, annotations.tar.gz from https://"),
    (["--data", "toy", "--split", "dev"], "unknown split 'dev'"),
    (["--data", "toy", "--download"], "toy cannot be downloaded"),
    (["--data", "cars", "--download"], "Stanford's host is gone"),
    (["--data", "toy", "--protocol", "mine"], "unknown protocol 'mine': choose official or coop"),
    (["--data", "toy", "--limit", "0"], "--limit must be at least 1"),
    (["--data", "pets", "--root", __file__], "census.py is a file: unpack it and say --root FOLDER"),
    (["--data", "toy", "--split", "val", "--sheet", "/proc/none/s.png"], "say --sheet FILE.png"),
    (["--data", "toy", "--split", "val", "--sheet", "s.odd"], "cannot write the sheet of pictures")])
def test_misuse_ends_in_one_line(monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, capsys, *args)
    assert str(e.value).startswith("data.py: ") and message in str(e.value) and "\n" not in str(e.value)


def test_copied_alone_it_reads_with_numpy_and_pillow_only(tmp_path):
    trees.cars(tmp_path)
    (tmp_path / "data.py").write_text((Path(data.__file__)).read_text())
    shutil.copytree(Path(data.__file__).parent / "readers", tmp_path / "readers")
    code = ("import sys\nfor n in ('torch', 'transformers', 'tqdm', 'scipy', 'toy'): sys.modules[n] = None\n"
            "import data\nprint(data.load('cars', root='.')[0].image().size)\n"
            "print(data.load('cars', 'test', '.')[0].label)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(24, 16)\nAcura TL Type-S 2008\n", done.stderr
