"""The reward for other trainers, by itself: it needs neither torch nor a trainer. tests/interop has those."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples import verl_reward
from examples.trl_reward import speciarl_reward
from reward import Category

ROOT = Path(__file__).resolve().parents[1]
RUNGS = {"red finch": Category.SPECIFIC, "finch": Category.LESS_SPECIFIC, "bird": Category.GENERIC,
         "owl": Category.WRONG, "silence": None}


def judge(pairs):
    return [RUNGS[answer] for _, answer in pairs]


def said(*answers) -> list:
    """Completions as TRL hands them over; None is one without tags."""
    return [[{"role": "assistant", "content": as_text(answer)}] for answer in answers]


def as_text(answer) -> str:
    return "no tags" if answer is None else f"<think> ... </think> <answer>{answer}</answer>"


# ------------------------------------------------------------------------------------------------------------
# TRL


def test_trl_each_group_has_its_own_bar():
    reward = speciarl_reward(judge, num_generations=3)
    completions = said("bird", "owl", None) + said("bird", "red finch", "finch")
    rewards = reward(prompts=["one"] * 3 + ["two"] * 3, completions=completions, label=["red finch"] * 6,
                     completion_ids=[], trainer_state=None)
    assert rewards == [1.0, 0.0, -1.0, 0.0, 1.0, 0.0]


def test_trl_a_judge_error_is_none_for_its_group_alone():
    reward = speciarl_reward(judge, num_generations=2)
    rewards = reward(prompts=["one"] * 2 + ["two"] * 2, completions=said("bird", "silence", "bird", "owl"),
                     label=["red finch"] * 4)
    assert rewards == [None, None, 1.0, 0.0]


@pytest.mark.parametrize("prompts", [["one", "one", "two", "two"],   # N is 2, the reward was told 4
                                     ["one"] * 3])                   # a group's rest is in another process
def test_trl_a_group_that_is_none_is_refused(prompts):
    reward = speciarl_reward(judge, num_generations=4)
    with pytest.raises(ValueError, match="a multiple of it"):
        reward(prompts=prompts, completions=said(*["bird"] * len(prompts)), label=["red finch"] * 4)


# ------------------------------------------------------------------------------------------------------------
# verl


def info(index: int, split: str = "train") -> dict:
    return {"index": index, "split": split}


def test_verl_a_batch_is_grouped_by_index_and_split(monkeypatch):
    monkeypatch.setattr(verl_reward, "open_judge_once", lambda name, model: judge)
    answers = ["bird", "bird", "red finch", "bird", None]
    infos = [info(0), info(1), info(1), info(1, "test"), info(0)]
    scores = verl_reward.compute_score_batch(["birds"] * 5, [as_text(answer) for answer in answers],
                                             ["red finch"] * 5, infos, judge="any")
    assert [score["score"] for score in scores] == [1.0, 0.0, 1.0, 1.0, -1.0]


def test_verl_a_group_without_a_verdict_scores_alike_and_is_counted(monkeypatch):
    monkeypatch.setattr(verl_reward, "open_judge_once", lambda name, model: judge)
    texts = [as_text(answer) for answer in ("red finch", "silence", "bird", None)]
    scores = verl_reward.compute_score_batch(["birds"] * 4, texts, ["red finch"] * 4,
                                             [info(0), info(0), info(1), info(1)], judge="any")
    assert scores == [{"score": 0.0, "judge_error": 1.0}] * 2 + [
        {"score": 1.0, "judge_error": 0.0}, {"score": -1.0, "judge_error": 0.0}]


@pytest.fixture
def tree(tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"parents": {"red finch": "bird", "bird": None}}))
    return str(file)


def test_verl_nobody_is_scored_before_the_group_is_whole(tree):
    async def run():
        room = verl_reward.WaitingRoom(tree)
        early = []
        for answer in ("bird", None):
            early.append(asyncio.create_task(room.score("a", "red finch", as_text(answer), 3)))
        other = asyncio.create_task(room.score("b", "red finch", as_text("bird"), 1))
        assert (await other)["score"] == 1.0
        assert not any(task.done() for task in early)

        last = await room.score("a", "red finch", as_text("red finch"), 3)
        scores = [(await task)["score"] for task in early]
        assert (scores, last["score"]) == ([0.0, -1.0], 1.0)
        assert not room.waiting and not room.whole

    asyncio.run(asyncio.wait_for(run(), timeout=30))


def test_verl_a_judge_that_breaks_is_heard_by_all_who_wait(tree):
    def broken(pairs):
        raise RuntimeError("no such server")

    async def run():
        room = verl_reward.WaitingRoom(tree)
        room.judge = broken
        calls = [room.score("a", "red finch", as_text("bird"), 2) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    errors = asyncio.run(asyncio.wait_for(run(), timeout=30))
    assert [str(error) for error in errors] == ["no such server"] * 2


def test_verl_nobody_waits_for_ever_for_a_group_that_is_never_whole(tree, monkeypatch):
    monkeypatch.setattr(verl_reward, "LONGEST_WAIT", 0.1)

    async def run():
        room = verl_reward.WaitingRoom(tree)
        calls = [room.score("a", "red finch", as_text("bird"), 3) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    for error in asyncio.run(asyncio.wait_for(run(), timeout=30)):
        assert isinstance(error, RuntimeError)
        assert str(error).startswith("2 of 3 completions of image a came within 0.1 s: n and val_n must be")


# ------------------------------------------------------------------------------------------------------------
# What they need


@pytest.mark.parametrize("name", ["trl_reward", "verl_reward"])
def test_copied_with_reward_and_judge_it_needs_nothing_else(name, tmp_path):
    for file in (f"examples/{name}.py", "reward.py", "judge.py"):
        (tmp_path / Path(file).name).write_text((ROOT / file).read_text())
    code = ("import sys\n"
            "for name in ('torch', 'transformers', 'numpy', 'trl', 'peft', 'verl', 'ray'):\n"
            "    sys.modules[name] = None\n"
            f"import {name}\n"
            f"print({name}.parse_answer('<answer> owl </answer>'))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "owl\n", done.stderr


def test_no_other_file_of_the_project_imports_a_trainer():
    trainers = ("trl", "peft", "verl", "ray", "datasets")
    files = list(ROOT.glob("*.py"))
    for folder in ("baselines", "judges", "readers", "support", "toy", "tests"):
        files += (ROOT / folder).glob("*.py")
    assert len(files) > 50
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in trainers, f"{file}: {line}"
