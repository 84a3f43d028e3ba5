import json
import random

import pytest

import data
import train
import trees


def test_cub_reads_labels_splits_and_order(tmp_path):
    folder = trees.cub(tmp_path)
    train, test = data.load("cub", "train", folder), data.load("cub", "test", folder)
    assert len(train) == len(test) == 12 and not {e.id for e in train} & {e.id for e in test}
    assert [e.label for e in train[::3]] == ["Black footed Albatross", "Laysan Albatross", "Indigo Bunting",
                                             "Mallard"]
    assert train[0].id == "cub/001.Black_footed_Albatross/Black_Footed_Albatross_0000_1.jpg"
    assert test[0].id.endswith("_0001_2.jpg")  # images.txt in order; 1 in train_test_split.txt is training
    assert train[0].image().size == (70, 56) and train[0].domain == "cub"


def test_root_may_be_the_folder_or_above_it(tmp_path):
    folder = trees.cub(tmp_path / "data")
    assert data.load("cub", root=tmp_path / "data") == data.load("cub", root=folder)
    (tmp_path / "cub").mkdir()
    folder.rename(tmp_path / "cub" / "CUB_200_2011")
    assert len(data.load("cub", root=tmp_path)) == 12


def test_limit_is_the_releases_subset_whatever_else_is_seeded(tmp_path):
    """random.seed(42); random.sample(range(5994), 3000) starts like this in the release."""
    indices = [5238, 912, 204, 2253, 2006, 1828, 1143, 839, 5543, 4467]
    assert data.subset(list(range(5994)), 3000, 42)[:10] == indices
    folder = trees.cub(tmp_path)
    random.seed(7)
    everything, five = data.load("cub", root=folder), data.load("cub", root=folder, limit=5)
    assert [everything.index(e) for e in five] == random.Random(42).sample(range(12), 5)
    assert data.load("cub", root=folder, limit=99) == everything


def test_a_mixed_sets_parts_come_from_one_stream(tmp_path):
    """500 each of cub, food, flowers, pets, aircraft and cars start like this in the release."""
    rng, sizes = random.Random(42), (5994, 50500, 4093, 2944, 3334, 8144)
    assert [data.subset(range(n), 500, rng)[0] for n in sizes] == [5238, 7104, 2329, 1208, 3228, 2377]
    folder, file, rng = trees.cub(tmp_path), tmp_path / "own.jsonl", random.Random(42)
    rows = [{"image": f"{i}.png", "label": "a", "split": "train" if i else "test"} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    rng.sample(range(12), 5)
    second = data.load(str(file), limit=5, seed=rng)
    assert second != data.load(str(file), limit=5)
    config = train.Config(data=f"cub,{file}", root=str(folder), limit=5, images_per_step=1)
    assert train.load_data(config)[0] == data.load("cub", root=folder, limit=5) + second


def test_validation_images_are_unused_training_images(tmp_path):
    folder = trees.cub(tmp_path)
    everything, val = data.load("cub", root=folder), data.load("cub", "val", folder)
    assert set(val) < set(everything) and len(val) == 6
    assert not {e.id for e in val} & {e.id for e in data.load("cub", root=folder, limit=6)}


def test_validation_is_all_that_the_papers_3000_leave(tmp_path):
    lines = [f"{i} a/{i}.jpg" for i in range(1, 6001)]
    (folder := tmp_path / "CUB_200_2011" / "images").mkdir(parents=True)
    for name, content in (("images.txt", lines), ("classes.txt", ["1 001.A"]),
                          ("image_class_labels.txt", [f"{i} 1" for i in range(1, 6001)]),
                          ("train_test_split.txt", [f"{i} {int(i <= 5994)}" for i in range(1, 6001)])):
        (folder.parent / name).write_text("\n".join(content))
    used, val = data.load("cub", root=tmp_path, limit=3000), data.load("cub", "val", tmp_path)
    assert len(val) == 2994 and set(val) | set(used) == set(data.load("cub", root=tmp_path))


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
    for call in (lambda: data.load("dogs"), lambda: data.load("toy-cat"), lambda: data.load("cub", "dev"),
                 lambda: data.load("toy", limit=0), lambda: data.load("toy", protocol="mine")):
        with pytest.raises(ValueError):
            call()


def test_toy_domains():
    birds = data.load("toy", "val")
    assert birds == data.load("toy-bird", "val") and len(birds) == 200
    assert birds[0].image().size == (48, 48) and birds[0].image().tobytes() == birds[0].image().tobytes()
    assert {e.domain for e in data.load("toy-fish", "test", limit=3)} == {"fish"}
    ids = [e.id for split in ("train", "val", "test") for e in data.load("toy-flower", split)]
    assert len(ids) == len(set(ids)) == 1500
