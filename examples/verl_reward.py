"""SpeciaRL's reward in verl, grouped by extra_info["index"].

`compute_score` is for verl 0.9's reward loop, which asks about one completion at a time: it waits for its
group. `compute_score_batch` is for the batch reward manager of earlier versions. docs/trainers.md has the
launch line.

Copy it with reward.py and judge.py (and judges/, for a judge on a server); they must be on PYTHONPATH. A row
of the dataset holds reward_model.ground_truth (the true name), and in extra_info its index and split.

Where this departs from train.py: verl has no way to leave a group out. A group that the judge failed on
scores 0 throughout, so that its advantages are exactly 0, and is counted in `judge_error`.
"""

import asyncio
from collections.abc import Sequence
from functools import lru_cache

from judge import JUDGE_ERROR, judge_groups, open_judge, parse_answer
from reward import speciarl_rewards

LONGEST_WAIT = 3600  # seconds that a completion waits for its group and the judge

open_judge_once = lru_cache(open_judge)


def group_scores(judge, truths: Sequence[str], groups: Sequence[Sequence[str]]) -> list[list[dict]]:
    """Scores of B groups of completions, as verl takes them."""
    answers = [[parse_answer(text) for text in group] for group in groups]
    scored = []
    for categories in judge_groups(judge, truths, answers):
        failed = JUDGE_ERROR in categories
        rewards = [0.0] * len(categories) if failed else speciarl_rewards(categories)
        scored.append([{"score": reward, "judge_error": float(failed)} for reward in rewards])
    return scored


def image_key(data_source: str, extra_info: dict) -> tuple:
    """What tells one image from another."""
    return data_source, extra_info.get("split", "train"), extra_info["index"]


# ------------------------------------------------------------------------------------------------------------
# The batch reward manager


def compute_score_batch(data_sources: Sequence[str], solution_strs: Sequence[str],
                        ground_truths: Sequence[str], extra_infos: Sequence[dict], judge: str,
                        judge_model: str | None = None) -> list[dict]:
    """Scores of a whole batch, in its order: the completions of an image may stand anywhere in it."""
    rows_of = {}
    for row, (source, info) in enumerate(zip(data_sources, extra_infos, strict=True)):
        rows_of.setdefault(image_key(source, info), []).append(row)
    groups = list(rows_of.values())

    truths = [ground_truths[rows[0]] for rows in groups]
    texts = [[solution_strs[row] for row in rows] for rows in groups]
    scored_groups = group_scores(open_judge_once(judge, judge_model), truths, texts)

    scores = [None] * len(solution_strs)
    for rows, scored in zip(groups, scored_groups):
        for row, score in zip(rows, scored):
            scores[row] = score
    return scores


# ------------------------------------------------------------------------------------------------------------
# The reward loop: a completion at a time


class WaitingRoom:
    """Completions wait here until their group is whole. The judge is called once at a time, with every group
    that is whole by then."""

    def __init__(self, judge: str, judge_model: str | None = None):
        self.judge = open_judge(judge, model=judge_model)
        self.is_busy = asyncio.Lock()
        self.waiting = {}  # image -> (completion, future score) of those that have come
        self.whole = []    # (truth, such a group)

    async def score(self, key: tuple, truth: str, text: str, size: int) -> dict:
        """The score of one completion of an image that has `size` of them. Raises RuntimeError where it
        waits too long."""
        future = asyncio.get_running_loop().create_future()
        members = self.waiting.setdefault(key, [])
        members.append((text, future))
        if len(members) == size:
            self.whole.append((truth, self.waiting.pop(key)))
            # a task of its own: it goes on where this call is cancelled, for those who wait
            await asyncio.shield(self.judge_in_turn())
        try:
            return await asyncio.wait_for(future, LONGEST_WAIT)
        except TimeoutError:
            raise RuntimeError(f"{len(members)} of {size} completions of image {key} came within "
                               f"{LONGEST_WAIT} s: n and val_n must be what verl samples") from None

    async def judge_in_turn(self) -> None:
        async with self.is_busy:
            await self.judge_whole_groups()

    async def judge_whole_groups(self) -> None:
        batch = self.whole
        self.whole = []
        truths = [truth for truth, _ in batch]
        texts = [[text for text, _ in members] for _, members in batch]
        try:
            scored = await asyncio.to_thread(group_scores, self.judge, truths, texts)
        except Exception as e:  # everyone who waits must hear of it
            for _, members in batch:
                for _, future in members:
                    if not future.done():  # cancelled meanwhile
                        future.set_exception(e)
            return
        for (_, members), scores in zip(batch, scored):
            for (_, future), score in zip(members, scores):
                if not future.done():
                    future.set_result(score)


local_room = lru_cache(WaitingRoom)


@lru_cache
def shared_room(judge: str, judge_model: str | None = None):
    """One WaitingRoom for all of verl's reward workers: verl sends each completion to a worker drawn at
    random. Ray lets an actor take 1,000 calls at a time unless it is told otherwise, and a step may have
    more completions than that waiting."""
    import ray
    Room = ray.remote(num_cpus=0, max_concurrency=100_000)(WaitingRoom)
    return Room.options(name="speciarl", get_if_exists=True).remote(judge, judge_model)


async def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: dict, judge: str,
                        n: int, judge_model: str | None = None, val_n: int = 1, **unused) -> dict:
    """The score of one completion, once its group is whole. verl's reward_kwargs give judge, judge_model, n
    and val_n: rollout.n, and rollout.val_kwargs.n for rows whose split is not "train"."""
    import ray
    key = image_key(data_source, extra_info)
    size = n if key[1] == "train" else val_n
    if ray.is_initialized():
        return await shared_room(judge, judge_model).score.remote(key, ground_truth, solution_str, size)
    return await local_room(judge, judge_model).score(key, ground_truth, solution_str, size)
