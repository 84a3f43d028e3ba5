"""A run as one web page: the table, the curves, and pictures with their answers, before and after.

    python -m support.report runs/toy-speciarl-seed0          writes report.html into that folder

The page loads nothing, runs no script and escapes every string of the run: answers are a model's output.
"""

import argparse
import base64
import json
import math
from contextlib import suppress
from html import escape
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from statistics import fmean

from reward import Category

RUNG = {c.label: int(c) for c in Category}
FIGURES = ("correctness", "specificity", "harmonic_mean")
CHARTS = [("Reward", "mean", ["reward"]), ("Length", "tokens", ["length"]),  # title, note, keys of log.jsonl
          ("Sampled answers", "to training images", ["correctness", "specificity", "hm"]),
          ("Validation", "greedy answers", [f"val/{key}" for key in FIGURES]),
          ("Rungs", "share of the answers", ["malformed", *(f"share/{label}" for label in RUNG)]),
          ("Bars c*", "share of the images", [f"bar/{label}" for label in list(RUNG)[1:5]]),
          ("KL to the reference", "nats a token", ["policy/kl"]), ("Dead groups", "share", ["dead_groups"]),
          ("Negative log-prob", "nats a token trained on", ["policy/nll"])]
FACTS = "data model judge method reward quorum loss prompt n images_per_step temperature noise lr seed"
NOTE = """</div><h2>Answers, before and after</h2><p>To the same validation images (of a stopped run: to
training images, early and late). Posts are filled up to the rung, the dashed line is bar c*. Equal answers
share a row, a click shows texts. Groups that left their step come last."""
HEAD = """<!doctype html><html lang="en"><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none';style-src 'unsafe-inline';img-src data:">
<style>:root{color-scheme:light dark;background:light-dark(#f6f5f1,#131312)}*{min-width:0}body{font:15px/1.45
system-ui;font-variant-numeric:tabular-nums;margin:auto;padding:16px;max-width:1232px;overflow-wrap:anywhere}
h1,h2,h3,p{margin:0 0 6px}h2{margin-top:32px}p,small,.keys,th{font-size:13px;font-weight:400;
color:light-dark(#5c5b55,#b3b1a8)}.keys b{color:canvastext}.malformed{--c:#8468d0}.wrong{--c:#d64a4a}.abstain{
--c:#8f8c83}.generic{--c:#9cc4ee}.less{--c:#5f9fe2}.specific,.s0{--c:#2a6cc0}.more,.s2{--c:#13906a}.s1{
--c:#d0601f;stroke-dasharray:4 5}.s2{stroke-dasharray:0 4}.s,.wide,.out{fill:none;stroke:var(--c)}.s{
stroke-width:2;stroke-linecap:round}.wide{stroke-width:var(--w)}.f{fill:var(--c)}.axis{stroke:#8886}.bar{
stroke:currentcolor;stroke-width:1.5;stroke-dasharray:3 2}text{font-size:11px;fill:currentcolor}.card{
background:light-dark(#fff,#1e1e1c);border:1px solid #8884;border-radius:9px;padding:16px;display:flex;
flex-direction:column}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--min,
460px)),1fr));gap:16px;margin-top:16px}.keys{--w:10;display:flex;flex-wrap:wrap;gap:3px 14px}.card .keys,
summary{display:grid;grid-template:auto/auto 1fr auto;gap:3px 10px;align-items:center}.keys+svg{
margin-top:auto;overflow:visible}.keys span,header{display:flex;gap:9px;align-items:center}header{
margin-bottom:8px}table{border-collapse:collapse;width:100%}th,td{padding:5px 0 5px 9px;text-align:right;
overflow-wrap:normal}caption,tr>:first-child{padding-left:0;text-align:left;font-weight:620}td>*{
white-space:nowrap}img{flex:none;max-width:45%}.tiny{width:112px;image-rendering:pixelated}th,td,details{
border-top:1px solid #8884}summary{padding:5px 0;cursor:pointer}pre{white-space:pre-wrap}</style>"""


def objects(path: Path):
    """A file's whole lines, one at a time: samples.jsonl may outgrow memory. NaN and Infinity are None."""
    with path.open("rb") if path.is_file() else BytesIO() as file:
        for raw in file:
            with suppress(ValueError, TypeError, KeyError):
                line = json.loads(raw, parse_constant=lambda name: None)
                yield line | {"step": int(line["step"])}


def show(value, form: str = ".3g") -> str:
    """A figure as it reads best, anything else as escaped text."""
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 100 else format(value, form)
    return "–" if value is None else escape(str(value)[:4000]) + " …" * (len(str(value)) > 4000)


