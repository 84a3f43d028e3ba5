"""CUB, the embedded world, splits, subsets and the one line that a mistake ends in."""

import json
import random

import pytest

import data
import train
import trees


def test_cub_reads_labels_splits_and_order(tmp_path):
    folder = trees.cub(tmp_path)
    train_set = data.load("cub", "train", folder)
    test_set = data.load("cub", "test", folder)
    assert len(train_set) == len(test_set) == 12
    assert not {e.id for e in train_set} & {e.id for e in test_set}
    assert [e.label for e in train_set[::3]] == ["Black footed Albatross", "Laysan Albatross",
                                                 "Indigo Bunting", "Mallard"]
    # images.txt in order; 1 in train_test_split.txt is training
    assert train_set[0].id == "cub/001.Black_footed_Albatross/Black_Footed_Albatross_0000_1.jpg"
    assert test_set[0].id.endswith("_0001_2.jpg")
    assert train_set[0].image().size == (70, 56)
    assert train_set[0].domain == "cub"


def test_cub_from_the_publishers_lines(tmp_path):
    for name in ("classes", "images", "image_class_labels", "train_test_split"):
        trees.copy(f"cub200/{name}.txt", tmp_path / f"{name}.txt")
    (tmp_path / "images").mkdir()
    train_set = data.load("cub", "train", tmp_path)
    test_set = data.load("cub", "test", tmp_path)
    assert len(train_set) == len(test_set) == 13
    assert train_set[0].id == "cub/001.Black_footed_Albatross/Black_Footed_Albatross_0009_34.jpg"
    assert train_set[0].label == "Black footed Albatross"
    assert test_set[2].label == "Laysan Albatross"
    assert test_set[4].label == "Indigo Bunting"
    assert test_set[-1].label == "Common Yellowthroat"


def test_root_may_be_the_folder_or_above_it(tmp_path):
    folder = trees.cub(tmp_path / "data")
    assert data.load("cub", root=tmp_path / "data") == data.load("cub", root=folder)
    (tmp_path / "cub").mkdir()
    folder.rename(tmp_path / "cub" / "CUB_200_2011")
    assert len(data.load("cub", root=tmp_path)) == 12


# Subsets


def test_limit_is_the_releases_subset_whatever_else_is_seeded(tmp_path):
    """random.seed(42); random.sample(range(5994), 3000) starts like this in the release."""
    indices = [5238, 912, 204, 2253, 2006, 1828, 1143, 839, 5543, 4467]
    assert data.subset(list(range(5994)), 3000, 42)[:10] == indices
    folder = trees.cub(tmp_path)
    random.seed(7)
    everything = data.load("cub", root=folder)
    five = data.load("cub", root=folder, limit=5)
    assert [everything.index(e) for e in five] == random.Random(42).sample(range(12), 5)
    assert data.load("cub", root=folder, limit=99) == everything


def test_a_mixed_sets_parts_come_from_one_stream(tmp_path):
    """500 each of cub, food, flowers, pets, aircraft and cars start like this in the release."""
    rng = random.Random(42)
    sizes = (5994, 50500, 4093, 2944, 3334, 8144)
    first = [data.subset(range(size), 500, rng)[0] for size in sizes]
    assert first == [5238, 7104, 2329, 1208, 3228, 2377]

    folder = trees.cub(tmp_path)
    file = tmp_path / "own.jsonl"
    rows = [{"image": f"{i}.png", "label": "a", "split": "train" if i else "test"} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    rng = random.Random(42)
    rng.sample(range(12), 5)  # what the birds draw
    second = data.load(str(file), limit=5, seed=rng)
    assert second != data.load(str(file), limit=5)
    config = train.Config(data=f"cub,{file}", root=str(folder), limit=5, images_per_step=1)
    assert train.load_data(config)[0] == data.load("cub", root=folder, limit=5) + second


def test_spread_takes_every_so_many():
    assert data.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert data.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert data.spread(list(range(3)), 8) == [0, 1, 2]
    assert data.spread([], 8) == data.spread([1], 0) == []


def test_validation_images_are_unused_training_images(tmp_path):
    folder = trees.cub(tmp_path)
    everything = data.load("cub", root=folder)
    val = data.load("cub", "val", folder)
    used = data.load("cub", root=folder, limit=6)
    assert set(val) < set(everything)
    assert len(val) == 6
    assert not {e.id for e in val} & {e.id for e in used}


def test_validation_is_all_that_the_papers_3000_leave(tmp_path):
    numbers = range(1, 6001)
    (tmp_path / "CUB_200_2011" / "images").mkdir(parents=True)
    trees.cub_lists(tmp_path / "CUB_200_2011",
                    classes=["1 001.A"],
                    images=[f"{i} a/{i}.jpg" for i in numbers],
                    labels=[f"{i} 1" for i in numbers],
                    split=[f"{i} {int(i <= 5994)}" for i in numbers])
    everything = data.load("cub", root=tmp_path)
    used = data.load("cub", root=tmp_path, limit=3000)
    val = data.load("cub", "val", tmp_path)
    assert len(val) == 2994
    assert set(val) | set(used) == set(everything)


# Mistakes


def test_what_is_missing_is_said_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="fetch CUB_200_2011.tgz .* unpack it there") as e:
        data.load("cub", root=tmp_path)
    assert "\n" not in str(e.value)

    folder = trees.cub(tmp_path)
    (folder / "classes.txt").rename(folder / "names.txt")
    with pytest.raises(FileNotFoundError, match="classes.txt is missing"):
        data.load("cub", root=folder)
    (folder.parent / "cub").mkdir()
    with pytest.raises(FileNotFoundError, match="CUB_200_2011/classes.txt is missing"):
        data.load("cub", root=folder.parent)  # and not what an empty folder beside it lacks
    (folder / "names.txt").rename(folder / "classes.txt")

    (folder / "image_class_labels.txt").write_text("1 1\n")
    with pytest.raises(ValueError, match="not as published, fetch it again .*'2'"):
        data.load("cub", root=folder)


@pytest.mark.parametrize("name, options, message", [
    ("dogs", {}, "unknown dataset 'dogs': choose cub, flowers, food, pets, cars, aircraft, toy-bird"),
    ("", {}, "unknown dataset ''"),
    ("toy-cat", {}, "unknown dataset 'toy-cat': choose toy-bird, toy-flower, toy-vehicle, toy-fish"),
    ("cub", {"split": "dev"}, "unknown split 'dev': choose train, val or test"),
    ("pets", {"split": "dev"}, "unknown split 'dev': choose train, val or test"),
    ("toy", {"limit": 0}, "limit must be at least 1, got 0"),
    ("toy", {"protocol": "mine"}, "unknown protocol 'mine': choose official or coop"),
    ("pets", {"protocol": "mine"}, "unknown protocol 'mine': choose official or coop")])
def test_an_unknown_name_or_option_is_said_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as e:
        data.load(name, **options)
    assert "\n" not in str(e.value)


# The embedded world


def test_toy_domains():
    birds = data.load("toy", "val")
    assert birds == data.load("toy-bird", "val")
    assert len(birds) == 200
    assert birds[0].image().size == (48, 48)
    assert birds[0].image().tobytes() == birds[0].image().tobytes()
    assert {e.domain for e in data.load("toy-fish", "test", limit=3)} == {"fish"}
    ids = [e.id for split in ("train", "val", "test") for e in data.load("toy-flower", split)]
    assert len(ids) == len(set(ids)) == 1500
