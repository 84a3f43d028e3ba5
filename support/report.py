"""A run as one web page: the table, the curves, and pictures with their answers, before and after.

    python -m support.report runs/toy-speciarl-seed0          writes report.html into that folder

-m works from the repository's folder only. The page loads nothing, runs no script and escapes every string of
the run: answers are a model's output. Its looks are in report.css.
"""

import argparse
import base64
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html import escape
from io import BytesIO
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

from metrics import FIGURES
from reward import Category
from support.files import replacing
from support.tables import comparison_rows

STYLE = Path(__file__).with_name("report.css")
HEAD = """<!doctype html><html lang="en"><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none';style-src 'unsafe-inline';img-src data:">
"""
NOTE = """To the same validation images (of a stopped run: to training images, early and late). Posts are
filled up to the rung, the dashed line is bar c*. Equal answers share a row, a click shows texts. Groups that
left their step come last."""

# The settings that decide, from config.json.
SETTINGS = ("data", "model", "judge", "method", "reward", "odds", "loss", "overlong_buffer",
            "length_penalty", "dynamic_sampling", "corpo_floor", "prompt", "n", "images_per_step",
            "temperature", "noise", "control", "lr", "seed")

RUNG = {category.label: int(category) for category in Category}
MOST_CARDS = 8  # with answers, and as many of images that left their step
MOST_KEYS = 500  # images and truths of which lines are kept in memory
LONGEST_TEXT = 4000  # letters
LARGEST = 1e15  # of a figure


class Chart(NamedTuple):
    """keys: of log.jsonl, a curve each; stacked: shares of one whole, a column a step."""
    title: str
    note: str
    keys: list[str]
    stacked: bool = False


# from the lowest to the highest, as they are stacked
SHARES = ["malformed", *[f"share/{label}" for label in RUNG]]
BARS = [f"bar/{label}" for label in RUNG if label not in ("wrong", "more specific")]
CHARTS = [
    Chart("Reward", "mean", ["reward"]),
    Chart("Length", "tokens", ["length"]),
    Chart("Sampled answers", "to training images", ["correctness", "specificity", "hm"]),
    Chart("Validation", "greedy answers", [f"val/{name}" for name in FIGURES]),
    Chart("Rungs", "share of the answers", SHARES, stacked=True),
    Chart("Bars c*", "share of the images", BARS, stacked=True),
    Chart("KL to the reference", "nats a token", ["policy/kl"]),
    Chart("Dead groups", "share", ["dead_groups"]),
    Chart("Negative log-prob", "nats a token trained on", ["policy/nll"]),
]

# ------------------------------------------------------------------------------------------------------------
# The page


def write(run, examples=()) -> Path:
    """Writes report.html into a run's folder; returns its path.

    examples: data.Example of any images, for pictures. Raises ValueError where there is no log, OSError, and
    what a broken file of the run leads to.
    """
    run = Path(run)
    log = list(read_lines(run / "log.jsonl"))
    if not log:
        raise ValueError(f"{run} is no run folder: there is no whole line in its log.jsonl")
    config = read_json(run / "config.json")
    results = read_json(run / "eval.json")
    steps = log[-1]["step"]
    images = {example.id: example for example in examples}

    # what was trained, whether it worked, how it went, and what it says now
    page = HEAD
    page += f"<style>{STYLE.read_text('utf-8')}</style>\n"
    page += f"<title>{show(run.name)}</title><h1>SpeciaRL: {show(run.name)}</h1>\n"
    page += settings(config)

    page += "<h2>Before and after</h2>\n"
    page += comparison_tables(results, trained_on=str(config.get("data")).split(","))

    page += f"<h2>Training: {steps} steps</h2>\n"
    page += charts(log, steps)

    page += f"<h2>Answers, before and after</h2><p>{NOTE}</p>\n"
    page += cards(run, steps, images)

    # an answer may hold half a surrogate pair, which UTF-8 cannot write
    file = run / "report.html"
    with replacing(file) as temporary:
        temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))
    return file


