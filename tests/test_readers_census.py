"""`python data.py`: what it says about a folder, the sheet it draws, the one line it ends in."""

import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import data
import trees
from readers import census


def run(monkeypatch, capsys, *args):
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["data.py", *map(str, args)])
    data.main()
    return capsys.readouterr().out


def test_counts_examples_and_the_sheet(tmp_path, monkeypatch, capsys):
    trees.aircraft(tmp_path)
    sheet = tmp_path / "new/s.png"
    out = run(monkeypatch, capsys, "--data", "aircraft", "--root", tmp_path, "--sheet", sheet)
    rows = [line.split() for line in out.splitlines()[:3]]
    assert [row[:4] for row in rows] == [[split, "10", "images", "5"] for split in ("train", "val", "test")]
    assert "5 classes of 2 to 2\n" in out
    assert "leaves" not in out
    assert "707-320 2/2/2" in out
    assert "  aircraft/1025794.jpg: 707-320\n" in out
    assert out.count("\n  aircraft/") == 10
    assert str(sheet) in out

    page = Image.open(sheet)
    assert page.size == (6 * 216 + 16, 2 * 208)  # ten pictures: two rows of six
    colour = page.getpixel((16 + 100, 16 + 80))  # the middle of the first picture
    assert max(abs(a - b) for a, b in zip(colour, (200, 80, 30), strict=True)) < 8
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
    assert "train: 8 read, 1 unreadable\n" in out
    assert "Bengal_101.jpg: cannot identify" in out
    for line in ("1 GIF P named .jpg: pets/Abyssinian_101.jpg",
                 "6 JPEG RGB named .jpg, under 28 pixels: pets/Abyssinian_100.jpg, pets/Abyssinian_102.jpg, ",
                 "1 JPEG L named .jpg, turned by EXIF: pets/Bengal_100.jpg"):
        assert f"  {line}" in out


def test_a_picture_with_a_broken_text_is_read_and_counted(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine/train/heron/1.png"
    trees.picture(file)
    content = file.read_bytes()
    at = content.index(b"IDAT") - 4
    file.write_bytes(content[:at] + b"\0\0\0\4tEXta\0cd\0\0\0\0" + content[at:])
    out = run(monkeypatch, capsys, "--data", tmp_path / "mine", "--sheet", tmp_path / "s.png")
    assert out.endswith(f"train: 1 read, 0 unreadable\n  1 with a broken or long text, named .png: {tmp_path}"
                        "/mine/train/heron/1.png\n")


def test_a_limit_decodes_no_more_and_validation_from_train_is_not_decoded_twice(tmp_path, monkeypatch,
                                                                               capsys):
    trees.pets(tmp_path)
    (tmp_path / "oxford-iiit-pet/images/Bengal_101.jpg").write_bytes(b"")
    out = run(monkeypatch, capsys, "--data", "pets", "--root", tmp_path, "--limit", "3",
              "--sheet", tmp_path / "s.png")
    assert out.count(": 3 read") == 2
    assert "none is published: what the official subset leaves of train" in out


def test_of_many_unreadable_files_fifty_are_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine/train/x").mkdir(parents=True)
    for number in range(60):
        (tmp_path / f"mine/train/x/{number}.png").write_bytes(b"")
    out = run(monkeypatch, capsys, "--data", tmp_path / "mine", "--sheet", tmp_path / "s.png")
    assert "train: 0 read, 60 unreadable\n" in out
    assert out.count("cannot read") == 50
    assert "and 10 more" in out


def test_the_embedded_world_has_no_files_to_look_at(tmp_path, monkeypatch, capsys):
    out = run(monkeypatch, capsys, "--data", "toy-fish", "--split", "val", "--limit", "5",
              "--sheet", tmp_path / "s.png")
    assert out.endswith("\nval: 5 read, 0 unreadable\n")


def test_a_sheet_of_long_labels_and_of_unreadable_and_tiny_images(tmp_path):
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    Image.new("RGB", (20, 900), "red").save(tmp_path / "tall.png")
    label = "a label that is much too long for a column of pictures"
    examples = []
    for name in ("one.png", "tall.png", "absent.png"):
        examples.append(data.Example(name, label, "", partial(data.read_image, tmp_path / name)))
    page = census.sheet(examples, columns=3)
    assert page.getpixel((116, 96)) == page.getpixel((332, 96)) == (255, 0, 0)
    assert page.getpixel((548, 96)) == (221, 221, 221)
    for x in (12, 228, 444, 660):  # the labels stay in their columns
        assert all(page.getpixel((x, y)) == (255, 255, 255) for y in range(page.height))


def test_a_split_that_is_not_there_is_said_and_the_others_are_shown(tmp_path, monkeypatch, capsys):
    trees.cars(tmp_path, labelled=False)
    out = run(monkeypatch, capsys, "--data", "cars", "--root", tmp_path, "--sheet", tmp_path / "s.png")
    assert out.startswith("train       5 images")
    assert "is cars_test_annos_withlabels.mat missing?" in out


@pytest.mark.parametrize("args, message", [
    (["--data", "dogs"], "unknown dataset 'dogs'"),
    (["--data", "pets", "--root", "/absent"], "fetch images.tar.gz, annotations.tar.gz from https://"),
    (["--data", "toy", "--split", "dev"], "unknown split 'dev'"),
    (["--data", "toy", "--download"], "toy cannot be downloaded"),
    (["--data", "cars", "--download"], "Stanford's host is gone"),
    (["--data", "toy", "--protocol", "mine"], "unknown protocol 'mine': choose official or coop"),
    (["--data", "toy", "--limit", "0"], "--limit must be at least 1"),
    (["--data", "pets", "--root", __file__],
     f"/{Path(__file__).name} is a file: unpack it and say --root FOLDER"),
    (["--data", "toy", "--split", "val", "--sheet", "/proc/none/s.png"], "say --sheet FILE.png"),
    (["--data", "toy", "--split", "val", "--sheet", "s.odd"], "cannot write the sheet of pictures")])
def test_misuse_ends_in_one_line(monkeypatch, capsys, args, message):
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, capsys, *args)
    assert str(e.value).startswith("data.py: ")
    assert message in str(e.value)
    assert "\n" not in str(e.value)
