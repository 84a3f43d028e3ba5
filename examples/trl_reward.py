"""SpeciaRL's reward as a reward function of TRL's GRPOTrainer.

    judge = open_judge("http://localhost:8000", model="Qwen/Qwen3-4B-Instruct-2507")
    trainer = GRPOTrainer(reward_funcs=speciarl_reward(judge, num_generations=8), ...)

Copy it with reward.py and judge.py (and judges/, for a judge on a server); trl_grpo.py is a whole script
around it. It needs neither torch nor TRL. The dataset has a column `label`, the true name.

A reward here is a group's: TRL must give all N completions of an image to one process, so
per_device_train_batch_size * steps_per_generation must be a multiple of num_generations.
"""

from collections.abc import Callable

from judge import JUDGE_ERROR, judge_groups, parse_answer
from reward import speciarl_rewards


def speciarl_reward(judge: Callable, num_generations: int) -> Callable:
    """The function that TRL calls with flat lists, one entry a completion, and that returns as many rewards.
    None stands for every completion of a group that the judge failed on: TRL leaves those out."""

    def speciarl(prompts: list, completions: list, label: list[str], **columns) -> list[float | None]:
        # One image's completions stand one behind the other: rebuild the groups.
        starts = range(0, len(completions), num_generations)
        for start in starts:
            check_group(prompts[start:start + num_generations], num_generations)
        truths = [label[start] for start in starts]
        answers = [parse_answer(completion[0]["content"]) for completion in completions]
        groups = [answers[start:start + num_generations] for start in starts]

        rewards = []
        for categories in judge_groups(judge, truths, groups):
            if JUDGE_ERROR in categories:
                rewards += [None] * num_generations
            else:
                rewards += speciarl_rewards(categories)
        return rewards

    return speciarl


def check_group(prompts: list, num_generations: int) -> None:
    """Raises ValueError unless these are one prompt, its picture included, num_generations times."""
    if len(prompts) != num_generations or any(prompt != prompts[0] for prompt in prompts):
        raise ValueError(f"a group is not {num_generations} completions of one prompt: give the reward TRL's "
                         "num_generations, and make per_device_train_batch_size * steps_per_generation a "
                         "multiple of it")
