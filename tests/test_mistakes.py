"""Mistakes on the command lines, in a table: whatever is given, the command ends in one line and a status,
and no file in the folder it ran in, or at home, is made or changed.

All commands run in this process, in the folder that `world` makes; the values below name files in it.
"""

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers.utils import logging

import data
import evaluate
import judge
import train
import trees
from baselines import sft
from judges.cache import CachedJudge
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
TRAIN = DATA | ANSWERS | {"--limit": ["8"], "--images-per-step": ["2"], "--minibatch": ["2"], "--n": ["2"],
                          "--steps": ["1"], "--eval-every": ["1"], "--eval-limit": ["1"],
                          "--lora-rank": ["2"], "--out": ["new"]}
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
                "http://user:word@host", "http://127.0.0.1:x", "checkpoint", NO_UTF8, "tree.json,",
                "tree.json,nowhere", "tree.json,tree.json", "http://127.0.0.1:9#x", "judge#model=m"],
    "--judge-model": [""],
    "--judge-prompt": [*NO_FILE, "empty", "photo.jpg"],
    "--judge-key-file": [*NO_FILE, "empty", "photo.jpg", "notes.txt"],
    "--judge-cache": ["", "photo.jpg", "folder", "notes.txt", "photo.jpg/x", "pipe", NO_UTF8],
    "--method": [*NO_CHOICE, "sft", "rl"],
    "--prompt": [*NO_CHOICE, *NO_FILE, "empty", "photo.jpg"],
    "--loss": NO_CHOICE,
    "--reward": NO_CHOICE,
    "--control": NO_CHOICE,
    "--out": ["", "photo.jpg", "photo.jpg/x", "folder/full", NO_UTF8, "/dev/null", "/proc/x", "n" * 300],
    "--resume": [*NO_FOLDER, "pipe"],
    "--image": [*NO_FILE, "notes.txt", "empty"],
    "--answers": [*NO_FILE, "notes.txt", "empty", "photo.jpg"],
    "--adapter": [*NO_FOLDER, "pipe", "judge"],
    "--embedder": [*NO_FOLDER, "pipe"],
    "--language-inclusion": [*NO_FOLDER, "pipe", "checkpoint"],
    "--top-p": [*NO_NUMBER, "0", "-1", "1.1", "nan", "inf", "0.9"],  # the last of greedy answers
    "--audit": [*NO_FILE, "empty", "notes.txt", "photo.jpg"],
    "--sheet": ["", "folder", "photo.jpg/x.png", "x.nothing", "x", "/proc/x.png", "n" * 300 + ".png",
                NO_UTF8 + ".png"],
    "run": NO_FOLDER,
}
# What stands beside a mistake, so that it is looked at.
BESIDE = {"--judge-prompt": LLM, "--judge-cache": LLM, "--judge-model": SERVER, "--judge-key-file": SERVER,
          "--judge-timeout": SERVER, "--judge-patience": SERVER, "--judge-workers": SERVER,
          "--judge-tokens": SERVER}

# Options with two values or none.
PAIRS = {"--betas": [["x", "y"], ["0.9"], ["0.9", "1.5"], ["nan", "0.9"], ["-1", "0.9"], ["0.9", "1e300"]],
         "--ask": [["mallard"]],
         "--explain": [["mallard"]]}
FLAGS = ["--checkpointing", "--no-checkpointing", "--dynamic-sampling", "--no-dynamic-sampling", "--choose",
         "--download", "--help"]

# A value for each option that is no number.
VALID = {"--data": ["cub"], "--root": ["sets"], "--protocol": ["official"], "--split": ["test"],
         "--model": ["checkpoint"], "--judge": ["tree.json"], "--judge-model": ["m"],
         "--judge-prompt": ["short"], "--judge-key-file": ["key.txt"], "--judge-cache": ["none"],
         "--method": ["rl"], "--prompt": ["base"], "--loss": ["grpo"], "--reward": ["exact"],
         "--betas": ["0.9", "0.9"], "--control": ["shuffled"], "--out": ["new"], "--resume": ["run"],
         "--image": ["photo.jpg"], "--answers": ["eval.jsonl"],
         "--adapter": ["none"], "--embedder": ["judge"], "--language-inclusion": ["judge"],
         "--top-p": ["1"], "--audit": ["pairs.jsonl"], "--sheet": ["x.png"],
         "--ask": ["mallard", "duck"], "--explain": ["mallard", "duck"]}


