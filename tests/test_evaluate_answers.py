"""evaluate.py --answers: stored answers, ours and anyone's, judged and measured; judges beside each other;
and figures without a judge's known errors."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import data
import evaluate as ev
import metrics
import trees
from judges.taxonomy import TaxonomyJudge
from metrics import JudgeErrors
from reward import Category
from small_run import stopped_at
from support import compare_judges, rejudge
from test_evaluate import adapters, run  # noqa: F401 (adapters is a fixture)

W, A, G, L, S, M = Category

PARENTS = {"red finch": "finch", "blue finch": "finch", "grey owl": "owl", "finch": "bird", "owl": "bird",
           "bird": None}
LABELS = {"a.jpg": "red finch", "b.jpg": "blue finch", "c.jpg": "grey owl", "d.jpg": "red finch"}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Most intervals are compared with themselves alone: 20 draws, not 1000."""
    drawn_sums = metrics.drawn_sums
    draws = JudgeErrors.draws
    monkeypatch.setattr(metrics, "drawn_sums", lambda sums, resamples, seed: drawn_sums(sums, 20, seed))
    monkeypatch.setattr(JudgeErrors, "draws", lambda self, resamples, seed: draws(self, 20, seed))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A dataset of four pictures that nobody opens, and a tree of names."""
    monkeypatch.chdir(tmp_path)
    rows = [{"image": f"pictures/{name}", "label": label, "split": "test"} for name, label in LABELS.items()]
    write("mine.jsonl", rows)
    (tmp_path / "tree.json").write_text(json.dumps({"parents": PARENTS}))
    return tmp_path


def write(name, rows):
    with open(name, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def judged(*argv, judge="tree.json", out="out.json"):
    """The figures' file of a command at stored answers."""
    ev.main([*argv, "--judge", judge, "--out", out])
    return json.loads(Path(out).read_text())


def contents():
    return {file: file.read_bytes() for file in Path(".").iterdir() if file.is_file()}


def refused(words, *argv):
    """One line with these words; no file is another than before, and none is new."""
    before = contents()
    with pytest.raises(SystemExit) as stop:
        ev.main([*argv, "--judge", "tree.json", "--out", "out.json"])
    said = str(stop.value)
    assert words in said, said
    assert "\n" not in said
    assert contents() == before


# ------------------------------------------------------------------------------------------------------------
# Our own answers


def test_the_same_judge_again_gives_the_same_table(monkeypatch, folder, adapters, capsys):  # noqa: F811
    """Four answers an image, three systems, two sets, unreadable images; without the data and with them."""
    argv = ["--data", "toy-bird,toy-fish", "--n", "4", "--adapter", "none", *adapters]
    run(monkeypatch, *argv, "--out", "live.json", broken=lambda example: example.id[-1] == "7")
    live = json.loads((folder / "live.json").read_text())["results"]
    printed = capsys.readouterr().out
    whole = (folder / "live.jsonl").read_bytes()
    monkeypatch.setattr(ev, "load_policy", None)

    again = judged("--answers", "live.jsonl", judge="taxonomy")
    assert again["results"] == live and again["missing"] == {}
    assert "best_of" in live["none"]["toy-bird"] and "majority" in live["none"]["mean of 2"]
    assert capsys.readouterr().out.splitlines()[2:-1] == printed.splitlines()[2:]

    checked = judged("--answers", "live.jsonl", "--data", "toy-bird,toy-fish", "--limit", "10",
                     judge="taxonomy", out="checked.json")
    assert checked["results"] == live
    assert (folder / "live.jsonl").read_bytes() == whole

    # What was judged again holds no completions: nobody knows what the reasoning names. All else is there.
    third = judged("--answers", "out.jsonl", judge="taxonomy", out="third.json")["results"]
    for system, rows in live.items():
        for row in rows:
            assert third[system][row]["summary"] == rows[row]["summary"]
            assert third[system][row]["scores"].keys() == {"text_inclusion"}


def test_a_live_evaluation_goes_on_under_the_same_prompt_of_its_judge_alone(monkeypatch, folder):
    """Its text counts, not its file's name."""
    (folder / "prompt.txt").write_text("Grade it.")
    argv = ["--data", "toy-bird", "--judge-prompt", "prompt.txt", "--out", "live.json"]
    run(monkeypatch, *argv)
    stored = (folder / "live.jsonl").read_bytes()
    assert json.loads(stored.splitlines()[0])["arguments"]["prompts"] == ["Grade it."]
    (folder / "prompt.txt").write_text("Grade it mildly.")
    with pytest.raises(SystemExit, match="prompts was .*Grade it.*, now .*mildly"):
        run(monkeypatch, *argv)
    assert (folder / "live.jsonl").read_bytes() == stored


