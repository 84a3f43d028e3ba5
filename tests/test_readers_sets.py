"""The published sets in miniature: every label, split, unreadable file. Figures by hand from the samples."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

import data
import trees
from readers.cars import year_first


def listed(name, split, root, **kwargs):
    """(path, label) of each example."""
    return [(e.id.removeprefix(name + "/"), e.label) for e in data.load(name, split, root, **kwargs)]


def table(name):
    with open(trees.FIXTURES / name, newline="") as f:
        return list(csv.DictReader(f))


# The official splits


def test_flowers(tmp_path):
    folder = trees.flowers(tmp_path)
    sets = {split: dict(listed("flowers", split, tmp_path)) for split in ("train", "val", "test")}
    assert {split: len(rows) for split, rows in sets.items()} == {"train": 1020, "val": 1020, "test": 6149}
    everything = sets["train"] | sets["val"] | sets["test"]
    assert len(everything) == 8189
    assert len(set(everything.values())) == 102
    names = [row["class_name"] for row in table("flowers102/metadata.csv")]  # counts from 0
    for row in table("flowers102/labels.csv"):
        assert everything[row["filename"]] == names[int(row["class_idx"])], row
    assert set(everything.values()) == set(names)
    assert "lotus" in names  # cat_to_name.json says "lotus lotus"
    assert listed("flowers", "valid", folder) == list(sets["val"].items())  # the publisher's name for it
    assert data.load("flowers", "train", tmp_path)[0].id == "flowers/image_06765.jpg"

    (folder / "cat_to_name.json").unlink()  # the names from the other list
    trees.copy("flowers102/metadata.csv", folder / "metadata.csv")
    assert dict(listed("flowers", "trainval", tmp_path)) == sets["train"] | sets["val"]


def test_food(tmp_path):
    trees.food(tmp_path)
    train = listed("food", "train", tmp_path)
    test = listed("food", "test", tmp_path)
    assert len(train) == len(test) == 10
    assert train[1:3] == [("apple_pie/1014775.jpg", "apple pie"),
                          ("bread_pudding/1004499.jpg", "bread pudding")]
    assert test[-1] == ("waffles/102624.jpg", "waffles")

    val = listed("food", "val", tmp_path)  # none published: what a subset of half the training images leaves
    used = data.load("food", root=tmp_path, limit=5)
    assert len(val) == 5
    assert set(val) < set(train)
    assert not {path for path, _ in val} & {e.id.removeprefix("food/") for e in used}
    assert used[0].image().size == (24, 16)
    assert data.load("food", root=tmp_path)[0].image().size == (24, 16)


@pytest.mark.parametrize("nested", [False, True])
def test_pets(tmp_path, nested):
    trees.pets(tmp_path, nested)
    train = listed("pets", "train", tmp_path)
    test = listed("pets", "test", tmp_path)
    assert train == listed("pets", "trainval", tmp_path)
    assert len(train) == len(test) == 9
    assert train[0] == ("Abyssinian_100.jpg", "abyssinian")
    assert train[3] == ("american_bulldog_100.jpg", "american bulldog")
    assert test[-1] == ("Bengal_194.jpg", "bengal")
    assert not set(train) & set(test)
    assert set(listed("pets", "val", tmp_path)) < set(train)
    for example in data.load("pets", "test", tmp_path):
        assert example.image().size == (24, 16)


@pytest.mark.parametrize("compress", [False, True])
def test_cars(tmp_path, compress):
    trees.cars(tmp_path, compress=compress)
    for split in ("train", "test"):
        by_hand = [(f"cars_{split}/{i}.jpg", trees.CLASSES[n]) for i, n in trees.CARS[split].items()]
        assert listed("cars", split, tmp_path) == by_hand
        assert data.load("cars", split, tmp_path)[0].image().size == (24, 16)


@pytest.mark.parametrize("name", ["Boeing 707-320", "2012", "car 12", "tulip ٢٠١x", ""])
def test_what_does_not_end_in_a_year_keeps_its_name(name):
    assert year_first(name) == name


def test_cars_without_labels_for_the_test_images_can_still_train(tmp_path):
    trees.cars(tmp_path, labelled=False)
    assert len(data.load("cars", "train", tmp_path)) == 5
    with pytest.raises(FileNotFoundError, match="no test images .* is cars_test_annos_withlabels.mat"):
        data.load("cars", "test", tmp_path)


def test_older_cars(tmp_path):
    trees.old_cars(tmp_path)
    labels = [label for _, label in listed("cars", "test", tmp_path)]
    assert labels == [trees.CLASSES[number] for number in trees.CARS["test"].values()]
    assert listed("cars", "train", tmp_path)[0] == ("car_ims/000001.jpg", "Ram C/V Cargo Van Minivan 2012")


def test_rehosted_cars(tmp_path):
    """In class folders; also where they are named as a folder of one's own."""
    trees.picture(tmp_path / "train" / "Ram C-V Cargo Van Minivan 2012" / "00001.jpg")
    trees.picture(tmp_path / "test" / "Acura TL Type-S 2008" / "00001.jpg")
    for name, root in [("cars", tmp_path), (str(tmp_path), None)]:
        assert listed(name, "train", root) == [("train/Ram C-V Cargo Van Minivan 2012/00001.jpg",
                                                "Ram C/V Cargo Van Minivan 2012")]
        assert listed(name, "test", root)[0][1] == "Acura TL Type-S 2008"


