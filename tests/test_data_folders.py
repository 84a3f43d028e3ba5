"""Your own images: class folders, split folders, .jsonl files."""

import json
import os

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


def fill(folder, *paths) -> str:
    """A folder with these pictures; its name."""
    for path in paths:
        trees.picture(folder / path)
    return str(folder)


def labels(name) -> set[str]:
    """All labels of its splits that are there."""
    found = set()
    for split in ("train", "val", "test"):
        try:
            found |= {example.label for example in data.load(name, split)}
        except FileNotFoundError:
            pass
    return found


def pictures_of(*folders) -> list[str]:
    """Paths, ten in each folder, so that each split has some."""
    return [f"{folder}/{number}.jpg" for folder in folders for number in range(10)]


@pytest.mark.parametrize("vehicle", ["train", "Test", "val"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, capsys, vehicle):
    name = fill(tmp_path / "flat", *pictures_of("bicycle", "bus", "car", vehicle))
    assert labels(name) == {"bicycle", "bus", "car", vehicle}
    name = fill(tmp_path / "deep", *pictures_of("bicycle", "bus", f"{vehicle}/steam"))
    assert labels(name) == {"bicycle", "bus", vehicle}
    said = capsys.readouterr().err.splitlines()
    assert said == [f"warning: {tmp_path}/flat: {vehicle} taken for a class, as bicycle, bus, car beside it "
                    "hold pictures too",
                    f"warning: {tmp_path}/deep: {vehicle} taken for a class, as bicycle, bus beside it hold "
                    "pictures too"]


def test_folders_beside_splits_are_named(tmp_path, capsys):
    name = fill(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "raw/1.jpg", "old/a/1.jpg",
                "train/1.jpg")
    assert labels(name) == {"a", "b"}
    assert capsys.readouterr().err == (f"warning: {tmp_path}: 3 skipped, not in a folder SPLIT/CLASS: "
                                       "old/a/1.jpg, raw/1.jpg, train/1.jpg\n")
    for folder in ("x", "y", "z"):  # more than are in the splits; two of these hold the same classes
        trees.picture(tmp_path / folder / "1.jpg")
    assert labels(name) == {"a", "b"}


def test_splits_without_class_folders_are_no_classes(tmp_path, capsys):
    name = fill(tmp_path, "train/1.jpg", "test/1.jpg")
    says("has no train images", name, FileNotFoundError)
    assert "2 skipped, not in a folder SPLIT/CLASS: test/1.jpg, train/1.jpg" in capsys.readouterr().err


def test_an_empty_folder_named_as_a_split_hides_nothing(tmp_path):
    (tmp_path / "train").mkdir()
    assert labels(fill(tmp_path, *pictures_of("bus", "car"))) == {"bus", "car"}


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path, capsys):
    for suffix in ("ppm", "jp2", "TIF", "qoi", "tga", "pgm"):
        trees.picture(tmp_path / "train" / suffix / f"1.{suffix}")
    for file in ("heron/1.heic", "heron/2.heic", "tga/notes.txt", "tga/1.h5", "tga/film.mpg"):
        (tmp_path / "train" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / file).write_bytes(b"")
    (tmp_path / "README").write_text("")
    name = str(tmp_path)
    assert labels(name) == {"ppm", "jp2", "TIF", "qoi", "tga", "pgm"}
    for example in data.load(name):
        assert example.image().size == (24, 16)
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {tmp_path}: 6 skipped, not pictures that Pillow reads here (2 .heic, 1 no suffix, 1 .h5, "
        "1 .mpg, 1 .txt): README, train/heron/1.heic, train/heron/2.heic, ...",
        f"warning: {tmp_path}: there is no picture of heron"]


def test_a_folder_too_high_is_noticed(tmp_path, capsys):
    name = fill(tmp_path, *pictures_of("unpacked/heron", "unpacked/gull"))
    assert labels(name) == {"unpacked"}
    assert f"{tmp_path}: all pictures have one label, unpacked: is a folder" in capsys.readouterr().err


