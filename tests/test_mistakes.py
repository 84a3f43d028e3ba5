"""Mistakes on the command lines, in a table: whatever is given, the command ends in one line and a status,
and no file in the folder it ran in, or at home, is made or changed.

All commands run in this process, in the folder that `world` makes; the values below name files in it.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from transformers.utils import logging

import data
import evaluate
import judge
import train
import trees
from baselines import sft
from support import report
from test_support_command_line import ENDS
from toy import __main__ as toy

SECONDS = 20  # a command that takes longer hangs
NO_UTF8 = os.fsdecode(b"caf\xe9")  # how Python has a name that is not UTF-8

COMMANDS = {"train": train.main, "sft": sft.main, "evaluate": evaluate.main, "judge": judge.main,
            "data": data.main, "report": report.main, "toy": toy.main}

# With these options each command does its work. A mistake takes the place of one of them, or stands beside.
DATA = {"--data": ["cub"], "--root": ["sets"]}
ANSWERS = {"--model": ["checkpoint"], "--judge": ["tree.json"], "--judge-cache": ["none"],
           "--max-new-tokens": ["2"], "--max-pixels": ["3136"]}
TRAIN = DATA | ANSWERS | {"--images-per-step": ["2"], "--minibatch": ["2"], "--n": ["2"], "--steps": ["1"],
                          "--eval-every": ["1"], "--eval-limit": ["1"], "--lora-rank": ["2"],
                          "--out": ["new"]}
USUAL = {
    "train": TRAIN,
    "sft": TRAIN,
    "evaluate": DATA | ANSWERS | {"--limit": ["1"]},
    "judge": {"--judge": ["tree.json"], "--ask": ["mallard", "duck"]},
    "data": DATA | {"--sheet": ["sheet.png"]},
    "report": {"run": ["run"]},
    "toy": {},
}

# ------------------------------------------------------------------------------------------------------------
# The table: options, and values that they can't have

NO_FOLDER = ["", "nowhere", "photo.jpg", "folder", NO_UTF8]
NO_FILE = ["", "nowhere", "folder", "pipe", NO_UTF8]
NO_CHOICE = ["", "x", NO_UTF8]
NO_WHOLE_NUMBER = ["", "x", "1.5", "nan", "1e3"]
NO_NUMBER = ["", "x", "1,5"]

LLM = {"--judge": ["judge"]}
SERVER = {"--judge": ["http://127.0.0.1:9"], "--judge-model": ["m"]}

WORDS = {
    "--data": ["", "nowhere", "nowhere.jsonl", "notes.txt", "photo.jpg", "empty.jsonl", "folder",
               "pipe.jsonl", "folder.jsonl", "photos.jsonl", NO_UTF8, "cub,cub", ",", "cub,", "/dev/null",
               "toy-cat"],
    "--root": NO_FOLDER,
    "--protocol": NO_CHOICE,
    "--split": NO_CHOICE,
    "--model": [*NO_FOLDER, "pipe", "a/b/c", "tree.json", "judge"],
    "--judge": ["", "nowhere", "folder", "photo.jpg", "pipe", "nowhere.json", "folder.json", "pipe.json",
                "empty.json", "photo.json", "list.json", "circle.json", "http://", "ftp://host",
                "http://user:word@host", "http://127.0.0.1:x", "checkpoint", NO_UTF8],
    "--judge-model": [""],
    "--judge-prompt": [*NO_FILE, "empty", "photo.jpg"],
    "--judge-key-file": [*NO_FILE, "empty", "photo.jpg", "notes.txt"],
    "--judge-cache": ["", "photo.jpg", "folder", "notes.txt", "photo.jpg/x", "pipe", NO_UTF8],
    "--method": [*NO_CHOICE, "sft"],
    "--prompt": NO_CHOICE,
    "--loss": NO_CHOICE,
    "--reward": NO_CHOICE,
    "--out": ["", "photo.jpg", "photo.jpg/x", "folder/full", NO_UTF8, "/dev/null", "/proc/x", "n" * 300],
    "--resume": [*NO_FOLDER, "pipe", "run"],  # the run has ended with other settings than these
    "--image": [*NO_FILE, "notes.txt", "empty"],
    "--adapter": [*NO_FOLDER, "pipe", "judge"],
    "--embedder": [*NO_FOLDER, "pipe"],
    "--audit": [*NO_FILE, "empty", "notes.txt", "photo.jpg"],
    "--sheet": ["", "folder", "photo.jpg/x.png", "x.nothing", "x", "/proc/x.png",
                "n" * 300 + ".png", NO_UTF8],
    "run": NO_FOLDER,
}
# What stands beside a mistake, so that it is looked at.
BESIDE = {"--judge-prompt": LLM, "--judge-cache": LLM, "--judge-model": SERVER, "--judge-key-file": SERVER,
          "--judge-timeout": SERVER, "--judge-patience": SERVER}

# Options with two values or none.
PAIRS = {"--betas": [["x", "y"], ["0.9"], ["0.9", "1.5"], ["nan", "0.9"], ["-1", "0.9"], ["0.9", "1e300"]],
         "--ask": [["mallard"]],
         "--explain": [["mallard"]]}
FLAGS = ["--checkpointing", "--no-checkpointing", "--download", "--help"]


def mistakes(option: str) -> list[list[str]]:
    """What may stand behind an option on the command line and should not."""
    if option in PAIRS:
        return [[], *PAIRS[option]]
    if option in WORDS:
        return [[], *[[value] for value in WORDS[option]]]
    field = train.Config.__dataclass_fields__[option[2:].replace("-", "_")]
    values = NO_NUMBER if "float" in str(field.type) else NO_WHOLE_NUMBER
    values = values + [str(value) for value in ENDS[option][1]]
    return [[], *[[value] for value in values]]


# What some commands do allow.
FINE = [("evaluate", "--n", ["1"]), ("evaluate", "--temperature", ["0"]), ("sft", "--method", ["sft"])]


def options_of(command: str, capfd) -> list[str]:
    """As --help lists them."""
    with pytest.raises(SystemExit):
        COMMANDS[command](["--help"])
    listed = re.findall(r"^  (--[\w-]+)", capfd.readouterr().out, re.MULTILINE)
    return [option for option in listed if option not in FLAGS]


def command_line(command: str, changes: dict[str, list[str]]) -> list[str]:
    """The command's usual options with these in their place."""
    words = []
    for option, values in (USUAL[command] | changes).items():
        if option != "run":
            words.append(option)
        words += values
    return words


