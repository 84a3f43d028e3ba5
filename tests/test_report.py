import base64
import io
import json
import math
import shutil
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import data
import metrics
import reward
from reward import Category
from support import report

ROOT = Path(report.__file__).parent
LABELS = [c.label for c in Category]
HOSTILE = '"\'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;</style></title>\u202e\ud800'


class Page(HTMLParser):
    """The page as a browser would take it: its tags with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.tags[-1][0] != "style":
            self.words.append(text)

    def all(self, tag, cls=""):
        return [a for t, a in self.tags if t == tag and cls in (a.get("class") or "")]


def group(step, id, truth="red finch", answers=("finch", "bird"), labels=("less specific", "generic"),
          rewards=(1.0, 0.0), **more):
    return {"step": step, "id": id, "truth": truth, "answers": list(answers),
            "texts": [f"<think>{a}?</think>" for a in answers], "categories": list(labels),
            "bar": "less specific", "rewards": list(rewards)} | more


def lines(values):
    return "".join(json.dumps(v) + "\n" for v in values)


@pytest.fixture
def run(tmp_path):
    """A folder with a run of two steps; a test adds what it is about."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"data": "toy", "root": None, "n": 2, "seed": 0}))
    (folder / "log.jsonl").write_text(lines([{"step": 0, "val/harmonic_mean": 0.5},
                                             {"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.75}]))
    return folder


# ---- figures


def test_a_curve_is_the_log(run):
    page = Page(report.write(run))
    assert "reward 0.250 → 0.750" in page.text and "harmonic mean 0.500 → 0.500" in page.text
    # x: steps 0..2 on 44..320; y: 0...8 on 142..10, .25 and .75 of .8 are 100.75 and 18.25
    paths = [a["d"] for a in page.all("path")]
    assert "M182.0 100.8L320.0 18.2h0" in paths
    assert "M44.0 10.0h0" in paths  # one validation so far, at the top of 0...5: a dot
    assert "2 steps" in page.text and page.text.count("step 0") == 2  # two charts: the log has no more


def test_an_axis_starts_at_zero_or_at_half_its_end(run):
    """Curves that stay in the upper half would lie on each other; small figures keep their digits."""
    (run / "log.jsonl").write_text(lines([
        {"step": 1, "correctness": 0.9, "specificity": 0.625, "policy/kl": 0.00012, "length": 11.5},
        {"step": 2, "correctness": 1, "specificity": 0.875, "policy/kl": 0.00034, "length": 12.25}]))
    page = Page(report.write(run))
    assert "correctness 0.900 → 1.000" in page.text and "0.5 0.75 1 " in page.text
    # .625 and .875 of .5...1 are a quarter and three quarters of 142...10
    assert "M44.0 109.0L320.0 43.0h0" in [a["d"] for a in page.all("path")]
    assert "kl 0.00012 → 0.00034" in page.text and "0 0.0002 0.0004 " in page.text
    assert "length 11.5 → 12.2" in page.text and "10 15 20 " in page.text


def test_rungs_are_stacked(run):
    shares = dict(zip(LABELS, [0.125, 0, 0.25, 0, 0.5, 0]))
    (run / "log.jsonl").write_text(lines([{"step": 0}, {"step": 1, "malformed": 0.125}
                                          | {f"share/{k}": v for k, v in shares.items()}]))
    stack = {a["class"].split()[-1]: a["d"] for a in Page(report.write(run)).all("path", "wide")
             if a["d"][0] == "M" and "V" in a["d"]}
    # 142 is 0, 10 is 1: malformed .125, then wrong .125, abstain 0, generic .25, less 0, specific .5
    assert [d.split(" ")[1] for d in stack.values()] == [
        "142.0V125.5", "125.5V109.0", "109.0V109.0", "109.0V76.0", "76.0V76.0", "76.0V10.0", "10.0V10.0"]
    assert list(stack) == ["malformed", "wrong", "abstain", "generic", "less", "specific", "more"]


def test_before_and_after(run):
    def figures(c, s, hm):
        return {"correctness": c, "specificity": s, "harmonic_mean": hm}
    sets = {"toy-bird": {"before": figures(1, 0.5, 0.6667), "after": figures(0.9, 0.9, 0.9)},
            "toy-fish": {"before": figures(0.8, 0.4, 0.5333), "after": figures(0.5, 0.5, 0.5)},
            "toy-flower": {"before": figures(0.6, 0.2, 0.3), "after": figures(0.7, 0.9, 0.7875)}}
    (run / "eval.json").write_text(json.dumps({"greedy": sets}))
    text = Page(report.write(run)).text
    assert "toy-bird trained on 1.000 → 0.900 0.500 → 0.900 0.667 → 0.900" in text
    assert "toy-fish 0.800 → 0.500 0.400 → 0.500 0.533 → 0.500" in text
    assert "mean of the unseen 0.700 → 0.600 0.300 → 0.700 0.417 → 0.644" in text
    del sets["toy-fish"]  # the mean of one is no mean
    (run / "eval.json").write_text(json.dumps({"greedy": sets}))
    assert "mean" not in Page(report.write(run)).text.split("Training")[0].replace(
        "harmonic mean", "")


@pytest.mark.parametrize("value, shown", [(0.0234375, "0.0234"), (3, "3"), (3e-5, "3e-05"), (0, "0"),
                                          (165.4, "165"), (12345.6, "12,346"), (None, "–"),
                                          ("<b>", "&lt;b&gt;")])
def test_show(value, shown):
    assert report.show(value) == shown


# ---- groups


def test_one_group(run):
    answers = ["red finch", "red finch", "finch", "hawk", None, "a finch"]
    labels = ["specific", "specific", "less specific", "wrong", "malformed", "more specific"]
    (run / "samples.jsonl").write_text(lines([group(1, "x/1", "red finch", answers, labels,
                                                    [1.0, 1.0, 0.0, 0.0, -1.0, 1.0], bar="specific")]))
    page = Page(report.write(run))
    shown = page.text.split("come last. ")[1]
    assert shown.startswith("(no picture) step 1 truth red finch bar specific id x/1")
    rows = ["a finch more specific, 1 of 6 +1", "red finch specific, 2 of 6 +1",
            "finch less specific, 1 of 6 +0", "hawk wrong, 1 of 6 +0",
            "(no readable answer) malformed, 1 of 6 -1"]
    at = [shown.index(row) for row in rows]
    assert at == sorted(at) and len(page.all("details")) == 5  # best first, equal answers once
    assert shown.count("<think>red finch?</think>") == 2  # with both texts
    posts = [a["class"] for a in page.all("path") if "v-" in a["d"]]
    assert [sum(c.endswith(" f") for c in posts[i:i + 5]) for i in range(0, 25, 5)] == [5, 4, 3, 0, 0]
    assert posts[15:] == ["wrong out"] * 5 + ["malformed out"] * 5
    assert {a["d"] for a in page.all("path", "bar")} == {"M0 6h46"}  # the fourth post's top: 22 - 4 * 4


def shown_groups(run):
    pairs, lost = report.gallery(run, 10)
    return [[(line["step"], line["id"]) for line in pair] for pair in pairs], lost


def test_the_same_image_early_and_late(run):
    (run / "samples.jsonl").write_text(lines([
        group(1, "a"), group(1, "b"), group(2, "c", "blue owl"), group(3, "d", "teal swan"), group(5, "a"),
        group(7, "c", "blue owl"), group(9, "a"), group(9, "e", "teal swan"), group(10, "f", "pink owl")]))
    pairs, _ = shown_groups(run)
    # its first and its last group, those farthest apart first; then two images of one truth
    assert pairs == [[(1, "a"), (9, "a")], [(2, "c"), (7, "c")], [(3, "d"), (9, "e")]]
    assert len(Page(report.write(run)).all("header")) == 6


def test_without_a_return_the_groups_stand_alone(run):
    (run / "samples.jsonl").write_text(lines([group(1, "a"), group(1, "b", "owl"), group(2, "c")]))
    assert shown_groups(run)[0] == [[(1, "a")], [(1, "b")], [(2, "c")]]


def test_the_validation_images_shown_before_and_after_come_first(run):
    shown = [group(step, f"v/{i}", f"finch {i}") for step in (0, 10) for i in range(8)]
    (run / "shown.jsonl").write_text(lines(shown))
    (run / "samples.jsonl").write_text(lines([group(1, "a"), group(9, "a")]))
    assert shown_groups(run)[0] == [[(0, f"v/{i}"), (10, f"v/{i}")] for i in range(8)]
    (run / "shown.jsonl").write_text(lines(shown[:8]))  # stopped: there is no after
    assert shown_groups(run)[0] == [[(1, "a"), (9, "a")]]


def test_the_settings_that_decide_are_named(run):
    def facts(**settings):
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | settings))
        return Page(report.write(run)).text.split("Before and after")[0]

    assert "odds" not in facts(method="rl", reward="exact", odds=0.0) and "reward exact" in facts()
    assert "odds 0.25" in facts(odds=.25) and "method" not in facts()
    assert "method sft" in facts(method="sft") and "reward" not in facts()


@pytest.mark.parametrize("name, text", [
    ("config.json", "[]"), ("config.json", '{"data": null}'), ("eval.json", "[]"), ("config.json", "{"),
    ("eval.json", '{"greedy": {"toy-bird": {"before": {}}}}'), ("samples.jsonl", '{"step": 1, "answers": 1}'),
    ("log.jsonl", '{"step": 1, "reward": "abc"}')])
def test_a_broken_file_ends_in_one_line_or_a_page(run, name, text):
    (run / name).write_text(text + "\n")
    try:
        report.main([str(run)])
    except SystemExit as stop:
        assert str(stop).startswith("support.report: ") and "\n" not in str(stop)


def test_eight_pairs_at_most(run):
    (run / "samples.jsonl").write_text(lines([group(s, f"{i}", f"{i}") for s in (1, 10) for i in range(20)]))
    assert shown_groups(run)[0] == [[(1, f"{i}"), (10, f"{i}")] for i in range(8)]
    (run / "samples.jsonl").write_text(lines([group(1, f"{i}") for i in range(20)]))
    assert shown_groups(run)[0] == [[(1, f"{i}")] for i in range(8)]


def test_groups_that_left_their_step(run):
    unreadable = {"step": 1, "unreadable": "cannot read the image y.jpg"}
    failed = group(1, "x", labels=("judge error", "malformed"), answers=("finch", None))
    del failed["bar"], failed["rewards"]
    (run / "samples.jsonl").write_text(lines([unreadable, failed]))
    text = Page(report.write(run)).text
    assert "step 1 unreadable cannot read the image y.jpg" in text
    assert "finch judge error, 1 of 2 –" in text and "(no readable answer) malformed, 1 of 2 –" in text


def test_few_lines_are_kept(run):
    with (run / "samples.jsonl").open("w") as f:
        f.writelines(json.dumps(group(step, f"{step}/{i}", f"{step}/{i}", texts=["x" * 10_000] * 2)) + "\n"
                     for step in range(1, 11) for i in range(250))
    size = (run / "samples.jsonl").stat().st_size
    tracemalloc.start()
    report.gallery(run, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 50e6 and peak < 12e6


# ---- pictures


def picture(page, i=0):
    kind, _, code = page.all("img")[i]["src"].partition(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(code)))


def test_pictures(run):
    def broken():
        raise data.BadImage("cannot read the image")
    small, large = Image.radial_gradient("L").resize((48, 48)).convert("RGB"), Image.new("RGBA", (800, 600))
    examples = [SimpleNamespace(id=id, image=image) for id, image in
                [("small", lambda: small), ("large", lambda: large), ("broken", broken)]]
    (run / "samples.jsonl").write_text(lines([group(1, id) for id in ("small", "large", "broken", "other")]))
    page = Page(report.write(run, examples))
    assert [a["class"] for a in page.all("img")] == ["tiny", "photo"]
    kind, image = picture(page)
    assert kind == "data:image/png" and image.tobytes() == small.tobytes()
    kind, image = picture(page, 1)
    assert kind == "data:image/jpeg" and image.size == (320, 240) and large.size == (800, 600)
    assert page.text.count("(no picture)") == 2


# ---- trust nothing


def test_hostile_strings_stay_text(run):
    bad = HOSTILE
    config = dict.fromkeys(("data", "model", "judge", "reward", "loss"), bad)
    (run / "config.json").write_text(json.dumps(config))
    figures = {k: bad for k in report.FIGURES}
    (run / "eval.json").write_text(json.dumps({bad: {bad: {"before": figures, "after": figures}}}))
    hostile = group(1, bad, bad, [bad, None], [bad, "specific"], [bad, 0.0], texts=[bad, bad], bar=bad)
    (run / "samples.jsonl").write_text(lines([hostile, {"step": 1, "unreadable": bad}]))
    page = Page(report.write(run.rename(run.with_name("<script>&"))))
    assert {tag for tag, _ in page.tags} <= set(
        "html meta style title h1 h2 h3 p div span b small br table caption tr th td svg path text header "
        "details summary bdi pre".split())
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "href") for name in attributes)
        assert not any("script" in (value or "") for value in attributes.values())
    # 5 settings; 2 names and 6 figures of eval.json; of the group 3 + 3 and 2 texts; the unreadable image
    assert page.text.count("<script>alert(1)</script>") == 5 + 8 + 8 + 1


