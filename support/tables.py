"""The tables that evaluate.py and train.py print, and the rows of the one that a run's page shows too."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from metrics import FIGURES, PICKS, JudgeErrors, Tally, corrected_correctness, means_over, measured

LEGEND = """\
[ ]: 95 % bootstrap intervals over images. malf.: no answer to judge, counts as wrong. errors (answers without
a verdict) and unreadable images are left out. included: the answer holds the truth's name. thought: the
reasoning names the truth, the answer does not. similar: cosine of the embedded answer and truth; concept:
the same of the answer's most similar piece. holds: a language model says that the answer holds the truth.
best of k: an oracle takes the best of k answers, the mean over all subsets of k; images with fewer verdicts
are left out. majority: the answer that was given most often. choice: the one that the model then chose
itself. corrected: without the judge's errors, as an audit knows them."""

# How a score of `metrics.measured` is headed.
SCORES = {"text_inclusion": "included", "thought_not_said": "thought", "semantic_similarity": "similar",
          "concept_similarity": "concept", "language_inclusion": "holds"}

# ------------------------------------------------------------------------------------------------------------
# Systems beside each other: evaluate.py's table
#
# `systems` is title -> dataset or mean -> its row as `metrics.measured` makes it. Every system has the same
# datasets, and the others are compared with the first.


def table_rows(tallies: dict[str, dict[str, Tally]],
               errors: JudgeErrors | None = None) -> dict[str, dict[str, dict]]:
    """System -> dataset or mean -> its row, with the difference to the first system's and, where the judge's
    errors are known, the corrected correctness. tallies: system -> dataset -> its Tally."""
    first_system = next(iter(tallies))
    first = tallies[first_system]

    # Without a verdict from every system a dataset has its own row, but enters no mean.
    measurable = []
    for name in first:
        if all(by_name[name].summary().n > 0 for by_name in tallies.values()):
            measurable.append(name)
    members = {name: [name] for name in first} | means_over(measurable)

    # The first system has nothing that it could be compared with.
    results = {}
    for system, by_name in tallies.items():
        n = max(tally.most_answers for tally in by_name.values())
        results[system] = {}
        for row, names in members.items():
            own = [by_name[name] for name in names]
            others = [] if system == first_system else [first[name] for name in names]
            results[system][row] = {"datasets": names} | measured(own, others, n)
            if errors is not None:
                datasets = [tally.verdicts() for tally in own]
                results[system][row]["corrected"] = corrected_correctness(*datasets, errors=errors)
    return results


def titles(systems: Iterable[str]) -> list[str]:
    """Short names: "base", the run's folder, or the whole path where two runs' folders have one name."""
    systems = list(systems)
    names = []
    for system in systems:
        folder = system.removesuffix("/").removesuffix("/adapter")
        names.append("base" if system == "none" else Path(folder).name)
    return [name if names.count(name) == 1 else system for name, system in zip(names, systems)]


def table(systems: dict[str, dict[str, dict]]) -> str:
    """Three blocks of text: the figures, with the differences to the first system; what the answers are; HM
    of the best of k, where there are several answers to an image."""
    blocks = [figures_block(systems), answers_block(systems)]
    ks = {}  # as keys: of a system with fewer answers to an image some are missing
    for _, _, row in rows_in_order(systems):
        ks |= dict.fromkeys(row.get("best_of", {}))
    if ks:
        blocks.append(best_of_block(systems, sorted(ks, key=int)))
    return "\n\n".join([*blocks, LEGEND])


def figures_block(systems: dict) -> str:
    """Below a system's own figures its corrected correctness, its difference to the first system, its best of
    all N answers and what it picks itself."""
    head = "".join(f" {heading(name):<25}" for name in FIGURES) + "images"
    lines = []
    for dataset, title, row in rows_in_order(systems):
        lines.append((dataset, title, figures_cells(row)))
        if "corrected" in row:
            lines.append(("", "  corrected", corrected_cell(row["corrected"])))
        if "difference" in row:
            lines.append(("", minus_first(systems), figures_cells(row["difference"], sign="+")))
        if "best_of" in row:
            k, best = list(row["best_of"].items())[-1]
            lines.append(("", f"  best of {k}", figures_cells(best)))
        for pick in PICKS:
            if pick in row:
                lines.append(("", f"  {pick}", figures_cells(row[pick])))
    return block(systems, head, lines)


def figures_cells(figures: dict, sign: str = "") -> str:
    """Each figure with its interval, then the number of images. sign: "+" shows a plus too."""
    figure_sign = sign or " "  # a figure without one leaves room for it, so that the points stand in line
    cells = ""
    for name in FIGURES:
        low, high = figures["intervals"][name]
        interval = f"[{low:{sign}.3f} {high:{sign}.3f}]"
        cells += f"{figures['summary'][name]:{figure_sign}.3f} {interval:<19}"
    return cells + f"{figures['images']:>7}"


def corrected_cell(corrected: dict) -> str:
    """Correctness without the judge's errors, in its column: the other figures can't be corrected."""
    low, high = corrected["interval"]
    return f" {corrected['correctness']:.3f} [{low:.3f} {high:.3f}]"