def test_what_no_judge_decides_is_kept(folder):
    scores = {"text_inclusion": [1, 0], "semantic_similarity": [0.5, 0.25], "language_inclusion": [1, 1]}
    record = {"adapter": "none", "data": "mine", "id": "a", "domain": "birds", "truth": "red finch",
              "texts": ["x", "<think>a red finch</think>"], "answers": ["owl", "finch"],
              "categories": ["specific", "wrong"], "majority": 0, "choice": 1, "scores": scores}
    write("ours.jsonl", [{"arguments": {}}, record])
    row = judged("--answers", "ours.jsonl")["results"]["none"]["mine"]
    assert row["scores"] == {"text_inclusion": 0, "thought_not_said": 0.5, "semantic_similarity": 0.375,
                             "language_inclusion": 1}
    assert row["choice"]["summary"]["counts"]["less specific"] == 1
    assert row["majority"]["summary"]["counts"]["wrong"] == 1


# ------------------------------------------------------------------------------------------------------------
# Anyone's answers

SAID = {"a.jpg": ["red finch", "bird"], "b.jpg": ["finch", None], "c.jpg": ["blue finch", "grey owl"],
        "d.jpg": ["none", "owl"]}
# Specific, Generic; Less Specific, malformed; Wrong, Specific; Abstain, Wrong.
COUNTS = {"wrong": 2, "abstain": 1, "generic": 1, "less specific": 1, "specific": 2, "more specific": 0}


def text(answer):
    return "It flies." if answer is None else f"<think> hm </think><answer> {answer} </answer>"


SHAPES = {
    "id, answers": lambda name, said: {"id": f"pictures/{name}", "truth": LABELS[name], "answers": said},
    "image, answers": lambda name, said: {"image": f"/photos/pictures/{name}", "truth": LABELS[name],
                                          "answers": said},
    "texts alone": lambda name, said: {"image": f"pictures/{name}", "truth": LABELS[name],
                                       "texts": [text(answer) for answer in said]},
    "more keys": lambda name, said: {"id": f"mine.jsonl/pictures/{name}", "truth": LABELS[name].upper(),
                                     "answers": said, "dataset": "mine.jsonl", "categories": ["?"], "n": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [[], ["--data", "mine.jsonl"]], ids=["alone", "with data"])
def test_a_strangers_file(shape, options, folder, capsys):
    write("theirs.jsonl", [SHAPES[shape](name, said) for name, said in SAID.items()])
    document = judged("--answers", "theirs.jsonl", *options)
    [row] = document["results"]["theirs"].values()
    assert row["summary"]["counts"] == COUNTS and row["summary"]["malformed"] == 1
    assert row["summary"]["correctness"] == pytest.approx(5 / 8)
    assert row["best_of"]["2"]["summary"]["correctness"] == 1
    assert ("thought_not_said" in row["scores"]) == (shape == "texts alone")
    assert ("thought" in capsys.readouterr().out.split("[ ]:")[0]) == (shape == "texts alone")


def test_several_datasets_have_a_row_each_and_a_mean(folder):
    rows = [{"id": name, "truth": LABELS[name], "answers": said, "dataset": LABELS[name].split()[1]}
            for name, said in SAID.items()]
    write("theirs.jsonl", rows)
    rows = judged("--answers", "theirs.jsonl")["results"]["theirs"]
    assert list(rows) == ["finch", "owl", "mean of 2"]
    assert rows["owl"]["summary"]["correctness"] == 0.5 and rows["owl"]["summary"]["n"] == 2


def test_some_have_fewer_answers_and_some_no_texts(folder, capsys):
    """A system of one answer an image beside one of two: its columns stay empty."""
    write("two.jsonl", [SHAPES["texts alone"](name, said) for name, said in SAID.items()])
    write("one.jsonl", [{"id": f"pictures/{name}", "truth": LABELS[name], "answers": said[:1]}
                        for name, said in SAID.items()])
    results = judged("--answers", "one.jsonl", "--answers", "two.jsonl")["results"]
    assert "best_of" not in results["one"]["answers"] and "best_of" in results["two"]["answers"]
    _, _, answers, best_of, *_ = capsys.readouterr().out.split("\n\n")
    one, two = answers.splitlines()[1:]
    assert len(one.split()) == 2 + 10 + 1 and len(two.split()) == 1 + 10 + 2
    # of two: Specific, Less Specific, Specific, Abstain: S = 12 / 16, HM = 6 / 7
    assert [line.split()[-1] for line in best_of.splitlines()[1:]] == ["one", "0.857"]


def test_images_without_answers_are_counted_and_said(folder, capsys):
    """b by nobody, d by one of two: differences are over what both have."""
    for file, names in (("one.jsonl", "adc"), ("two.jsonl", "ca")):
        write(file, [{"id": f"pictures/{name}.jpg", "answers": SAID[f"{name}.jpg"][:1]} for name in names])
    document = judged("--answers", "one.jsonl", "--answers", "two.jsonl", "--data", "mine.jsonl")
    assert document["missing"] == {"one": {"mine.jsonl": 1}, "two": {"mine.jsonl": 2}}
    said = capsys.readouterr().err
    assert "one has no answers to 1 of 4 images of mine.jsonl" in said
    assert "two has no answers to 2 of 4 images of mine.jsonl" in said
    one, two = (document["results"][name]["mine.jsonl"] for name in ("one", "two"))
    assert (one["images"], two["images"], two["difference"]["images"]) == (3, 2, 2)
    assert set(two["difference"]["summary"].values()) == {0}
    # as they stand in the data, not in the file
    lines = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()[1:]]
    assert [line["id"][-5] for line in lines] == ["a", "c", "d", "a", "c"]


