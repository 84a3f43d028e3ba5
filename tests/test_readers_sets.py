"""The published sets in miniature: every label, split, unreadable file. Figures by hand from the samples."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import data
import trees


def listed(name, split, root, **kwargs):
    return [(e.id.removeprefix(name + "/"), e.label) for e in data.load(name, split, root, **kwargs)]


def table(name):
    with open(trees.FIXTURES / name, newline="") as f:
        return list(csv.DictReader(f))


def test_cub_from_the_publishers_lines(tmp_path):
    for name in ("classes", "images", "image_class_labels", "train_test_split"):
        trees.copy(f"cub200/{name}.txt", tmp_path / f"{name}.txt")
    (tmp_path / "images").mkdir()
    train, test = listed("cub", "train", tmp_path), listed("cub", "test", tmp_path)
    assert len(train) + len(test) == 26 and len(train) == 13
    assert train[0] == ("001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg",
                        "Black footed Albatross")
    assert [label for _, label in test][2:6:2] == ["Laysan Albatross", "Indigo Bunting"]
    assert test[-1][1] == "Common Yellowthroat"


def test_flowers(tmp_path):
    folder = trees.flowers(tmp_path)
    sets = {split: dict(listed("flowers", split, tmp_path)) for split in ("train", "val", "test")}
    assert {split: len(rows) for split, rows in sets.items()} == {"train": 1020, "val": 1020, "test": 6149}
    everything = sets["train"] | sets["val"] | sets["test"]
    assert len(everything) == 8189 and len(set(everything.values())) == 102
    names = [row["class_name"] for row in table("flowers102/metadata.csv")]  # counts from 0
    for row in table("flowers102/labels.csv"):
        assert everything[row["filename"]] == names[int(row["class_idx"])], row
    assert set(everything.values()) == set(names) and "lotus" in names  # cat_to_name.json says "lotus lotus"
    assert listed("flowers", "valid", folder) == list(sets["val"].items())  # the publisher's name for it
    assert data.load("flowers", "train", tmp_path)[0].id == "flowers/image_06765.jpg"
    (folder / "cat_to_name.json").unlink()
    trees.copy("flowers102/metadata.csv", folder / "metadata.csv")
    assert dict(listed("flowers", "trainval", tmp_path)) == sets["train"] | sets["val"]


def test_food(tmp_path):
    trees.food(tmp_path)
    train, test = listed("food", "train", tmp_path), listed("food", "test", tmp_path)
    assert train[1:3] == [("apple_pie/1014775.jpg", "apple pie"),
                          ("bread_pudding/1004499.jpg", "bread pudding")]
    assert len(train) == len(test) == 10 and test[-1] == ("waffles/102624.jpg", "waffles")
    val = listed("food", "val", tmp_path)  # none published: what a subset of half the training images leaves
    assert len(val) == 5 and set(val) < set(train)
    assert not {i for i, _ in val} & {e.id[5:] for e in data.load("food", root=tmp_path, limit=5)}
    assert data.load("food", root=tmp_path)[0].image().size == (24, 16)


@pytest.mark.parametrize("nested", [False, True])
def test_pets(tmp_path, nested):
    trees.pets(tmp_path, nested)
    train, test = listed("pets", "train", tmp_path), listed("pets", "test", tmp_path)
    assert train == listed("pets", "trainval", tmp_path) and len(train) == len(test) == 9
    assert [train[0], train[3], test[-1]] == [("Abyssinian_100.jpg", "abyssinian"), (
        "american_bulldog_100.jpg", "american bulldog"), ("Bengal_194.jpg", "bengal")]
    assert not set(train) & set(test) and set(listed("pets", "val", tmp_path)) < set(train)
    for example in data.load("pets", "test", tmp_path):
        assert example.image().size == (24, 16)


@pytest.mark.parametrize("compress", [False, True])
def test_cars(tmp_path, compress):
    trees.cars(tmp_path, compress=compress)
    for split in ("train", "test"):
        assert listed("cars", split, tmp_path) == [(f"cars_{split}/{i}.jpg", trees.CLASSES[n])
                                                   for i, n in trees.CARS[split].items()]
        assert data.load("cars", split, tmp_path)[0].image().size == (24, 16)


def test_cars_without_labels_for_the_test_images_can_still_train(tmp_path):
    trees.cars(tmp_path, labelled=False)
    assert len(data.load("cars", "train", tmp_path)) == 5
    with pytest.raises(FileNotFoundError, match="no test images .* is cars_test_annos_withlabels.mat"):
        data.load("cars", "test", tmp_path)


def test_older_and_rehosted_cars(tmp_path):
    trees.old_cars(tmp_path / "old")
    assert [label for _, label in listed("cars", "test", tmp_path / "old")] == [
        trees.CLASSES[n] for n in trees.CARS["test"].values()]
    assert listed("cars", "train", tmp_path / "old")[0] == ("car_ims/000001.jpg",
                                                            "Ram C/V Cargo Van Minivan 2012")
    for split, name in [("train", "Ram C-V Cargo Van Minivan 2012"), ("test", "Acura TL Type-S 2008")]:
        trees.picture(tmp_path / "again" / split / name / "00001.jpg")
    for name, root in [("cars", tmp_path / "again"), (str(tmp_path / "again"), None)]:
        assert listed(name, "train", root) == [("train/Ram C-V Cargo Van Minivan 2012/00001.jpg",
                                                "Ram C/V Cargo Van Minivan 2012")]
        assert listed(name, "test", root)[0][1] == "Acura TL Type-S 2008"


def test_another_tree_beside_the_cars_is_not_taken_for_them(tmp_path):
    trees.cars(tmp_path)
    before = listed("cars", "train", tmp_path)
    (tmp_path / "train/mydog").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train/mydog/1.jpg")
    assert listed("cars", "train", tmp_path) == before


def test_aircraft(tmp_path):
    trees.aircraft(tmp_path)
    sets = {split: listed("aircraft", split, tmp_path) for split in ("train", "val", "trainval", "test")}
    assert [len(rows) for rows in sets.values()] == [10, 10, 20, 10]
    assert sets["trainval"] == sets["train"] + sets["val"] and sets["train"][0] == ("1025794.jpg", "707-320")
    assert sets["train"][2] == ("1159626.jpg", "BAE 146-200") and ("1614884.jpg", "F-16A/B") in sets["test"]
    assert len({i for rows in sets.values() for i, _ in rows}) == 30
    assert data.load("aircraft", "test", tmp_path / "fgvc-aircraft-2013b")[0].image().size == (24, 16)


def coop(name, tree, tmp_path, *files):
    folder = tree(tmp_path)
    for file in files:
        trees.copy(file, folder / file.split("/")[1])
    return [listed(name, split, tmp_path, protocol="coop") for split in ("train", "val", "test")]


def test_coop_flowers_by_json_and_by_csv(tmp_path):
    by_json = coop("flowers", trees.flowers, tmp_path / "a", "flowers102/split_zhou_OxfordFlowers.json")
    by_csv = coop("flowers", trees.flowers, tmp_path / "b", "flowers102/split_coop.csv",
                  "flowers102/labels.csv", "flowers102/metadata.csv")
    assert by_json == by_csv and [len(rows) for rows in by_json] == [10, 10, 10]
    assert by_json[0][:3] == [("image_00190.jpg", "passion flower"), ("image_00067.jpg", "passion flower"),
                              ("image_01847.jpg", "lotus")]
    official = dict(listed("flowers", "test", tmp_path / "a"))  # why the two must never be mixed
    assert set(official) & {path for path, _ in by_json[0]}
    (tmp_path / "a/flowers-102/setid.mat").unlink()  # CoOp's own instructions fetch none
    assert listed("flowers", "train", tmp_path / "a", protocol="coop") == by_json[0]


def test_coop_food_and_pets_and_the_others_as_published(tmp_path):
    train, val, test = coop("food", trees.food, tmp_path / "food", "food101/split_coop.csv")
    assert train[4] == ("creme_brulee/779678.jpg", "creme brulee")
    assert [len(rows) for rows in (train, val, test)] == [6, 6, 6]
    train, val, test = coop("pets", trees.pets, tmp_path / "pets", "oxford_pets/split_coop.csv")
    assert train[2] == ("american_bulldog_128.jpg", "american bulldog") and test[6][1] == "saint bernard"
    assert [len(rows) for rows in (train, val, test)] == [8, 8, 8]
    split = {"train": [["Abyssinian_1.jpg", 0, "abyssinian"]], "test": [["beagle_7.jpg", 4, "beagle"]]}
    (tmp_path / "pets" / "split_zhou_OxfordPets.json").write_text(json.dumps(split))  # it goes first
    assert listed("pets", "test", tmp_path / "pets", protocol="coop") == [("beagle_7.jpg", "beagle")]
    trees.aircraft(tmp_path)  # the paper's table takes all sets at once: these are split as published there
    trees.cars(tmp_path)
    for name in ("aircraft", "cars"):
        assert data.load(name, "test", tmp_path, protocol="coop") == data.load(name, "test", tmp_path)


def test_every_unreadable_file_is_named_and_only_those(tmp_path):
    """The odd ones among the pets as public readers list them: other formats under .jpg, a cut file, none."""
    folder = trees.pets(tmp_path) / "images"
    Image.new("P", (9, 9)).save(folder / "Abyssinian_100.jpg", "GIF")
    Image.new("RGBA", (9, 9)).save(folder / "Abyssinian_101.jpg", "PNG")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "american_bulldog_100.jpg")
    whole = (folder / "american_bulldog_100.jpg").read_bytes()
    (folder / "american_bulldog_100.jpg").write_bytes(whole[:len(whole) // 2])
    (folder / "Bengal_100.jpg").write_bytes(b"")
    (folder / "Bengal_102.jpg").unlink()
    bad = []
    for example in data.load("pets", "train", tmp_path):
        try:
            assert example.image().mode == "RGB"
        except data.BadImage as e:
            bad.append(example.id)
            assert example.id.split("/")[1] in str(e)
    assert bad == ["pets/american_bulldog_100.jpg", "pets/Bengal_100.jpg", "pets/Bengal_102.jpg"]


def test_a_folder_of_class_folders(tmp_path):
    for i in range(200):
        trees.picture(tmp_path / "mine" / ("grey_heron", "Kite")[i % 2] / f"{i}.{('jpg', 'PNG')[i % 2]}")
    for junk in ("Thumbs.db", "notes.txt", "x.mat", "._1.jpg", ".hidden/1.jpg"):
        (tmp_path / "mine/Kite" / junk).parent.mkdir(exist_ok=True)
        (tmp_path / "mine/Kite" / junk).write_bytes(b"junk")
    trees.picture(tmp_path / "mine" / "no_class.jpg")
    name = str(tmp_path / "mine")
    sets = {split: dict(listed(name, split, None)) for split in ("train", "val", "test")}
    everything = sets["train"] | sets["val"] | sets["test"]
    assert sum(map(len, sets.values())) == len(everything) == 200
    assert set(everything.values()) == {"grey heron", "Kite"} and everything["Kite/1.PNG"] == "Kite"
    assert 120 < len(sets["train"]) < 160 and 25 < len(sets["test"]) < 60 and 8 < len(sets["val"]) < 35
    trees.picture(tmp_path / "mine" / "Kite" / "new.jpg")  # nothing moves when an image is added
    assert all(set(sets[s].items()) <= set(listed(name, s, None)) for s in sets)
    assert data.load(name, "test")[0].domain == "mine" and data.load(name, "test")[0].image().mode == "RGB"


def test_a_folder_of_splits(tmp_path):
    for split, count in [("train", 6), ("validation", 2), ("test", 3), ("extra", 1)]:
        for i in range(count):
            trees.picture(tmp_path / split / "a_b" / "deep" / f"{i}.jpg")
    name = str(tmp_path)
    assert [len(data.load(name, s)) for s in ("train", "val", "validation", "test")] == [6, 2, 2, 3]
    assert listed(name, "val", None)[0] == ("validation/a_b/deep/0.jpg", "a b")
    trees.picture(tmp_path / "again/Train/Kite/1.JPG")  # not a class of the name Train
    assert listed(str(tmp_path / "again"), "train", None) == [("Train/Kite/1.JPG", "Kite")]
    (tmp_path / "validation").rename(tmp_path / "other")
    assert len(data.load(name, "val")) == 3 and set(data.load(name, "val")) < set(data.load(name, "train"))


def test_a_jsonl_file(tmp_path, monkeypatch):
    trees.picture(tmp_path / "pics" / "a.jpg", colour=(1, 2, 3))
    rows = [{"image": "pics/a.jpg", "label": " snow_bunting ", "split": "train"},
            {"image": str(tmp_path / "pics/a.jpg"), "label": "Ælf", "split": "test"},
            {"image": "pics/none.jpg", "label": "x", "split": "valid", "note": 1}]
    (tmp_path / "mine.jsonl").write_text("\n\n".join(json.dumps(r) for r in rows), encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path.parent)  # paths start at the file's folder
    name = f"{tmp_path.name}/mine.jsonl"
    (train,), (val,), (test,) = (data.load(name, s) for s in ("train", "val", "test"))
    assert (train.label, train.domain, train.id) == ("snow_bunting", "mine", f"{name}/pics/a.jpg")
    assert train.image().tobytes() == test.image().tobytes() and test.label == "Ælf"
    with pytest.raises(data.BadImage, match="none.jpg"):
        val.image()
    (tmp_path / "free.jsonl").write_text("\n".join(json.dumps({"image": f"{i}.jpg", "label": "x"})
                                                   for i in range(100)))
    ids = [e.id for s in ("train", "val", "test") for e in data.load(str(tmp_path / "free.jsonl"), s)]
    assert len(ids) == len(set(ids)) == 100


def test_bad_input_ends_in_one_clear_line(tmp_path):
    flowers, food, pets = (tree(tmp_path) for tree in (trees.flowers, trees.food, trees.pets))
    cars, planes = trees.cars(tmp_path), trees.aircraft(tmp_path)
    (tmp_path / "void").mkdir()

    def says(message, name, root=tmp_path, error=ValueError, **kwargs):
        with pytest.raises(error, match=message) as e:
            data.load(name, root=root, **kwargs)
        assert "\n" not in str(e.value)

    def line(file, number, text):
        rows = file.read_text().splitlines()
        file.write_text("\n".join(rows[:number - 1] + [text] + rows[number:]))
    says("unknown dataset 'dogs': choose cub, flowers, food, pets, cars, aircraft, toy-bird", "dogs")
    says("unknown dataset ''", "")
    says("unknown split 'dev': choose train, val or test", "pets", split="dev")
    says("unknown protocol 'mine': choose", "pets", protocol="mine")
    for name, title in [("flowers", "Oxford Flowers-102"), ("food", "Food-101"), ("pets", "Oxford-IIIT Pets"),
                        ("cars", "Stanford Cars"), ("aircraft", "FGVC-Aircraft")]:
        says(f"{title} is not in .*void as .* is missing; fetch .* and unpack it there", name,
             tmp_path / "void", FileNotFoundError)
    says("split_coop.csv is missing; put CoOp's split_zhou_Food101.json there", "food", protocol="coop",
         error=FileNotFoundError)
    (food / "images").rename(food / "pictures")
    says("images is missing; fetch food-101.tar.gz from .* --download does", "food", protocol="coop",
         error=FileNotFoundError)
    (food / "pictures").rename(food / "images")
    says("Stanford's host is gone", "cars", tmp_path / "nowhere", FileNotFoundError)
    (flowers / "setid.mat").rename(flowers / "away")
    says("setid.mat is missing", "flowers", error=FileNotFoundError)
    (flowers / "away").rename(flowers / "setid.mat")
    (flowers / "cat_to_name.json").write_text('{"1": "pink primrose"}')
    says("flowers-102: a list there is not as published, fetch it again .KeyError: 2.", "flowers")
    (flowers / "cat_to_name.json").write_text("<html>")
    says("cat_to_name.json is no JSON object", "flowers")
    (flowers / "setid.mat").write_bytes(b"short")
    (flowers / "cat_to_name.json").unlink()
    trees.copy("flowers102/cat_to_name.json", flowers / "cat_to_name.json")
    says("setid.mat is no whole MATLAB v5 file", "flowers")
    line(food / "meta/train.txt", 3, "bread_pudding")
    says("train.txt, line 3: expected a line like 'apple_pie/1005649', got 'bread_pudding'", "food")
    line(pets / "annotations/test.txt", 2, "Abyssinian_100 1 1 1")
    says("pets: Abyssinian_100.jpg is listed twice", "pets")
    (pets / "images").rename(pets / "pictures")
    says("images is missing", "pets", error=FileNotFoundError)
    trees.write_mat(cars / "devkit/cars_train_annos.mat", {"annotations": [
        {"class": np.array([[197]], np.uint8), "fname": "1.jpg"}]})
    says("stanford_cars: a list there is not as published, .*KeyError: 197", "cars")
    line(planes / "images_variant_val.txt", 1, "image variant")
    says("images_variant_val.txt, line 1: expected a line like '1025794 707-320'", "aircraft")
    (food / "split_coop.csv").write_text("split,filename\ntrain,a/1.jpg\ndev,a/2.jpg\n")
    says("not as published", "food", protocol="coop")
    (food / "split_coop.csv").write_text("filename\na/1.jpg\n")
    says("not as published.*'split'", "food", protocol="coop")
    for content in ('split,filename\ntrain,"a/1.jpg\n' + "x" * 200_000, "split,filename\ntrain,\xe6.jpg\n"):
        (food / "split_coop.csv").write_bytes(content.encode("latin-1"))
        says("split_coop.csv is no CSV file in UTF-8", "food", protocol="coop")
    for content in ('{"train": 5}', '{"train": [5]}', '{"train": [["a.jpg", 1]]}',
                    '{"dev": [["a/1.jpg", 1, "a"]]}', '{"train": [["a.jpg", 1, null]]}'):
        (food / "split_zhou_Food101.json").write_text(content)
        says("not as published", "food", protocol="coop")
    trees.write_mat(cars / "devkit/cars_train_annos.mat", {"annotations": [{"name": "1.jpg"}]})
    says("stanford_cars: a list there is not as published.*'fname'", "cars")
    says("no train images .*none.*in folders CLASS or SPLIT/CLASS", str(tmp_path / "void"),
         error=FileNotFoundError)
    says("No such file", str(tmp_path / "absent.jsonl"), error=FileNotFoundError)
    for text in ('{"image": "a.jpg"}', "[]", "{", '{"image": "b.jpg", "label": " "}',
                 '{"image": 3, "label": "x"}', '{"image": "b.jpg", "label": "x", "split": "dev"}'):
        (tmp_path / "x.jsonl").write_text('{"image": "a.jpg", "label": "x"}\n\n' + text)
        says('x.jsonl, line 3: expected UTF-8: {"image": path', str(tmp_path / "x.jsonl"))
    for content in ('{"image": "a.jpg", "label": "Ælf"}'.encode("latin-1"), b"[" * 100_000):
        (tmp_path / "x.jsonl").write_bytes(content)
        says("x.jsonl, line 1: expected UTF-8: ", str(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text('{"image": "a.jpg", "label": "x"}\n{"image": "./a.jpg", "label": "x"}')
    says("a.jpg is listed twice", str(tmp_path / "x.jsonl"))
