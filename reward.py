"""SpeciaRL's reward: the six-category ladder and the dynamic bar c*. Needs only the standard library.

Run `python reward.py` to see one group of answers climb to its bar.

The paper's rule: the judge puts each of an image's N answers on a ladder; the best rung the group has shown
is the image's own bar c*, and answers at or above c* earn 1, the others 0. Nobody is asked for more than the
model just did.

Where this departs from the paper:
1. A malformed answer (`None`) earns -1, as in the official release; the paper's rule has no such level.
2. `quorum` (off by default) sets the bar at a rung that several answers reach instead of the luckiest one.
"""

import math
from collections.abc import Sequence
from enum import IntEnum


class Category(IntEnum):
    """The ladder, lowest rung first. The judge's words are the names in lower case with spaces."""
    WRONG = 0
    ABSTAIN = 1
    GENERIC = 2
    LESS_SPECIFIC = 3
    SPECIFIC = 4
    MORE_SPECIFIC = 5

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", " ")


# Reward of each category by its number: W, A, G, S-, S, S+ (official names: reward3, scala1, scala2, scala3).
SCHEMES = {
    "exact": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    "graded_abstain": (0.0, 0.25, 0.5, 0.75, 1.0, 1.0),
    "graded": (0.0, 0.0, 0.5, 0.75, 1.0, 1.0),
    "close": (0.0, 0.0, 0.0, 0.75, 1.0, 1.0),
}


def dynamic_bar(categories: Sequence[Category | None], quorum: float = 0.0) -> Category:
    """The group's bar c*: the best category of its well-formed answers, with MORE_SPECIFIC -> SPECIFIC (both
    are full marks) and WRONG, or no well-formed answer, -> ABSTAIN (so that a Wrong answer never earns).

    categories: one group, N long; None is a malformed answer, which has no vote. quorum in (0, 1]: the
    highest rung that at least max(2, ceil(quorum * n)) of the n well-formed answers reach; a group with one
    well-formed answer keeps the paper's rule.
    """
    if not 0.0 <= quorum <= 1.0:
        raise ValueError(f"quorum must lie in [0, 1], got {quorum}")
    rungs = sorted((Category(c) for c in categories if c is not None), reverse=True)
    voters = 1
    if quorum > 0 and len(rungs) > 1:
        voters = max(2, math.ceil(quorum * len(rungs) - 1e-9))  # .07 * 100 is 7.000000000000001, and means 7
    best = rungs[voters - 1] if rungs else Category.ABSTAIN  # the voters-th best: so many reach its rung
    return min(max(best, Category.ABSTAIN), Category.SPECIFIC)


def speciarl_rewards(categories: Sequence[Category | None], quorum: float = 0.0,
                     malformed: float = -1.0) -> list[float]:
    """Rewards of one group (paper: 1[c >= c*]); `malformed` for None (official release: -1)."""
    bar = dynamic_bar(categories, quorum)
    return [malformed if c is None else float(Category(c) >= bar) for c in categories]


def static_rewards(categories: Sequence[Category | None], scheme: str = "exact",
                   malformed: float = -1.0) -> list[float]:
    """Rewards by a fixed table, whatever the group shows (the paper's static baselines); `malformed` for
    None."""
    if scheme not in SCHEMES:
        raise ValueError(f"unknown reward scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    return [malformed if c is None else SCHEMES[scheme][Category(c)] for c in categories]


def inject_noise(categories: Sequence[Category | None], probability: float, rng) -> list[Category | None]:
    """The judge-noise ablation, as in the official release: each judged answer moves, with the given
    probability, one step up or down (evenly) the ladder W, A, G, S-, S; at an end the only step there is.
    MORE_SPECIFIC moves as SPECIFIC does (to LESS_SPECIFIC) and stays itself when not drawn; malformed answers
    stay.

    rng: anything with .random() in [0, 1), a seeded random.Random say. Returns a new list, N long.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    noisy = []
    for c in categories:
        if c is not None and rng.random() < probability:
            rung = min(Category(c), Category.SPECIFIC)
            if rung == Category.WRONG:
                step = 1
            elif rung == Category.SPECIFIC:
                step = -1
            else:
                step = 1 if rng.random() < 0.5 else -1
            c = Category(rung + step)
        noisy.append(c)
    return noisy


def show_group(truth: str, answers: Sequence[str], categories: Sequence[Category | None],
               quorum: float = 0.0) -> str:
    """One group as text: a line an answer, drawn as high as its rung, with the bar and the reward."""
    bar = dynamic_bar(categories, quorum)
    width = max(map(len, answers), default=0)
    lines = [f"truth: {truth}    bar c* = {bar.label}", ""]
    for answer, c, r in zip(answers, categories, speciarl_rewards(categories, quorum), strict=True):
        rung = "malformed" if c is None else Category(c).label
        climb = ["-" if c is None else "█" if i <= c else "|" if i == bar else "·" for i in range(1, 6)]
        lines.append(f"  {answer:<{width}}  {''.join(climb)}  {rung:<14} reward {r:+.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    C = Category
    worked = [("an aeroplane", C.GENERIC), ("a Cessna", C.LESS_SPECIFIC), ("a Cessna 172", C.SPECIFIC),
              ("a Piper PA-28", C.WRONG), ("I can't tell", C.ABSTAIN),
              ("a Cessna 172S Skyhawk SP", C.MORE_SPECIFIC), ("a light aircraft", C.GENERIC),
              ("(no answer tag)", None)]
    print("The ladder: " + " < ".join(c.label for c in C) + "\n")
    print("A group that reached the truth is asked for it:\n")
    print(show_group("Cessna 172", *zip(*worked)))
    print("\nA group whose best is 'a Cessna' is asked for no more:\n")
    print(show_group("Cessna 172", *zip(*(w for w in worked if w[1] is None or w[1] < C.SPECIFIC))))
