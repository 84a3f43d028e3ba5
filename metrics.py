"""The paper's figures: correctness, specificity, their harmonic mean (HM), best-of-N, bootstrap intervals,
paired differences, text inclusion.

Copy this file together with reward.py. As a library: `summarize([Category.GENERIC, Category.WRONG, None])`.

The release only counts categories; the definitions here reproduce the paper's normalisation, all in [0, 1]:
- correctness C: the share of answers that are not Wrong (an abstention is not wrong; a malformed answer is);
- specificity S: over the non-wrong answers, the mean of A = 1, G = 2, S- = 3, S = S+ = 4, divided by 4;
- harmonic mean HM = 2CS / (C + S).
Judge errors and unreadable images are left out of n and reported beside it: an outage is nobody's mistake.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from reward import Category, dynamic_bar

LEVEL = {Category.WRONG: 0, Category.ABSTAIN: 1, Category.GENERIC: 2, Category.LESS_SPECIFIC: 3,
         Category.SPECIFIC: 4, Category.MORE_SPECIFIC: 4}  # Wrong answers never enter the mean
FIGURES = ("correctness", "specificity", "harmonic_mean")
# Datasets that the literature averages over (Conti et al., ICCV 2025).
FAMILIES = {"fine-grained": ("flowers", "food", "pets"), "very fine-grained": ("cars", "aircraft")}


@dataclass(frozen=True)
class Summary:
    """Figures of one set of answers. counts: how often each Category was judged; n = their sum +
    malformed."""
    correctness: float
    specificity: float
    harmonic_mean: float
    n: int
    counts: dict[Category, int]
    malformed: int = 0
    judge_errors: int = 0
    unreadable: int = 0

    @property
    def shares(self) -> dict[Category, float]:
        """Share of each category among the n answers; with malformed / n they sum to 1."""
        return {c: self.counts[c] / self.n if self.n else 0.0 for c in Category}

    def to_json(self) -> dict:
        return asdict(self) | {"counts": {c.label: k for c, k in self.counts.items()},
                               "shares": {c.label: s for c, s in self.shares.items()}}


def harmonic_mean(correctness, specificity):
    """2CS / (C + S), 0 where both are 0. Floats or arrays of one shape."""
    total = np.asarray(correctness + specificity, dtype=float)
    return np.divide(2 * correctness * specificity, total, out=np.zeros_like(total), where=total > 0)[()]


def summarize(categories: Sequence[Category | None], judge_errors: int = 0, unreadable: int = 0) -> Summary:
    """Figures of a flat list of answers, None = malformed. Empty, or nothing but Wrong: specificity and HM
    are 0."""
    malformed = sum(c is None for c in categories)
    judged = [Category(c) for c in categories if c is not None]
    counts = {c: judged.count(c) for c in Category}
    n = len(categories)
    good = len(judged) - counts[Category.WRONG]
    correctness = good / n if n else 0.0
    specificity = sum(LEVEL[c] * k for c, k in counts.items()) / (4 * good) if good else 0.0
    return Summary(correctness, specificity, float(harmonic_mean(correctness, specificity)), n, counts,
                   malformed, judge_errors, unreadable)


def merge(summaries: Sequence[Summary]) -> Summary:
    """The Summary of all their answers together."""
    counts = {c: sum(s.counts[c] for s in summaries) for c in Category}
    categories = [c for c, k in counts.items() for _ in range(k)]
    categories += [None] * sum(s.malformed for s in summaries)
    return summarize(categories, sum(s.judge_errors for s in summaries), sum(s.unreadable for s in summaries))


def best_of_n(groups: Sequence[Sequence[Category | None]]) -> list[Category | None]:
    """Each image's best answer by the ladder (an oracle picks: the ceiling of what N samples hold); None only
    where every answer is malformed."""
    return [max((Category(c) for c in group if c is not None), default=None) for group in groups]


def text_inclusion(truth: str, answer: str | None) -> bool:
    """Whether the answer holds the truth, letter by letter: no word boundary, only case and outer space are
    free (lmms-owc's TI). A malformed answer holds nothing."""
    return truth.lower().strip() in (answer or "").lower().strip()


def similarity(embed, truth: str, answers: Sequence[str | None]) -> list[float]:
    """Dot product of each whole answer with the truth (lmms-owc's SS), 0 for a malformed one. embed: texts ->
    as many vectors of unit length."""
    texts = list(dict.fromkeys([truth, *filter(None, answers)]))
    vectors = dict(zip(texts, embed(texts)))
    return [round(float(vectors[a] @ vectors[truth]), 6) if a else 0.0 for a in answers]


def group_figures(groups: Sequence[Sequence[Category | None]], rewards, advantages,
                  quorum: float = 0.0) -> dict[str, float]:
    """What one watches while training. groups: B lists of N categories; rewards, advantages: (B, N) lists.

    dead_groups: share of groups whose rewards are all equal. wrong_positive: share of the Wrong answers with
    a positive advantage (they beat a malformed one). bar/...: share of groups with each bar.
    """
    s = summarize([c for group in groups for c in group])
    bars = [dynamic_bar(group, quorum) for group in groups]
    wrong = [a > 0 for group, row in zip(groups, advantages) for c, a in zip(group, row)
             if c == Category.WRONG]
    return {"reward": float(np.mean(rewards)), "correctness": s.correctness, "specificity": s.specificity,
            "hm": s.harmonic_mean, "malformed": s.malformed / s.n,
            "dead_groups": float(np.mean([len(set(row)) == 1 for row in rewards])),
            "wrong_positive": float(np.mean(wrong)) if wrong else 0.0,
            **{f"share/{c.label}": share for c, share in s.shares.items()},
            **{f"bar/{c.label}": bars.count(c) / len(bars) for c in list(Category)[1:5]}}


def average(summaries: Sequence[Summary]) -> dict[str, float]:
    """Mean over datasets of the datasets' own figures, HM included, as the paper's tables do."""
    return {name: float(np.mean([getattr(s, name) for s in summaries])) for name in FIGURES}


def means_over(names: Sequence[str]) -> dict[str, list[str]]:
    """The means a table of these datasets has: title -> its datasets. Of all; and of each family of which
    two are there, the title saying so where some are not."""
    means = {f"mean of {len(names)}": list(names)}
    for family, members in FAMILIES.items():
        there = [name for name in names if name in members]
        means[family + (f" ({len(there)} of {len(members)})" if len(there) < len(members) else "")] = there
    return {title: there for title, there in means.items() if len(there) > 1}


def _image_sums(groups) -> np.ndarray:
    """(B, 3): answers, non-wrong answers and summed levels of each image."""
    good = [[c for c in group if c is not None and c != Category.WRONG] for group in groups]
    sums = [(len(group), len(g), sum(LEVEL[Category(c)] for c in g)) for group, g in zip(groups, good)]
    return np.array(sums, dtype=float).reshape(-1, 3)


def bootstrap(groups: Sequence[Sequence[Category | None]], resamples: int = 1000,
              seed: int = 0) -> np.ndarray:
    """(resamples, 3) draws of correctness, specificity and HM. Whole images are drawn with replacement: the N
    answers to one image are no independent evidence. The same seed draws the same images, so that the
    difference of two systems' draws over the same images is a paired comparison."""
    sums = _image_sums(groups)
    if not len(sums):
        return np.zeros((resamples, 3))
    rng = np.random.default_rng(seed)
    drawn = [sums[rng.integers(len(sums), size=len(sums))].sum(0) for _ in range(resamples)]
    return np.stack(_figures(*np.stack(drawn).T), axis=1)


def _figures(n, good, level):
    """Correctness, specificity and HM of sums over images (arrays of one shape)."""
    correctness = np.divide(good, n, out=np.zeros_like(n), where=n > 0)
    specificity = np.divide(level, 4 * good, out=np.zeros_like(n), where=good > 0)
    return correctness, specificity, harmonic_mean(correctness, specificity)


def _percentiles(draws: np.ndarray, confidence: float) -> dict[str, tuple[float, float]]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(FIGURES, low, high)}