def settings(config: dict) -> str:
    """The settings that decide, without those that are off or do nothing."""
    unused = []
    if config.get("method") == "sft":  # which learns from labels
        unused = ["reward", "loss"]
    page = '<div class="keys">\n'
    for key in SETTINGS:
        value = config.get(key)
        is_off = value in (None, "rl") or (value == 0 and key != "corpo_floor")  # a floor of 0 is one
        if is_off or key in unused:
            continue
        page += f"<span>{key.replace('_', ' ')} <b>{show(str(value))}</b></span>\n"
    return page + "</div>\n"


def comparison_tables(results: dict, trained_on: list[str]) -> str:
    """eval.json as a table for each way of sampling."""
    tables = ""
    for how, sets in results.items():
        tables += f'<div class="card"><table><caption>{show(how)}</caption><tr><th>'
        for name in FIGURES:
            tables += f"<th>{name.replace('_', ' ')}"
        for row in comparison_rows(sets, trained_on):
            tables += f"<tr><td>{show(row.name)}"
            if row.trained_on:
                tables += " <small>trained on</small>"
            for name in FIGURES:
                before = show(row.figures["before"][name], ".3f")
                after = show(row.figures["after"][name], ".3f")
                tables += f"<td><span>{before} →</span> <b>{after}</b>"
        tables += "</table></div>"
    return f'<div class="grid">\n{tables or "Not measured"}\n</div>\n'


def show(value, form: str = ".3g") -> str:
    """A figure as it reads best, anything else as escaped text."""
    if value is None:
        return "–"
    if isinstance(value, (int, float)):
        if abs(value) >= 100:
            return f"{value:,.0f}"
        return format(value, form)
    text = str(value)
    if len(text) > LONGEST_TEXT:
        return escape(text[:LONGEST_TEXT]) + " …"
    return escape(text)


# ------------------------------------------------------------------------------------------------------------
# The run's files


def parse(text: str | bytes):
    """A JSON text, its numbers such as can be drawn: NaN, infinity and what lies beyond 10^15 become None.
    Raises ValueError, also for one that is nested too deep."""
    try:
        return json.loads(text, parse_constant=lambda name: None, parse_float=partial(drawable, float),
                          parse_int=partial(drawable, int))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def drawable(kind: type, digits: str) -> float | None:
    """The number of that kind, int or float; None for one too large to draw."""
    value = float(digits)  # of any length: infinity, where int would refuse
    if abs(value) > LARGEST:
        return None
    return kind(digits)


def refuse_special(file: Path) -> None:
    """Raises ValueError for a folder, a pipe or a device in a file's place: reading it may never end."""
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is no file")


def read_json(file: Path) -> dict:
    """{} where a stopped run has not come so far."""
    refuse_special(file)
    if not file.exists():
        return {}
    try:
        return parse(file.read_text("utf-8"))
    except ValueError as e:
        raise ValueError(f"{file} is broken: {e}") from None


def read_lines(file: Path) -> Iterator[dict]:
    """A file's whole lines that name a step, one at a time: samples.jsonl may outgrow memory."""
    refuse_special(file)
    if not file.exists():
        return
    with file.open("rb") as raw_lines:
        for raw in raw_lines:
            try:
                line = parse(raw)
                line["step"] = int(line["step"])
            except (ValueError, TypeError, KeyError):
                continue  # half a line, after a kill
            yield line


# ------------------------------------------------------------------------------------------------------------
# Charts: small SVGs

# The plot's edges. Around it there is room for the axes' labels.
LEFT = 44
RIGHT = 320
TOP = 10
BOTTOM = 142