GOOD = {"id": "pictures/a.jpg", "truth": "red finch", "answers": ["finch"]}


@pytest.mark.parametrize("line, words", [
    ('{"id": "x", "truth"', "theirs.jsonl, line 3 is no JSON: expected {"), ("[1]", "line 3: expected {"),
    ("\x00", "line 3 is no JSON"), ("[" * 10**5, "line 3 is no JSON"), ('"x"', "line 3: expected {"),
    ({"id": None}, 'there is no "id" or "image"'), ({"id": ""}, 'there is no "id" or "image"'),
    ({"answers": "finch"}, "\"answers\" must be a list of texts, got 'finch'"),
    ({"answers": []}, '"answers" must be a list'), ({"answers": [1]}, "a list of texts, one is 1"),
    ({"answers": None}, 'there are no "answers" and no "texts"'),
    ({"texts": ["x", "y"]}, "there are 1 answers and 2 texts"), ({"texts": [None]}, "one is None"),
    ({"truth": ["finch"]}, '"truth" must be a text'), ({"dataset": 3}, '"dataset" must be a text'),
    ({"id": "pictures/a.jpg"}, "pictures/a.jpg is answered in line 1 already"),
])
def test_a_line_that_is_none_is_named(line, words, folder):
    """With a line's number, before anything is judged."""
    rows = [json.dumps(GOOD), json.dumps(GOOD | {"id": "pictures/d.jpg"})]
    broken = line if isinstance(line, str) else json.dumps(GOOD | {"id": "pictures/c.jpg"} | line)
    (folder / "theirs.jsonl").write_text("\n".join([*rows, broken]) + "\n")
    refused(words, "--answers", "theirs.jsonl")


@pytest.mark.parametrize("line, words", [
    ({"truth": "grey owl"}, "line 2: the truth of mine.jsonl/pictures/d.jpg is 'grey owl', it should be '"),
    ({"id": "pictures/e.jpg"}, "line 2: pictures/e.jpg is no image of mine.jsonl"),
    ({"id": "x/pictures/a.jpg"}, "line 2: mine.jsonl/pictures/a.jpg is answered in line 1 already"),
    ({"dataset": "cub"}, "line 2 is of cub: --data has mine.jsonl"),
])
def test_a_line_that_is_not_of_the_data_is_named(line, words, folder):
    write("theirs.jsonl", [GOOD, GOOD | {"id": "pictures/d.jpg"} | line])
    refused(words, "--answers", "theirs.jsonl", "--data", "mine.jsonl")


def test_an_image_of_two_datasets_has_to_say_of_which(folder):
    shutil.copy("mine.jsonl", "other.jsonl")
    write("theirs.jsonl", [GOOD])
    words = "is an image of mine.jsonl and of other.jsonl: say which"
    refused(words, "--answers", "theirs.jsonl", "--data", "mine.jsonl,other.jsonl")
    write("theirs.jsonl", [GOOD | {"dataset": "other.jsonl"}])
    document = judged("--answers", "theirs.jsonl", "--data", "mine.jsonl,other.jsonl")
    assert document["missing"]["theirs"] == {"mine.jsonl": 4, "other.jsonl": 3}


def test_two_files_must_agree_on_a_truth_and_one_of_them_have_it(folder):
    write("one.jsonl", [GOOD])
    write("two.jsonl", [GOOD | {"truth": "grey owl"}])
    refused("two.jsonl, line 1: the truth of pictures/a.jpg is 'grey owl', it should be 'red finch'",
            "--answers", "one.jsonl", "--answers", "two.jsonl")
    write("none.jsonl", [{"id": "x", "answers": ["finch"]}])
    refused('none.jsonl, line 1: x has no "truth"', "--answers", "none.jsonl")


def test_a_car_may_have_its_year_first_in_anothers_file(folder):
    """In whichever file it stands there: the first one's truth is taken. Another year is another car."""
    last, first, other = "Acura TL Sedan 2012", "2012 Acura TL Sedan", "2013 Acura TL Sedan"
    for truths in ([last, first], [first, last]):
        for file, truth in zip(("one.jsonl", "two.jsonl"), truths):
            write(file, [GOOD | {"truth": truth, "answers": truths[:1]}])
        document = judged("--answers", "one.jsonl", "--answers", "two.jsonl", out=f"{truths[0][:4]}.json")
        assert document["results"]["two"]["answers"]["summary"]["counts"]["specific"] == 1
    write("three.jsonl", [GOOD | {"truth": other}])
    refused(f"it should be '{first}'", "--answers", "one.jsonl", "--answers", "three.jsonl")


