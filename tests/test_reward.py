import itertools
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reward import Category, dynamic_bar, inject_noise, speciarl_rewards, static_rewards

ROOT = Path(__file__).resolve().parents[1]
W, A, G, L, S, M = Category
NAMES = {"W": W, "A": A, "G": G, "L": L, "S": S, "M": M, "x": None}


def group(letters):
    return [NAMES[c] for c in letters]


def official(categories):
    """The release's rule, written from its description: ranks S+ = S < S- < G < A < W over the judged
    answers; the best rank earns 1, unless it is W; what could not be parsed earns -1 and has no vote."""
    rank = {M: 1, S: 1, L: 2, G: 3, A: 4, W: 5}
    judged = [rank[c] for c in categories if c is not None]
    best = min(judged, default=5)
    return [-1.0 if c is None else 1.0 if rank[c] == best and best != 5 else 0.0 for c in categories]


@pytest.mark.parametrize("letters, bar, rewards", [
    ("GLSWG", S, [0, 0, 1, 0, 0]),             # the paper's worked figure
    ("GLGAS", S, [0, 0, 0, 0, 1]),
    ("GLW", L, [0, 1, 0]),
    ("AAA", A, [1, 1, 1]),
    ("WWA", A, [0, 0, 1]),
    ("WWW", A, [0, 0, 0]),                     # Wrong never earns, not even among its like
    ("MSL", S, [1, 1, 0]),                     # the cap: S and S+ are both full marks
    ("ML", S, [1, 0]),
    ("xGx", G, [-1, 1, -1]),
    ("xxx", A, [-1, -1, -1]),
    ("xW", A, [-1, 0]),
    ("G", G, [1]),
    ("", A, []),
])
def test_bar_and_rewards_by_hand(letters, bar, rewards):
    assert dynamic_bar(group(letters)) is bar
    assert speciarl_rewards(group(letters)) == rewards


def test_rewards_equal_the_official_rule():
    rng = random.Random(0)
    for _ in range(3000):
        categories = [rng.choice([*Category, None]) for _ in range(rng.randint(0, 12))]
        kept = list(categories)
        assert speciarl_rewards(categories) == official(categories)
        assert categories == kept              # inputs are left alone


def test_rewards_are_floats_follow_their_answers_and_take_another_malformed_level():
    rewards = speciarl_rewards(group("GxS"), malformed=-0.25)
    assert rewards == [0.0, -0.25, 1.0] and all(type(r) is float for r in rewards)
    order = [2, 0, 1]
    assert speciarl_rewards([group("GxS")[i] for i in order], malformed=-0.25) == [rewards[i] for i in order]
    assert speciarl_rewards([2, None, 4]) == [0, -1, 1]    # plain numbers, as a JSON log holds them


def test_a_judge_error_is_refused():
    for rewards in (speciarl_rewards, static_rewards, dynamic_bar):
        with pytest.raises(ValueError):
            rewards([S, "judge error"])


def papers_rule(categories):
    """1[c >= c*], c* the best rung above Wrong, Specific and More Specific as one; no bar: nobody earns."""
    marks = {A: 1, G: 2, L: 3, S: 4, M: 4}
    best = max((marks[c] for c in categories if c in marks), default=5)
    return [-1.0 if c is None else float(marks.get(c, 0) == best) for c in categories]


def test_odds_0_is_the_papers_rule_on_every_group():
    for n in range(6):
        for categories in itertools.product([*Category, None], repeat=n):
            assert speciarl_rewards(categories, odds=0) == papers_rule(categories)


@pytest.mark.parametrize("letters, odds, bar", [
    ("SWL", 1, S),                             # as many right as Wrong
    ("SWWL", 1, L), ("SWWG", 1, G),            # two Wrong ask for two
    ("SWWWx", 1, A),                           # the third best is Wrong, which is raised to Abstain
    ("SGAAWWW", 2, A),                         # six for three Wrong: the sixth best is Wrong
    ("SWWW", 2, A),                            # six, of four
    ("SSLW", 2, S), ("SLLW", 2, L),
    ("SGGG", 4, S),                            # no Wrong answer: the paper's rule
    ("SWW", 0.5, S), ("SWWW", 0.5, A), ("SGWWW", 0.5, G),
    ("MLW", 1, S), ("MMWW", 1, S), ("SMWW", 1, S),  # More Specific as the k-th is Specific
    ("WWW", 1, A), ("WWW", 0.01, A), ("W", 1, A),
    ("xxx", 1, A), ("", 1, A),
    ("SxxW", 1, S), ("Sxxxx", 9, S),           # malformed is neither Wrong nor a vote
    ("S" * 7 + "G" * 9 + "W" * 100, 0.07, S),  # .07 * 100 = 7.000000000000001 and means 7
    ("S" * 6 + "G" * 9 + "W" * 100, 0.07, G),
    ("SW", 1e308, A), ("SWW", 1e308, A), ("SSW", 1e-300, S),
])
def test_odds(letters, odds, bar):
    assert dynamic_bar(group(letters), odds) is bar