def intervals(*datasets: Sequence[Sequence[Category | None]], confidence: float = 0.95, resamples: int = 1000,
              seed: int = 0) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval of each figure over a dataset's images; of several datasets, of the mean
    of their own figures (each drawn by a seed of its own, seed + 0, 1, ...). An empty group, an image
    without a verdict, is not drawn."""
    draws = [bootstrap([g for g in groups if g], resamples, seed + i) for i, groups in enumerate(datasets)]
    return _percentiles(np.mean(draws, axis=0), confidence)


def difference(*datasets: tuple[Sequence, Sequence], confidence: float = 0.95, resamples: int = 1000,
               seed: int = 0) -> dict:
    """The second system's figures minus the first's, over the images for which both have a verdict, with the
    paired bootstrap interval. datasets: (first's groups, second's groups), the same images in the same order
    (an empty group = no verdict); of several datasets, the mean of their own differences.

    Returns {"summary": {figure: its difference}, "intervals": {figure: (low, high)}, "images": how many
    entered}.
    """
    points, draws, images = [], [], 0
    for i, systems in enumerate(datasets):
        both = [pair for pair in zip(*systems, strict=True) if all(pair)]
        one, two = [a for a, _ in both], [b for _, b in both]
        points.append(np.subtract(_figures(*_image_sums(two).sum(0)), _figures(*_image_sums(one).sum(0))))
        draws.append(bootstrap(two, resamples, seed + i) - bootstrap(one, resamples, seed + i))
        images += len(both)
    return {"summary": dict(zip(FIGURES, np.mean(points, axis=0).tolist())),
            "intervals": _percentiles(np.mean(draws, axis=0), confidence), "images": images}


# ------------------------------------------------------------------------------------------------------------
# Rows of a table

_VERDICT = {c.label: c for c in Category} | {"malformed": None}


@dataclass
class Tally:
    """What stays in memory of one system's answers to one dataset: verdicts and sums, no text.

    A record is a dict with "categories", N words (a category's label or "malformed"; any other is no
    verdict), and "scores", lists of N numbers by name; or with "unreadable", a line.
    """
    groups: list[list] = field(default_factory=list)  # an image's N verdicts, "error" where there is none
    unreadable: list[str] = field(default_factory=list)  # a line each; the image's group is empty
    sums: dict[str, float] = field(default_factory=dict)  # of each score, over all answers

    def add(self, record: dict) -> None:
        if "unreadable" in record:
            self.unreadable.append(record["unreadable"])
        self.groups.append([_VERDICT.get(word, "error") for word in record.get("categories", ())])
        for name, values in record.get("scores", {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + sum(values)

    def verdicts(self, k: int | None = None) -> list[list]:
        """A list an image of what its first k answers were judged, without errors."""
        return [[c for c in group[:k] if c != "error"] for group in self.groups]

    def best_of(self, k: int) -> list[list]:
        """What an oracle picks of each image's first k answers; [] for an image without a verdict."""
        return [best_of_n([group]) if group else [] for group in self.verdicts(k)]

    def summary(self) -> Summary:
        judged, n = [c for group in self.verdicts() for c in group], sum(map(len, self.groups))
        return summarize(judged, n - len(judged), len(self.unreadable))

    def scores(self) -> dict[str, float]:
        """Mean of each score over all answers."""
        return {name: total / max(1, sum(map(len, self.groups))) for name, total in self.sums.items()}


