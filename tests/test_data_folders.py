"""Your own images: class folders, split folders, .jsonl files."""

import json

import pytest

import data
import trees


def listed(name, split):
    """(path, label) of each example."""
    return [(e.id.removeprefix(name + "/"), e.label) for e in data.load(name, split)]


def says(message, name, error=ValueError):
    with pytest.raises(error, match=message) as e:
        data.load(str(name))
    assert "\n" not in str(e.value)


def test_a_folder_of_class_folders(tmp_path):
    folder = tmp_path / "mine"
    for i in range(0, 200, 2):
        trees.picture(folder / "grey_heron" / f"{i}.jpg")
        trees.picture(folder / "Kite" / f"{i + 1}.PNG")
    for junk in ("Thumbs.db", "notes.txt", "x.mat", "._1.jpg", ".hidden/1.jpg"):
        (folder / "Kite" / junk).parent.mkdir(exist_ok=True)
        (folder / "Kite" / junk).write_bytes(b"junk")
    trees.picture(folder / "no_class.jpg")

    name = str(folder)
    sets = {split: dict(listed(name, split)) for split in ("train", "val", "test")}
    everything = sets["train"] | sets["val"] | sets["test"]
    assert sum(map(len, sets.values())) == len(everything) == 200
    assert set(everything.values()) == {"grey heron", "Kite"}
    assert everything["Kite/1.PNG"] == "Kite"
    assert 120 < len(sets["train"]) < 160
    assert 25 < len(sets["test"]) < 60
    assert 8 < len(sets["val"]) < 35

    trees.picture(folder / "Kite" / "new.jpg")  # nothing moves when an image is added
    for split, before in sets.items():
        assert set(before.items()) <= set(listed(name, split))
    example = data.load(name, "test")[0]
    assert example.domain == "mine"
    assert example.image().mode == "RGB"


def test_a_folder_of_splits(tmp_path):
    for split, count in [("train", 6), ("validation", 2), ("test", 3), ("extra", 1)]:
        for i in range(count):
            trees.picture(tmp_path / split / "a_b" / "deep" / f"{i}.jpg")
    name = str(tmp_path)
    assert [len(data.load(name, split)) for split in ("train", "val", "validation", "test")] == [6, 2, 2, 3]
    assert listed(name, "val")[0] == ("validation/a_b/deep/0.jpg", "a b")

    trees.picture(tmp_path / "again/Train/Kite/1.JPG")  # not a class of the name Train
    assert listed(str(tmp_path / "again"), "train") == [("Train/Kite/1.JPG", "Kite")]

    (tmp_path / "validation").rename(tmp_path / "other")  # none there: half of the training images
    val = data.load(name, "val")
    assert len(val) == 3
    assert set(val) < set(data.load(name, "train"))


def test_a_jsonl_file(tmp_path, monkeypatch):
    trees.picture(tmp_path / "pics" / "a.jpg", colour=(1, 2, 3))
    rows = [{"image": "pics/a.jpg", "label": " snow_bunting ", "split": "train"},
            {"image": str(tmp_path / "pics/a.jpg"), "label": "Ælf", "split": "test"},
            {"image": "pics/none.jpg", "label": "x", "split": "valid", "note": 1}]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(json.dumps(r) for r in rows), encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path.parent)  # paths start at the file's folder
    name = f"{tmp_path.name}/mine.jsonl"
    (train,) = data.load(name, "train")
    (val,) = data.load(name, "val")
    (test,) = data.load(name, "test")
    assert (train.label, train.domain, train.id) == ("snow_bunting", "mine", f"{name}/pics/a.jpg")
    assert test.label == "Ælf"
    assert train.image().tobytes() == test.image().tobytes()
    with pytest.raises(data.BadImage, match="none.jpg"):
        val.image()


def test_a_jsonl_file_without_splits_is_split_by_its_paths(tmp_path):
    rows = [json.dumps({"image": f"{i}.jpg", "label": "x"}) for i in range(100)]
    file = tmp_path / "free.jsonl"
    file.write_text("\n".join(rows))
    ids = [e.id for split in ("train", "val", "test") for e in data.load(str(file), split)]
    assert len(ids) == len(set(ids)) == 100


def test_a_folder_or_file_without_images(tmp_path):
    (tmp_path / "void").mkdir()
    says("no train images .*none.*in folders CLASS or SPLIT/CLASS", tmp_path / "void", FileNotFoundError)
    says("No such file", tmp_path / "absent.jsonl", FileNotFoundError)


@pytest.mark.parametrize("third", [
    '{"image": "a.jpg"}', "[]", "{", '{"image": "b.jpg", "label": " "}', '{"image": 3, "label": "x"}',
    '{"image": "b.jpg", "label": "x", "split": "dev"}'])
def test_a_bad_line_is_said_with_its_number(tmp_path, third):
    file = tmp_path / "x.jsonl"
    file.write_text('{"image": "a.jpg", "label": "x"}\n\n' + third)
    says('x.jsonl, line 3: expected UTF-8: {"image": path', file)


@pytest.mark.parametrize("content", ['{"image": "a.jpg", "label": "Ælf"}'.encode("latin-1"), b"[" * 100_000],
                         ids=["latin-1", "deep"])
def test_a_line_that_is_no_json_in_utf8(tmp_path, content):
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    says("x.jsonl, line 1: expected UTF-8: ", file)


def test_a_picture_listed_twice(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"image": "a.jpg", "label": "x"}\n{"image": "./a.jpg", "label": "x"}')
    says("a.jpg is listed twice", file)