# ------------------------------------------------------------------------------------------------------------
# The folder that all commands run in


@pytest.fixture(scope="module")
def world(tmp_path_factory, checkpoint, judge_folder):
    """A data set, a policy and a judge, a run and an evaluation that have ended; and files of other kinds."""
    folder = tmp_path_factory.mktemp("world")
    made = pytest.MonkeyPatch()
    made.chdir(folder)
    made.setenv("HOME", str(folder / "home"))
    made.delenv("JUDGE_API_KEY", raising=False)
    logging.disable_progress_bar()

    trees.cub(folder / "sets")
    trees.judge_of_cub(folder)
    shutil.copytree(checkpoint, "checkpoint")
    shutil.copytree(judge_folder, "judge")
    for name in ("home", "folder", "folder.json", "folder.jsonl"):
        Path(name).mkdir()
    for name in ("pipe", "pipe.json", "pipe.jsonl"):
        os.mkfifo(name)
    for name in ("empty", "empty.json", "empty.jsonl"):
        Path(name).write_text("")
    for name in ("photo.jpg", "photo.json", "photos.jsonl"):
        Image.new("RGB", (30, 20), "red").save(name, format="jpeg")
    Path("folder/full").mkdir()
    Path("folder/full/notes.txt").write_text("mine\n")
    Path("notes.txt").write_text("Notes.\nOf another kind.\n")
    Path("list.json").write_text("[]")
    Path("circle.json").write_text('{"parents": {"a": "b", "b": "a"}}')
    rows = [{"image": "photo.jpg", "label": f"bird {i}", "split": split}
            for i, split in enumerate(("train", "val", "test"))]
    Path("pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("prompt.txt").write_text("Say which it is.\n")
    Path("key.txt").write_text("secret\n")
    pair = {"ground_truth": "mallard", "prediction": "bird", "category": "generic"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n")

    train.main(command_line("train", {"--out": ["run"]}))
    evaluate.main(command_line("evaluate", {"--out": ["eval.json"], "--adapter": ["none", "run"]}))
    yield folder
    made.undo()
    logging.enable_progress_bar()


def contents(folder: Path) -> dict:
    """Every folder, and every file with the moment in which it was changed last."""
    found = {}
    for place in folder.rglob("*"):
        state = place.lstat()
        changed = 0 if place.is_dir() else state.st_mtime_ns  # a lock comes into a folder, and goes
        found[str(place)] = (state.st_mode, state.st_size, changed)
    return found


def hang(*_) -> None:
    raise AssertionError(f"it hangs, or takes more than {SECONDS} seconds")


def said(command: str, words: list[str], capfd) -> list[str]:
    """The lines in which the command ends, with a status; an option's mistake without argparse's usage."""
    capfd.readouterr()
    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as stop:
            COMMANDS[command](words)
    finally:
        signal.alarm(0)
    status = stop.value.code
    written = capfd.readouterr().err
    if isinstance(status, str):
        written += status
    else:
        assert status == 2, f"status {status}"
        written = written[written.index(": error: "):]
    lines = [line.rsplit("\r", 1)[-1].strip() for line in written.splitlines()]
    return [line for line in lines if line and not line.startswith("warning: ")]


def refused(world: Path, command: str, words: list[str], capfd) -> str:
    """The one line in which the command ends. Everything is as before."""
    before = contents(world)
    lines = said(command, words, capfd)
    assert len(lines) == 1, "\n".join(lines)
    assert 10 < len(lines[0]) < 1000 and "Traceback" not in lines[0]
    after = contents(world)
    assert after == before
    return lines[0]


# ------------------------------------------------------------------------------------------------------------
# Options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option(world, capfd, command):
    wrong = []
    tried = 0
    options = options_of(command, capfd)
    if "run" in USUAL[command]:
        options.append("run")
    for option in options:
        beside = BESIDE.get(option, {})
        if command == "judge" and option == "--audit":
            beside = {}
        for values in mistakes(option):
            if (command, option, values) in FINE:
                continue
            tried += 1
            words = command_line(command, beside | {option: values})
            try:
                line = refused(world, command, words, capfd)
                print(command, option, values, "::", line, file=LOG)
            except BaseException as e:
                print("FAIL", command, option, [v[:40] for v in values], "::", type(e).__name__, str(e)[:600].replace("\n", " / "), file=LOG)
                wrong.append((option, values))
            LOG.flush()
    print("TRIED", command, tried, len(wrong), file=LOG)
    assert not wrong

LOG = open("/tmp/mistakes/log.txt", "a", errors="replace")
