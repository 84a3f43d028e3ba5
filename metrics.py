"""The paper's figures: correctness, specificity, their harmonic mean (HM), best-of-N, bootstrap intervals,
paired differences, text inclusion, correctness corrected for a judge's known errors.

Copy this file together with reward.py. As a library: `summarize([Category.GENERIC, Category.WRONG, None])`.

The official release only counts categories. The definitions here reproduce the paper's normalisation, all in
[0, 1]:
- correctness C: the share of answers that are not Wrong. An abstention is not wrong; a malformed answer is.
- specificity S: over the non-wrong answers, the mean of A = 1, G = 2, S- = 3, S = S+ = 4, divided by 4.
- harmonic mean HM = 2CS / (C + S).
Judge errors and unreadable images are left out of n and reported beside it: an outage is nobody's mistake.

Below, B is images and N answers to each. A group is one image's N verdicts: a Category each, None where the
answer is malformed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from math import comb

import numpy as np

from reward import Category, dynamic_bar

# How much an answer says. A Wrong answer never enters the mean.
LEVEL = {
    Category.WRONG: 0,
    Category.ABSTAIN: 1,
    Category.GENERIC: 2,
    Category.LESS_SPECIFIC: 3,
    Category.SPECIFIC: 4,
    Category.MORE_SPECIFIC: 4,
}
FIGURES = ("correctness", "specificity", "harmonic_mean")

Groups = Sequence[Sequence[Category | None]]  # B images, N verdicts each


@dataclass(frozen=True)
class Summary:
    """Figures of one set of n answers. counts: how often each Category was judged; with malformed they sum
    to n."""
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
        if self.n == 0:
            return dict.fromkeys(Category, 0.0)
        return {category: self.counts[category] / self.n for category in Category}

    def to_json(self) -> dict:
        """All fields and the shares, with the categories' labels for keys."""
        counts = {category.label: count for category, count in self.counts.items()}
        shares = {category.label: share for category, share in self.shares.items()}
        return asdict(self) | {"counts": counts, "shares": shares}


def ratio(numerator, denominator):
    """numerator / denominator, and 0 where the denominator is 0. Numbers, or arrays of one shape."""
    denominator = np.asarray(denominator, dtype=float)
    quotient = np.zeros_like(denominator)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient[()]  # [()] makes an array without dimensions a number again


def harmonic_mean(correctness, specificity):
    """2CS / (C + S), and 0 where both are 0. Numbers, or arrays of one shape."""
    return ratio(2 * correctness * specificity, correctness + specificity)


def figures_of(answers, good, level):
    """Correctness, specificity and HM from three sums: the answers, those that are not wrong, and the levels
    of the latter. Numbers, or arrays of one shape."""
    correctness = ratio(good, answers)
    specificity = ratio(level, 4 * good)
    return correctness, specificity, harmonic_mean(correctness, specificity)


def summarize(categories: Sequence[Category | None], judge_errors: int = 0, unreadable: int = 0) -> Summary:
    """Figures of a flat list of answers, None = malformed. Of no answer, or of nothing but Wrong ones,
    specificity and HM are 0. ValueError for anything that is no category."""
    judged = [Category(c) for c in categories if c is not None]
    counts = {category: judged.count(category) for category in Category}
    malformed = len(categories) - len(judged)
    return summary_of(counts, malformed, judge_errors, unreadable)


def merge(summaries: Sequence[Summary]) -> Summary:
    """The Summary of all their answers together, as `summarize` would make it. (`average` is another thing:
    there every summary counts the same, however many answers it has.)"""
    counts = dict.fromkeys(Category, 0)
    for summary in summaries:
        for category, count in summary.counts.items():
            counts[category] += count
    malformed = sum(s.malformed for s in summaries)
    judge_errors = sum(s.judge_errors for s in summaries)
    unreadable = sum(s.unreadable for s in summaries)
    return summary_of(counts, malformed, judge_errors, unreadable)