def test_another_tree_beside_the_cars_is_not_taken_for_them(tmp_path):
    trees.cars(tmp_path)
    before = listed("cars", "train", tmp_path)
    (tmp_path / "train/mydog").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train/mydog/1.jpg")
    assert listed("cars", "train", tmp_path) == before


def kaggle_cars(root):
    """The bundle that most people have, and the devkit: a list of the older form without its pictures, each
    archive in a folder of its own name."""
    folder = trees.cars(root)
    old = trees.old_cars(root / "other")
    (old / "cars_annos.mat").rename(folder / "cars_annos.mat")
    for name in ("cars_train", "cars_test"):
        (folder / name).rename(folder / "unpacked")
        (folder / name).mkdir()
        (folder / "unpacked").rename(folder / name / name)
    return folder


def test_cars_as_people_have_them(tmp_path):
    trees.cars(tmp_path / "whole")
    folder = kaggle_cars(tmp_path / "kaggle")
    for split in ("train", "test"):
        assert listed("cars", split, tmp_path / "kaggle") == listed("cars", split, tmp_path / "whole")
        for example in data.load("cars", split, folder):
            assert example.image().size == (24, 16)

    # The devkit in a folder too.
    (folder / "car_devkit").mkdir()
    (folder / "devkit").rename(folder / "car_devkit/devkit")
    assert listed("cars", "test", folder) == listed("cars", "test", tmp_path / "whole")

    # Without a devkit no list fits the pictures.
    (folder / "car_devkit").rename(folder / "lost")
    says("Stanford Cars is not in .*devkit/cars_meta.mat is missing", "cars", folder, FileNotFoundError)


def test_the_form_of_the_cars_is_that_of_the_pictures(tmp_path):
    """All three lie in one folder; whichever has its pictures is read."""
    folder = trees.cars(tmp_path)
    old = trees.old_cars(tmp_path / "other")
    (old / "cars_annos.mat").rename(folder / "cars_annos.mat")
    (old / "car_ims").rename(folder / "car_ims")
    trees.picture(folder / "train/Acura TL Type-S 2008/00001.jpg")
    trees.picture(folder / "test/Acura TL Type-S 2008/00001.jpg")
    for first, pictures in [("cars_train/00156.jpg", ("cars_train", "cars_test")),
                            ("car_ims/000001.jpg", ("car_ims",)),
                            ("train/Acura TL Type-S 2008/00001.jpg", ("train", "test"))]:
        assert listed("cars", "train", tmp_path)[0][0] == first
        for name in pictures:
            (folder / name).rename(tmp_path / f"gone {name}")


def test_a_folder_with_the_pictures_goes_before_one_without(tmp_path):
    trees.cub(tmp_path)
    lists = tmp_path / "CUB_200_2011/CUB_200_2011"  # the innermost would go first
    (lists / "images").mkdir(parents=True)
    for name in ("classes", "images", "image_class_labels", "train_test_split"):
        trees.copy(f"cub200/{name}.txt", lists / f"{name}.txt")
    assert data.load("cub", "train", tmp_path)[0].image().size == (70, 56)


def test_aircraft(tmp_path):
    trees.aircraft(tmp_path)
    train = listed("aircraft", "train", tmp_path)
    val = listed("aircraft", "val", tmp_path)
    test = listed("aircraft", "test", tmp_path)
    assert len(train) == len(val) == len(test) == 10
    assert listed("aircraft", "trainval", tmp_path) == train + val
    assert train[0] == ("1025794.jpg", "707-320")
    assert train[2] == ("1159626.jpg", "BAE 146-200")
    assert ("1614884.jpg", "F-16A/B") in test
    assert len({path for path, _ in train + val + test}) == 30
    assert data.load("aircraft", "test", tmp_path / "fgvc-aircraft-2013b")[0].image().size == (24, 16)


