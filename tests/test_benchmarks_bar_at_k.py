import itertools
from statistics import fmean

import pytest

from benchmarks.bar_at_k import bar_at_k
from reward import Category, speciarl_rewards

W, A, G, L, S, M = Category


def by_brute_force(categories, k):
    """Each answer's mean reward over all groups of k that contain it, one group after the other."""
    n = len(categories)
    rewards = [[] for _ in categories]
    for chosen in itertools.combinations(range(n), min(k, n)):
        for place, reward in zip(chosen, speciarl_rewards([categories[i] for i in chosen])):
            rewards[place].append(reward)
    return [fmean(values) for values in rewards]


def test_equal_to_brute_force_on_every_group_up_to_four():
    for n in (1, 2, 3, 4):
        for categories in itertools.product([*Category, None], repeat=n):
            for k in (1, 2, 3, 8):
                assert bar_at_k(categories, k) == pytest.approx(by_brute_force(categories, k))


def test_by_hand():
    """Of the three pairs that hold it, G wins one: the one with W. k = N is the paper's rule."""
    assert bar_at_k([S, L, G, W], 2) == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert bar_at_k([S, M, None, W], 2) == [1, 1, -1, 0]
    assert bar_at_k([S, L, G, W], 4) == speciarl_rewards([S, L, G, W]) == bar_at_k([S, L, G, W], 99)
    assert bar_at_k([None, A], 2, malformed=-0.5) == [-0.5, 1]
