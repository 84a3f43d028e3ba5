"""How far to trust a judge: its verdicts on labelled pairs.

    python judge.py --judge Qwen/Qwen3-4B-Instruct-2507 --audit docs/judge_audit.jsonl
    python judge.py --judge A,B,C --audit docs/judge_audit.jsonl       # each alone, and their vote
"""

import json
import random
from collections.abc import Mapping, Sequence

from judge import BY_LABEL, Judge, read_file
from judges.vote import VotingJudge, median_rung
from reward import Category, dynamic_bar, speciarl_rewards

Judged = tuple[Category, Category, Mapping]  # (label, verdict, the file's row)


def count_pairs(judged: Sequence[Judged]) -> list[list[int]]:
    """The confusion table, (6, 6): labelled (down), judged (across)."""
    table = [[0] * len(Category) for _ in Category]
    for label, verdict, _ in judged:
        table[label][verdict] += 1
    return table


def macro_f1(table: list[list[int]], labels: Sequence[Category]) -> float:
    """The mean F1 of the categories that are labelled at all; no verdict is a miss."""
    scores = []
    for category in sorted(set(labels)):
        hits = table[category][category]
        times_labelled = labels.count(category)
        times_judged = sum(row[category] for row in table)
        scores.append(2 * hits / (times_labelled + times_judged))
    return sum(scores) / len(scores)


def balanced_recall(table: list[list[int]], labels: Sequence[Category]) -> float:
    """Mean recall of Wrong and of not Wrong (of one of them, where the other is not labelled)."""
    wrong = labels.count(Category.WRONG)
    not_wrong = len(labels) - wrong
    wrong_found = table[Category.WRONG][Category.WRONG]
    not_wrong_found = 0
    for row in table[1:]:  # Wrong is 0, the first row and column
        not_wrong_found += sum(row[1:])

    recalls = []
    if wrong:
        recalls.append(wrong_found / wrong)
    if not_wrong:
        recalls.append(not_wrong_found / not_wrong)
    return sum(recalls) / len(recalls)


def effect_on_groups(judged: Sequence[Judged], n: int, draws: int) -> tuple[float, float]:
    """(share of groups whose bar moves, share of rewards that flip), over groups of n drawn rows: the bar and
    rewards by the labels against those by the verdicts."""
    rng = random.Random(0)
    moved = 0
    flipped = 0
    for _ in range(draws):
        group = rng.choices(judged, k=n)
        labels = [label for label, _, _ in group]
        verdicts = [verdict for _, verdict, _ in group]
        moved += dynamic_bar(labels) != dynamic_bar(verdicts)
        for deserved, given in zip(speciarl_rewards(labels), speciarl_rewards(verdicts)):
            flipped += deserved != given
    return moved / draws, flipped / (draws * n)


def rungs_off(case: Judged) -> int:
    label, verdict, _ = case
    return abs(label - verdict)


def worst_first(judged: Sequence[Judged], most: int = 10) -> list[Judged]:
    """The misses, those most rungs off first."""
    misses = [case for case in judged if rungs_off(case) > 0]
    return sorted(misses, key=rungs_off, reverse=True)[:most]


def audit(rows: Sequence[Mapping], verdicts: Sequence[Category | None], n: int = 8, draws: int = 5000) -> str:
    """How far to trust a judge on labelled pairs, rows with ground_truth, prediction and category, as text.

    No verdict is a miss. balanced: mean recall of Wrong and of not Wrong. For the reward, groups of n rows
    are drawn, and the bar and rewards by the labels compared with those by the verdicts."""
    labels = [BY_LABEL[row["category"]] for row in rows]
    judged = []
    for label, verdict, row in zip(labels, verdicts, rows):
        if verdict is not None:
            judged.append((label, verdict, row))
    if not judged:
        return f"{len(rows)} pairs, not one verdict"

    # The figures.
    table = count_pairs(judged)
    hits = sum(table[category][category] for category in Category)
    accuracy = hits / len(rows)
    moved, flipped = effect_on_groups(judged, n, draws)

    # The page.
    lines = [f"{len(rows)} pairs, {len(rows) - len(judged)} without a verdict",
             f"accuracy {accuracy:.3f}, macro-F1 {macro_f1(table, labels):.3f}, "
             f"balanced wrong-versus-not {balanced_recall(table, labels):.3f}",
             "",
             "labelled (down), judged" + "".join(f"{category.label:>14}" for category in Category)]
    for category in Category:
        lines.append(f"{category.label:<23}" + "".join(f"{count:>14}" for count in table[category]))
    lines += ["",
              f"in groups of {n}, drawn from these pairs, the bar moves in {moved:.1%} of the groups and "
              f"{flipped:.1%} of the rewards flip",
              "",
              "worst:"]
    for label, verdict, row in worst_first(judged):
        pair = f"{row['ground_truth']} | {row['prediction']}"
        lines.append(f"  {pair}: {label.label}, judged {verdict.label}")
    return "\n".join(lines)


def audit_judge(judge: Judge, rows: Sequence[Mapping]) -> str:
    """The audit of a judge, as text; of a vote that of each judge alone, then that of all together."""
    pairs = [(row["ground_truth"], row["prediction"]) for row in rows]
    if not isinstance(judge, VotingJudge):
        return audit_of(judge, rows, judge(pairs))

    # Each is asked once; the vote is counted from what they said.
    texts = []
    ballots = []
    for name, member in judge.judges.items():
        ballots.append(member(pairs))
        texts.append(f"== {name} alone ==\n{audit_of(member, rows, ballots[-1])}\n")
    together = [median_rung(verdicts) for verdicts in zip(*ballots, strict=True)]
    texts.append(f"== the {len(ballots)} together ==\n{audit(rows, together)}")
    return "\n".join(texts)


def audit_of(judge: Judge, rows: Sequence[Mapping], verdicts: Sequence[Category | None]) -> str:
    """The audit of one judge's verdicts, and why there are some missing."""
    text = audit(rows, verdicts)
    if None in verdicts:
        text += f"\n({judge.last_error})"
    return text


def read_row(line: bytes) -> dict:
    """One labelled pair. Raises ValueError, LookupError or TypeError for anything else."""
    row = json.loads(line)
    if row["category"] not in BY_LABEL:
        raise ValueError(f"no category: {row['category']!r}")
    for field in ("ground_truth", "prediction"):
        if not isinstance(row[field], str):
            raise TypeError(f"{field} is no text")
    return row


def read_audit(path) -> list[dict]:
    """The rows of a .jsonl file of labelled pairs. Raises ValueError, which names a bad line, or an empty
    file."""
    expected = "not JSON with ground_truth, prediction, category"
    rows = []
    # Bytes, because a text's lines would end at characters that JSON strings may hold.
    for number, line in enumerate(read_file(path).splitlines(), 1):
        try:
            rows.append(read_row(line))
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{path}, line {number}: {expected}") from None
    if not rows:
        raise ValueError(f"{path} holds no pairs")
    return rows