def table(results: dict, trained_on: list) -> str:
    """evaluate.before_and_after's figures, and their mean over the datasets that training never saw."""
    page, times = "", ("before", "after")
    for how, sets in results.items():
        unseen = [r for name, r in sets.items() if name not in trained_on]
        mean = {t: {k: fmean(r[t][k] for r in unseen) for k in FIGURES} for t in times if unseen[1:]}
        page += f'<div class="card"><table><caption>{show(how)}</caption><tr><th>'
        page += "".join(f"<th>{key.replace('_', ' ')}" for key in FIGURES)
        for name, r in (sets | {"mean of the unseen": mean} if mean else sets).items():
            cells = ([show(r[t][key], ".3f") for t in times] for key in FIGURES)
            page += f"<tr><td>{show(name)}" + " <small>trained on</small>" * (name in trained_on)
            page += "".join(f"<td><span>{a} →</span> <b>{b}</b>" for a, b in cells)
        page += "</table></div>"
    return page or "Not measured"


def chart(log: list, title: str, note: str, keys: list) -> str:
    """One small SVG; rungs and bars are stacked. The legend gives each first value and last."""
    rows = {k: r for k in keys if (r := [(line["step"], line[k]) for line in log if line.get(k) is not None])}
    stack, values = len(keys) > 3, [v for row in rows.values() for _, v in row]
    low, high = min([0, *values]), 1 if stack else max([0, *values])
    unit = 10.0 ** math.floor(math.log10(high - low or 1))  # the axis ends at round numbers
    low, high = math.floor(low / unit) * unit, math.ceil(high / unit - 1e-9) * unit or unit
    low = high / 2 if not stack and min(values, default=0) > high / 2 else low
    form = ".3f" if .1 <= high <= 1 else ".3g"
    first, last = log[0]["step"], max(log[-1]["step"], log[0]["step"] + 1)
    def x(step): return f"{44 + 276 * (step - first) / (last - first):.1f}"
    def y(value): return f"{142 - 132 * (value - low) / (high - low):.1f}"
    svg = "".join(f'<path class="axis" d="M40 {y(v)}H328"/><text x="35" y="{y(v)}" dy="4" text-anchor="end">'
                  f"{show(v)}</text>" for v in (low, (low + high) / 2, high))
    below, legend = {line["step"]: 0 for line in log}, ""
    for i, (key, row) in enumerate(rows.items()):
        name, look = key.split("/")[-1].replace("_", " ").replace("hm", "harmonic mean"), f'class="s s{i}"'
        path = "M" + "L".join(f"{x(step)} {y(v)}" for step, v in row) + "h0"  # a point alone is a dot
        if stack:
            look = f'class="wide {name.split()[0]}"'
            path = "".join(f"M{x(step)} {y(below[step])}V{y(below[step] + v)}" for step, v in row)
            below |= {step: below[step] + v for step, v in row}
        svg += f'<path {look} d="{path}"/>'
        entry = f'<svg width="20" height="10"><path {look} d="M0 5h20"/></svg><span>{name}</span>'
        entry += f"<span>{show(row[0][1], form)} → <b>{show(row[-1][1], form)}</b></span>"
        legend = entry + legend if stack else legend + entry  # a stack is read from its top
    svg += f'<text x="44" y="158">step {first}</text><text x="328" y="158" text-anchor="end">{last}</text>'
    return (f'<div class="card"><h3>{title} <small>{note}</small></h3><div class="keys">{legend}</div><svg '
            f'viewBox="0 0 340 162" role="img" aria-label="{title}">{svg}</svg></div>') if rows else ""