# CoOp's splits


def coop(name, tree, root, *files):
    """The three splits of a tree with these lists of CoOp's beside its own."""
    folder = tree(root)
    for file in files:
        trees.copy(file, folder / file.split("/")[1])
    return [listed(name, split, root, protocol="coop") for split in ("train", "val", "test")]


def test_coop_flowers_by_json_and_by_csv(tmp_path):
    by_json = coop("flowers", trees.flowers, tmp_path / "a", "flowers102/split_zhou_OxfordFlowers.json")
    by_csv = coop("flowers", trees.flowers, tmp_path / "b", "flowers102/split_coop.csv",
                  "flowers102/labels.csv", "flowers102/metadata.csv")
    assert by_json == by_csv
    assert [len(rows) for rows in by_json] == [10, 10, 10]
    assert by_json[0][:3] == [("image_00190.jpg", "passion flower"), ("image_00067.jpg", "passion flower"),
                              ("image_01847.jpg", "lotus")]
    official_test = dict(listed("flowers", "test", tmp_path / "a"))
    assert set(official_test) & {path for path, _ in by_json[0]}  # why the two must never be mixed

    (tmp_path / "a/flowers-102/setid.mat").unlink()  # CoOp's own instructions fetch none
    assert listed("flowers", "train", tmp_path / "a", protocol="coop") == by_json[0]


def test_coop_food(tmp_path):
    train, val, test = coop("food", trees.food, tmp_path, "food101/split_coop.csv")
    assert [len(rows) for rows in (train, val, test)] == [6, 6, 6]
    assert train[4] == ("creme_brulee/779678.jpg", "creme brulee")


def test_coop_pets(tmp_path):
    train, val, test = coop("pets", trees.pets, tmp_path, "oxford_pets/split_coop.csv")
    assert [len(rows) for rows in (train, val, test)] == [8, 8, 8]
    assert train[2] == ("american_bulldog_128.jpg", "american bulldog")
    assert test[6][1] == "saint bernard"
    split = {"train": [["Abyssinian_1.jpg", 0, "abyssinian"]], "test": [["Beagle_7.jpg", 4, "Beagle"]]}
    (tmp_path / "split_zhou_OxfordPets.json").write_text(json.dumps(split))  # it goes first
    assert listed("pets", "test", tmp_path, protocol="coop") == [("Beagle_7.jpg", "beagle")]


def test_sets_without_a_split_of_coop_are_split_as_published(tmp_path):
    """The paper's table takes all sets at once."""
    trees.aircraft(tmp_path)
    trees.cars(tmp_path)
    for name in ("aircraft", "cars"):
        assert data.load(name, "test", tmp_path, protocol="coop") == data.load(name, "test", tmp_path)


# What is wrong with the images


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


# What is wrong with the lists


def says(message, name, root, error=ValueError, **kwargs):
    with pytest.raises(error, match=message) as e:
        data.load(name, root=root, **kwargs)
    assert "\n" not in str(e.value)


def replace_line(file, number, text):
    rows = file.read_text().splitlines()
    rows[number - 1] = text
    file.write_text("\n".join(rows))


@pytest.mark.parametrize("name, title", [
    ("flowers", "Oxford Flowers-102"), ("food", "Food-101"), ("pets", "Oxford-IIIT Pets"),
    ("cars", "Stanford Cars"), ("aircraft", "FGVC-Aircraft")])
def test_a_set_that_is_not_there(tmp_path, name, title):
    (tmp_path / "void").mkdir()
    says(f"{title} is not in .*void as .* is missing; fetch .* and unpack it there", name, tmp_path / "void",
         FileNotFoundError)


def test_cars_that_are_not_there_cannot_be_fetched(tmp_path):
    says("Stanford's host is gone", "cars", tmp_path / "nowhere", FileNotFoundError)


def test_bad_lists_of_flowers(tmp_path):
    folder = trees.flowers(tmp_path)
    setid = (folder / "setid.mat").read_bytes()
    (folder / "setid.mat").unlink()
    says("setid.mat is missing", "flowers", tmp_path, FileNotFoundError)
    (folder / "setid.mat").write_bytes(setid)

    (folder / "cat_to_name.json").write_text('{"1": "pink primrose"}')
    says("flowers-102: a list there is not as published, fetch it again .KeyError: 2.", "flowers", tmp_path)
    (folder / "cat_to_name.json").write_text("<html>")
    says("cat_to_name.json is no JSON object", "flowers", tmp_path)
    (folder / "cat_to_name.json").unlink()
    trees.copy("flowers102/cat_to_name.json", folder / "cat_to_name.json")

    (folder / "setid.mat").write_bytes(b"short")
    says("setid.mat is no whole MATLAB v5 file", "flowers", tmp_path)


