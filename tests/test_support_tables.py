"""The tables as texts, with figures made up or worked out by hand."""

import pytest

from metrics import Tally, measured
from support.tables import comparison, comparison_rows, table


def figures(correctness, specificity, hm, **more):
    return {"correctness": correctness, "specificity": specificity, "harmonic_mean": hm} | more


def row(images, summary, low=0.0, high=1.0, **more):
    """As metrics.measured makes it, with one interval for every figure."""
    intervals = dict.fromkeys(("correctness", "specificity", "harmonic_mean"), (low, high))
    return {"summary": summary, "intervals": intervals, "images": images, "scores": {}} | more


# ---- evaluate.py's table


def counted(hm, **counts):
    """A dataset's summary: 8 answers, of which these were counted."""
    kinds = ("wrong", "abstain", "generic", "less specific", "specific", "more specific")
    return figures(0.5, 0.25, hm, n=8, counts={kind: counts.get(kind, 0) for kind in kinds}, malformed=2,
                   judge_errors=3, unreadable=1)


@pytest.fixture
def systems():
    """Two systems on one dataset and, as it were, a mean: four answers to an image."""
    best = {"1": row(4, figures(0.1, 0.2, 0.125)), "4": row(4, figures(0.75, 0.5, 0.625), 0.5, 0.75)}
    scores = {"text_inclusion": 0.125, "semantic_similarity": 0.5}
    more = {"best_of": best, "scores": scores}
    first = {"cub": row(4, counted(0.375, wrong=2, specific=4), 0.25, 0.5, **more),
             "mean of 2": row(19, figures(0.25, 0.75, 0.875), **more)}
    minus = {"difference": row(3, figures(-0.25, 0.0, 0.125), -0.5, 0.25)}
    return {"base": first, "a run": {dataset: of | minus for dataset, of in first.items()}}


FIGURES_BLOCK = """\
                          correctness               specificity               harmonic mean            images
cub        base           0.500 [0.250 0.500]       0.250 [0.250 0.500]       0.375 [0.250 0.500]            4
             best of 4    0.750 [0.500 0.750]       0.500 [0.500 0.750]       0.625 [0.500 0.750]            4
           a run          0.500 [0.250 0.500]       0.250 [0.250 0.500]       0.375 [0.250 0.500]            4
             minus base  -0.250 [-0.500 +0.250]    +0.000 [-0.500 +0.250]    +0.125 [-0.500 +0.250]          3
             best of 4    0.750 [0.500 0.750]       0.500 [0.500 0.750]       0.625 [0.500 0.750]            4
mean of 2  base           0.250 [0.000 1.000]       0.750 [0.000 1.000]       0.875 [0.000 1.000]           19
             best of 4    0.750 [0.500 0.750]       0.500 [0.500 0.750]       0.625 [0.500 0.750]            4
           a run          0.250 [0.000 1.000]       0.750 [0.000 1.000]       0.875 [0.000 1.000]           19
             minus base  -0.250 [-0.500 +0.250]    +0.000 [-0.500 +0.250]    +0.125 [-0.500 +0.250]          3
             best of 4    0.750 [0.500 0.750]       0.500 [0.500 0.750]       0.625 [0.500 0.750]            4
"""

# Between the first 25 columns, which are those of the block below, and the scores in the last 20.
ANSWERS_BLOCK = """\
 answers  wrong  abst.   gen.   less  spec.   more  malf.  errors  unreadable
       8  0.250  0.000  0.000  0.000  0.500  0.000  0.250       3           1
       8  0.250  0.000  0.000  0.000  0.500  0.000  0.250       3           1
"""

BEST_OF_BLOCK = """\
                         HM, best of      1      4
cub        base                       0.125  0.625
           a run                      0.125  0.625
mean of 2  base                       0.125  0.625
           a run                      0.125  0.625
"""


def test_three_blocks(systems):
    main, answers, best_of, legend = table(systems).split("\n\n")
    assert main + "\n" == FIGURES_BLOCK and best_of + "\n" == BEST_OF_BLOCK
    assert legend.startswith("[ ]: 95 % bootstrap intervals over images.")

    # of 8 answers 2 wrong, 4 specific, 2 malformed; a mean has no counts
    lines = answers.splitlines()
    assert [line[25:102].rstrip() for line in lines] == ANSWERS_BLOCK.splitlines() + ["", ""]
    assert [line[:25] for line in lines] == [line[:25] for line in BEST_OF_BLOCK.splitlines()]
    assert [line[102:] for line in lines] == ["  included   similar"] + 4 * ["     0.125     0.500"]


