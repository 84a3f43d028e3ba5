"""Judges beside each other, on the same answers: how often they agree, how far each figure moves from one to
the other, and whether two systems change places.

`tallies` is judge -> system -> dataset -> its metrics.Tally, `results` judge -> system -> dataset or mean ->
its row of the table. All judges have judged the same answers.
"""

from itertools import combinations

from metrics import FIGURES, NO_VERDICT, flatten, measured
from reward import Category
from support.tables import figures_block, heading, titles

SHOWN = ("summary", "intervals", "images", "difference")  # of a row, where judges stand side by side


def comparison(tallies: dict, results: dict, asked: list[bool]) -> dict:
    """All that is said of the judges, ready for JSON.

    asked: of every answer, in the order of `all_verdicts`, whether a judge was asked about it. The others are
    settled before (equal to the truth, or Wrong by a rule): on those all judges agree.
    """
    agreements = []
    orders = []
    for first, second in combinations(tallies, 2):
        pairs = list(zip(all_verdicts(tallies[first]), all_verdicts(tallies[second]), asked, strict=True))
        agreements.append({
            "judges": [first, second],
            "all": agreement([(one, other) for one, other, _ in pairs]),
            "asked": agreement([(one, other) for one, other, was_asked in pairs if was_asked]),
        })
        orders.append({
            "judges": [first, second],
            "changes": order_changes(results[first], results[second]),
        })
    return {"agreement": agreements, "figures": figures_by_judge(tallies, results), "order": orders}


def all_verdicts(by_system: dict) -> list:
    """One judge's verdicts on every answer, in one list."""
    verdicts = []
    for by_dataset in by_system.values():
        for tally in by_dataset.values():
            verdicts += flatten(tally.groups)
    return verdicts


# ------------------------------------------------------------------------------------------------------------
# Agreement


def agreement(pairs: list[tuple]) -> dict:
    """How far two judges agree. pairs: their verdicts on each answer. Malformed answers were shown to
    neither; where one has no verdict there is nothing to compare (`left_out`)."""
    judged = [(first, second) for first, second in pairs if first is not None]
    both = [pair for pair in judged if NO_VERDICT not in pair]
    rungs = [first for first, _ in both]
    other_rungs = [second for _, second in both]
    wrong = [rung == Category.WRONG for rung in rungs]
    other_wrong = [rung == Category.WRONG for rung in other_rungs]
    return {
        "answers": len(both),
        "left_out": len(judged) - len(both),
        "rungs": {"agreement": share_equal(rungs, other_rungs), "kappa": kappa(rungs, other_rungs)},
        "wrong": {"agreement": share_equal(wrong, other_wrong), "kappa": kappa(wrong, other_wrong)},
    }


def share_equal(first: list, second: list) -> float | None:
    """The share of places at which two lists are equal; None without any."""
    if not first:
        return None
    return sum(one == other for one, other in zip(first, second, strict=True)) / len(first)


def kappa(first: list, second: list) -> float | None:
    """Cohen's kappa: (agreement - chance) / (1 - chance), chance the agreement of two judges who draw their
    verdicts, each by how often it gives them. None where both always give one and the same."""
    if not first:
        return None
    chance = 0.0
    for value in set(first):
        chance += first.count(value) / len(first) * second.count(value) / len(second)
    if chance == 1:
        return None
    return (share_equal(first, second) - chance) / (1 - chance)


# ------------------------------------------------------------------------------------------------------------
# Figures, and the order of systems


def figures_by_judge(tallies: dict, results: dict) -> dict[str, dict[str, dict]]:
    """System -> judge -> dataset or mean -> its figures, with the paired difference to the first judge's,
    over the images that both have a verdict for."""
    first_judge = next(iter(tallies))
    figures = {}
    for system, first in tallies[first_judge].items():
        figures[system] = {}
        for judge in tallies:
            own = tallies[judge][system]
            figures[system][judge] = {}
            for row in shared_rows(results):
                names = results[first_judge][system][row]["datasets"]
                others = [] if judge == first_judge else [first[name] for name in names]
                found = measured([own[name] for name in names], others)
                figures[system][judge][row] = {key: found[key] for key in SHOWN if key in found}
    return figures


