"""bar@k: the paper's rule on small groups, whatever N is. A comparison for the tables, no option of train.py.

Each of an image's N answers gets its mean reward over all groups of k of them that contain it. The bar of k
answers does not rise with N: what N buys is a steadier mean.
"""

from collections.abc import Sequence
from math import comb

from reward import Category


def bar_at_k(categories: Sequence[Category | None], k: int, malformed: float = -1.0) -> list[float]:
    """One group's N rewards: each answer's mean of `reward.speciarl_rewards` over all groups of min(k, N) of
    the N answers that contain it. `malformed` for None."""
    n = len(categories)
    size = min(k, n)
    rungs = [-1 if c is None else min(Category(c), Category.SPECIFIC) for c in categories]

    rewards = []
    for category, rung in zip(categories, rungs):
        if category is None:
            rewards.append(malformed)
        elif rung == Category.WRONG:
            rewards.append(0.0)
        else:
            # It earns in the groups whose other answers all stand at or below its rung.
            others = sum(other <= rung for other in rungs) - 1
            rewards.append(comb(others, size - 1) / comb(n - 1, size - 1))
    return rewards