def test_one_system_with_one_answer_an_image():
    """No best of, no difference; the scores of a set without answers are missing, not its column."""
    full = row(4, counted(0.375), scores={"thought_not_said": 0.25})
    text = table({"base": {"none": row(0, counted(0.0)), "cub": full}})
    assert text.count("\n\n") == 2 and "minus" not in text and "  best of " not in text
    answers = text.split("\n\n")[1].splitlines()
    assert answers[0].endswith("unreadable   thought")
    assert answers[2].endswith("0.250") and answers[1].split()[-1] == "1"


def test_what_is_measured_is_what_is_printed():
    """From verdicts to text: two images, S W and G malformed; one answer not judged."""
    tally = Tally()
    tally.add({"categories": ["specific", "wrong"], "scores": {"text_inclusion": [1, 0]}})
    tally.add({"categories": ["generic", "malformed"], "scores": {"text_inclusion": [0, 0]}})
    tally.add({"categories": ["judge error", "wrong"], "scores": {"text_inclusion": [0, 0]}})
    main, answers, by_k, _ = table({"base": {"cub": measured([tally], n=2)}}).split("\n\n")
    # C = 2 / 5, S = (4 + 2) / (4 * 2) = 3 / 4, HM = .6 / 1.15
    cells = main.splitlines()[1].replace("[", "[ ").split()
    assert [cells[i] for i in (2, 6, 10, 14)] == ["0.400", "0.750", "0.522", "3"]
    # wrong 2 of 5, generic, specific and malformed 1; of all six answers one holds the truth's name
    assert answers.splitlines()[1].split() == [
        "cub", "base", "5", "0.400", "0.000", "0.200", "0.000", "0.200", "0.000", "0.200", "1", "0", "0.167"]
    # one answer: C = (1/2 + 1/2 + 0) / 3, S = 3 / 4; the best of two: S and G, C = 1, the third left out
    assert by_k.splitlines()[1].split() == ["cub", "base", "0.462", "0.857"]


# ---- before and after


@pytest.fixture
def sets():
    def pair(before, after):
        return {"before": figures(*before, n=10, malformed=1), "after": figures(*after, n=20, malformed=0)}
    return {"toy-bird": pair((1, 0.5, 0.6667), (0.9, 0.9, 0.9)),
            "toy-fish": pair((0.8, 0.4, 0.5333), (0.5, 0.5, 0.5)),
            "toy-flower": pair((0.6, 0.2, 0.3), (0.7, 0.9, 0.7875))}


def test_rows_of_before_and_after(sets):
    rows = comparison_rows(sets, ["toy"])  # which is trained on birds
    assert [(r.name, r.trained_on) for r in rows] == [
        ("toy-bird", True), ("toy-fish", False), ("toy-flower", False), ("mean of the unseen", False)]
    assert [r.figures for r in rows[:3]] == list(sets.values())
    # of fish and flower: HM is the mean of theirs, not made from C and S
    assert rows[3].figures["before"] == pytest.approx(figures(0.7, 0.3, 0.41665))
    assert rows[3].figures["after"] == pytest.approx(figures(0.6, 0.7, 0.64375))


@pytest.mark.parametrize("trained_on, unseen", [
    (["cub"], 3), (["toy-bird"], 2), (["toy-bird", "toy-fish"], 1),
    (["toy-bird", "toy-fish", "toy-flower"], 0)])
def test_the_mean_of_one_is_no_mean(sets, trained_on, unseen):
    rows = comparison_rows(sets, trained_on)
    assert sum(not r.trained_on for r in rows[:3]) == unseen
    assert len(rows) == 3 + (unseen > 1)


def test_comparison_line_by_line(sets):
    """The share of malformed answers: 1 of 10 before, 0 of 20 after; a mean has none."""
    results = {"greedy": sets, "temperature 1": {"toy-bird": sets["toy-bird"]}}
    lines = comparison(results, ["toy"]).splitlines()
    assert lines[0].split() == ["correctness", "specificity", "harmonic", "mean", "malformed"]
    assert [line[:40].rstrip() for line in lines[1:]] == [
        "greedy · toy-bird (trained on)", "greedy · toy-fish", "greedy · toy-flower",
        "greedy · mean of the unseen", "temperature 1 · toy-bird (trained on)"]
    assert lines[1][40:] == ("      1.000 -> 0.900      0.500 -> 0.900      0.667 -> 0.900"
                             "      0.100 -> 0.000")
    assert lines[4][40:] == "      0.700 -> 0.600      0.300 -> 0.700      0.417 -> 0.644"
    assert lines[5][40:] == lines[1][40:]


def test_a_set_without_an_answer():
    """Every image unreadable: no division by the 0 answers."""
    none = figures(0, 0, 0, n=0, malformed=0)
    line = comparison({"greedy": {"cub": {"before": none, "after": none}}}, ["cub"]).splitlines()[1]
    assert line.split()[-3:] == ["0.000", "->", "0.000"]