def test_self_contained(run):
    (run / "samples.jsonl").write_text(lines([group(1, "small")]))
    page = Page(report.write(run, [SimpleNamespace(id="small", image=lambda: Image.new("RGB", (48, 48)))]))
    text = (run / "report.html").read_text()
    assert not any(word in text for word in ("http:", "https:", "url(", "@import", "<script", "<link"))
    assert all(a[name].startswith("data:") for _, a in page.tags for name in ("src", "href") if name in a)
    assert any(a.get("content", "").startswith("default-src 'none'") for a in page.all("meta"))
    assert f"<style>{(ROOT / 'report.css').read_text()}</style>" in text


# ---- whatever the folder holds


def test_no_finite_number(run):
    (run / "log.jsonl").write_text(lines([{"step": 0}, {"step": 1, "reward": 0.5, "policy/kl": math.nan},
                                          {"step": 2, "reward": math.inf, "policy/kl": math.nan},
                                          {"step": 3, "reward": 0.25, "policy/grad_norm": -math.inf}]))
    page = Page(report.write(run))
    assert "reward 0.500 → 0.250" in page.text and "KL" not in page.text and "Gradient" not in page.text
    assert "nan" not in (run / "report.html").read_text() and "inf" not in (run / "report.html").read_text()


@pytest.mark.parametrize("log", [
    [{"step": 0}], [{"step": 0, "val/correctness": 0}], [{"step": 7, "reward": -1.0}],
    [{"step": 1, "reward": 0, "policy/kl": 1e300}, {"step": 2, "malformed": None}]])