def measured(tallies: Sequence[Tally], firsts: Sequence[Tally] = (), n: int = 1) -> dict:
    """A row of the table, ready for JSON: one dataset's figures, or the mean over several of their own. With
    intervals; for n > 1 with the best of the first k answers, k every power of two up to n, and n; and with
    the difference to the tallies of a first system on the same datasets."""
    def figures(summaries: list[Summary], datasets: list[list]) -> dict:
        return {"summary": summaries[0].to_json() if len(summaries) == 1 else average(summaries),
                "intervals": intervals(*datasets), "images": sum(bool(g) for d in datasets for g in d)}

    datasets = [t.verdicts() for t in tallies]
    row = figures([t.summary() for t in tallies], datasets)
    row["scores"] = {name: float(np.mean([t.scores()[name] for t in tallies if t.sums]))
                     for name in next((t.sums for t in tallies if t.sums), {})}
    row["unreadable"] = [line for t in tallies for line in t.unreadable]
    if n > 1:
        picked = {k: [t.best_of(k) for t in tallies] for k in {n, *(2 ** i for i in range(n.bit_length()))}}
        row["best_of"] = {str(k): figures([summarize([c for group in d for c in group]) for d in picked[k]],
                                          picked[k]) for k in sorted(picked)}
    if firsts:
        row["difference"] = difference(*zip([t.verdicts() for t in firsts], datasets))
    return row


