"""A whole run in a tenth of a second: train.main on a model of two layers, with stand-ins for all that is not
about files. And a disk that fills up, or a kill, at any one of the moments at which files change."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

import data
import metrics
import train
from lora import lora_state
from reward import Category
from rollout import Group

VOLATILE = ("time/", "mem/", "cache/")
ARGUMENTS = ["--data", "toy", "--n", "2", "--limit", "8", "--images-per-step", "4", "--steps", "2",
             "--eval-every", "2", "--lora-rank", "2", "--judge-cache", "none"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def get_decoder(self):
        return self.decoder


def weight(policy) -> float:
    """A number that tells one state of the adapters from another."""
    return sum(float(value.detach().double().abs().sum()) for value in lora_state(policy.model).values())


def policy(*args, **settings):
    return SimpleNamespace(model=Model(), device="cpu", name="small")


def examples(split: str) -> list:
    return [SimpleNamespace(id=f"{split}/{i}", label=f"bird {i}") for i in range(8)]


def sample(policy, images, ids, question, n, **settings) -> list[Group]:
    groups = []
    for image_id in ids:
        mask = torch.ones(n, 3, dtype=torch.bool)
        groups.append(Group(image_id, None, mask.long(), mask, mask.float(), ["a"] * n, ["a"] * n, 0))
    return groups


def judge_groups(judge, truths, answers) -> list[list]:
    return [[Category.GENERIC, Category.SPECIFIC] for _ in truths]


def update(policy, optimizer, groups, *rest) -> dict:
    """Gradients that depend on the weights and on the learning rate of the step."""
    for number, parameter in enumerate(policy.model.parameters()):
        if parameter.requires_grad:
            parameter.grad = parameter.detach().sin() + 0.1 * number
    optimizer.step()
    return {"policy/loss": weight(policy)}


def evaluate(policy, judge, examples, *args, **settings) -> dict:
    records = []
    for example in examples:
        text = f"{weight(policy):.12f}"
        records.append({"id": example.id, "truth": example.label, "texts": [text] * 2, "answers": ["a"] * 2})
    groups = [[Category.GENERIC] * 2 for _ in examples]
    return {"summary": metrics.summarize([Category.GENERIC] * len(examples)), "groups": groups,
            "records": records, "unreadable": []}


def before_and_after(policy, judge, tests, *args) -> dict:
    figures = metrics.summarize([Category.GENERIC] * 3).to_json()
    return {"greedy": {"toy": {"before": figures, "after": figures | {"correctness": weight(policy)}}}}


def install(monkeypatch) -> None:
    """Puts the stand-ins into train."""
    sets = ("train", "val", "test")
    loaded = [examples(split) for split in sets]
    opened = (loaded[0], {"toy": loaded[1]}, {"toy": loaded[2]})
    monkeypatch.setattr(train, "load_data", lambda config: opened)
    monkeypatch.setattr(train, "question_for", lambda *args: "what?")
    monkeypatch.setattr(train, "load_policy", policy)
    monkeypatch.setattr(train, "load_judge", lambda *args: None)
    monkeypatch.setattr(data, "read_images", lambda batch: (batch, batch, []))
    monkeypatch.setattr(train, "sample", sample)
    monkeypatch.setattr(train, "judge_groups", judge_groups)
    monkeypatch.setattr(train, "update", update)
    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr(train, "before_and_after", before_and_after)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # most of the time, and here the machine stays up


# ------------------------------------------------------------------------------------------------------------
# Moments at which files change


class Killed(BaseException):
    pass


class Disk:
    """Watches a folder. At change number `last` the process is as good as dead: neither that nor any later
    change comes about. Or the disk is full: from there on nothing is written, but files can be removed; or it
    can only be read."""

    def __init__(self):
        self.folder = None
        sys.addaudithook(self.hear)  # there for good; without a folder it does nothing

    def watch(self, folder: Path, last: int, fault: str, torn: bytes) -> None:
        self.folder = str(folder)
        self.last = last
        self.fault = fault  # "kill", "torn" (a kill in the middle of a write), "full", "read-only"
        self.torn = torn
        self.changes = 0

    def rest(self) -> None:
        self.folder = None

    def hear(self, event: str, arguments: tuple) -> None:
        if self.folder is None or not changes_a_file(event, arguments, self.folder):
            return
        if event != "open" and self.fault == "torn":
            return
        self.changes += 1
        if self.changes < self.last:
            return
        if self.fault == "read-only":
            raise OSError(errno.EROFS, "Read-only file system")
        if self.fault == "full":
            if event not in ("os.remove", "os.rmdir"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return
        if self.fault == "torn" and self.changes == self.last:
            folder, self.folder = self.folder, None  # what follows is this hook's own
            with open(arguments[0], "ab") as file:
                file.write(self.torn)
            self.folder = folder
        raise Killed(f"{event} {arguments[0]}")


def changes_a_file(event: str, arguments: tuple, folder: str) -> bool:
    """Whether something below the folder is about to become another."""
    if event not in ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"):
        return False
    path = arguments[0]
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path).startswith(folder):
        return False
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
    return os.path.lexists(path) != (event == "os.mkdir")


DISK = Disk()


def contents(folder: Path) -> dict:
    """What every file holds, by its name, without what may differ from run to run: the times in the log, and
    so its length in the state."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name == "log.jsonl":
            found[name] = lines(file)
        elif file.name == "state.pt":
            found[name] = plain(torch.load(file, weights_only=True))
            del found[name]["offsets"]["log.jsonl"]
        elif file.is_file():
            found[name] = file.read_bytes()
    return found


def lines(log: Path) -> list[dict]:
    kept = []
    for line in log.read_text().splitlines():
        kept.append({key: value for key, value in json.loads(line).items() if not key.startswith(VOLATILE)})
    return kept


def plain(value):
    """Tensors as lists, so that == compares them."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def stopped_at(run: Path, last: int, fault: str, start, torn: bytes = b'{"step": 2, "to') -> str | None:
    """start() with a fault at the last change. Returns what the command said when it stopped, "killed", or
    None where it came to its end before."""
    DISK.watch(run, last, fault, torn)
    said = None
    try:
        start()
    except Killed:
        said = "killed"
    except SystemExit as stop:
        said = str(stop)
    finally:
        reached = DISK.changes >= last
        DISK.rest()
    return said or (None if not reached else "went on")


def start_over(run: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
