"""Supervised fine-tuning on the labels themselves: the paper's SFT baseline.

    python -m baselines.sft                                     the embedded world
    python -m baselines.sft --data cub --root DIR               Qwen2.5-VL-7B on CUB, on one GPU
    python -m baselines.sft --resume runs/cub-sft-seed0         go on after a kill
    torchrun --nproc-per-node 4 -m baselines.sft --data cub     on four GPUs

`-m` works from the repository's folder only. Options, data order, LoRA, update, run folder and evaluation are
train.py's; --n counts in the report's pictures alone. An image has one completion, its label behind an
empty think block (the published form is not known), with advantage 1 and ratio 1: the gradient of the policy
loss is then that of the label's likelihood. There is no KL unless --beta is given.
"""

from pathlib import Path

import torch

import data
from policy import Policy, encode
from rollout import PROMPTS, Group
from support.command_line import flag, one_line_errors, parse, parser
from support.opening import is_toy, require_readable
from support.processes import gather, share
from support.step_log import StepLog
from train import (TOY, Config, Job, finish_step, learning_rate, make_config, places_in, resume_config,
                   run_job, set_learning_rate, step_examples, steps_to_go, update)

IDLE = ("reward", "odds", "noise", "control", "loss", "overlong_buffer", "length_penalty",
        "dynamic_sampling", "corpo_floor")  # options of train.py that would do nothing here


def train(job: Job) -> None:
    """train.train without sampling, judge and reward: what is learned from is the label."""
    config = job.config
    words_apart = is_toy(config.data.split(","))  # the embedded world's policy knows whole words only

    for step in steps_to_go(job):
        log = StepLog()
        batch = step_examples(job.examples, config, step)

        # One completion to each image: its label.
        with log.timer("rollout"):
            examples, images, unreadable = data.read_images(share(batch))
            all_unreadable = gather(unreadable)
            require_readable(all_unreadable, len(batch), config.max_unreadable, f"step {step}")
            groups = label_groups(job.policy, examples, images, job.question, words_apart)

        # Every token of a label is worth the same.
        advantages = torch.ones(len(groups), 1)                                             # (B, 1)

        with log.timer("update"):
            set_learning_rate(job.optimizer, learning_rate(config, step))
            places = places_in(batch, groups)
            figures = update(job.policy, job.optimizer, groups, advantages, config, places, sampled=False)

        finish_step(job, step, batch, groups, unreadable, figures, log)
        del groups  # the prompts' embeddings in them would take room in the next step


def label_groups(policy: Policy, examples: list, images: list, question: str,
                 words_apart: bool = False) -> list[Group]:
    """A Group with one completion for each image: its label in an answer tag, behind an empty think block,
    unless the question forbids thoughts.

    words_apart: tags stand between blanks.
    """
    thoughts = "" if question == PROMPTS["direct"] else "<think></think> "
    groups = []
    prompts = encode(policy, images, question)
    for example, prompt in zip(examples, prompts):
        text = f"{thoughts}<answer>{example.label}</answer>"
        if words_apart:
            text = text.replace("<", " <").replace(">", "> ")
        tokens = policy.tokenizer(text, add_special_tokens=False)["input_ids"] + policy.eos_ids[:1]
        completion = torch.tensor([tokens], device=policy.device)                           # (1, T)
        mask = torch.ones_like(completion, dtype=torch.bool)
        nothing_sampled = torch.zeros(completion.shape, device=policy.device)
        group = Group(example.id, prompt, completion, mask, nothing_sampled, texts=[text],
                      answers=[example.label], truncated=0)
        group.truth = example.label
        group.categories = []
        groups.append(group)
    return groups


def parse_config(argv: list[str] | None = None) -> tuple[Config, Path | None]:
    """train.parse_config for this command."""
    given, folder = parse(parser(Config, TOY, __doc__), argv)
    if folder is not None:
        config = resume_config(folder, given)
        if config.method != "sft":
            raise ValueError(f"{folder} is no run of this command: python train.py --resume {folder}")
        return config, folder
    idle = [flag(name) for name in IDLE if name in given]
    if idle:
        raise ValueError(f"supervised fine-tuning learns from labels: {' and '.join(idle)} would do nothing")
    if given.get("method", "sft") != "sft":
        raise ValueError("reinforcement learning is a command of its own: python train.py")
    given.setdefault("beta", 0.0)
    given["method"] = "sft"
    return make_config(given), None


def main(argv: list[str] | None = None) -> Path:
    """Runs, or goes on with, training; returns the run's folder."""
    with one_line_errors("baselines.sft"):
        config, folder = parse_config(argv)
    return run_job(config, folder, train, "baselines.sft", "python -m baselines.sft")


if __name__ == "__main__":
    main()
