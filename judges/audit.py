"""How far to trust a judge: its verdicts on labelled pairs."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from judge import _BY_NAME
from reward import Category, dynamic_bar, speciarl_rewards


def audit(rows: Sequence[Mapping], verdicts: Sequence[Category | None], n: int = 8, draws: int = 5000) -> str:
    """How far to trust a judge on labelled pairs, rows with ground_truth, prediction and category.

    No verdict is a miss. balanced: mean recall of Wrong and of not Wrong. For the reward, groups of n rows
    are drawn, and the bar and rewards by the labels compared with those by the verdicts."""
    right = [_BY_NAME[row["category"]] for row in rows]
    judged = [(r, v, row) for r, v, row in zip(right, verdicts, rows) if v is not None]
    if not judged:
        return f"{len(rows)} pairs, not one verdict"
    table = [[sum((r, v) == (a, b) for r, v, _ in judged) for b in Category] for a in Category]
    f1 = [2 * table[c][c] / (right.count(c) + sum(row[c] for row in table)) for c in set(right)]
    wrong, kept = right.count(Category.WRONG), sum(sum(row[1:]) for row in table[1:])
    recalls = [hit / of for hit, of in ((table[0][0], wrong), (kept, len(rows) - wrong)) if of]
    rng, moved, flipped = random.Random(0), 0, 0
    for _ in range(draws):
        labels, seen, _ = zip(*rng.choices(judged, k=n))
        moved += dynamic_bar(labels) != dynamic_bar(seen)
        flipped += sum(a != b for a, b in zip(speciarl_rewards(labels), speciarl_rewards(seen)))
    worst = sorted((j for j in judged if j[0] != j[1]), key=lambda j: -abs(j[0] - j[1]))[:10]
    return "\n".join([
        f"{len(rows)} pairs, {len(rows) - len(judged)} without a verdict",
        f"accuracy {sum(table[c][c] for c in Category) / len(rows):.3f}, macro-F1 {sum(f1) / len(f1):.3f}, "
        f"balanced wrong-versus-not {sum(recalls) / len(recalls):.3f}", "",
        "labelled (down), judged" + "".join(f"{c.label:>14}" for c in Category),
        *(f"{c.label:<23}" + "".join(f"{k:>14}" for k in table[c]) for c in Category), "",
        f"in groups of {n}, drawn from these pairs, the bar moves in {moved / draws:.1%} of the groups and "
        f"{flipped / (draws * n):.1%} of the rewards flip", "", "worst:",
        *(f"  {j['ground_truth']} | {j['prediction']}: {r.label}, judged {v.label}" for r, v, j in worst)])


def read_audit(path) -> list[dict]:
    rows = []
    for i, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            rows.append(json.loads(line))
            _BY_NAME[rows[-1]["category"]], rows[-1]["ground_truth"] + rows[-1]["prediction"] + ""
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{path}, line {i}: not JSON with ground_truth, prediction, category") from None
    if not rows:
        raise ValueError(f"{path} holds no pairs")
    return rows