def test_all_wrong_earns_nothing_and_the_order_does_not_matter():
    assert speciarl_rewards(group("WWW"), odds=1) == [0, 0, 0]
    assert speciarl_rewards(group("WSGWx"), odds=1) == [0, 1, 1, 0, -1]
    assert speciarl_rewards(group("xGWSW"), odds=1) == [-1, 1, 0, 1, 0]


def test_odds_set_the_highest_rung_that_enough_answers_reach():
    rng = random.Random(1)
    for _ in range(2000):
        n, percent = rng.randint(1, 20), rng.randint(1, 400)
        categories = [rng.choice(list(Category)) for _ in range(n)]
        need = max(1, -(-percent * categories.count(W) // 100))  # integer arithmetic
        reached = [c for c in Category if sum(d >= c for d in categories) >= need]
        assert dynamic_bar(categories, percent / 100) == min(max(max(reached, default=A), A), S)


@pytest.mark.parametrize("odds", [-0.1, math.inf, math.nan])
def test_odds_outside_their_range(odds):
    with pytest.raises(ValueError, match="odds"):
        dynamic_bar([S], odds)


@pytest.mark.parametrize("scheme, by_category", [  # in the paper's order S+, S, S-, G, A, W
    ("exact", [1, 1, 0, 0, 0, 0]), ("graded_abstain", [1, 1, .75, .5, .25, 0]),
    ("graded", [1, 1, .75, .5, 0, 0]), ("close", [1, 1, .75, 0, 0, 0]),
    ("truthful", [1, 1, 0, 0, 0, -1])])
def test_static_schemes(scheme, by_category):
    assert static_rewards(group("MSLGAWx"), scheme) == [*by_category, -1]
    assert static_rewards([None], scheme, malformed=-0.5) == [-0.5]


def test_static_default_and_unknown_scheme():
    assert static_rewards(group("LS")) == [0, 1]
    with pytest.raises(ValueError, match="choose one of exact, graded_abstain, graded, close, truthful"):
        static_rewards([S], "scala9")


def test_noise_moves_one_step_and_spares_the_malformed():
    """S+ goes where S goes; the ends have one way only; in between both ways, evenly."""
    seen = {c: Counter(inject_noise([c] * 4000, 1.0, random.Random(int(c)))) for c in Category}
    assert seen[W] == {A: 4000} and seen[S] == {L: 4000} and seen[M] == {L: 4000}
    for c in (A, G, L):
        assert set(seen[c]) == {c - 1, c + 1} and abs(seen[c][Category(c + 1)] - 2000) < 5 * math.sqrt(1000)
    assert inject_noise([None] * 50, 1.0, random.Random(0)) == [None] * 50


def test_noise_rate_ends_and_input():
    categories = [c for c in Category for _ in range(2000)]
    kept = list(categories)
    noisy = inject_noise(categories, 0.25, random.Random(3))
    changed = sum(a != b for a, b in zip(categories, noisy))
    assert abs(changed - 3000) < 5 * math.sqrt(12000 * .25 * .75) and categories == kept
    assert inject_noise(categories, 0.0, random.Random(0)) == categories     # an undrawn S+ stays S+
    assert inject_noise(categories, 0.25, random.Random(3)) == noisy         # the seed decides
    with pytest.raises(ValueError, match="probability"):
        inject_noise([S], 1.5, random.Random(0))


def test_labels_are_the_judges_words():
    assert [c.label for c in Category] == ["wrong", "abstain", "generic", "less specific", "specific",
                                           "more specific"]


def run(folder, code):
    return subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.'); {code}"],
                          cwd=folder, capture_output=True, text=True)


def test_reward_runs_as_a_script():
    done = subprocess.run([sys.executable, ROOT / "reward.py"], capture_output=True, text=True,
                          encoding="utf-8", env={"PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any("Cessna 172" in x and "bar c* = specific" in x for x in lines)
    assert [int(x.split()[-1]) for x in lines if "reward" in x][:8] == [0, 0, 1, 0, 0, 1, 0, -1]


@pytest.mark.parametrize("files, code", [
    (["reward"], "import reward; assert not {m.split('.')[0] for m in sys.modules} - sys.stdlib_module_names "
                 "- {'reward', '__main__'} - {m.split('.')[0] for m in before}"),
    (["grpo"], "import grpo"),
    (["data"], "import data; assert not {'torch', 'transformers', 'toy'} & set(sys.modules)"),
    (["reward", "metrics"], "import metrics; print(metrics.summarize([4, None]))"),
    (["reward", "judge"], "import judge; assert 'torch' not in sys.modules and "
                          "'transformers' not in sys.modules; assert judge.precheck('a', 'b or c') == 0"),
])
def test_rooms_work_when_copied_alone(tmp_path, files, code):
    for name in files:
        shutil.copy(ROOT / f"{name}.py", tmp_path)
    done = run(tmp_path, f"before = list(sys.modules); {code}")
    assert done.returncode == 0, done.stderr