def card(line: dict, image) -> str:
    """One group: its picture, each distinct answer with its rung and reward, and, unfolded, its texts."""
    try:
        picture, file = image(line["id"]).convert("RGB"), BytesIO()
        look, kind = ("tiny", "png") if max(picture.size) <= 96 else ("photo", "jpeg")
        picture.thumbnail((320, 320))
        picture.save(file, kind)
        data = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
        page = f'<div><header><img class="{look}" alt="" src="{data}"><div>'
    except Exception:  # whatever a decoder raises: a picture must not cost the page
        page = "<div><header><small>(no picture)</small><div>"
    facts = [key for key in ("step", "truth", "bar", "unreadable", "id") if key in line]
    page += "<br>".join(f"{key} <b>{show(line[key])}</b>" for key in facts) + "</div></header>"
    lists, rows = [line.get(key) or [] for key in ("answers", "categories", "rewards", "texts")], {}
    for answer, label, reward, text in zip_longest(*lists):
        rows.setdefault((str(label), answer or "(no readable answer)", show(reward, "+g")), []).append(text)
    for (label, answer, reward), texts in sorted(rows.items(), key=lambda row: -RUNG.get(row[0][0], -1)):
        rung, kind = RUNG.get(label, 0), label.split()[0] if label in RUNG else "malformed"
        svg = "".join(f'<path class="{kind} {"f" if i <= rung else "out"}" d="M{9 * i - 8} 22v-{4 * i}h7V22"'
                      "/>" for i in range(1, 6))  # where there is no bar, its line is out of sight
        svg += f'<path class="bar" d="M0 {22 - 4 * RUNG.get(str(line.get("bar")), 9)}h46"/>'
        page += (f'<details><summary><svg width="46" height="23">{svg}</svg><span><bdi>{show(answer)}</bdi>'
                 f"<br><small>{show(label)}, {len(texts)} of {len(lists[0])}</small></span><b>{reward}</b>"
                 f"</summary>{''.join(f'<pre>{show(text)}</pre>' for text in texts)}</details>")
    return page + "</div>"


def gallery(run: Path, steps: int) -> tuple[list, list]:
    """Pairs of groups at least half the run apart, as NOTE says, else groups alone; and those left out."""
    first, last, lost = {}, {}, []
    for line in chain(objects(run / "shown.jsonl"), objects(run / "samples.jsonl")):
        lost += [line] * ("rewards" not in line and len(lost) < 8)
        for key in [("id", str(line.get("id"))), ("truth", str(line.get("truth")))] * ("rewards" in line):
            if key in first or len(first) < 500:  # no more lines than that are kept
                first.setdefault(key, line)
                last[key] = line
    far = [k for k in first if last[k]["step"] - first[k]["step"] >= max(1, steps / 2)
           and (k[0] == "id" or first[k].get("id") != last[k].get("id"))]
    far.sort(key=lambda key: (key[0] == "truth", first[key]["step"] - last[key]["step"]))
    return [(first[k], last[k]) for k in far][:8] or [(last[k],) for k in last if k[0] == "id"][:8], lost


def write(run, examples=()) -> Path:
    """Writes report.html; returns its path. examples: data.Example, for pictures. ValueError: no log."""
    run, images, log = Path(run), {e.id: e for e in examples}, list(objects(Path(run) / "log.jsonl"))
    if not log:
        raise ValueError(f"{run} is no run folder: there is no whole line in its log.jsonl")
    config, results = (json.loads(path.read_text("utf-8")) if path.is_file() else {}
                       for path in (run / "config.json", run / "eval.json"))
    trained_on = ["toy-bird" if name == "toy" else name for name in str(config.get("data")).split(",")]
    facts = [(key, config[key]) for key in FACTS.split() if config.get(key) not in (None, 0, "rl")
             and not (config.get("method") == "sft" and key in ("reward", "loss"))]
    pairs, lost = gallery(run, steps := log[-1]["step"])
    cards = (f'<div class="card grid">{"".join(card(line, lambda id: images[id].image()) for line in group)}'
             "</div>" for group in [*pairs, *([line] for line in lost)])
    page = [HEAD, f'<title>{show(run.name)}</title><h1>SpeciaRL: {show(run.name)}</h1><div class="keys">',
            *(f"<span>{key.replace('_', ' ')} <b>{show(str(value))}</b></span>" for key, value in facts),
            '</div><h2>Before and after</h2><div class="grid">', table(results, trained_on), "</div>",
            f'<h2>Training: {steps} steps</h2><div class="grid" style=--min:320px;--w:{280 / max(7, steps)}>',
            *(chart(log, *c) for c in CHARTS), NOTE, *cards]
    (run / "report.html").write_bytes("\n".join(page).encode("utf-8", "xmlcharrefreplace"))
    return run / "report.html"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="run folder")
    run, examples, note = p.parse_args(argv).run, [], ""
    try:
        import data
        config = json.loads((run / "config.json").read_text("utf-8"))
        examples = [e for name in config["data"].split(",") for split in ("train", "val") for e in data.load(
            name, split, config["root"], protocol=config.get("protocol", "official"))]
    except (ImportError, ValueError, OSError, LookupError, TypeError, AttributeError) as e:
        note = f" (without pictures: {e})"
    try:
        print(f"{write(run, examples)}{note}")
    except (ValueError, OSError, LookupError, TypeError, AttributeError) as e:
        why = e if str(run) in str(e) else f"{run} is broken: {e!r}"
        raise SystemExit(f"support.report: {why}") from None


if __name__ == "__main__":
    main()
