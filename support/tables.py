"""The tables that evaluate.py and train.py print."""

from statistics import fmean

from metrics import FIGURES

LEGEND = """\
[ ]: 95 % bootstrap intervals over images. malf.: no answer to judge, counts as wrong. errors (answers without
a verdict) and unreadable images are left out. included: the answer holds the truth's name. thought: the
reasoning names the truth, the answer does not. similar: cosine of the embedded answer and truth. best of k:
of the first k answers an oracle takes the best."""


def table(systems: dict[str, dict[str, dict]]) -> str:
    """Three blocks of text: the figures, with the differences to the first system; what the answers are; HM
    of the best of k. systems: title -> dataset or mean -> its row as `measured` makes it."""
    first, rows = next(iter(systems.items()))
    minus, scored = f"  minus {first}", max((r["scores"] for r in rows.values()), key=len)
    left = 2 + max(map(len, rows)), 2 + max(map(len, [*systems, minus]))

    def block(head: str, cells) -> str:
        """cells(row) -> {what stands below the title ("": the title's own line): text}."""
        lines = [" " * sum(left) + head]
        for place in rows:
            for title in systems:
                for below, text in cells(systems[title][place]).items():
                    start = place if title == first and not below else ""
                    lines.append(f"{start:<{left[0]}}{below or title:<{left[1]}}{text}".rstrip())
        return "\n".join(lines)

    def figures(r: dict, sign: str = "") -> str:
        bounds = {f: "[{:{s}.3f} {:{s}.3f}]".format(*r["intervals"][f], s=sign) for f in FIGURES}
        cells = [f"{r['summary'][f]:{sign or ' '}.3f} {bounds[f]:<19}" for f in FIGURES]
        return "".join(cells) + f"{r['images']:>7}"

    def main(r: dict) -> dict:
        best = list(r.get("best_of", {}).items())[-1:]
        return {"": figures(r)} | ({minus: figures(r["difference"], "+")} if "difference" in r else {}) | {
            f"  best of {k}": figures(b) for k, b in best}

    def answers(r: dict) -> dict:
        s = r["summary"]
        counts = [*s["counts"].values(), s["malformed"]] if "n" in s else []  # a mean has none
        kinds = [f"{s['n']:>8}", *(f"{k / max(1, s['n']):>7.3f}" for k in counts),
                 f"{s['judge_errors']:>8}{s['unreadable']:>12}"] if counts else []
        return {"": f"{''.join(kinds):<77}" + "".join(f"{v:>10.3f}" for v in r["scores"].values())}

    names = {"text_inclusion": "included", "thought_not_said": "thought", "semantic_similarity": "similar"}
    blocks = [block("".join(f" {f.replace('_', ' '):<25}" for f in FIGURES) + "images", main),
              block(" answers  wrong  abst.   gen.   less  spec.   more  malf.  errors  unreadable"
                    + "".join(f"{names[name]:>10}" for name in scored), answers)]
    if "best_of" in (row := next(iter(rows.values()))):
        def by_k(r: dict) -> dict:
            means = [b["summary"]["harmonic_mean"] for b in r["best_of"].values()]
            return {"": " " * 11 + "".join(f"{hm:>7.3f}" for hm in means)}
        blocks.append(block("HM, best of" + "".join(f"{k:>7}" for k in row["best_of"]), by_k))
    return "\n\n".join([*blocks, LEGEND])


def comparison(results: dict, trained_on: list[str]) -> str:
    """Before -> after as text, with the mean over the datasets that training never saw."""
    trained_on = ["toy-bird" if name == "toy" else name for name in trained_on]
    lines = [f"{'':<40}" + "".join(f"{k.replace('_', ' '):>20}" for k in FIGURES) + f"{'malformed':>20}"]
    for how, sets in results.items():
        unseen = [name for name in sets if name not in trained_on]
        for name, r in sets.items():
            cells = [f"{r['before'][k]:.3f} -> {r['after'][k]:.3f}" for k in FIGURES]
            malformed = [r[when]["malformed"] / max(1, r[when]["n"]) for when in ("before", "after")]
            cells.append("{:.3f} -> {:.3f}".format(*malformed))
            title = f"{how} · {name}" + (" (trained on)" if name in trained_on else "")
            lines.append(f"{title:<40}" + "".join(f"{c:>20}" for c in cells))
        if len(unseen) > 1:
            mean = [[fmean(sets[n][w][k] for n in unseen) for w in ("before", "after")] for k in FIGURES]
            lines.append(f"{how + ' · mean of the unseen':<40}"
                         + "".join("{:.3f} -> {:.3f}".format(*m).rjust(20) for m in mean))
    return "\n".join(lines)
