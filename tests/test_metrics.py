import json
import math
import random
from itertools import combinations

import numpy as np
import pytest

from metrics import (FIGURES, Tally, average, best_of_k, best_of_n, bootstrap, concept_similarity, concepts,
                     difference, group_figures, harmonic_mean, intervals, majority, means_over, measured,
                     merge, similarity, summarize, text_inclusion)
from reward import Category

W, A, G, L, S, M = Category


def test_the_paper_s_worked_figures():
    assert summarize([W] * 30 + [S] * 170).correctness == pytest.approx(.85)
    # 50 non-wrong answers of total level 135: 20 * 4 + 10 * 3 + 5 * 2 + 15 * 1
    s = summarize([S] * 15 + [M] * 5 + [L] * 10 + [G] * 5 + [A] * 15 + [W] * 50)
    assert s.specificity == pytest.approx(.675) and s.correctness == .5
    s = summarize([S] * 4 + [L] * 2 + [G, A, W, W])
    assert (s.correctness, s.specificity) == (.8, .78125)
    assert s.harmonic_mean == pytest.approx(.7905, abs=5e-5)
    assert best_of_n([[G, L, G, A, S]]) == [S]


def test_group_figures_by_hand():
    """Twelve answers: 2 Specific, 9 Wrong (3 of them beat a malformed one), 1 malformed; one group of three
    has equal rewards."""
    groups, rewards = [[S, W, W, S], [None, W, W, W], [W] * 4], [[1, 0, 0, 1], [-1, 0, 0, 0], [0] * 4]
    figures = group_figures(groups, rewards, [[1, -1, -1, 1], [-1.5, .5, .5, .5], [0] * 4])
    want = {"reward": 1 / 12, "correctness": 1 / 6, "specificity": 1, "hm": 2 / 7, "malformed": 1 / 12,
            "dead_groups": 1 / 3, "wrong_positive": 1 / 3, "share/wrong": 3 / 4, "share/specific": 1 / 6,
            "bar/abstain": 2 / 3, "bar/specific": 1 / 3}
    zero = {f"share/{c.label}": 0 for c in (A, G, L, M)} | {"bar/generic": 0, "bar/less specific": 0}
    assert figures == pytest.approx(want | zero)
    one = [[S, S, W, W]], [[1, 1, 0, 0]], [[1, 1, -1, -1]]
    assert group_figures(*one)["wrong_positive"] == 0
    assert group_figures(*one, odds=1)["bar/specific"] == 1
    assert group_figures(*one, odds=2)["bar/abstain"] == 1


def test_malformed_counts_as_wrong_and_errors_stay_outside():
    s = summarize([S, None, G, A], judge_errors=3, unreadable=2)
    assert s.n == 4 and s.malformed == 1 and s.judge_errors == 3 and s.unreadable == 2
    assert s.correctness == .75                            # the abstention is not wrong, the malformed one is
    assert s.specificity == pytest.approx(7 / 12)          # (4 + 2 + 1) / (4 * 3)
    assert s.counts == {W: 0, A: 1, G: 1, L: 0, S: 1, M: 0}
    assert sum(s.shares.values()) + s.malformed / s.n == 1


@pytest.mark.parametrize("categories, expected", [
    ([], (0, 0, 0)), ([W, W], (0, 0, 0)), ([None], (0, 0, 0)), ([A], (1, .25, .4)), ([M], (1, 1, 1)),
    ([M, S], (1, 1, 1)), ([W, S], (.5, 1, 2 / 3))])
def test_edges(categories, expected):
    s = summarize(categories)
    assert (s.correctness, s.specificity, s.harmonic_mean) == pytest.approx(expected)
    assert all(math.isfinite(x) for x in s.shares.values())


def test_a_judge_error_among_the_answers_is_refused():
    for figures in (summarize, lambda g: best_of_n([g]), lambda g: bootstrap([g], 2)):
        with pytest.raises(ValueError):
            figures([S, "judge error"])


def test_summary_goes_through_json():
    s = json.loads(json.dumps(summarize([S, L, None]).to_json()))
    assert s["counts"] == {"wrong": 0, "abstain": 0, "generic": 0, "less specific": 1, "specific": 1,
                           "more specific": 0}
    assert s["malformed"] == 1 and s["n"] == 3 and s["correctness"] == pytest.approx(2 / 3)


def test_best_of_n():
    groups = [[G, L, G, A, S], [W, None], [None, None], [S, M], [], [A, W]]
    assert best_of_n(groups) == [S, W, None, M, None, A]   # S+ above S here: the ladder, not the bar
    assert summarize(best_of_n(groups)).malformed == 2