def shared_rows(results: dict) -> list[str]:
    """The datasets, and the means, that every judge's table has: a judge without a verdict on a dataset has
    means over fewer."""
    tables = [next(iter(by_system.values())) for by_system in results.values()]
    rows = []
    for row, of_first in tables[0].items():
        if all(row in table and table[row]["datasets"] == of_first["datasets"] for table in tables):
            rows.append(row)
    return rows


def order_changes(first: dict, second: dict) -> list[dict]:
    """Every two systems that the two judges put in opposite order, by a figure of a row. first, second: the
    judges' tables. A tie is no order."""
    changes = []
    for row in shared_rows({"first": first, "second": second}):
        for figure in FIGURES:
            for pair in combinations(first, 2):
                by_first = [first[system][row]["summary"][figure] for system in pair]
                by_second = [second[system][row]["summary"][figure] for system in pair]
                if (by_first[0] - by_first[1]) * (by_second[0] - by_second[1]) < 0:
                    changes.append({"row": row, "figure": figure, "systems": list(pair), "first": by_first,
                                    "second": by_second})
    return changes


# ------------------------------------------------------------------------------------------------------------
# As text


def comparison_text(compared: dict) -> str:
    """What the command prints of `comparison`."""
    systems = dict(zip(compared["figures"], titles(compared["figures"])))
    judges = next(iter(compared["figures"].values()))
    names = dict(zip(judges, judge_titles(judges)))

    blocks = [agreement_block(compared["agreement"], names)]
    for system, by_judge in compared["figures"].items():
        block = figures_block({names[judge]: rows for judge, rows in by_judge.items()})
        blocks.append(f"{systems[system]}, by each judge\n{block}")
    if len(systems) > 1:
        blocks.append(order_block(compared["order"], names, systems))
    return "\n\n".join(blocks)


def agreement_block(agreements: list[dict], names: dict[str, str]) -> str:
    """Two lines for every two judges: of all answers, and of those that a judge was asked about."""
    titled = [" and ".join(names[judge] for judge in each["judges"]) for each in agreements]
    width = 2 + max(map(len, titled))
    head = "answers             number  same rung  kappa  same in wrong or not  kappa  no verdict"
    lines = [" " * width + head]
    for title, each in zip(titled, agreements):
        for of, words in (("all", "all"), ("asked", "a judge was asked")):
            found = each[of]
            lines.append(f"{title:<{width}}{words:<18}{found['answers']:>8}"
                         f"{figure(found['rungs']['agreement']):>11}{figure(found['rungs']['kappa']):>7}"
                         f"{figure(found['wrong']['agreement']):>22}{figure(found['wrong']['kappa']):>7}"
                         f"{found['left_out']:>12}")
            title = ""
    return "\n".join(lines)


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def order_block(orders: list[dict], names: dict[str, str], systems: dict[str, str]) -> str:
    """A line for every two systems that change places."""
    lines = []
    for order in orders:
        first, second = [names[judge] for judge in order["judges"]]
        if not order["changes"]:
            lines.append(f"{first} and {second} put the systems in the same order, in every figure")
        for change in order["changes"]:
            one, other = [systems[system] for system in change["systems"]]
            lines.append(f"{heading(change['figure'])}, {change['row']}: {first} puts "
                         f"{in_order(one, other, change['first'])}, {second} "
                         f"{in_order(one, other, change['second'])}")
    return "\n".join(lines)


def in_order(one: str, other: str, values: list[float]) -> str:
    """The better of two systems first."""
    (high, better), (low, worse) = sorted([(values[0], one), (values[1], other)], reverse=True)
    return f"{better} ({high:.3f}) above {worse} ({low:.3f})"


def judge_titles(judges) -> list[str]:
    """Short names: a server's model or a path's last part, or the whole where two have one name."""
    judges = list(judges)
    names = []
    for judge in judges:
        parts = []
        for each in judge.split(","):
            model = each.partition("model=")[2].partition("&")[0] or each
            parts.append(model.rstrip("/").rpartition("/")[2])
        names.append(",".join(parts))
    return [name if names.count(name) == 1 else judge for name, judge in zip(names, judges)]