def summary_of(counts: dict[Category, int], malformed: int, judge_errors: int, unreadable: int) -> Summary:
    """The Summary of answers that are counted already."""
    judged = sum(counts.values())
    n = judged + malformed  # no judge error among them
    good = judged - counts[Category.WRONG]
    level = sum(LEVEL[category] * count for category, count in counts.items())
    correctness, specificity, hm = figures_of(n, good, level)
    return Summary(float(correctness), float(specificity), float(hm), n, counts,
                   malformed, judge_errors, unreadable)


def average(summaries: Sequence[Summary]) -> dict[str, float]:
    """Mean over datasets of the datasets' own figures, HM included, as the paper's tables do."""
    means = {}
    for name in FIGURES:
        own = [getattr(summary, name) for summary in summaries]
        means[name] = float(np.mean(own))
    return means


def best_of_n(groups: Groups) -> list[Category | None]:
    """Each image's best answer by the ladder; None only where every answer is malformed. An oracle picks it:
    this is the ceiling of what N samples hold."""
    best = []
    for group in groups:
        well_formed = [Category(c) for c in group if c is not None]
        best.append(max(well_formed, default=None))
    return best


def best_of_k(group: Sequence[Category | None], k: int) -> dict[Category | None, float]:
    """How often each verdict is the best of k of the group's answers: its share of all subsets of k, in
    closed form. Malformed stands below Wrong. group: at least k verdicts."""
    ranked = sorted(group, key=lambda category: -1 if category is None else category)
    subsets = comb(len(group), k)
    shares = dict.fromkeys((None, *Category), 0.0)
    for below, category in enumerate(ranked):
        # It is the best of those subsets whose other k - 1 are ranked below it.
        shares[category] += comb(below, k - 1) / subsets
    return shares


def majority(texts: Sequence[str | None]) -> int | None:
    """The place of the most frequent text, of equally frequent ones that of the first. None, a malformed
    answer, is no vote; without any vote there is no place. texts: normalised, N of one image."""
    votes = Counter(text for text in texts if text is not None)
    if not votes:
        return None
    winner, _ = votes.most_common(1)[0]  # Counter keeps the order of the first sight among equals
    return list(texts).index(winner)


def flatten(lists: Iterable[Sequence]) -> list:
    """The items of all lists in one, in order: B groups of N answers become B * N answers."""
    return list(chain.from_iterable(lists))


# ------------------------------------------------------------------------------------------------------------
# What one watches while training


def group_figures(groups: Groups, rewards, advantages, odds: float = 0.0) -> dict[str, float]:
    """The step's figures for its log line.

    groups: B lists of N categories; rewards, advantages: (B, N) lists; odds: as in reward.dynamic_bar.
    dead_groups: share of groups whose rewards are all equal. wrong_positive: share of the Wrong answers with
    a positive advantage (they beat a malformed one). bar/...: share of groups with each bar.
    """
    summary = summarize(flatten(groups))
    dead = [len(set(row)) == 1 for row in rewards]

    wrong_positive = []  # an entry for each Wrong answer
    for group, row in zip(groups, advantages):
        for category, advantage in zip(group, row):
            if category == Category.WRONG:
                wrong_positive.append(advantage > 0)

    # by the names of log.jsonl
    figures = {
        "reward": float(np.mean(rewards)),
        "correctness": summary.correctness,
        "specificity": summary.specificity,
        "hm": summary.harmonic_mean,
        "malformed": summary.malformed / summary.n,
        "dead_groups": float(np.mean(dead)),
        "wrong_positive": float(np.mean(wrong_positive)) if wrong_positive else 0.0,
    }
    for category, share in summary.shares.items():
        figures[f"share/{category.label}"] = share
    bars = [dynamic_bar(group, odds) for group in groups]
    for bar in (Category.ABSTAIN, Category.GENERIC, Category.LESS_SPECIFIC, Category.SPECIFIC):
        figures[f"bar/{bar.label}"] = bars.count(bar) / len(bars)
    return figures