@dataclass(frozen=True)
class Scales:
    """Where a step and a value stand in the drawing."""
    first: int  # steps, at the left and the right edge
    last: int
    low: float  # values, at the bottom and the top
    high: float

    def x(self, step: int) -> str:
        return f"{LEFT + (RIGHT - LEFT) * (step - self.first) / (self.last - self.first):.1f}"

    def y(self, value: float) -> str:
        return f"{BOTTOM - (BOTTOM - TOP) * (value - self.low) / (self.high - self.low):.1f}"


def charts(log: list[dict], steps: int) -> str:
    """All charts of which the log has something."""
    column = 280 / max(7, steps)  # width of a step in a stacked chart
    page = f'<div class="grid" style=--min:320px;--w:{column}>\n'
    for chart in CHARTS:
        page += draw(chart, log) + "\n"
    return page + "</div>\n"


def draw(chart: Chart, log: list[dict]) -> str:
    """A chart as a card: title, legend, drawing. Empty where the log has none of its keys."""
    curves = read_curves(log, chart.keys)
    if not curves:
        return ""
    scales = fit_scales(log, curves, chart.stacked)

    # classes of report.css, the same in the drawing and in its legend
    if chart.stacked:
        paths = stacked_paths(curves, scales)
        looks = {key: f"wide {curve_name(key).split()[0]}" for key in curves}
    else:
        paths = line_paths(curves, scales)
        looks = {key: f"s s{number}" for number, key in enumerate(curves)}

    svg = value_axis(scales)
    for key, path in paths.items():
        svg += f'<path class="{looks[key]}" d="{path}"/>'
    svg += step_axis(scales)

    entries = [legend_entry(key, curve, looks[key], scales) for key, curve in curves.items()]
    if chart.stacked:  # a stack is read from its top
        entries.reverse()

    return (f'<div class="card"><h3>{chart.title} <small>{chart.note}</small></h3>'
            f'<div class="keys">{"".join(entries)}</div>'
            f'<svg viewBox="0 0 340 162" role="img" aria-label="{chart.title}">{svg}</svg></div>')


def read_curves(log: list[dict], keys: list[str]) -> dict[str, list[tuple[int, float]]]:
    """The keys that the log has: key -> (step, value) of the lines that have it."""
    curves = {}
    for key in keys:
        curve = [(line["step"], line[key]) for line in log if line.get(key) is not None]
        if curve:
            curves[key] = curve
    return curves


def fit_scales(log: list[dict], curves: dict, stacked: bool) -> Scales:
    """All steps of the log, and round ends of the value axis that hold all values."""
    values = [value for _, value in chain(*curves.values())]
    low = min([0, *values])
    high = 1 if stacked else max([0, *values])

    # round to the power of ten that the span reaches: 0 ... .75 becomes 0 ... .8
    unit = 10.0 ** math.floor(math.log10(high - low or 1))
    low = math.floor(low / unit) * unit
    high = math.ceil(high / unit - 1e-9) * unit or unit

    # curves that stay in the upper half would lie on each other
    if not stacked and min(values) > high / 2:
        low = high / 2

    first = log[0]["step"]
    last = max(log[-1]["step"], first + 1)  # a log of one line has some width too
    return Scales(first, last, low, high)


def value_axis(scales: Scales) -> str:
    """Lines at the bottom, the middle and the top, with their values."""
    svg = ""
    for value in (scales.low, (scales.low + scales.high) / 2, scales.high):
        y = scales.y(value)
        svg += f'<path class="axis" d="M40 {y}H328"/>'
        svg += f'<text x="35" y="{y}" dy="4" text-anchor="end">{show(value)}</text>'
    return svg


def step_axis(scales: Scales) -> str:
    """The first and the last step, below."""
    return (f'<text x="44" y="158">step {scales.first}</text>'
            f'<text x="328" y="158" text-anchor="end">{scales.last}</text>')


def line_paths(curves: dict, scales: Scales) -> dict[str, str]:
    """A line through each curve's points."""
    paths = {}
    for key, curve in curves.items():
        points = [f"{scales.x(step)} {scales.y(value)}" for step, value in curve]
        paths[key] = "M" + "L".join(points) + "h0"  # h0 makes a dot of a point alone
    return paths


