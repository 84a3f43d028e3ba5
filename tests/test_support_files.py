"""Files that are written beside their place and put into it: a sheet, a report, figures; and lines."""

import errno
import json
import os
import resource
from contextlib import contextmanager
import time

import pytest
from PIL import Image

from readers import census
from support import report
from support.files import append, replacing, write_json
from toy import base_policy, sheet

FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*args, **options):
    raise FULL


@contextmanager
def small_files():
    """No file may grow beyond 1000 bytes: the same kind of error as a full disk. Around one call, since it
    holds for the log of these tests too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_folder(folder):
    folder.mkdir()
    lines = "".join(json.dumps({"step": step, "reward": step / 9}) + "\n" for step in range(9))
    (folder / "log.jsonl").write_text(lines)
    return folder


WRITERS = {
    "x.json": lambda folder: write_json(folder / "x.json", ["x"] * 999),
    "report.html": lambda folder: report.write(folder),
    "world.png": lambda folder: sheet.contact_sheet(folder / "world.png"),
    "mine.png": lambda folder: census.save_sheet([], folder / "mine.png"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_costs_no_old_file(name, tmp_path, monkeypatch):
    """One line that names the file, the old one as it was, nothing beside it."""
    folder = run_folder(tmp_path / "run")
    (folder / name).write_text("the old one")
    monkeypatch.setattr(census, "sheet", lambda examples: Image.effect_noise((99, 99), 50))
    with small_files(), pytest.raises(OSError, match="^cannot write .*File too large") as error:
        WRITERS[name](folder)
    assert "\n" not in str(error.value)
    assert (folder / name).read_text() == "the old one"
    assert sorted(file.name for file in folder.iterdir()) == sorted(["log.jsonl", name])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_says_late_that_it_is_full(call, tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", 1)
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*x.json: No space left on device"):
        write_json(tmp_path / "x.json", 2)
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "1\n"


def test_behind_a_link_the_file_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "x.json").symlink_to(tmp_path / "far" / "y.json")
    for value in (1, 2):
        write_json(tmp_path / "x.json", value)
        assert (tmp_path / "x.json").is_symlink()
        assert (tmp_path / "far" / "y.json").read_text() == f"{value}\n"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="it is no file"), replacing(tmp_path / name):
            raise AssertionError("was let in")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "folder").is_dir()


def test_a_stopped_writer_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "1\n"


def test_half_a_surrogate_pair_comes_back(tmp_path):
    """As a file's name has it that is no UTF-8."""
    append(tmp_path / "x.jsonl", [{"id": "caf\udce9"}, {"id": "café 🐦"}])
    write_json(tmp_path / "x.json", "\ud83d")
    lines = (tmp_path / "x.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["caf\udce9", "café 🐦"]
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == "\ud83d"


# ---- the cache of the base policy


def test_a_base_policy_that_cannot_be_kept_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(base_policy, "train", lambda tokenizer, *args: base_policy.build_model(tokenizer))
    with small_files(), pytest.raises(OSError, match="^cannot write the base policy into ") as error:
        base_policy.base_policy(cache=tmp_path)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


def test_what_killed_trainings_left_is_cleared_after_a_day(tmp_path, monkeypatch):
    for name, hours in (("old", 25), ("young", 23)):
        folder = tmp_path / f".partial-{name}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    monkeypatch.setattr(base_policy, "write_checkpoint", lambda *args: None)
    made = base_policy.base_policy(cache=tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / ".partial-young", made]