def answers_block(systems: dict) -> str:
    """How many answers there were, the share of each category, and the scores that need no judge."""
    # a dataset without any answer has no scores, and answers without their reasoning not all of them
    rows = [row for _, _, row in rows_in_order(systems)]
    scores = [name for name in SCORES if any(name in row["scores"] for row in rows)]
    head = " answers  wrong  abst.   gen.   less  spec.   more  malf.  errors  unreadable"
    head += "".join(f"{SCORES[name]:>10}" for name in scores)
    lines = []
    for dataset, title, row in rows_in_order(systems):
        cells = f"{answers_cells(row['summary']):<77}"
        for name in scores:
            cells += f"{row['scores'][name]:>10.3f}" if name in row["scores"] else " " * 10
        lines.append((dataset, title, cells))
    return block(systems, head, lines)


def answers_cells(summary: dict) -> str:
    """One dataset's counts as shares of its answers; of a mean over datasets nothing, it has no counts."""
    if "n" not in summary:
        return ""
    cells = f"{summary['n']:>8}"
    for count in [*summary["counts"].values(), summary["malformed"]]:
        cells += f"{count / max(1, summary['n']):>7.3f}"
    return cells + f"{summary['judge_errors']:>8}{summary['unreadable']:>12}"


def best_of_block(systems: dict, ks: Iterable[str]) -> str:
    """HM of the best of k answers, a column for each k."""
    head = "HM, best of" + "".join(f"{k:>7}" for k in ks)
    lines = []
    for dataset, title, row in rows_in_order(systems):
        cells = " " * len("HM, best of")
        best_of = row.get("best_of", {})
        for k in ks:
            cells += f"{best_of[k]['summary']['harmonic_mean']:>7.3f}" if k in best_of else " " * 7
        lines.append((dataset, title, cells))
    return block(systems, head, lines)


def block(systems: dict, head: str, lines: list[tuple[str, str, str]]) -> str:
    """Lines of (dataset, title, cells) below a head, in columns that all blocks of the table share."""
    datasets = 2 + max(len(name) for name in first_rows(systems))
    titles = 2 + max(len(title) for title in [*systems, minus_first(systems)])
    text = [" " * (datasets + titles) + head]
    for dataset, title, cells in lines:
        text.append(f"{dataset:<{datasets}}{title:<{titles}}{cells}".rstrip())
    return "\n".join(text)


def rows_in_order(systems: dict) -> list[tuple[str, str, dict]]:
    """(dataset, title, row): the systems of one dataset stand together, and the first names the dataset."""
    rows = []
    for dataset in first_rows(systems):
        name = dataset
        for title, of_system in systems.items():
            rows.append((name, title, of_system[dataset]))
            name = ""  # once is enough
    return rows


def first_rows(systems: dict) -> dict[str, dict]:
    return next(iter(systems.values()))


def minus_first(systems: dict) -> str:
    """How a line with differences is headed."""
    return f"  minus {next(iter(systems))}"


def heading(figure: str) -> str:
    return figure.replace("_", " ")


# ------------------------------------------------------------------------------------------------------------
# Before and after a training run


@dataclass(frozen=True)
class ComparisonRow:
    """A row of the comparison: a test set, or the mean over those that training never saw.

    figures: {"before": ..., "after": ...}, each with `metrics.FIGURES`; a test set's has more.
    """
    name: str
    figures: dict[str, dict]
    trained_on: bool = False


def comparison_rows(sets: dict[str, dict], trained_on: list[str]) -> list[ComparisonRow]:
    """The rows of one block of eval.json, the mean last. sets: test set -> its figures before and after;
    trained_on: names as in --data."""
    # the embedded world is trained on its birds
    seen = ["toy-bird" if name == "toy" else name for name in trained_on]
    rows = [ComparisonRow(name, figures, name in seen) for name, figures in sets.items()]

    unseen = [row.figures for row in rows if not row.trained_on]
    if len(unseen) > 1:  # the mean of one is no mean
        mean = {"before": {}, "after": {}}
        for when in mean:
            for name in FIGURES:
                mean[when][name] = fmean(figures[when][name] for figures in unseen)
        rows.append(ComparisonRow("mean of the unseen", mean))
    return rows


def comparison(results: dict, trained_on: list[str]) -> str:
    """Before -> after as text. results: eval.json, how it was sampled -> test set -> its figures."""
    headings = [*[heading(name) for name in FIGURES], "malformed"]
    lines = [" " * 40 + "".join(f"{text:>20}" for text in headings)]
    for how, sets in results.items():
        for row in comparison_rows(sets, trained_on):
            title = f"{how} · {row.name}"
            if row.trained_on:
                title += " (trained on)"
            lines.append(f"{title:<40}" + comparison_cells(row.figures["before"], row.figures["after"]))
    return "\n".join(lines)


def comparison_cells(before: dict, after: dict) -> str:
    """Each figure, and the share of malformed answers where they were counted: not in a mean."""
    pairs = [(before[name], after[name]) for name in FIGURES]
    if "malformed" in before:
        pairs.append((malformed_share(before), malformed_share(after)))
    return "".join(f"{first:.3f} -> {last:.3f}".rjust(20) for first, last in pairs)


def malformed_share(summary: dict) -> float:
    return summary["malformed"] / max(1, summary["n"])