def test_harmonic_mean_of_numbers_and_arrays():
    assert harmonic_mean(.816, .832) == pytest.approx(.82392, abs=1e-5) and harmonic_mean(0, 0) == 0
    assert np.allclose(harmonic_mean(np.array([0., 1., .5]), np.array([0., 0., .5])), [0, 0, .5])


def test_average_is_of_the_datasets_own_figures():
    one, two = summarize([W, S]), summarize([A])           # HM 2/3 and .4, C .5 and 1, S 1 and .25
    assert average([one, two]) == pytest.approx(
        {"correctness": .75, "specificity": .625, "harmonic_mean": (2 / 3 + .4) / 2})


def test_merged_summaries_are_the_summary_of_all_answers():
    """By hand: [S, W] and [G, None, A] have 5 answers, 3 not wrong, of levels 4 + 2 + 1."""
    s = merge([summarize([S, W], judge_errors=1), summarize([G, None, A], judge_errors=2, unreadable=4)])
    assert (s.correctness, s.specificity) == (.6, pytest.approx(7 / 12))
    assert s.harmonic_mean == pytest.approx(2 * .6 * (7 / 12) / (.6 + 7 / 12))
    assert (s.n, s.malformed, s.judge_errors, s.unreadable) == (5, 1, 3, 4)
    assert s.counts == {W: 1, A: 1, G: 1, L: 0, S: 1, M: 0}


def test_merging_equals_summarizing_what_is_joined():
    """To the last bit, however the answers are split, shares without any answer among them."""
    for seed in range(20):
        shares = random_groups(4, seed % 5 + 1, seed)
        shares[seed % 4] = []
        together = summarize([c for share in shares for c in share], judge_errors=6, unreadable=10)
        parts = [summarize(share, judge_errors=i, unreadable=i + 1) for i, share in enumerate(shares)]
        assert merge(parts) == together
        assert merge([merge(parts[:2]), merge(parts[2:])]) == together
    assert merge([]) == summarize([])
    assert merge([together]) == together


def random_groups(images, n, seed, choices=(*Category, None)):
    rng = random.Random(seed)
    return [[rng.choice(choices) for _ in range(n)] for _ in range(images)]


def test_bootstrap_centres_on_the_figures_and_a_draw_is_a_summary():
    groups = random_groups(60, 5, 0)
    draws = bootstrap(groups, resamples=1500, seed=4)
    s = summarize([c for g in groups for c in g])
    assert draws.shape == (1500, 3)
    assert np.allclose(draws.mean(0), [s.correctness, s.specificity, s.harmonic_mean], atol=.01)
    picks = np.random.default_rng(4).integers(60, size=(1500, 60))       # the documented draw of whole images
    for i in (0, 777):
        s = summarize([c for p in picks[i] for c in groups[p]])
        assert np.allclose(draws[i], [s.correctness, s.specificity, s.harmonic_mean])


def test_bootstrap_width_against_the_binomial_error():
    """One answer an image: the standard error of correctness is sqrt(p (1 - p) / B)."""
    groups = [[S]] * 280 + [[W]] * 120
    draws = bootstrap(groups, resamples=4000)
    assert draws[:, 0].std() == pytest.approx(math.sqrt(.7 * .3 / 400), rel=.06)
    low, high = intervals(groups, resamples=4000)["correctness"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(.7 * .3 / 400), rel=.08) and low < .7 < high
    wide = intervals(groups, confidence=.99, resamples=4000)["correctness"]
    assert wide[0] < low and wide[1] > high


def test_bootstrap_draws_images_not_answers():
    """Ten equal answers to an image are one piece of evidence: the interval is as wide as with one."""
    one = [[S]] * 70 + [[W]] * 30
    ten = [g * 10 for g in one]
    assert np.array_equal(bootstrap(one, seed=2), bootstrap(ten, seed=2))


def test_bootstrap_is_paired_by_seed():
    groups = random_groups(50, 4, 1)
    assert np.array_equal(bootstrap(groups, 200, seed=7), bootstrap(groups, 200, seed=7))
    assert not np.array_equal(bootstrap(groups, 200, seed=7), bootstrap(groups, 200, seed=8))
    # a system better by one Wrong answer an image is better in every paired draw
    better = [[L if i == g.index(W) else c for i, c in enumerate(g)] if W in g else g for g in groups]
    assert (bootstrap(better, 200, seed=7)[:, 0] >= bootstrap(groups, 200, seed=7)[:, 0]).all()