# What becomes of a file: other contents, or none.
CONTENTS = {
    "cut": lambda content: content[:len(content) // 2],
    "empty": lambda content: b"",
    "a picture": lambda content: Path("photo.jpg").read_bytes(),
    "no dict": lambda content: b"null\n",
    "UTF-16": lambda content: content.decode("latin-1").encode("utf-16"),
}
ABSENT = ["a folder", "a pipe", "gone"]

# Every file that a command reads: the command, the options that name it, and what it may become.
CUB = "sets/CUB_200_2011/"
RUN = {"--resume": ["run"]}
EVALUATION = {"--adapter": ["none", "run"], "--out": ["eval.json"]}
KEPT = {"--judge": ["judge"], "--judge-cache": ["verdicts.sqlite"]}
FILES = {
    CUB + "classes.txt": ("train", {}, []),
    CUB + "images.txt": ("evaluate", {}, []),
    CUB + "image_class_labels.txt": ("data", {}, []),
    CUB + "train_test_split.txt": ("sft", {}, []),
    "pictures.jsonl": ("data", {"--data": ["pictures.jsonl"]}, []),
    "tree.json": ("judge", {}, ["UTF-16"]),  # JSON says how it is encoded
    "prompt.txt": ("train", LLM | {"--judge-prompt": ["prompt.txt"]}, ["cut", "no dict"]),
    "key.txt": ("judge", SERVER | {"--judge-key-file": ["key.txt"]}, ["cut", "no dict"]),
    "pairs.jsonl": ("judge", {"--audit": ["pairs.jsonl"]}, []),
    "verdicts.sqlite": ("train", KEPT, ["cut", "empty", "gone"]),
    "photo.jpg": ("evaluate", {"--image": ["photo.jpg"]}, ["a picture"]),
    "eval.json": ("evaluate", EVALUATION, [*CONTENTS, "gone"]),  # made again, from the answers
    "eval.jsonl": ("evaluate", EVALUATION, ["cut", "empty"]),  # as a kill leaves it
    "run/adapter/adapter_config.json": ("evaluate", {"--adapter": ["run"]}, []),
    "run/adapter/adapter_model.safetensors": ("evaluate", {"--adapter": ["run"]}, []),
    "checkpoint/config.json": ("train", {}, []),
    "checkpoint/model.safetensors": ("evaluate", {}, []),
    "checkpoint/tokenizer.json": ("train", {}, []),
    "checkpoint/tokenizer_config.json": ("train", {}, ABSENT),  # tokenizer.json says it all
    "checkpoint/preprocessor_config.json": ("train", {}, []),
    "checkpoint/chat_template.jinja": ("train", {}, []),
    "judge/config.json": ("judge", LLM, []),
    "judge/model.safetensors": ("judge", LLM, []),
    "judge/tokenizer.json": ("judge", LLM, []),
    "judge/tokenizer_config.json": ("judge", LLM, ABSENT),
    "judge/chat_template.jinja": ("judge", LLM, []),
    "run/config.json": ("train", RUN, []),
    "run/state.pt": ("train", RUN, []),
    "run/log.jsonl": ("train", RUN, []),
    "run/samples.jsonl": ("train", RUN, []),
    "run/shown.jsonl": ("train", RUN, []),
}
# A report is of what is there, and passes over lines that it can't read.
REPORT = {
    "run/config.json": ["gone"],
    "run/log.jsonl": [*CONTENTS, "gone"],
    "run/samples.jsonl": [*CONTENTS, "gone"],
    "run/shown.jsonl": [*CONTENTS, "gone"],
    "run/eval.json": ["gone"],
}


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


OWN_OF_SFT = ("--data", "--method", "--out", "--resume", "--lr")  # the others are train's, and tried there

# What some commands allow.
FINE = [("evaluate", "--n", ["1"]), ("evaluate", "--temperature", ["0"]), ("sft", "--method", ["sft"]),
        ("train", "--method", ["rl"])]


def options_of(command: str, capfd) -> list[str]:
    """As --help lists them."""
    with pytest.raises(SystemExit):
        COMMANDS[command](["--help"])
    listed = re.findall(r"^  (--[\w-]+)", capfd.readouterr().out, re.MULTILINE)
    return [option for option in listed if option not in FLAGS]


def command_line(command: str, changes: dict[str, list[str]]) -> list[str]:
    """The command's usual options with these in their place. A run is resumed without others."""
    words = []
    usual = {} if changes == RUN else USUAL[command]
    for option, values in (usual | changes).items():
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
    CachedJudge(SimpleNamespace(key="a judge"), "verdicts.sqlite")
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


def complaints(world: Path, command: str, words: list[str], capfd, kind: str = "") -> list[str]:
    """What is wrong with how the command ends, if anything is. kind: of damage, if there is any."""
    try:
        refused(world, command, words, capfd)
    except (Exception, pytest.fail.Exception) as error:  # a traceback, or one of the checks
        shutil.rmtree("new", ignore_errors=True)  # the run that should not have begun
        return [f"{kind} {command} {words}: {type(error).__name__} {error}"]
    return []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option(world, capfd, command):
    options = options_of(command, capfd)
    if "run" in USUAL[command]:
        options.append("run")

    wrong = []
    for option in options:
        if command == "sft" and option not in OWN_OF_SFT:
            continue
        for values in mistakes(option):
            if (command, option, values) not in FINE:
                words = command_line(command, BESIDE.get(option, {}) | {option: values})
                wrong += complaints(world, command, words, capfd)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_twice(world, capfd, command):
    wrong = []
    for option in options_of(command, capfd):
        values = VALID.get(option) or [str(ENDS[option][0][0])]
        words = command_line(command, {option: values}) + [option, *values]
        wrong += complaints(world, command, words, capfd)
    assert not wrong, "\n\n".join(wrong)


# ------------------------------------------------------------------------------------------------------------
# Files

@contextmanager
def damaged(name: str, kind: str):
    """The file is of that kind, or a folder, a pipe, or gone; behind the block it is what it was."""
    file = Path(name)
    kept = file.rename("kept")
    try:
        if kind in CONTENTS:
            file.write_bytes(CONTENTS[kind](kept.read_bytes()))
        if kind == "a folder":
            file.mkdir()
        if kind == "a pipe":
            os.mkfifo(file)
        yield
    finally:
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        kept.rename(file)


@pytest.mark.parametrize("name", FILES)
def test_every_file(world, capfd, name):
    command, changes, may_become = FILES[name]
    words = command_line(command, changes)
    wrong = []
    for kind in [*CONTENTS, *ABSENT]:
        if kind not in may_become:
            with damaged(name, kind):
                wrong += complaints(world, command, words, capfd, kind)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("name", REPORT)
def test_every_file_of_a_report(world, capfd, name):
    wrong = []
    for kind in [*CONTENTS, *ABSENT]:
        if kind not in REPORT[name]:
            with damaged(name, kind):
                wrong += complaints(world, "report", ["run"], capfd, kind)
    assert not wrong, "\n\n".join(wrong)