def test_cars_have_their_year_first_in_what_is_compared(folder):
    """By the dataset's own domain with --data, whatever the line says; else by what the line says."""
    trees.cars(folder)
    example = data.load("cars", "test", folder)[0]
    model, year = example.label.rsplit(" ", 1)
    line = {"id": example.id, "truth": example.label, "answers": [f"a {year} {model}"], "domain": "mine"}
    judge = {"parents": {example.label: None}}
    Path("cars.json").write_text(json.dumps(judge))

    def included(row, *argv):
        write("theirs.jsonl", [row])
        evaluated = judged("--answers", "theirs.jsonl", *argv, judge="cars.json", out="cars_out.json")
        for file in Path(".").glob("cars_out.*"):
            file.unlink()
        return next(iter(evaluated["results"]["theirs"].values()))["scores"]["text_inclusion"]

    del line["domain"]
    assert included(line) == 0
    assert included(line | {"dataset": "cars"}) == 1
    options = ["--data", "cars", "--root", str(folder)]
    assert included(line, *options) == included(line | {"domain": "mine"}, *options) == 1


def test_a_file_as_others_write_it(folder):
    """A mark at its beginning, an empty line, no end of the last line, half a character."""
    lines = [json.dumps(GOOD), "", json.dumps(GOOD | {"id": 7, "answers": ["finch \ud83d"]})]
    (folder / "theirs.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert judged("--answers", "theirs.jsonl")["results"]["theirs"]["answers"]["summary"]["n"] == 2


def test_nothing_that_can_be_judged(folder):
    for content in ("", "\n", '{"arguments": {}}\n'):
        (folder / "theirs.jsonl").write_text(content)
        refused("theirs.jsonl holds no answers", "--answers", "theirs.jsonl")
    write("theirs.jsonl", [{"id": "x", "unreadable": "cannot read x"}])
    refused("none of the images in theirs.jsonl has an answer", "--answers", "theirs.jsonl")
    refused("nowhere.jsonl", "--answers", "nowhere.jsonl")
    (folder / "folder.jsonl").mkdir()
    refused("folder.jsonl", "--answers", "folder.jsonl")
    os.mkfifo("pipe.jsonl")
    refused("pipe.jsonl", "--answers", "pipe.jsonl")
    (folder / "theirs.jsonl").write_bytes(json.dumps(GOOD).encode("utf-16"))
    refused("theirs.jsonl, line 1 is no JSON, it may be cut off", "--answers", "theirs.jsonl")


def line(image, said="finch", **more):
    return {"id": image, "truth": "red finch", "answers": [said], **more}


def test_systems_of_one_short_name_keep_their_answers_apart(folder):
    write("a.jsonl", [line("1", adapter="runs/x/adapter"), line("1", "owl", adapter="old/x/adapter")])
    write("b.jsonl", [line("1", "red finch")])
    results = judged("--answers", "a.jsonl", "--answers", "b.jsonl")["results"]
    correctness = {name: rows["answers"]["summary"]["correctness"] for name, rows in results.items()}
    assert correctness == {"a: runs/x/adapter": 1, "a: old/x/adapter": 0, "b": 1}


@pytest.mark.parametrize("again", ["a.jsonl", "./a.jsonl"])
def test_one_file_given_twice(again, folder):
    write("a.jsonl", [line("1")])
    refused("--answers names one thing twice", "--answers", "a.jsonl", "--answers", again)


def test_keys_that_are_ours_too_hide_no_line_and_empty_ones_are_not_given(folder):
    write("a.jsonl", [line("1", arguments={}, judge="A", unreadable=False, dataset=None),
                      line("2", arguments={}, judge="A", unreadable=""), line("3", arguments={}, judge="B")])
    assert judged("--answers", "a.jsonl")["results"]["a"]["answers"]["summary"]["n"] == 3


def test_a_path_of_another_folder_is_an_image_only_if_its_truth_says_so(folder):
    write("a.jsonl", [{"image": "elsewhere/pictures/a.jpg", "answers": ["finch"]}])
    refused('has no "truth" to tell by', "--answers", "a.jsonl", "--data", "mine.jsonl")
    write("a.jsonl", [{"image": "elsewhere/pictures/a.jpg", "truth": "red finch", "answers": ["finch"]},
                      {"image": "pictures/b.jpg", "answers": ["finch"]}])
    results = judged("--answers", "a.jsonl", "--data", "mine.jsonl")["results"]
    assert results["a"]["mine.jsonl"]["summary"]["n"] == 2


def test_half_a_character_in_a_name(folder):
    write("a.jsonl", [line("1", dataset="\ud800")])
    refused('"dataset" holds half a character', "--answers", "a.jsonl")


def test_one_hosts_key_is_not_shown_to_another(folder, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-secret")
    write("a.jsonl", [line("1")])
    with pytest.raises(SystemExit, match="JUDGE_API_KEY could be any of 2 servers'"):
        ev.main(["--answers", "a.jsonl", "--judge", "http://127.0.0.1:9#model=A",
                 "--judge", "http://127.0.0.2:9#model=B"])


def test_one_judge_by_two_addresses_is_no_second_one(folder, monkeypatch):
    """What is remembered of the first would be the second's word too."""
    class Sure(TaxonomyJudge):
        key = "server m"

    monkeypatch.setattr(rejudge, "load_judge", lambda name, args, device: Sure(PARENTS))
    write("a.jsonl", [line("1")])
    with pytest.raises(SystemExit, match="are one judge, by its model's name and prompt"):
        ev.main(["--answers", "a.jsonl", "--judge", "http://127.0.0.1:9#model=m",
                 "--judge", "http://127.0.0.2:9#model=m"])


@pytest.mark.parametrize("options, words", [
    (["--n", "4", "--model", "m"], "--answers judges what is stored: --model and --n would do nothing"),
    (["--limit", "3"], "the images from its files: give --data for --limit"),
    (["--image", "x"], "--image would do"), (["--adapter", "x"], "--adapter would do"),
    (["--out", "theirs.json"], "would write into"),
    (["--answers", "theirs.jsonl", "--answers", "theirs.jsonl"], "--answers names one thing twice"),
    (["--judge", "tree.json", "--judge", "tree.json"], "--judge names one thing twice"),
    (["--judge", "a", "--judge", "b", "--judge-model", "m"], "--judge-model is of one judge"),
    (["--judge", "nowhere.json"], "nowhere.json"), (["--data", "nowhere"], "unknown dataset"),
    (["--audit", "nowhere"], "nowhere"), (["--embedder", "nowhere"], "cannot load the embedder"),
])
def test_options_that_cannot_be(options, words, folder):
    write("theirs.jsonl", [GOOD])
    argv = list(options)
    for option, value in (("--answers", "theirs.jsonl"), ("--judge", "tree.json"), ("--out", "out.json")):
        if option not in options:
            argv += [option, value]
    with pytest.raises(SystemExit) as stop:
        ev.main(argv)
    assert words in str(stop.value) and "\n" not in str(stop.value)
    assert not (folder / "out.json").exists() and not (folder / "out.jsonl").exists()


def test_several_judges_need_stored_answers(folder):
    with pytest.raises(SystemExit, match="answer once, with one --judge and --out FILE.json, then"):
        ev.main(["--data", "toy-bird", "--judge", "taxonomy", "--judge", "tree.json"])


# ------------------------------------------------------------------------------------------------------------
# Nothing is judged twice


def judges_by_name(monkeypatch, **judges):
    """Puts these in the place of judges by their names. Returns the pairs that each is asked about."""
    asked = {name: [] for name in judges}

    def load_judge(name, options, device):
        def judge(pairs):
            asked[name] += pairs
            return judges[name](pairs)
        return judge

    monkeypatch.setattr(rejudge, "load_judge", load_judge)
    return asked


def strict(pairs):
    """The tree's verdicts, but whatever is not the truth itself is Wrong."""
    verdicts = TaxonomyJudge(PARENTS)(pairs)
    return [verdict if verdict == S else W for verdict in verdicts]


lenient = TaxonomyJudge(PARENTS)


@pytest.fixture
def two_systems(folder):
    """One says the group, the other half of the names right and half wrong."""
    write("vague.jsonl", [{"id": name, "truth": label, "answers": [label.split()[1]]}
                          for name, label in LABELS.items()])
    write("bold.jsonl", [{"id": name, "truth": label, "answers": [label if name < "c" else "robin"]}
                         for name, label in LABELS.items()])
    return ["--answers", "vague.jsonl", "--answers", "bold.jsonl", "--judge", "lenient", "--judge", "strict",
            "--out", "out.json"]


def test_nothing_is_judged_twice_however_it_was_cut(monkeypatch, two_systems, folder):
    """Each judge sees each answer once. Cut after any line, or within it, the same command judges the rest,
    and leaves the same bytes."""
    asked = judges_by_name(monkeypatch, lenient=lenient, strict=strict)
    ev.main([*two_systems, "--rows", "1"])
    pairs = [(label, label.split()[1]) for label in LABELS.values()]
    assert asked["lenient"] == asked["strict"] and asked["lenient"][:4] == pairs and len(asked["strict"]) == 8
    whole = contents()
    lines = whole[Path("out.jsonl")].splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 2 * 4

    for kept in (0, 1, 2, 8, 9, 16):  # the arguments; the ends of a dataset and of a judge
        for torn in (0, 1, len(lines[kept]) // 2, len(lines[kept]) - 1):
            Path("out.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
            Path("out.json").unlink(missing_ok=True)
            for pairs in asked.values():
                pairs.clear()
            ev.main(two_systems)
            assert contents() == whole
            assert sum(map(len, asked.values())) == 16 - max(0, kept - 1)

    # all is there: not even a judge is loaded
    monkeypatch.setattr(rejudge, "load_judge", None)
    ev.main(two_systems)
    assert contents() == whole


@pytest.mark.parametrize("fault", ["kill", "full"])
def test_stopped_at_any_change_of_a_file_it_goes_on(fault, monkeypatch, two_systems, folder):
    judges_by_name(monkeypatch, lenient=lenient, strict=strict)
    command = ["--answers", "vague.jsonl", "--judge", "strict", "--rows", "2", "--out", "new/out.json"]
    ev.main(command)
    whole = {file.name: file.read_bytes() for file in Path("new").iterdir()}
    moment = 0
    said = ""
    while said is not None:
        moment += 1
        shutil.rmtree("new")
        said = stopped_at(folder / "new", moment, fault, lambda: ev.main(command), b"")
        ev.main(command)
        assert {file.name: file.read_bytes() for file in Path("new").iterdir()} == whole, (moment, said)
    assert moment > 2


def test_answers_that_have_changed_are_not_gone_on_with(monkeypatch, two_systems, folder):
    judges_by_name(monkeypatch, lenient=lenient, strict=strict)
    ev.main(two_systems)
    kept = Path("out.jsonl").read_bytes()
    rows = [json.loads(line) for line in Path("vague.jsonl").read_text().splitlines()]
    write("vague.jsonl", [row | {"answers": ["bird"]} for row in rows])
    with pytest.raises(SystemExit, match="out.jsonl, line 2 is no record of this evaluation"):
        ev.main(two_systems)
    with pytest.raises(SystemExit, match="another command: answers was .*, now .*; judge was"):
        ev.main(trees.with_options(two_systems[2:], "--judge", "strict"))
    assert Path("out.jsonl").read_bytes() == kept


def test_a_judge_that_is_gone_is_no_result(monkeypatch, two_systems, folder):
    judges_by_name(monkeypatch, lenient=lenient, strict=lambda pairs: [None] * len(pairs))
    with pytest.raises(SystemExit, match="the judge failed on 4 of 4 answers; what is written stands"):
        ev.main(two_systems)
    assert len(Path("out.jsonl").read_text().splitlines()) == 1 + 8 and not Path("out.json").exists()


# ------------------------------------------------------------------------------------------------------------
# Judges beside each other


def test_agreement_by_hand():
    """Ten answers, of which eight get the same rung: chance .4 x .4 + .2 x .3 + .4 x .3 = .34. Wrong or not:
    the same for eight, chance .4 x .4 + .6 x .6 = .52. A malformed answer and one without a verdict are not
    among them."""
    first = [W, W, W, W, G, G, S, S, S, S]
    second = [W, W, W, G, G, G, S, S, S, W]
    pairs = [*zip(first, second), (None, None), ("error", S), (S, "error")]
    found = compare_judges.agreement(pairs)
    assert (found["answers"], found["left_out"]) == (10, 2)
    assert found["rungs"] == {"agreement": 0.8, "kappa": pytest.approx((0.8 - 0.34) / 0.66)}
    assert found["wrong"] == {"agreement": 0.8, "kappa": pytest.approx((0.8 - 0.52) / 0.48)}


def test_agreement_at_its_ends():
    assert compare_judges.kappa([W, S], [W, S]) == 1
    assert compare_judges.kappa([W, S], [S, W]) == -1
    assert compare_judges.kappa([W, W, S, S], [W, S, W, S]) == 0  # as by chance
    assert compare_judges.kappa([S, S], [S, S]) is None  # there is nothing but chance
    assert compare_judges.agreement([(None, None)])["rungs"] == {"agreement": None, "kappa": None}


def test_two_judges_and_the_order_of_two_systems(monkeypatch, two_systems, capsys):
    """Lenient: vague C 1, S .75, HM 6/7, bold C .5, S 1, HM 2/3. Strict: vague 0, 0, 0, bold as before. So
    they change places in correctness and HM, and not in specificity. Of eight answers the judges differ in
    four; the two that are the truth are settled before any judge."""
    judges_by_name(monkeypatch, lenient=lenient, strict=strict)
    ev.main(two_systems)
    document = json.loads(Path("out.json").read_text())
    vague, bold = document["results"].values()
    assert vague["answers"]["summary"]["harmonic_mean"] == pytest.approx(6 / 7)
    assert document["by_judge"]["strict"]["vague"]["answers"]["summary"]["correctness"] == 0
    compared = document["comparison"]

    [agreement] = compared["agreement"]
    assert agreement["judges"] == ["lenient", "strict"]
    assert (agreement["all"]["answers"], agreement["asked"]["answers"]) == (8, 6)
    assert agreement["all"]["rungs"]["agreement"] == agreement["all"]["wrong"]["agreement"] == 0.5
    assert agreement["asked"]["rungs"]["agreement"] == pytest.approx(2 / 6)
    # L L L L S S W W beside W W W W S S W W: chance is .25 x .25 + .25 x .75 in rungs, .75 x .25 + .25 x .75
    # in wrong or not
    assert agreement["all"]["rungs"]["kappa"] == pytest.approx((0.5 - 0.25) / 0.75)
    assert agreement["all"]["wrong"]["kappa"] == pytest.approx((0.5 - 0.375) / 0.625)

    moved = compared["figures"]["vague"]["strict"]["answers"]["difference"]["summary"]
    assert moved == pytest.approx({"correctness": -1, "specificity": -0.75, "harmonic_mean": -6 / 7})
    moved = compared["figures"]["bold"]["strict"]["answers"]["difference"]["summary"]
    assert set(moved.values()) == {0}

    [order] = compared["order"]
    assert [change["figure"] for change in order["changes"]] == ["correctness", "harmonic_mean"]
    assert order["changes"][0] == {"row": "answers", "figure": "correctness", "systems": ["vague", "bold"],
                                   "first": [1, 0.5], "second": [0, 0.5]}
    printed = capsys.readouterr().out
    assert ("correctness, answers: lenient puts vague (1.000) above bold (0.500), strict bold (0.500) above "
            "vague (0.000)") in printed
    assert "minus lenient" in printed and "lenient and strict" in printed


def test_judges_of_one_mind_and_one_without_a_verdict_on_a_set(monkeypatch, folder, capsys):
    """Three judges: every two of them; a mean that one of them lacks is not compared."""
    rows = [{"id": name, "truth": label, "answers": ["finch"], "dataset": name[0]}
            for name, label in LABELS.items() if name < "c"]
    write("one.jsonl", rows)
    write("two.jsonl", rows)

    def one_set(pairs):
        return [None if pair[0] == "red finch" else verdict for pair, verdict in zip(pairs, lenient(pairs))]

    monkeypatch.setattr("support.judging.MOST_JUDGE_ERRORS", 1)
    judges_by_name(monkeypatch, one=lenient, two=lenient, three=one_set)
    argv = ["--answers", "one.jsonl", "--answers", "two.jsonl"]
    for name in ("one", "two", "three"):
        argv += ["--judge", name]
    ev.main([*argv, "--out", "out.json"])
    compared = json.loads(Path("out.json").read_text())["comparison"]
    assert [each["judges"] for each in compared["agreement"]] == [["one", "two"], ["one", "three"],
                                                                  ["two", "three"]]
    assert [each["all"]["left_out"] for each in compared["agreement"]] == [0, 2, 2]
    assert list(compared["figures"]["one"]["two"]) == ["a", "b"]
    assert "one and two put the systems in the same order, in every figure" in capsys.readouterr().out


def test_judges_by_short_names():
    specs = ["http://host:1/v1#model=meta/Llama-3&prompt=detailed", "Qwen/Qwen3-4B", "trees/a.json",
             "other/a.json", "Qwen/Qwen3-4B,taxonomy"]
    assert compare_judges.judge_titles(specs) == ["Llama-3", "Qwen3-4B", "trees/a.json", "other/a.json",
                                                  "Qwen3-4B,taxonomy"]


# ------------------------------------------------------------------------------------------------------------
# A judge's known errors


def test_corrected_by_hand():
    """Of 100 answers the judge lets 70 pass; it finds 9 of 10 wrong ones and lets 8 of 10 others pass:
    (.7 + .9 - 1) / (.9 + .8 - 1) = 6/7. Indeed 6/7 x .8 + 1/7 x .1 = .7."""
    assert metrics.corrected_share(0.7, 0.9, 0.8) == pytest.approx(6 / 7)
    assert metrics.corrected_share(0.7, 1, 1) == pytest.approx(0.7)  # a judge without errors
    assert metrics.corrected_share(0.05, 0.9, 0.8) == 0  # clipped
    assert metrics.corrected_share(0.9, 0.9, 0.8) == 1
    errors = JudgeErrors(wrong=10, wrong_found=9, not_wrong=10, not_wrong_found=8)
    groups = [[S]] * 70 + [[W]] * 30
    assert metrics.corrected_correctness(groups, errors=errors)["correctness"] == pytest.approx(6 / 7)
    # Twenty malformed answers, which no judge saw, are wrong whatever it does.
    groups += [[None]] * 20
    corrected = metrics.corrected_correctness(groups, errors=errors)
    assert corrected["correctness"] == pytest.approx(100 / 120 * 6 / 7)


def test_the_interval_holds_the_images_and_the_audit(monkeypatch):
    """As the delta method says, from the variances of p, q0 and q1, where all are well known; and a judge
    that is known from fewer pairs leaves a wider one."""
    monkeypatch.undo()  # all draws
    errors = JudgeErrors(wrong=4000, wrong_found=3600, not_wrong=2000, not_wrong_found=1600)
    groups = [[S]] * 1400 + [[W]] * 600
    low, high = metrics.corrected_correctness(groups, errors=errors, resamples=4000)["interval"]
    share = 6 / 7
    of_images = 0.7 * 0.3 / 2000
    of_wrong_pairs = (1 - share) ** 2 * 0.9 * 0.1 / 4000
    of_other_pairs = share ** 2 * 0.8 * 0.2 / 2000
    half = 1.96 * (of_images + of_wrong_pairs + of_other_pairs) ** 0.5 / (0.9 + 0.8 - 1)
    assert (high - low) / 2 == pytest.approx(half, rel=0.06)
    assert (high + low) / 2 == pytest.approx(share, abs=0.005)

    few = JudgeErrors(wrong=10, wrong_found=9, not_wrong=10, not_wrong_found=8)
    wide = metrics.corrected_correctness(groups, errors=few)["interval"]
    assert wide[0] < low and wide[1] == 1


def test_a_chance_judge_in_a_draw_widens_the_interval():
    shares = metrics.corrected_share(np.array([0.6, 0.4]), np.array([0.5, 0.5]), np.array([0.4, 0.4]))
    assert shares.tolist() == [1, 0]


@pytest.mark.parametrize("labels, verdicts, words", [
    ([W, W, S, S], [W, S, S, W], "finds 50% of the wrong pairs and lets pass 50% of the others, no better"),
    ([W, S], [S, W], "finds 0% of the wrong"), ([W, W], [W, S], "there are 2 and 0"),
    ([W, S], [None, S], "there are 0 and 1")])
def test_errors_that_correct_nothing_are_refused(labels, verdicts, words):
    with pytest.raises(ValueError, match=words):
        metrics.known_errors(labels, verdicts)


def test_errors_of_an_audit():
    labels = [W, W, W, A, G, S, S]
    errors = metrics.known_errors(labels, [W, W, G, A, W, M, None])
    assert errors == JudgeErrors(wrong=3, wrong_found=2, not_wrong=3, not_wrong_found=2)
    assert errors.q0 == errors.q1 == pytest.approx(2 / 3)


def audit_rows(wrong):
    """Five wrong pairs of which the tree finds that many, and five others of which it finds four."""
    rows = [("red finch", "grey owl" if i < wrong else "finch", "wrong") for i in range(5)]
    rows += [("red finch", "finch" if i else "grey owl", "less specific") for i in range(5)]
    return [{"ground_truth": truth, "prediction": answer, "category": label} for truth, answer, label in rows]


@pytest.mark.parametrize("live", [True, False])
def test_corrected_figures_stand_beside_the_raw_ones(live, monkeypatch, folder, capsys):
    """Of ten answers seven pass: (.7 + .8 - 1) / (.8 + .8 - 1) = 5/6."""
    write("audit.jsonl", audit_rows(wrong=4))
    answered = []

    def change(example, adapter, answers):
        answered.append(example.label)
        return ["???" if len(answered) <= 3 else example.label]

    if live:
        run(monkeypatch, "--data", "toy-bird", "--judge", "tree.json", "--audit", "audit.jsonl", "--out",
            "out.json", change=change)
        document = json.loads(Path("out.json").read_text())
        row, audit = document["results"]["none"]["toy-bird"], document["audit"]
        assert "audit" not in document["arguments"]  # the answers don't depend on it
    else:
        write("theirs.jsonl", [{"id": i, "truth": "red finch", "answers": ["owl" if i < 3 else "finch"]}
                               for i in range(10)])
        document = judged("--answers", "theirs.jsonl", "--audit", "audit.jsonl")
        row, audit = document["results"]["theirs"]["answers"], document["audit"]["tree.json"]
    assert row["summary"]["correctness"] == 0.7
    assert row["corrected"]["correctness"] == pytest.approx(5 / 6)
    low, high = row["corrected"]["interval"]
    assert 0 <= low < 5 / 6 < high <= 1
    assert audit == {"wrong": 5, "wrong_found": 4, "not_wrong": 5, "not_wrong_found": 4, "q0": 0.8, "q1": 0.8}
    printed = capsys.readouterr().out
    assert f"corrected 0.833 [{low:.3f} {high:.3f}]" in " ".join(printed.split())
    assert "on audit.jsonl it finds 0.800 of 5 wrong pairs, and lets pass 0.800 of 5 others" in printed


def test_a_judge_that_cannot_be_corrected_judges_nothing(monkeypatch, folder):
    write("audit.jsonl", audit_rows(wrong=1))
    write("theirs.jsonl", [GOOD])
    words = "--audit audit.jsonl, judge tree.json: it finds 20% of the wrong pairs and lets pass 80% of"
    refused(words, "--answers", "theirs.jsonl", "--audit", "audit.jsonl")
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--data", "toy-bird", "--judge", "tree.json", "--audit", "audit.jsonl")
    assert words in str(stop.value)
    write("audit.jsonl", [{"ground_truth": "x"}])
    refused("audit.jsonl, line 1: not JSON with", "--answers", "theirs.jsonl", "--audit", "audit.jsonl")
