"""The reward behind verl's own reward managers (verl 0.9.1 with Ray, which only the last test starts).

The batch manager is the real one. So are the reward loop's manager and the way that its configuration loads a
reward function from a file. What is left out is the rollout: completions come from here.
"""

import asyncio
import json
import os
import re
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import pytest
import torch
import verl
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager
from verl.workers.reward_manager import BatchRewardManager

import examples.verl_reward as verl_reward
import tiny

TREE = {"red finch": "finch", "finch": "bird", "owl": "bird", "bird": None}
RED_FINCH = [("<answer> red finch </answer>", 1.0), ("<answer> finch </answer>", 0.0), ("no tags", -1.0),
             ("<answer> owl </answer>", 0.0)]
OWL = [("<answer> bird </answer>", 1.0), ("<answer> red finch </answer>", 0.0),
       ("<think> owl </think> <answer> bird </answer>", 1.0), ("<answer></answer>", -1.0)]
N = 4


@pytest.fixture
def tree(tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"parents": TREE}))
    return str(file)


def rows(split: str = "train", n: int = N) -> list[dict]:
    """Two images with n completions each, as verl's dataset names them."""
    made = []
    for index, (truth, group) in enumerate([("red finch", RED_FINCH), ("owl", OWL)]):
        for text, reward in group[:n]:
            made.append(dict(text=text, truth=truth, reward=reward, index=index, split=split))
    return made


def as_batch(samples: list[dict], tokenizer) -> DataProto:
    """The batch that verl's rollout hands over: padded prompts and responses, and what the dataset said."""
    prompt = tokenizer("what is it?")["input_ids"]
    responses = [tokenizer(sample["text"])["input_ids"] for sample in samples]
    longest = max(map(len, responses))
    ids = torch.full((len(samples), longest), tokenizer.pad_token_id)
    mask = torch.zeros(len(samples), len(prompt) + longest, dtype=torch.long)
    for row, response in enumerate(responses):
        ids[row, :len(response)] = torch.tensor(response)
        mask[row, :len(prompt) + len(response)] = 1

    def objects(values: list) -> np.ndarray:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    tensors = {"prompts": torch.tensor([prompt] * len(samples)), "responses": ids, "attention_mask": mask}
    return DataProto(
        batch=TensorDict(tensors, batch_size=len(samples)),
        non_tensor_batch={
            "data_source": objects(["birds"] * len(samples)),
            "reward_model": objects([{"ground_truth": sample["truth"]} for sample in samples]),
            "extra_info": objects([{key: sample[key] for key in ("index", "split")} for sample in samples]),
        })


def shuffled(samples: list) -> list:
    order = np.random.default_rng(0).permutation(len(samples))
    return [samples[place] for place in order]


def test_the_batch_manager(tree):
    samples = shuffled(rows())
    manager = BatchRewardManager(tiny.tokenizer(), 0, verl_reward.compute_score_batch, judge=tree)
    data = as_batch(samples, tiny.tokenizer())
    made = manager(data, return_dict=True)
    assert made["reward_tensor"].sum(1).tolist() == [sample["reward"] for sample in samples]
    assert made["reward_extra_info"]["judge_error"] == [0.0] * len(samples)


def reward_loop(tree: str, **settings):
    """The reward loop's manager as verl makes it from its configuration, the reward loaded from its file."""
    config = OmegaConf.create({"reward": {
        "custom_reward_function": {"path": str(Path(verl_reward.__file__)), "name": "compute_score",
                                   "reward_kwargs": {"judge": tree, "n": N} | settings},
        "reward_manager": {"source": "register", "name": "naive"}}})
    return load_reward_manager(config, tiny.tokenizer())


def ask(manager, samples: list[dict]) -> list[dict]:
    """All completions at once, each by itself, as verl's agent loops do."""
    data = as_batch(samples, tiny.tokenizer())

    async def run():
        manager.loop = asyncio.get_running_loop()
        return await asyncio.gather(*[manager.run_single(data[i:i + 1]) for i in range(len(samples))])

    return asyncio.run(asyncio.wait_for(run(), timeout=60))


def test_the_reward_loop_waits_for_the_group(tree):
    samples = shuffled(rows())
    made = ask(reward_loop(tree), samples)
    assert [one["reward_score"] for one in made] == [sample["reward"] for sample in samples]
    assert made[0]["reward_extra_info"] == {"score": made[0]["reward_score"], "judge_error": 0.0}


def test_a_validation_group_has_a_size_of_its_own(tree):
    samples = rows("test", n=1) + rows("train")
    made = ask(reward_loop(tree, val_n=1), samples)
    assert [one["reward_score"] for one in made] == [sample["reward"] for sample in samples]


def test_the_launch_lines_settings_are_verls():
    """Each `name=value` of docs/trainers.md is in the configuration that comes with verl."""
    text = (Path(verl_reward.__file__).parents[1] / "docs/trainers.md").read_text(encoding="utf-8")
    command = text.split("verl.trainer.main_ppo", 1)[1].split("```", 1)[0]
    names = re.findall(r"(\S+)=\S+", command)
    config = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml")
    missing = [name for name in names if not is_in(config, name)]
    own = "+reward.custom_reward_function.reward_kwargs."
    assert missing == [own + "judge", own + "judge_model", own + "n"]
    assert len(names) > 20


def is_in(config, name: str) -> bool:
    """Whether the configuration has a place of that name, whatever stands there."""
    for part in name.split("."):
        if not OmegaConf.is_dict(config) or part not in config.keys():
            return False
        config = config._get_node(part)
    return True


def test_several_of_verls_reward_workers_share_one_waiting_room(tree):
    """verl draws one of reward.num_workers actors for each completion: here two, and a group's completions go
    to both."""
    import ray
    root = str(Path(verl_reward.__file__).parents[1])
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": root}})
    try:
        class Worker:
            async def score(self, sample):
                return await verl_reward.compute_score("birds", sample["text"], sample["truth"], sample,
                                                       judge=tree, n=N)

        workers = [ray.remote(num_cpus=0)(Worker).remote() for _ in range(2)]
        samples = rows()
        calls = [workers[i % 2].score.remote(sample) for i, sample in enumerate(samples)]
        made = ray.get(calls, timeout=120)
        assert [score["score"] for score in made] == [sample["reward"] for sample in samples]
    finally:
        ray.shutdown()