def test_short_logs(run, log):
    (run / "log.jsonl").write_text(lines(log))
    (run / "config.json").unlink()
    page = Page(report.write(run))
    assert f"Training: {log[-1]['step']} steps" in page.text and "Not measured" in page.text


def test_half_written_lines_and_missing_keys(run):
    with (run / "log.jsonl").open("a") as f:
        f.write('[1, 2]\n\nnull\n{"reward": 9}\n{"step": null}\n{"step": 3, "rew')
    with (run / "samples.jsonl").open("wb") as f:
        some = [{"step": 1, "rewards": [1.0]}, {"step": 1, "rewards": None, "answers": ["only", "these"]},
                {"step": 2}]
        f.write(lines(some).encode() + b'{"step": 2, "id": "x\xff')
    page = Page(report.write(run))
    assert "reward 0.250 → 0.750" in page.text and "these None, 1 of 2 –" in page.text


# ---- the command


def test_one_line_for_a_folder_without_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing", Path(report.__file__)):
        with pytest.raises(SystemExit) as stop:
            report.main([str(folder)])
        assert str(stop.value) == (f"support.report: {folder} is no run folder: "
                                   "there is no whole line in its log.jsonl")


def test_the_command_finds_the_pictures(run, capsys):
    example = data.load("toy")[7]
    (run / "samples.jsonl").write_text(lines([group(1, example.id)]))
    report.main([str(run)])
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert picture(Page(run / "report.html"))[1].tobytes() == example.image().tobytes()


