"""Several judges that vote on each pair: the median of their rungs.

    python judge.py --judge A,B,C --ask robin bird
    judge = VotingJudge({"A": one_judge, "B": another, "C": a_third})

The paper leaves open what a vote of judges is worth. Where errors are independent the binomial says it: of
three judges that are each right with probability p, two or more are with p^3 + 3 p^2 (1 - p): .784 for .7.
Models err alike on many pairs, so measure: --audit shows each alone and all together. Needs tqdm besides.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from judge import OPTIONS, WHOLE_NAME, BaseJudge, Judge, JudgeName, Pair
from reward import Category


def median_rung(verdicts: Sequence[Category | None]) -> Category | None:
    """The vote on one pair: the median of the verdicts there are, the lower of the two middle ones where
    their number is even. None where a majority of the judges has no verdict."""
    rungs = sorted(verdict for verdict in verdicts if verdict is not None)
    missing = len(verdicts) - len(rungs)
    if missing > len(verdicts) / 2:
        return None
    lower_middle = (len(rungs) - 1) // 2
    return rungs[lower_middle]


class VotingJudge(BaseJudge):
    """Judges by name, each asked once about each pair, one judge after the other.

    A judge without a verdict leaves the vote to the others: last_error says which one and why, and so does a
    line on the error output, once a judge. Remembered verdicts belong to each judge: put those in a
    CachedJudge, not the vote. Raises ValueError where two are one by their keys: the second would repeat what
    is remembered of the first, and its vote count double."""

    def __init__(self, judges: Mapping[str, Judge]):
        if not judges:
            raise ValueError("a vote needs judges")
        name_of = {}
        for name, judge in judges.items():
            key = getattr(judge, "key", name)
            if key in name_of:
                raise ValueError(f"{name_of[key]} and {name} are one judge, by its model's name and prompt: "
                                 "its vote would count double")
            name_of[key] = name
        self.judges = dict(judges)
        self.keys = list(name_of)
        self.named = set()  # the judges that were said to lack a verdict

    @property
    def key(self) -> str:
        """What the vote's verdicts depend on."""
        return repr(["vote", self.keys])

    def ask(self, pairs: Sequence[Pair]) -> list[Category | None]:
        ballots = []  # one a judge, each with a verdict a pair
        reasons = []
        for name, judge in self.judges.items():
            # A judge of ours need not settle and normalise again; any other callable is simply called.
            ask = getattr(judge, "ask", judge)
            verdicts = ask(pairs)
            ballots.append(verdicts)
            if None in verdicts:
                reason = getattr(judge, "last_error", "") or "no reason given"
                reasons.append(f"{name}: {reason}")
                self.say_once(name, verdicts.count(None), len(pairs), reason)
        if reasons:
            self.last_error = "; ".join(reasons)
        return [median_rung(verdicts) for verdicts in zip(*ballots, strict=True)]

    def say_once(self, name: str, missing: int, total: int, reason: str) -> None:
        """A line on the error output, the first time that this judge lacks a verdict."""
        if name in self.named:
            return
        self.named.add(name)
        tqdm.write(f"judge: {name} gave no verdict on {missing} of {total} pairs ({reason}); the others vote "
                   "without it", file=sys.stderr)


def members(judge: Judge) -> list[Judge]:
    """The judges of a vote; of any other judge itself alone."""
    if isinstance(judge, VotingJudge):
        return list(judge.judges.values())
    return [judge]


def check_vote(names: Sequence[JudgeName], options: Mapping[str, str | None]) -> None:
    """Raises ValueError where a judge is named twice, and where an option or the environment's key could mean
    any of the judges: a prompt or model would be another's, a key would be shown to a stranger.

    options: --judge-model, --judge-prompt and --judge-key-file by their fields in JudgeName."""
    labels = [name.label for name in names]
    if len(set(labels)) < len(labels):
        raise ValueError("a judge is named twice: its vote would count double")
    for field, value in options.items():
        if value:
            raise ValueError(f"{OPTIONS[field]} could mean any of {len(names)} judges: say it in its judge's "
                             f"name, {WHOLE_NAME}")
    refuse_shared_key(names)


def refuse_shared_key(names: Sequence[JudgeName]) -> None:
    """Raises ValueError where the environment's key would be shown to several servers."""
    without_key = {name.where for name in names if "://" in name.where and not name.key}
    if len(without_key) > 1 and os.environ.get("JUDGE_API_KEY"):
        raise ValueError(f"JUDGE_API_KEY could be any of {len(without_key)} servers': unset it, and give "
                         f"each server its own, {WHOLE_NAME}")
