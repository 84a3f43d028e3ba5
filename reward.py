"""SpeciaRL's reward: the six-category ladder, the image's own bar c*, the reward. Standard library only.

Run `python reward.py` to see one group of answers climb to its bar.

The paper's rule: the judge puts each of an image's N answers on a ladder. The best rung that the group has
shown is the image's own bar c*. Answers at or above c* earn 1, the others 0. Nobody is asked for more than
the model just did.

Where this departs from the paper:
1. A malformed answer (`None`) earns -1, as in the official release; the paper's rule has no such level.
2. `odds` (0 by default: the paper's rule) asks for so many answers at the bar per Wrong one. The luckiest of
   many guesses then no longer sets the bar, and the bar no longer rises with N.
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


def dynamic_bar(categories: Sequence[Category | None], odds: float = 0.0) -> Category:
    """The group's bar c*: the best category of its well-formed answers, between ABSTAIN and SPECIFIC.

    categories: one group, N long; None is a malformed answer, which has no vote and is not Wrong either.
    odds: 0 is the paper's rule. Above 0 the bar is the highest rung that at least odds answers reach for each
    Wrong one of the group: a guess pays where it is right more often than odds / (1 + odds). ValueError for
    odds that are not finite and 0 or more.
    """
    if not 0.0 <= odds < math.inf:
        raise ValueError(f"odds must be a finite number, 0 or more, got {odds}")

    # The well-formed answers' rungs, best first.
    rungs = [Category(category) for category in categories if category is not None]
    rungs.sort(reverse=True)

    # The paper's bar is the best answer's rung; odds ask that several reach it.
    wrong = rungs.count(Category.WRONG)
    needed = odds * wrong - 1e-9  # .07 * 100 is 7.000000000000001, and means 7
    if not rungs or needed > len(rungs):
        return Category.ABSTAIN  # no rung has so many: the lowest bar
    voters = max(1, math.ceil(needed))
    best = rungs[voters - 1]  # so many reach the rung of the voters-th best

    # SPECIFIC and MORE_SPECIFIC are both full marks. WRONG is no bar: a Wrong answer never earns.
    return min(max(best, Category.ABSTAIN), Category.SPECIFIC)


def speciarl_rewards(categories: Sequence[Category | None], odds: float = 0.0,
                     malformed: float = -1.0) -> list[float]:
    """Rewards of one group (paper: 1[c >= c*]); `malformed` for None (official release: -1)."""
    bar = dynamic_bar(categories, odds)
    rewards = []
    for category in categories:
        if category is None:
            rewards.append(malformed)
        elif Category(category) >= bar:
            rewards.append(1.0)
        else:
            rewards.append(0.0)
    return rewards


# ------------------------------------------------------------------------------------------------------------
# What the method is compared with: static rewards, noise in the judge, and two controls

# Reward of each category by its number: W, A, G, S-, S, S+ (official names of the first four: reward3,
# scala1, scala2, scala3). `truthful` is ours: a lie costs what the truth earns, and saying less is free.
SCHEMES = {
    "exact": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    "graded_abstain": (0.0, 0.25, 0.5, 0.75, 1.0, 1.0),
    "graded": (0.0, 0.0, 0.5, 0.75, 1.0, 1.0),
    "close": (0.0, 0.0, 0.0, 0.75, 1.0, 1.0),
    "truthful": (-1.0, 0.0, 0.0, 0.0, 1.0, 1.0),
}


def static_rewards(categories: Sequence[Category | None], scheme: str = "exact",
                   malformed: float = -1.0) -> list[float]:
    """Rewards by a fixed table, whatever the group shows (the paper's static baselines); `malformed` for
    None."""
    if scheme not in SCHEMES:
        raise ValueError(f"unknown reward scheme {scheme!r}: choose one of {', '.join(SCHEMES)}")
    table = SCHEMES[scheme]
    rewards = []
    for category in categories:
        if category is None:
            rewards.append(malformed)
        else:
            rewards.append(table[Category(category)])
    return rewards


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
    for category in categories:
        is_drawn = category is not None and rng.random() < probability
        noisy.append(neighbour(category, rng) if is_drawn else category)
    return noisy


def neighbour(category: Category, rng) -> Category:
    """A rung above or below; at an end of the ladder there is only one."""
    rung = min(Category(category), Category.SPECIFIC)  # MORE_SPECIFIC moves as SPECIFIC does
    if rung == Category.WRONG:
        return Category.ABSTAIN
    if rung == Category.SPECIFIC:
        return Category.LESS_SPECIFIC
    step = 1 if rng.random() < 0.5 else -1
    return Category(rung + step)


def shuffle_rewards(rewards: Sequence[float], rng) -> list[float]:
    """A control: one group's rewards, dealt out to its answers at random. Nothing is left to learn from.

    rng: anything with .shuffle(), a seeded random.Random say. Returns a new list, N long.
    """
    dealt = list(rewards)
    rng.shuffle(dealt)
    return dealt


def permute_verdicts(groups: Sequence[Sequence[Category | None]], rng) -> list[list[Category | None]]:
    """A control: the verdicts of all groups, dealt out over all their answers at random; malformed answers
    stay what they are. Each image then gets the bar of strangers.

    rng: anything with .shuffle(), a seeded random.Random say. Returns new lists, as long as the groups.
    """
    verdicts = []
    for group in groups:
        verdicts += [category for category in group if category is not None]
    rng.shuffle(verdicts)

    permuted = []
    for group in groups:
        dealt = []
        for category in group:
            dealt.append(None if category is None else verdicts.pop())
        permuted.append(dealt)
    return permuted


# ------------------------------------------------------------------------------------------------------------
# A group as text


def show_group(truth: str, answers: Sequence[str], categories: Sequence[Category | None],
               odds: float = 0.0) -> str:
    """One group as text: a line an answer, drawn as high as its rung, with the bar and the reward."""
    bar = dynamic_bar(categories, odds)
    rewards = speciarl_rewards(categories, odds)
    width = max(map(len, answers), default=0)
    lines = [f"truth: {truth}    bar c* = {bar.label}", ""]
    for answer, category, reward in zip(answers, categories, rewards, strict=True):
        rung = "malformed" if category is None else Category(category).label
        lines.append(f"  {answer:<{width}}  {climb(category, bar)}  {rung:<14} reward {reward:+.0f}")
    return "\n".join(lines)


def climb(category: Category | None, bar: Category) -> str:
    """Five places, one a rung above WRONG: filled up to the answer's own, with the bar where it is higher."""
    if category is None:
        return "-----"
    places = ""
    for rung in range(1, 6):
        if rung <= category:
            places += "█"
        elif rung == bar:
            places += "|"
        else:
            places += "·"
    return places


def main() -> None:
    """The ladder, a group that reached the truth, the same group without its best answers, and a group of
    guesses judged by odds."""
    truth = "Cessna 172"
    worked = [("an aeroplane", Category.GENERIC),
              ("a Cessna", Category.LESS_SPECIFIC),
              ("a Cessna 172", Category.SPECIFIC),
              ("a Piper PA-28", Category.WRONG),
              ("I can't tell", Category.ABSTAIN),
              ("a Cessna 172S Skyhawk SP", Category.MORE_SPECIFIC),
              ("a light aircraft", Category.GENERIC),
              ("(no answer tag)", None)]
    guesses = [("a Cessna 172", Category.SPECIFIC),
               ("a Cessna 152", Category.WRONG),
               ("a Piper PA-28", Category.WRONG),
               ("a Cessna", Category.LESS_SPECIFIC)]
    shyer = [(answer, category) for answer, category in worked
             if category is None or category < Category.SPECIFIC]

    print("The ladder: " + " < ".join(category.label for category in Category) + "\n")
    print("A group that reached the truth is asked for it:\n")
    print(show_group(truth, *zip(*worked)))
    print("\nA group whose best is 'a Cessna' is asked for no more:\n")
    print(show_group(truth, *zip(*shyer)))
    print("\nWith odds 1 (off by default) one lucky guess beside two Wrong ones does not set the bar:\n")
    print(show_group(truth, *zip(*guesses), odds=1.0))


if __name__ == "__main__":
    main()