def stacked_paths(curves: dict, scales: Scales) -> dict[str, str]:
    """Columns, each curve's on top of those of the curves before it."""
    paths = {}
    heights = {}  # step -> how high its column is so far
    for key, curve in curves.items():
        tops = {}
        path = ""
        for step, share in curve:
            bottom = heights.get(step, 0)
            tops[step] = bottom + share
            path += f"M{scales.x(step)} {scales.y(bottom)}V{scales.y(tops[step])}"
        paths[key] = path
        heights |= tops
    return paths


def legend_entry(key: str, curve: list[tuple[int, float]], look: str, scales: Scales) -> str:
    """A curve's look and name, its first value and its last."""
    # shares have one length, small figures keep their digits
    form = ".3f" if 0.1 <= scales.high <= 1 else ".3g"
    first = show(curve[0][1], form)
    last = show(curve[-1][1], form)
    return (f'<svg width="20" height="10"><path class="{look}" d="M0 5h20"/></svg>'
            f"<span>{curve_name(key)}</span><span>{first} → <b>{last}</b></span>")


def curve_name(key: str) -> str:
    """share/less specific -> less specific; hm -> harmonic mean."""
    return key.split("/")[-1].replace("_", " ").replace("hm", "harmonic mean")


# ------------------------------------------------------------------------------------------------------------
# Cards: pictures with their answers


def cards(run: Path, steps: int, images: dict) -> str:
    """A card for each pair of groups, or group alone, then for each that left its step."""
    groups, lost = gallery(run, steps)
    lost_groups = [(line,) for line in lost]
    page = ""
    for group in groups + lost_groups:
        page += '<div class="card grid">'
        for line in group:
            page += card(line, images)
        page += "</div>\n"
    return page


def gallery(run: Path, steps: int) -> tuple[list[tuple], list[dict]]:
    """What the page shows of shown.jsonl and samples.jsonl: groups of lines, and lines of images that left
    their step.

    A group is (early, late), two lines at least half the run apart; where there is no such pair, one line.
    """
    first, last, lost = first_and_last(run)
    apart = max(1, steps / 2)
    pairs = distant_pairs("id", first, last, apart) + distant_pairs("truth", first, last, apart)
    if pairs:
        return pairs[:MOST_CARDS], lost
    alone = [(line,) for (kind, _), line in last.items() if kind == "id"]
    return alone[:MOST_CARDS], lost


def first_and_last(run: Path) -> tuple[dict, dict, list[dict]]:
    """The first line of each image and of each truth, ("id" or "truth", name) -> line; the last lines; and
    lines of images that left their step. However long the files, only so many lines are kept."""
    first = {}
    last = {}
    lost = []
    for line in chain(read_lines(run / "shown.jsonl"), read_lines(run / "samples.jsonl")):
        if "rewards" not in line:
            if len(lost) < MOST_CARDS:
                lost.append(line)
            continue
        # an image may never return, but another of its kind does
        for kind in ("id", "truth"):
            key = (kind, str(line.get(kind)))
            if key in first or len(first) < MOST_KEYS:
                first.setdefault(key, line)
                last[key] = line
    return first, last, lost


def distant_pairs(kind: str, first: dict, last: dict, apart: float) -> list[tuple[dict, dict]]:
    """(early, late) of each image or truth that returns so many steps later, those farthest apart first."""
    pairs = []
    for key, early in first.items():
        late = last[key]
        if key[0] != kind or steps_between((early, late)) < apart:
            continue
        # the pair of one image is its id's, not its truth's too
        if kind == "truth" and early.get("id") == late.get("id"):
            continue
        pairs.append((early, late))
    return sorted(pairs, key=steps_between, reverse=True)


def steps_between(pair: tuple[dict, dict]) -> int:
    early, late = pair
    return late["step"] - early["step"]