# ------------------------------------------------------------------------------------------------------------
# How sure a figure is


def bootstrap(groups: Groups, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """(resamples, 3) draws of correctness, specificity and HM.

    Whole images are drawn with replacement: the N answers to one image are no independent evidence. The same
    seed draws the same images, so that the difference of two systems' draws over the same images is a paired
    comparison.
    """
    return bootstrap_sums(image_sums(groups), resamples, seed)


def bootstrap_sums(sums: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """bootstrap's draws, from the images' sums (B, 3)."""
    # the figures of a draw follow from its sums: all draws at once
    answers, good, level = drawn_sums(sums, resamples, seed).T  # (resamples,) each
    return np.stack(figures_of(answers, good, level), axis=1)  # (resamples, 3)


def drawn_sums(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, 3): the sums (B, 3) of B images, drawn with replacement and added up."""
    images = len(sums)
    if images == 0:
        return np.zeros((resamples, 3))

    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        picks = rng.integers(images, size=images)  # (B,)
        drawn.append(sums[picks].sum(axis=0))  # (3,)
    return np.stack(drawn)


def image_sums(groups: Groups) -> np.ndarray:
    """(B, 3): of each image its answers, those that are not wrong, and the levels of the latter. The figures
    of any set of images follow from the sums of their rows."""
    rows = []
    for group in groups:
        good = [Category(c) for c in group if c is not None and c != Category.WRONG]
        level = sum(LEVEL[category] for category in good)
        rows.append((len(group), len(good), level))
    return np.array(rows, dtype=float).reshape(-1, 3)  # (0, 3) without images


def intervals(*datasets: Groups, confidence: float = 0.95, resamples: int = 1000,
              seed: int = 0) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap interval of each figure over a dataset's images; of several datasets, of the mean
    of their own figures (each drawn by a seed of its own, seed + 0, 1, ...). An empty group, an image
    without a verdict, is not drawn."""
    draws = []
    for number, groups in enumerate(datasets):
        judged = [group for group in groups if group]
        draws.append(bootstrap(judged, resamples, seed + number))  # (resamples, 3)
    return percentiles(np.mean(draws, axis=0), confidence)


def percentiles(draws: np.ndarray, confidence: float) -> dict[str, tuple[float, float]]:
    """The middle of the draws (resamples, 3) that holds this share of them: figure -> (low, high)."""
    tail = 50 * (1 - confidence)  # per cent left out at each end
    lows, highs = np.percentile(draws, [tail, 100 - tail], axis=0)  # (3,) each
    return {name: (float(low), float(high)) for name, low, high in zip(FIGURES, lows, highs)}


def difference(*datasets: tuple[Groups, Groups], confidence: float = 0.95, resamples: int = 1000,
               seed: int = 0) -> dict:
    """The second system's figures minus the first's, over the images for which both have a verdict, with the
    paired bootstrap interval.

    datasets: (first's groups, second's groups), the same images in the same order (an empty group = no
    verdict; ValueError if one has more images). Of several datasets, the mean of their own differences.

    Returns {"summary": {figure: its difference}, "intervals": {figure: (low, high)}, "images": how many
    entered}.
    """
    points = []
    draws = []
    images = 0
    for number, (first, second) in enumerate(datasets):
        # an image that one of them has no verdict for compares nothing
        pairs = [pair for pair in zip(first, second, strict=True) if all(pair)]
        first_groups = [group for group, _ in pairs]
        second_groups = [group for _, group in pairs]
        images += len(pairs)

        # the difference itself
        first_figures = figures_of(*image_sums(first_groups).sum(axis=0))
        second_figures = figures_of(*image_sums(second_groups).sum(axis=0))
        points.append(np.subtract(second_figures, first_figures))  # (3,)

        # and how it varies: one seed draws the same images for both, so what is hard for both cancels
        first_draws = bootstrap(first_groups, resamples, seed + number)
        second_draws = bootstrap(second_groups, resamples, seed + number)
        draws.append(second_draws - first_draws)  # (resamples, 3)

    return {
        "summary": dict(zip(FIGURES, np.mean(points, axis=0).tolist())),
        "intervals": percentiles(np.mean(draws, axis=0), confidence),
        "images": images,
    }


# ------------------------------------------------------------------------------------------------------------
# A judge's known errors
#
# Lee et al., How to Correctly Report LLM-as-a-Judge Evaluations (arXiv 2511.21140). Departs from them in the
# interval: theirs is a formula for independent answers, this one draws whole images.


@dataclass(frozen=True)
class JudgeErrors:
    """How a judge did on labelled pairs, as far as Wrong or not goes. No verdict, no pair."""
    wrong: int            # pairs that are labelled Wrong
    wrong_found: int      # of these, judged Wrong
    not_wrong: int        # pairs with another label
    not_wrong_found: int  # of these, judged anything but Wrong

    @property
    def q0(self) -> float:
        """The judge's specificity: how often it calls Wrong what is wrong."""
        return self.wrong_found / self.wrong

    @property
    def q1(self) -> float:
        """Its sensitivity: how often it lets pass what is not wrong."""
        return self.not_wrong_found / self.not_wrong

    def to_json(self) -> dict:
        return asdict(self) | {"q0": self.q0, "q1": self.q1}

    def draws(self, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """q0 and q1 as they may be, (resamples,) each: from the Beta distributions that the pairs leave."""
        rng = np.random.default_rng((seed, 1))  # another stream than the images'
        q0 = rng.beta(self.wrong_found + 1, self.wrong - self.wrong_found + 1, resamples)
        q1 = rng.beta(self.not_wrong_found + 1, self.not_wrong - self.not_wrong_found + 1, resamples)
        return q0, q1


def known_errors(labels: Sequence[Category], verdicts: Sequence[Category | None]) -> JudgeErrors:
    """A judge's errors on labelled pairs. verdicts: None where there is none, and the pair is left out.
    Raises ValueError where they could correct no figure: of one kind alone, or no better than chance."""
    wrong_found = []      # an entry for each pair that is labelled Wrong: whether the judge says so
    not_wrong_found = []  # and for each of the others
    for label, verdict in zip(labels, verdicts, strict=True):
        if verdict is None:
            continue
        if label == Category.WRONG:
            wrong_found.append(verdict == Category.WRONG)
        else:
            not_wrong_found.append(verdict != Category.WRONG)

    if not wrong_found or not not_wrong_found:
        raise ValueError(f"it takes pairs that are wrong and pairs that are not, with a verdict: there are "
                         f"{len(wrong_found)} and {len(not_wrong_found)}")
    errors = JudgeErrors(len(wrong_found), sum(wrong_found), len(not_wrong_found), sum(not_wrong_found))
    if errors.q0 + errors.q1 <= 1:
        raise ValueError(f"it finds {errors.q0:.0%} of the wrong pairs and lets pass {errors.q1:.0%} of the "
                         "others, no better than chance: it can't be corrected, take another judge")
    return errors


def corrected_share(p, q0, q1):
    """The share of answers that are not wrong, where a judge lets the share p pass: (p + q0 - 1) /
    (q0 + q1 - 1), clipped to [0, 1]. Numbers, or arrays of one shape.

    A judge that is no better than chance, q0 + q1 <= 1, tells nothing. In an interval's draws it stands for 0
    or 1, by the numerator's sign, and so widens the interval.
    """
    better_than_chance = np.maximum(q0 + q1 - 1, 1e-9)
    return np.clip((p + q0 - 1) / better_than_chance, 0, 1)


def corrected_correctness(*datasets: Groups, errors: JudgeErrors, confidence: float = 0.95,
                          resamples: int = 1000, seed: int = 0) -> dict:
    """{"correctness", "interval": (low, high)}: correctness without the judge's errors; of several datasets,
    the mean of their own.

    No judge decides that an answer is malformed: the share of the others is corrected, and then counted among
    all. The interval holds the images' sampling and, by `errors.draws`, how few pairs the judge's errors are
    known from.
    """
    q0_draws, q1_draws = errors.draws(resamples, seed)  # one judge: the same for all datasets
    points = []
    draws = []
    for number, groups in enumerate(datasets):
        sums = correctness_sums([group for group in groups if group])  # (B, 3)
        points.append(corrected_of_sums(sums.sum(axis=0), errors.q0, errors.q1))
        drawn = drawn_sums(sums, resamples, seed + number)  # (resamples, 3)
        draws.append(corrected_of_sums(drawn.T, q0_draws, q1_draws))  # (resamples,)

    tail = 50 * (1 - confidence)  # per cent left out at each end
    low, high = np.percentile(np.mean(draws, axis=0), [tail, 100 - tail])
    return {"correctness": float(np.mean(points)), "interval": (float(low), float(high))}


def correctness_sums(groups: Groups) -> np.ndarray:
    """(B, 3): of each image its answers, those that are well-formed, and those that are not wrong."""
    rows = []
    for group in groups:
        well_formed = [Category(c) for c in group if c is not None]
        good = [category for category in well_formed if category != Category.WRONG]
        rows.append((len(group), len(well_formed), len(good)))
    return np.array(rows, dtype=float).reshape(-1, 3)  # (0, 3) without images


def corrected_of_sums(sums, q0, q1):
    """Corrected correctness from correctness_sums' three: numbers, or arrays of one shape."""
    answers, well_formed, good = sums
    passed = ratio(good, well_formed)
    return ratio(well_formed, answers) * corrected_share(passed, q0, q1)


# ------------------------------------------------------------------------------------------------------------
# Answers as texts, without a judge


def text_inclusion(truth: str, answer: str | None) -> bool:
    """Whether the answer holds the truth, letter by letter: no word boundary, only case and outer space are
    free (lmms-owc's TI). A malformed answer holds nothing."""
    return truth.lower().strip() in (answer or "").lower().strip()


def similarity(embed, truth: str, answers: Sequence[str | None]) -> list[float]:
    """Dot product of each whole answer with the truth (lmms-owc's SS), 0 for a malformed one.

    embed: a list of texts -> as many vectors of unit length.
    """
    # many answers are the same text: each is embedded once
    well_formed = [answer for answer in answers if answer]
    texts = list(dict.fromkeys([truth, *well_formed]))
    vectors = dict(zip(texts, embed(texts)))

    scores = []
    for answer in answers:
        score = 0.0
        if answer:
            score = float(vectors[answer] @ vectors[truth])
        scores.append(round(score, 6))
    return scores


# Words that stand between an answer's concepts: "a bird with a red head, perched on the branch of an oak".
BETWEEN_CONCEPTS = frozenset(
    "a an the this that these those his her its their some it they there which who whose and or but nor "
    "of in on at by for with from to into near over under above below between behind beside like as than "
    "is are was were be been being has have had appears seems looks".split())
NO_CONCEPTS = frozenset("image photo picture photograph object type kind".split())


def concepts(answer: str) -> list[str]:
    """The pieces of an answer that lie between its punctuation and its function words, in lower case, each
    once, and then the whole answer."""
    pieces = []
    for part in re.split(r"[^\w\s'’&/-]", answer.lower()):
        words = []  # of the piece so far
        for word in part.split():
            if word in BETWEEN_CONCEPTS:
                pieces.append(" ".join(words))
                words = []
            else:
                words.append(word)
        pieces.append(" ".join(words))
    named = [piece for piece in pieces if piece and piece not in NO_CONCEPTS]
    return list(dict.fromkeys([*named, answer]))


def concept_similarity(embed, truth: str, answers: Sequence[str | None]) -> list[float]:
    """Of each answer the largest similarity to the truth among its concepts: never below that of the whole
    answer. lmms-owc's CS takes the noun chunks and entities of a spaCy pipeline for concepts; ours are
    `concepts`, which take no model. embed: as in similarity."""
    pieces = [concepts(answer) if answer else [None] for answer in answers]
    similarities = iter(similarity(embed, truth, flatten(pieces)))
    best = []
    for own in pieces:
        best.append(max(next(similarities) for _ in own))
    return best


# ------------------------------------------------------------------------------------------------------------
# Rows of evaluate.py's table

# Datasets that the literature averages over (Conti et al., ICCV 2025).
FAMILIES = {"fine-grained": ("flowers", "food", "pets"), "very fine-grained": ("cars", "aircraft")}

VERDICTS = {category.label: category for category in Category} | {"malformed": None}
NO_VERDICT = "error"
PICKS = ("majority", "choice")  # what a record may pick of its N answers, by place


@dataclass
class Tally:
    """What stays in memory of one system's answers to one dataset: verdicts and sums, no text.

    A record is a dict with "categories", N words (a category's label or "malformed"; any other is no
    verdict), "scores", lists of N numbers by name, and perhaps PICKS; or with "unreadable", a line.
    """
    groups: list[list] = field(default_factory=list)  # an image's N verdicts, "error" where there is none
    picks: dict[str, list[list]] = field(default_factory=lambda: {name: [] for name in PICKS})
    unreadable: list[str] = field(default_factory=list)  # a line each; the image's group is empty
    sums: dict[str, float] = field(default_factory=dict)  # of each score, over all answers

    def add(self, record: dict) -> None:
        """Takes in one image's record."""
        if "unreadable" in record:
            self.unreadable.append(record["unreadable"])
        words = record.get("categories", ())
        self.groups.append([VERDICTS.get(word, NO_VERDICT) for word in words])
        for name in PICKS:
            self.picks[name].append(self.picked(record, name))
        for name, values in record.get("scores", {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + sum(values)

    def picked(self, record: dict, name: str) -> list:
        """The verdict of the answer that the record picks under this name, in a list: [] where it picks none,
        or one without a verdict. A place of None is malformed."""
        if name not in record:
            return []
        place = record[name]
        verdict = None if place is None else self.groups[-1][place]
        return [] if verdict == NO_VERDICT else [verdict]

    @property
    def answers(self) -> int:
        """How many answers there are, those without a verdict too."""
        return sum(len(group) for group in self.groups)

    @property
    def most_answers(self) -> int:
        """N: the most answers that an image has, 0 without images."""
        return max(map(len, self.groups), default=0)

    def verdicts(self) -> list[list]:
        """A list an image of what its answers were judged, without errors."""
        groups = []
        for group in self.groups:
            groups.append([verdict for verdict in group if verdict != NO_VERDICT])
        return groups

    def best_of(self, k: int) -> list[dict]:
        """What an oracle picks of k of an image's answers, as `best_of_k` says, an entry an image. Images
        with fewer than k verdicts are left out."""
        return [best_of_k(group, k) for group in self.verdicts() if len(group) >= k]

    def left_out(self, k: int) -> int:
        """How many images were answered, but have fewer than k verdicts."""
        answered = [verdicts for group, verdicts in zip(self.groups, self.verdicts()) if group]
        return sum(len(verdicts) < k for verdicts in answered)

    def summary(self) -> Summary:
        judged = flatten(self.verdicts())
        judge_errors = self.answers - len(judged)
        return summarize(judged, judge_errors, len(self.unreadable))

    def scores(self) -> dict[str, float]:
        """Mean of each score over all answers."""
        return {name: total / max(1, self.answers) for name, total in self.sums.items()}


def means_over(names: Sequence[str]) -> dict[str, list[str]]:
    """The means a table of these datasets has: title -> its datasets. Of all; and of each family of which
    two are there, the title saying so where some are not."""
    means = {f"mean of {len(names)}": list(names)}
    for family, members in FAMILIES.items():
        there = [name for name in names if name in members]
        title = family
        if len(there) < len(members):
            title = f"{family} ({len(there)} of {len(members)})"
        means[title] = there
    # the mean of one is no mean
    return {title: there for title, there in means.items() if len(there) > 1}


def measured(tallies: Sequence[Tally], firsts: Sequence[Tally] = (), n: int = 1) -> dict:
    """A row of the table, ready for JSON: one dataset's figures, or the mean over several of their own.

    tallies: one a dataset. Every row has "summary", "intervals", "images", "scores" and "unreadable"; for
    n > 1 also "best_of", the same figures of the best of k answers, the mean over all subsets of k, k every
    power of two up to n, and n, each with "left_out", the answered images with fewer than k verdicts; and
    of what the records pick, "majority", the answer that was given most often, and "choice", the model's own;
    with firsts, the tallies of a first system on the same datasets, the "difference" to it.
    """
    datasets = [tally.verdicts() for tally in tallies]
    row = figures_row([tally.summary() for tally in tallies], datasets)
    row["scores"] = mean_scores(tallies)
    row["unreadable"] = flatten(tally.unreadable for tally in tallies)

    # what one would gain from more answers, if one knew which to take
    if n > 1:
        powers = [2 ** i for i in range(n.bit_length())]
        row["best_of"] = {}
        for k in sorted({*powers, n}):
            row["best_of"][str(k)] = best_of_row(tallies, k)

        # and what one gains without knowing it
        for name in PICKS:
            picked = [tally.picks[name] for tally in tallies if any(tally.picks[name])]
            if picked:
                summaries = [summarize(flatten(groups)) for groups in picked]
                row[name] = figures_row(summaries, picked)

    if firsts:
        first_datasets = [tally.verdicts() for tally in firsts]
        row["difference"] = difference(*zip(first_datasets, datasets))
    return row


def figures_row(summaries: list[Summary], datasets: list[list]) -> dict:
    """The figures of one dataset, or their mean over several, with intervals and the number of images that
    have a verdict. datasets: their groups."""
    return {
        "summary": summaries[0].to_json() if len(summaries) == 1 else average(summaries),
        "intervals": intervals(*datasets),
        "images": sum(bool(group) for group in flatten(datasets)),
    }


def best_of_row(tallies: Sequence[Tally], k: int) -> dict:
    """figures_row of the best of k answers. The counts are means over all subsets of k. A dataset without an
    image that has k verdicts is in no mean, unless there is no other."""
    members = [tally for tally in tallies if tally.best_of(k)] or tallies[:1]
    summaries = []
    draws = []
    images = 0
    for number, tally in enumerate(members):
        picked = tally.best_of(k)
        images += len(picked)

        # the summary of the mean counts
        counts = {}
        for category in Category:
            counts[category] = sum(shares[category] for shares in picked)
        malformed = sum(shares[None] for shares in picked)
        summary = summary_of(counts, malformed, 0, 0)
        summaries.append(replace(summary, n=len(picked)))  # without the sum's rounding

        # and how it varies over images: each image's own sums
        sums = []
        for shares in picked:
            good = sum(shares[category] for category in Category if category != Category.WRONG)
            level = sum(LEVEL[category] * shares[category] for category in Category)
            sums.append((1, good, level))
        draws.append(bootstrap_sums(np.array(sums, dtype=float).reshape(-1, 3), seed=number))
    return {
        "summary": summaries[0].to_json() if len(summaries) == 1 else average(summaries),
        "intervals": percentiles(np.mean(draws, axis=0), 0.95),
        "images": images,
        "left_out": sum(tally.left_out(k) for tally in tallies),
    }


def mean_scores(tallies: Sequence[Tally]) -> dict[str, float]:
    """Mean of each score over the datasets that have answers; {} if none has."""
    scores = [tally.scores() for tally in tallies if tally.sums]
    if not scores:
        return {}
    means = {}
    for name in scores[0]:
        own = [dataset_scores[name] for dataset_scores in scores]
        means[name] = float(np.mean(own))
    return means