def test_links_are_followed_but_not_in_circles(tmp_path, capsys):
    fill(tmp_path / "elsewhere", *pictures_of("gull"))
    name = fill(tmp_path / "mine", *pictures_of("heron"))
    (tmp_path / "mine/gull").symlink_to(tmp_path / "elsewhere/gull")
    (tmp_path / "mine/heron/again").symlink_to(tmp_path / "mine")
    (tmp_path / "mine/there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "mine")
    assert labels(name) == {"gull", "heron", "there"}
    assert "2 skipped, folders that can't be opened, or link to one above them: heron/again, there/back" \
        in capsys.readouterr().err


def test_a_disk_is_no_folder_of_class_folders(tmp_path, monkeypatch):
    """Its walk ends early, although there are pictures somewhere."""
    name = fill(tmp_path, *pictures_of("heron"))
    for number in range(100):
        (tmp_path / f"heron/{number}").mkdir()
    monkeypatch.setattr(data, "MOST_BARREN", 101)  # the folders and the root
    assert labels(name) == {"heron"}
    monkeypatch.setattr(data, "MOST_BARREN", 100)
    says("holds over 100 folders without a picture: say the folder of the class folders", name)


def test_a_pipe_among_the_pictures_or_as_a_list(tmp_path):
    """To open one would wait for ever. Among pictures it is one that can't be read."""
    fill(tmp_path / "mine", "train/heron/1.jpg")
    os.mkfifo(tmp_path / "mine/train/heron/2.jpg")
    readable, _, unreadable = data.read_images(data.load(str(tmp_path / "mine")))
    assert [example.id for example in readable] == [f"{tmp_path}/mine/train/heron/1.jpg"]
    assert len(unreadable) == 1
    assert "2.jpg: it is a pipe or a device" in unreadable[0]
    os.mkfifo(tmp_path / "list.jsonl")
    says(f"cannot read {tmp_path}/list.jsonl: it is a pipe or a device", tmp_path / "list.jsonl")


# Names and labels that a log could not hold


def test_names_that_are_not_utf8_are_refused_at_load(tmp_path):
    name = fill(tmp_path / "mine", *pictures_of("heron"))
    os.rename(tmp_path / "mine/heron/0.jpg", os.fsencode(tmp_path / "mine/heron") + b"/caf\xe9.jpg")
    says(r"the path 'heron/caf\\udce9.jpg' is not UTF-8: rename it", name)
    os.rename(tmp_path / "mine", os.fsencode(tmp_path) + b"/caf\xe9")
    says(r"--data '.*caf\\udce9' is not UTF-8: rename it", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    with pytest.raises(ValueError, match=r"--root 'caf\\udce9' is not UTF-8"):
        data.load("cub", root="caf\udce9")


def test_a_current_folder_that_is_not_utf8_is_refused_at_load(tmp_path, monkeypatch):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    trees.picture(tmp_path / os.fsdecode(b"caf\xe9") / "train/heron/1.jpg")
    says(r"the folder 'caf\\udce9' is not UTF-8", ".")


@pytest.mark.parametrize("entry, message", [
    ({"image": "a.jpg", "label": "\ud800"}, r"the label of a.jpg, '\\ud800' is not UTF-8"),
    ({"image": "\udfff.jpg", "label": "x"}, r"the path '\\udfff.jpg' is not UTF-8"),
    ({"image": "a.jpg", "label": "x" * 3_000_000}, "the label of a.jpg has 3000000 characters, more than")])
def test_labels_and_paths_that_a_log_could_not_hold(tmp_path, entry, message):
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps(entry | {"split": "train"}))
    says(f"x.jsonl: {message}", file)


def test_a_folder_of_underscores_is_no_label(tmp_path):
    says("__/1.jpg has no label", fill(tmp_path, "train/__/1.jpg"))


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
