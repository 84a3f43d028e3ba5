"""What is written down of a step: its seconds, its statistics, its lines of log.jsonl and samples.jsonl.

docs/log.md explains each key of log.jsonl.
"""

import sys
import time
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from judge import JUDGE_ERROR, category_name
from judges.vote import members
from reward import dynamic_bar
from support.processes import gather


class StepLog:
    """The seconds of a step's parts."""

    def __init__(self):
        self.start = time.perf_counter()
        self.batches = 1  # more with dynamic sampling
        self.seconds = {"rollout": 0.0, "judge": 0.0, "update": 0.0}

    @contextmanager
    def timer(self, part: str):
        """Takes the time of what stands below it."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start
        self.end = time.perf_counter()

    def times(self, tokens: int) -> dict[str, float]:
        """Seconds by part and in all; tokens: how many were sampled in the step."""
        step = self.end - self.start
        times = {f"time/{part}": seconds for part, seconds in self.seconds.items()}
        return times | {"time/step": step, "time/tokens_per_s": tokens / step}


class UpdateStatistics:
    """The figures of a step's updates: means over the tokens of all micro-batches and processes."""

    def __init__(self):
        self.figures = []  # (name, value, tokens) of every micro-batch
        self.norms = []    # the gradient's, of every minibatch that made an update
        self.skipped = 0
        self.minibatches = 0

    def add(self, figures: dict[str, Tensor], mask: Tensor) -> None:
        """A micro-batch's figures; mask: its (R, T) completion tokens."""
        tokens = float(mask.sum())
        for name, value in figures.items():
            self.figures.append((name, float(value), tokens))

    def end_minibatch(self, norm: float, skipped: bool) -> None:
        self.minibatches += 1
        if skipped:
            self.skipped += 1
        else:
            self.norms.append(norm)

    def summary(self) -> dict[str, float]:
        """The step's figures, the same in every process. {} where no minibatch had a group."""
        everyones = gather(self.figures)

        if self.minibatches == 0:
            return {}
        by_name = {"loss": [], "ratio_max": []}
        for name, value, tokens in everyones:
            by_name.setdefault(name, []).append((value, tokens))

        # These two are no means over tokens. A loss stands under its minibatch's denominator already: its
        # parts add up.
        losses = [value for value, _ in by_name.pop("loss")]
        largest = [value for value, _ in by_name.pop("ratio_max")]

        summary = {}
        for name, values in by_name.items():
            weighted = sum(value * tokens for value, tokens in values)
            summary[f"policy/{name}"] = weighted / sum(tokens for _, tokens in values)
        summary["policy/loss"] = sum(losses) / self.minibatches
        summary["policy/ratio_max"] = max(largest, default=0.0)
        summary["policy/grad_norm"] = float(np.mean(self.norms)) if self.norms else 0.0
        summary["policy/skipped"] = self.skipped
        return summary


def record_of(group) -> dict:
    """What is kept of a group, and crosses processes: no tensors."""
    return {"id": group.id, "truth": group.truth, "answers": group.answers, "texts": group.texts,
            "categories": group.categories, "rewards": group.rewards, "advantages": group.advantages,
            "tokens": int(group.mask.sum()), "truncated": group.truncated}


def gather_records(groups: list, order: list[str]) -> list[dict]:
    """The records of all processes' groups, in the order of these ids."""
    place = {image_id: i for i, image_id in enumerate(order)}
    own = [record_of(group) for group in groups]

    records = gather(own)

    return sorted(records, key=lambda record: place[record["id"]])


def left_the_step(record: dict) -> bool:
    """Whether the judge failed on the group."""
    return JUDGE_ERROR in record["categories"]


def sample_line(step: int, record: dict, config) -> dict:
    """A group for samples.jsonl. One that stayed in the step has the rewards that it was trained on, and the
    bar where there is one."""
    line = {"step": step}
    for key in ("id", "truth", "answers", "texts"):
        line[key] = record[key]
    line["categories"] = [category_name(category) for category in record["categories"]]
    if record["rewards"] is not None:
        line["rewards"] = record["rewards"]
        if config.reward == "speciarl":
            line["bar"] = dynamic_bar(record["categories"], config.odds).label
    return line


def sampling_figures(records: list[dict]) -> dict[str, float]:
    """Mean length in tokens, and the share of the answers that never ended."""
    answers = sum(len(record["answers"]) for record in records)
    answers = max(1, answers)
    tokens = sum(record["tokens"] for record in records)
    truncated = sum(record["truncated"] for record in records)
    return {"length": tokens / answers, "truncated": truncated / answers}


def cache_figures(judge) -> dict[str, float]:
    """The share of all distinct pairs so far that a remembered verdict answered, over all judges of a vote;
    {} without a cache."""
    caches = [member for member in members(judge) if hasattr(member, "hits")]
    if not caches:
        return {}
    hits = sum(cache.hits for cache in caches)
    asked = hits + sum(cache.misses for cache in caches)
    return {"cache/hit_rate": hits / max(1, asked)}


def peak_gb() -> float:
    """Peak memory of the process that needs most: on a GPU since the last call, else since its start."""
    return max(gather([own_peak_gb()]))


def own_peak_gb() -> float:
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 1e9
    try:
        import resource
    except ImportError:  # Windows has none
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