def test_bootstrap_of_nothing_and_of_nothing_but_wrong():
    assert np.array_equal(bootstrap([], 5), np.zeros((5, 3)))
    assert np.array_equal(bootstrap([[W], [None]], 5), np.zeros((5, 3)))
    assert intervals([])["harmonic_mean"] == (0, 0)
    assert set(intervals([[S]])) == {"correctness", "specificity", "harmonic_mean"}


def figures(groups):
    s = summarize([c for group in groups for c in group])
    return np.array([s.correctness, s.specificity, s.harmonic_mean])


def test_paired_difference_by_hand():
    """Over the images with a verdict for both; the interval from images drawn by hand, the same for both."""
    one, two = random_groups(40, 3, 5), random_groups(40, 3, 6)
    one[4], two[7] = [], []                                 # nobody judged these
    a, b = ([g for i, g in enumerate(x) if i not in (4, 7)] for x in (one, two))
    picks = np.random.default_rng(9).integers(38, size=(300, 38))
    draws = [figures([b[p] for p in pick]) - figures([a[p] for p in pick]) for pick in picks]
    found = difference((one, two), resamples=300, seed=9)
    assert found["images"] == 38 and list(found["summary"]) == list(FIGURES)
    assert np.allclose(list(found["summary"].values()), figures(b) - figures(a))
    assert np.allclose(list(found["intervals"].values()), np.percentile(draws, [2.5, 97.5], axis=0).T)
    # worse by a Wrong answer an image: -1/3, without any doubt
    found = difference(([[S, S, L]] * 9, [[S, S, W]] * 9))
    assert found["summary"]["correctness"] == pytest.approx(-1 / 3)
    assert found["intervals"]["correctness"] == pytest.approx((-1 / 3, -1 / 3))
    assert difference(([[], [S]], [[S], []]))["images"] == 0


def test_difference_and_interval_of_a_mean_over_datasets():
    """Every dataset counts the same, whatever its size, and draws its own images."""
    x = random_groups(30, 2, 1), random_groups(30, 2, 2)
    y = random_groups(8, 2, 3), random_groups(8, 2, 4)
    found = difference(x, y, resamples=200, seed=5)
    one, two = difference(x, resamples=200, seed=5), difference(y, resamples=200, seed=6)
    assert found["images"] == 38
    for f in FIGURES:
        assert found["summary"][f] == pytest.approx((one["summary"][f] + two["summary"][f]) / 2)
    draws = (bootstrap(x[1], 200, 5) + bootstrap(y[1], 200, 6)) / 2
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    assert np.allclose(list(intervals(x[1], y[1], resamples=200, seed=5).values()), np.stack([low, high], 1))
    assert intervals([*x[0], [], []]) == intervals(x[0])    # an image without a verdict is not drawn


def test_the_papers_means():
    five = ["flowers", "food", "pets", "cars", "aircraft"]
    assert means_over(five) == {"mean of 5": five, "fine-grained": five[:3], "very fine-grained": five[3:]}
    assert means_over(["cub", "pets", "flowers", "cars"]) == {
        "mean of 4": ["cub", "pets", "flowers", "cars"], "fine-grained (2 of 3)": ["pets", "flowers"]}
    assert means_over(["cub"]) == {}


@pytest.mark.parametrize("truth, answer, inside", [
    ("Mallard", " a mallard duck", True), ("cat", "category", True), (" Mallard ", "MALLARD", True),
    ("golden-winged warbler", "golden winged warbler", False), ("mallard", "duck", False),
    ("x", None, False)])
def test_text_inclusion(truth, answer, inside):
    assert text_inclusion(truth, answer) is inside


def test_similarity_by_hand():
    vectors = {"a": np.array([1., 0]), "b": np.array([.6, .8])}
    found = similarity(lambda texts: [vectors[t] for t in texts], "a", ["b", None, "a", "b"])
    assert found == [.6, 0, 1, .6]


@pytest.mark.parametrize("answer, found", [
    ("A bird with a red head, perched on an oak.", ["bird", "red head", "perched", "oak"]),
    ("This is the Golden-winged Warbler", ["golden-winged warbler"]),
    ("F/A-18 (a photo of a jet)", ["f/a-18", "jet"]), ("the", []), ("a photo", [])])
def test_concepts(answer, found):
    assert concepts(answer) == [*found, answer]
    assert concepts("owl") == ["owl"]  # once