def test_the_command_reads_the_splits_of_the_run(run, monkeypatch):
    (run / "config.json").write_text(json.dumps({"data": "food,pets", "root": "R", "protocol": "coop"}))
    asked = []
    monkeypatch.setattr(data, "load", lambda *args, **options: asked.append((*args, options)) or [])
    report.main([str(run)])
    assert asked == [(name, split, "R", {"protocol": "coop"}) for name in ("food", "pets")
                     for split in ("train", "val")]


@pytest.fixture
def copied(tmp_path):
    """A folder with what the page needs and nothing else of the project."""
    (tmp_path / "support").mkdir()
    for name in ("report.py", "report.css", "tables.py", "files.py"):
        shutil.copy(ROOT / name, tmp_path / "support")
    for module in (metrics, reward):
        shutil.copy(module.__file__, tmp_path)
    return tmp_path


def command(folder, run):
    return subprocess.run([sys.executable, "-m", "support.report", str(run)], cwd=folder,
                          capture_output=True, text=True)


def test_with_nothing_but_the_tables_and_the_figures(run, copied):
    """It needs six files; without the datasets there are no pictures, and it says so."""
    done = command(copied, run)
    assert done.stdout.startswith(f"{run}/report.html (without pictures: "), done.stderr


def test_one_line_where_its_style_is_missing(run, copied):
    style = copied / "support" / "report.css"
    style.unlink()
    done = command(copied, run)
    assert done.stderr == f"support.report: [Errno 2] No such file or directory: '{style}'\n"
    assert not (run / "report.html").exists()