def card(line: dict, images: dict) -> str:
    """One group: its picture and what it is, then its answers."""
    facts = []
    for key in ("step", "truth", "bar", "unreadable", "id"):
        if key in line:
            facts.append(f"{key} <b>{show(line[key])}</b>")
    page = f"<div><header>{picture(line, images)}<div>{'<br>'.join(facts)}</div></header>"
    return page + answer_rows(line) + "</div>"


def picture(line: dict, images: dict) -> str:
    """The group's image as an <img> that holds its data. images: id -> data.Example."""
    try:
        image = images[line["id"]].image().convert("RGB")
        # a drawing of a few pixels stays sharp, a photograph stays small
        look, kind = ("tiny", "png") if max(image.size) <= 96 else ("photo", "jpeg")
        image.thumbnail((320, 320))
        file = BytesIO()
        image.save(file, kind)
    except Exception:  # whatever a decoder raises: a picture must not cost the page
        return "<small>(no picture)</small>"
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{look}" alt="" src="data:image/{kind};base64,{data}">'


def answer_rows(line: dict) -> str:
    """A row for each distinct answer and verdict, best rung first, that unfolds to its texts."""
    # a group that left its step has no rewards: the lists may be of unequal length
    lists = [line.get(key) or [] for key in ("answers", "categories", "rewards", "texts")]
    bar = str(line.get("bar"))
    rows = {}  # (label, answer, reward) -> texts
    for answer, label, reward, text in zip_longest(*lists):
        row = (str(label), answer or "(no readable answer)", show(reward, "+g"))
        rows.setdefault(row, []).append(text)

    page = ""
    for row in sorted(rows, key=lambda row: RUNG.get(row[0], -1), reverse=True):
        label, answer, reward = row
        texts = rows[row]
        count = f"{len(texts)} of {len(lists[0])}"
        page += f"<details><summary>{posts(label, bar)}"
        page += f"<span><bdi>{show(answer)}</bdi><br><small>{show(label)}, {count}</small></span>"
        page += f"<b>{reward}</b></summary>"
        for text in texts:
            page += f"<pre>{show(text)}</pre>"
        page += "</details>"
    return page


def posts(label: str, bar: str) -> str:
    """The ladder as five posts: filled up to the answer's rung, with a dashed line as high as the bar."""
    rung = RUNG.get(label, 0)
    colour = "malformed"
    if label in RUNG:
        colour = label.split()[0]
    svg = '<svg width="46" height="23">'
    for i in range(1, 6):
        look = "f" if i <= rung else "out"
        svg += f'<path class="{colour} {look}" d="M{9 * i - 8} 22v-{4 * i}h7V22"/>'
    if bar in RUNG:  # a fixed scheme has none
        svg += f'<path class="bar" d="M0 {22 - 4 * RUNG[bar]}h46"/>'
    return svg + "</svg>"


# ------------------------------------------------------------------------------------------------------------
# Command line

# What a broken file leads to.
BROKEN = (ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


def load_examples(run: Path) -> list:
    """The images that a run trained and validated on, by its config.json."""
    import data  # here, since a page can be written without the datasets and what reads them
    refuse_special(run / "config.json")
    config = parse((run / "config.json").read_text("utf-8"))
    protocol = config.get("protocol", "official")
    examples = []
    for name in config["data"].split(","):
        for split in ("train", "val"):
            examples += data.load(name, split, config["root"], protocol=protocol)
    return examples


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m support.report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    run = parser.parse_args(argv).run

    examples = []
    note = ""
    try:
        examples = load_examples(run)
    except (ImportError, *BROKEN) as e:
        note = f" (without pictures: {e})"

    try:
        file = write(run, examples)
    except BROKEN as e:
        why = f"{run} is broken: {e!r}"
        if str(run) in str(e) or isinstance(e, OSError):  # which says itself what it is about
            why = e
        raise SystemExit(f"support.report: {why}") from None
    print(f"{file}{note}")


if __name__ == "__main__":
    main()