@pytest.mark.parametrize("file", ["setid.mat", "cat_to_name.json"])
def test_a_list_that_is_a_pipe(tmp_path, file):
    """To open it would wait for ever."""
    folder = trees.flowers(tmp_path)
    (folder / file).unlink()
    os.mkfifo(folder / file)
    says(f"cannot read .*{file}: it is a pipe or a device", "flowers", tmp_path)


def test_a_label_that_is_no_name(tmp_path):
    folder = trees.flowers(tmp_path)
    names = json.loads((folder / "cat_to_name.json").read_text())
    for label, message in [("x" * 301, "has 301 characters"), (" ", "has no label"),
                           ("\ud800", "is not UTF-8")]:
        (folder / "cat_to_name.json").write_text(json.dumps(names | {"1": label}))
        says(f"flowers: .*image_0.*{message}", "flowers", tmp_path)


def test_bad_lists_of_food(tmp_path):
    folder = trees.food(tmp_path)
    replace_line(folder / "meta/train.txt", 3, "bread_pudding")
    says("train.txt, line 3: expected a line like 'apple_pie/1005649', got 'bread_pudding'", "food", tmp_path)


def test_bad_lists_of_pets(tmp_path):
    folder = trees.pets(tmp_path)
    replace_line(folder / "annotations/test.txt", 2, "Abyssinian_100 1 1 1")
    says("pets: Abyssinian_100.jpg is listed twice", "pets", tmp_path)
    (folder / "images").rename(folder / "pictures")
    says("images is missing", "pets", tmp_path, FileNotFoundError)


def test_bad_lists_of_cars(tmp_path):
    file = trees.cars(tmp_path) / "devkit/cars_train_annos.mat"
    trees.write_mat(file, {"annotations": [{"class": trees.byte(197), "fname": "1.jpg"}]})
    says("stanford_cars: a list there is not as published, .*KeyError: 197", "cars", tmp_path)
    trees.write_mat(file, {"annotations": [{"name": "1.jpg"}]})
    says("stanford_cars: a list there is not as published.*'fname'", "cars", tmp_path)


def test_bad_lists_of_aircraft(tmp_path):
    folder = trees.aircraft(tmp_path)
    replace_line(folder / "images_variant_val.txt", 1, "image variant")
    says("images_variant_val.txt, line 1: expected a line like '1025794 707-320'", "aircraft", tmp_path)


def test_a_split_of_coop_that_is_not_there(tmp_path):
    folder = trees.food(tmp_path)
    says("split_coop.csv is missing; put CoOp's split_zhou_Food101.json there", "food", tmp_path,
         FileNotFoundError, protocol="coop")
    (folder / "images").rename(folder / "pictures")
    says("images is missing; fetch food-101.tar.gz from .* --download does", "food", tmp_path,
         FileNotFoundError, protocol="coop")


@pytest.mark.parametrize("content, message", [
    ("split,filename\ntrain,a/1.jpg\ndev,a/2.jpg\n", "not as published"),
    ("filename\na/1.jpg\n", "not as published.*'split'"),
    ('split,filename\ntrain,"a/1.jpg\n' + "x" * 200_000, "split_coop.csv is no CSV file in UTF-8"),
    ("split,filename\ntrain,\xe6.jpg\n", "split_coop.csv is no CSV file in UTF-8")],
    ids=["split", "column", "quote", "latin-1"])
def test_a_bad_csv_of_coop(tmp_path, content, message):
    folder = trees.food(tmp_path)
    (folder / "split_coop.csv").write_bytes(content.encode("latin-1"))
    says(message, "food", tmp_path, protocol="coop")


@pytest.mark.parametrize("content", [
    '{"train": 5}', '{"train": [5]}', '{"train": [["a.jpg", 1]]}', '{"dev": [["a/1.jpg", 1, "a"]]}',
    '{"train": [["a.jpg", 1, null]]}'])
def test_a_bad_json_of_coop(tmp_path, content):
    folder = trees.food(tmp_path)
    (folder / "split_zhou_Food101.json").write_text(content)
    says("not as published", "food", tmp_path, protocol="coop")