def test_concept_similarity_by_hand():
    """Of the pieces owl (.6), red head (0) and the whole answer (-1) the first is the nearest."""
    vectors = {"truth": [1., 0], "owl": [.6, .8], "red head": [0, 1.], "an owl with a red head": [-1., 0]}
    embedded = []

    def embed(texts):
        embedded.append(list(texts))
        return [np.array(vectors[text]) for text in texts]

    answers = ["an owl with a red head", None, "red head", "owl", "truth"]
    assert concept_similarity(embed, "truth", answers) == [.6, 0, 0, .6, 1]
    assert len(embedded) == 1 and len(set(embedded[0])) == len(embedded[0]) == 4
    assert similarity(embed, "truth", answers) == [-1, 0, 0, .6, 1]  # of whole answers


def test_best_of_k_is_the_mean_over_all_subsets():
    rng = random.Random(0)
    for _ in range(200):
        group = [rng.choice([*Category, None]) for _ in range(rng.randint(1, 7))]
        for k in range(1, len(group) + 1):
            picked = [max(subset, key=lambda c: -1 if c is None else c) for subset in combinations(group, k)]
            want = {c: picked.count(c) / len(picked) for c in (None, *Category)}
            assert best_of_k(group, k) == pytest.approx(want)


@pytest.mark.parametrize("texts, place", [
    (["a", "b", "b"], 1), (["a", "b", "b", "a"], 0), ([None, None, "b", "a"], 2), ([None, None], None),
    ([], None), ([None, "b", "a", None, "a"], 2)])
def test_majority(texts, place):
    assert majority(texts) == place


def test_the_majority_has_a_row():
    """Specific; malformed throughout; no verdict: left out. No majority in the records: no row."""
    tally = Tally()
    tally.add({"categories": ["wrong", "specific"], "majority": 1})
    tally.add({"categories": ["malformed", "malformed"], "majority": None})
    tally.add({"categories": ["judge error", "wrong"], "majority": 0})
    tally.add({"unreadable": "cannot read it"})
    row = measured([tally], n=2)["majority"]
    assert row["images"] == 2 and row["summary"]["correctness"] == .5 and row["summary"]["specificity"] == 1
    tally = Tally()
    tally.add({"categories": ["wrong", "specific"]})
    assert "majority" not in measured([tally], n=2)


def test_a_tally_holds_verdicts_in_their_places():
    """An error is left out; an image with fewer than k verdicts is left out of the best of k, and counted."""
    tally = Tally()
    tally.add({"categories": ["judge error", "generic", "malformed", "specific"],
               "scores": {"x": [1, 0, 0, 1]}})
    tally.add({"categories": ["wrong", "judge error", "abstain", "wrong"], "scores": {"x": [0, 0, 0, 1]}})
    tally.add({"unreadable": "cannot read the image c"})
    s = tally.summary()
    assert (s.n, s.judge_errors, s.unreadable, s.malformed) == (6, 2, 1, 1) and tally.scores() == {"x": 3 / 8}
    assert tally.verdicts() == [[G, None, S], [W, A, W], []]
    row = measured([tally], n=4)
    best = {k: (b["images"], b["summary"]["correctness"], b["summary"]["specificity"])
            for k, b in row["best_of"].items()}
    # of one: good 2/3 + 1/3, levels 2 + 1/3; of two (three subsets each): good 1 + 2/3, levels 10/3 + 2/3
    assert best == {"1": (2, pytest.approx(.5), pytest.approx(7 / 12)),
                    "2": (2, pytest.approx(5 / 6), pytest.approx(.6)), "4": (0, 0, 0)}
    assert [b["left_out"] for b in row["best_of"].values()] == [0, 0, 2]
    assert row["images"] == 2 and row["unreadable"] == ["cannot read the image c"]
    assert list(measured([tally], n=10)["best_of"]) == ["1", "2", "4", "8", "10"]
    assert "best_of" not in measured([tally])


def test_a_dataset_without_enough_verdicts_is_in_no_mean_of_best_of_k():
    """One judge error an image leaves the second set without two verdicts anywhere."""
    perfect, failed = Tally(), Tally()
    for _ in range(3):
        perfect.add({"categories": ["specific", "specific"], "majority": 0})
        failed.add({"categories": ["error", "specific"], "majority": 0})
    row = measured([perfect, failed], n=2)
    best = row["best_of"]["2"]
    assert best["summary"]["harmonic_mean"] == 1 and (best["images"], best["left_out"]) == (3, 3)
    assert row["majority"]["summary"]["harmonic_mean"] == 1 and row["majority"]["images"] == 3