# ---- numbers and files beyond sense


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 400,
                                    "1" + "0" * 5000])
def test_numbers_that_overflow_are_left_out_of_the_page(run, number):
    (run / "log.jsonl").write_text(f'{{"step": 1, "reward": 0.25, "length": {number}}}\n'
                                   f'{{"step": 2, "reward": {number}, "length": -1e15}}\n'
                                   f'{{"step": {number}, "reward": 0.5}}\n'
                                   '{"step": 3, "reward": 0.75, "length": 1e15}\n')
    (run / "samples.jsonl").write_text(
        '{"step": 1, "id": "a", "truth": "gull", "answers": ["gull"], "categories": ["specific"], '
        f'"rewards": [{number}], "texts": [""]}}\n')
    (run / "config.json").write_text(f'{{"data": "toy", "lr": {number}, "n": 8}}')
    text = Page(report.write(run)).text
    assert "reward 0.250 → 0.750" in text and "gull specific, 1 of 1 –" in text and "lr" not in text


def test_figures_of_eval_json_that_overflow_end_in_one_line_or_a_page(run):
    for number in ("1e308", "1e999", "1" + "0" * 400):
        figures = f'{{"correctness": {number}, "specificity": {number}, "harmonic_mean": {number}}}'
        sets = ", ".join(f'"{name}": {{"before": {figures}, "after": {figures}}}' for name in ("a", "b"))
        test_a_broken_file_ends_in_one_line_or_a_page(run, "eval.json", f'{{"greedy": {{{sets}}}}}')


@pytest.mark.parametrize("name", ["config.json", "eval.json", "log.jsonl", "samples.jsonl"])
@pytest.mark.parametrize("depth", [500, 900, 100_000])
def test_files_that_are_nested_deep_end_in_one_line_or_a_page(run, name, depth):
    nested = "[" * depth + "]" * depth
    for text in (nested, f'{{"step": 1, "data": {nested}, "id": {nested}, "greedy": {nested}}}'):
        test_a_broken_file_ends_in_one_line_or_a_page(run, name, text)
