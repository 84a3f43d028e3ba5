import json
import os
import random
import shutil
import weakref
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import data
import evaluate as ev
import lora
import metrics
import policy as policies
import tiny
import trees
from judge import JUDGE_ERROR
from judges.taxonomy import TaxonomyJudge
from reward import Category as C
from rollout import PROMPTS
from small_run import stopped_at
from support import opening, tables
from support.embedder import load_embedder
from support.files import append
from support.language_inclusion import InclusionModel
from support.scores import model_scores, plain_scores, thought_not_said
from toy import world
from words import chat_model


@pytest.fixture
def cub(tmp_path):
    trees.cub(tmp_path)
    return tmp_path


@pytest.fixture
def tree(tmp_path):
    names = {n.split(".")[1].replace("_", " "): "bird" for n in trees.BIRDS}
    (tmp_path / "tree.json").write_text(json.dumps({"parents": names | {"bird": None}}))
    return str(tmp_path / "tree.json")


def scripted(verdicts):
    """A judge that gives these verdicts in turn."""
    each = iter(verdicts)
    return lambda pairs: [next(each) for _ in pairs]


def test_evaluate_by_hand(checkpoint, cub, monkeypatch):
    """Two images, three answers each: verdicts, malformed answers and judge errors end up where they
    should."""
    examples = data.load("cub", "test", cub)[:3]
    (cub / "CUB_200_2011" / "images" / examples[0].id.removeprefix("cub/")).write_bytes(b"")

    def sample(*args, **kwargs):
        groups = real(*args, **kwargs)
        for group, answers in zip(groups, (["a", "b", None], ["c", "d", "e"]), strict=True):
            group.answers = answers
        return groups

    real = ev.sample
    monkeypatch.setattr(ev, "sample", sample)
    judge = scripted([C.SPECIFIC, C.WRONG, C.GENERIC, None, C.ABSTAIN])
    result = ev.evaluate(policies.load(checkpoint, max_pixels=3136), judge, examples, "what?", n=3,
                         temperature=1.0, max_new_tokens=4)
    assert result["groups"] == [[C.SPECIFIC, C.WRONG, None], [C.GENERIC, C.ABSTAIN]]
    s = result["summary"]
    assert (s.n, s.malformed, s.judge_errors, s.unreadable) == (5, 1, 1, 1)
    assert s.correctness == pytest.approx(3 / 5) and s.specificity == pytest.approx((4 + 2 + 1) / 12)
    assert result["records"][1]["categories"] == ["generic", JUDGE_ERROR, "abstain"]
    assert examples[0].id.split("/")[-1] in result["unreadable"][0]
    assert [r["id"] for r in result["records"]] == [e.id for e in examples[1:]]  # each by its own image


def test_batches_change_nothing(checkpoint, cub, tree):
    policy, judge = policies.load(checkpoint, max_pixels=3136), TaxonomyJudge.from_json(tree)
    examples = data.load("cub", "test", cub)
    args = policy, judge, examples, "what?", 2, 1.0, 8
    whole = ev.evaluate(*args)["records"]
    assert whole == ev.evaluate(*args, rows=4)["records"] == ev.evaluate(*args, rows=1)["records"]  # 1 < n


def test_before_is_the_base_and_after_the_policy(policy, monkeypatch):
    enabled = []

    def measured(policy, *args, **kwargs):
        enabled.append({layer.enabled for layer in lora.lora_layers(policy.model).values()})
        return {"summary": metrics.summarize([]), "unreadable": []}

    monkeypatch.setattr(ev, "evaluate", measured)
    results = ev.before_and_after(policy, None, {"cub": []}, "what?", 4, 0)
    assert enabled == [{False}, {False}, {True}, {True}]
    assert list(results["greedy"]["cub"]) == ["before", "after"]


def test_command_line_table_and_json(checkpoint, cub, tree, tmp_path, capsys):
    policy = policies.load(checkpoint)
    lora.add_lora(policy.model, 2, 32)
    lora.save_adapter(policy.model, tmp_path / "adapter", str(checkpoint))
    ev.main(["--data", "cub", "--root", str(cub), "--adapter", "none", str(tmp_path / "adapter"),
             "--judge", tree, "--n", "4", "--choose", "--max-new-tokens", "24", "--max-pixels", "3136",
             "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    # the model is the adapter's base
    assert f"{checkpoint}, prompt 'base', 4 samples at temperature 1.0" in printed
    assert printed.count("  best of 4 ") == 2 and "minus base" in printed
    document = json.loads((tmp_path / "out.json").read_text())
    base, fresh = document["results"]["none"]["cub"], document["results"][str(tmp_path / "adapter")]["cub"]
    # B = 0 changes nothing
    assert base["summary"] == fresh["summary"] and set(fresh["difference"]["summary"].values()) == {0}
    assert base["summary"]["n"] == 48 and base["best_of"]["4"]["summary"]["n"] == 12
    low, high = base["intervals"]["correctness"]
    assert low <= base["summary"]["correctness"] <= high
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {"arguments": document["arguments"]} and len(lines) == 1 + 2 * 12
    assert lines[1]["texts"] == lines[13]["texts"] and len(lines[1]["texts"]) == 4
    assert lines[1]["texts"][0] not in (tmp_path / "out.json").read_text()


# ------------------------------------------------------------------------------------------------------------
# A stub in place of the model: what evaluate.py makes of answers


class Stub(str):
    device = "cpu"
    max_pixels = None


def stand_in(example):
    """For the example's image: all that it has, and a size."""
    return SimpleNamespace(**vars(example), width=8, height=8)


def run(monkeypatch, *argv, after=None, change=None, broken=lambda example: False, load=Stub):
    """evaluate.main on the embedded world, answers drawn by (adapter, image, k) instead of sampled; `after`
    batches the user stops it. change(example, adapter, answers) edits them; the images of broken(example)
    can't be read. load(adapter) is the policy. Returns the ids asked for, a list for each batch."""
    asked = []

    def read_images(examples):
        if after is not None and len(asked) >= after:
            raise KeyboardInterrupt
        asked.append([e.id for e in examples])
        readable = [e for e in examples if not broken(e)]
        unreadable = [f"cannot read the image {e.id}" for e in examples if broken(e)]
        return readable, [stand_in(e) for e in readable], unreadable

    def sample(adapter, images, ids, question, n, **kwargs):
        assert images and ids == [e.id for e in images]
        groups = []
        for e in images:
            rng = random.Random(f"{adapter} {e.id}")
            answers = [rng.choice([e.label, e.label.split()[-1], e.domain, "none", "car", None])
                       for _ in range(64)][:n]
            answers = change(e, adapter, answers) if change else answers
            groups.append(SimpleNamespace(answers=answers, texts=[
                f"<think> a {e.label} ? </think> <answer> {a or ''} </answer>" for a in answers]))
        return groups

    monkeypatch.setattr(data, "read_images", read_images)
    monkeypatch.setattr(ev, "sample", sample)
    monkeypatch.setattr(ev, "load_policy", lambda name, seed, adapter, **_: load(adapter or "none"))
    ev.main(trees.with_options(["--limit", "10"], *map(str, argv)))
    return asked


@pytest.fixture
def adapters(tmp_path):
    """Two folders that pass for adapters, of the runs one and two."""
    for name in ("one", "two"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "adapter" / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 1}')
        (tmp_path / name / "adapter" / "adapter_model.safetensors").write_text(name)
    return [tmp_path / name / "adapter" for name in ("one", "two")]


def results(tmp_path):
    return json.loads((tmp_path / "out.json").read_text())["results"]


def test_best_of_k_and_the_majority(monkeypatch, tmp_path):
    """Of ten images' answers W G None S S- A, the mean over all subsets of k, every power of two up to n, and
    n. Of two, 15 subsets have W once, A twice, G 3, S- 4 and S 5 times as the best. No text comes twice: the
    majority is the first."""
    def change(e, adapter, answers):
        return ["car", "bird", None, e.label, e.label.split()[-1], "none"]
    run(monkeypatch, "--data", "toy-bird", "--n", "6", "--out", tmp_path / "out.json", change=change)
    best = results(tmp_path)["none"]["toy-bird"]["best_of"]
    assert [b["summary"]["correctness"] for b in best.values()] == pytest.approx([4 / 6, 14 / 15, 1, 1])
    assert [b["summary"]["specificity"] for b in best.values()] == pytest.approx([5 / 8, 40 / 56, .9, 1])
    assert results(tmp_path)["none"]["toy-bird"]["majority"]["summary"]["correctness"] == 0
    assert results(tmp_path)["none"]["toy-bird"]["summary"]["n"] == 60


@pytest.mark.parametrize("answers, said, place", [
    (["a duck", None, "Mallard", "a duck"], "mallard", 2), (["duck", "mallard"], "teal", None),
    (["duck", "mallard"], None, None), (["duck", "Duck"], "never asked", 0), ([None], "never asked", None)])
def test_the_models_own_choice(monkeypatch, answers, said, place):
    asked = []

    def sample(policy, images, ids, question, **options):
        asked.append(question)
        return [SimpleNamespace(answers=[said])]

    monkeypatch.setattr(ev, "sample", sample)
    group = SimpleNamespace(id="x", answers=answers)
    assert ev.own_choice(None, "image", group, "What is it?", 16, 0) == place
    assert len(asked) == (said != "never asked")
    assert all("What is it?" in question and f"- {answers[0]}\n" in question for question in asked)


def test_a_choice_needs_words_and_several_answers():
    with pytest.raises(SystemExit, match="--choose needs words"):
        ev.main(["--data", "toy-bird", "--n", "2", "--choose"])
    with pytest.raises(SystemExit, match="--choose chooses among several"):
        ev.main(["--data", "cub", "--choose"])


@pytest.mark.parametrize("rows", [1, 12, 256])
def test_a_stopped_evaluation_goes_on(rows, monkeypatch, tmp_path, adapters, capsys):
    """Stopped after three batches, in a half-written line: the same command asks for the rest only, in the
    same batches, and leaves the same bytes as one that was never stopped."""
    bootstrap = metrics.bootstrap  # 20 draws, not 1000: these intervals are compared with themselves alone
    monkeypatch.setattr(metrics, "bootstrap", lambda groups, draws, seed: bootstrap(groups, 20, seed))
    argv = ["--data", "toy-bird,toy-fish", "--n", "4", "--rows", rows, "--adapter", "none", *adapters]
    unreadable = {"broken": lambda e: e.id[-1] == "7"}
    whole = run(monkeypatch, *argv, "--out", tmp_path / "whole.json", **unreadable)
    with pytest.raises(SystemExit, match="evaluate.py: stopped.*the same command goes on"):
        run(monkeypatch, *argv, "--out", tmp_path / "out.json", after=3, **unreadable)
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + sum(map(len, whole[:3])) and not (tmp_path / "out.json").exists()
    (tmp_path / "out.jsonl").write_bytes(b"".join(lines) + lines[-1][:40])
    assert whole[:3] + run(monkeypatch, *argv, "--out", tmp_path / "out.json", **unreadable) == whole
    for suffix in ("json", "jsonl"):
        assert (tmp_path / f"out.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()
    printed = capsys.readouterr().out.split("\n")
    assert printed[:len(printed) // 2] == printed[len(printed) // 2:-1]
    # finished: nothing is asked, not even the model is loaded
    monkeypatch.setattr(ev, "load_policy", None)
    ev.main(["--limit", "10", *map(str, argv), "--out", str(tmp_path / "out.json")])


@pytest.mark.parametrize("rows, limit", [(1, 40), (8, 40), (16, 40), (256, 10)])
def test_a_judge_that_is_gone_is_no_result_and_nothing_of_it_is_kept(rows, limit, monkeypatch, tmp_path):
    """However small the batches and the set; with a working judge the same command does it all."""
    argv = ["--data", "toy-bird", "--rows", rows, "--limit", limit, "--out", tmp_path / "out.json"]
    with monkeypatch.context() as m:
        m.setattr(ev, "load_judge", lambda *args: lambda pairs: [None] * len(pairs))
        with pytest.raises(SystemExit, match="the judge failed on .* answers.*the same command goes on"):
            run(m, *argv)
    file = tmp_path / "out.jsonl"
    assert not file.exists() or "judge error" not in file.read_text()
    few = iter([None, *[0] * 99])  # a first verdict missing is a few errors, if more follow
    monkeypatch.setattr(ev, "load_judge", lambda *args: lambda pairs: [next(few) for _ in pairs])
    run(monkeypatch, *argv)
    assert results(tmp_path)["none"]["toy-bird"]["summary"]["judge_errors"] == 1


def test_adapters_of_different_bases_are_not_measured_on_one(monkeypatch, tmp_path, adapters):
    for adapter, base in zip(adapters, ("base-one", "base-two")):
        config = {"r": 1, "lora_alpha": 1, "base_model_name_or_path": base}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
    argv = ["--data", "toy-bird", "--adapter", "none", *adapters]
    with pytest.raises(SystemExit, match="different bases, --model must say which: base-one, base-two"):
        run(monkeypatch, *argv)
    run(monkeypatch, *argv, "--model", "toy", "--out", tmp_path / "out.json")
    assert list(results(tmp_path)) == ["none", *map(str, adapters)]


def test_the_model_is_the_named_one_or_the_adapters_base_or_what_suits_the_data():
    assert opening.choose_model("named", ["one", "two"], ["toy-bird"]) == "named"
    assert opening.choose_model(None, ["one"], ["toy-bird"]) == "one"
    assert opening.choose_model(None, [], ["toy-bird", "toy"]) == "toy"
    assert opening.choose_model(None, [], ["toy-bird", "cub"]) == opening.MODEL
    assert opening.choose_model(None, [], []) == opening.MODEL  # pictures


def test_a_runs_folder_stands_for_its_adapter(monkeypatch, tmp_path, adapters):
    run(monkeypatch, "--data", "toy-bird", "--adapter", tmp_path / "one", "--out", tmp_path / "out.json")
    assert list(results(tmp_path)) == [str(adapters[0])]


def test_a_set_without_a_verdict_enters_no_mean_and_its_pictures_are_named(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--data", "toy-bird,toy-fish,toy-flower", "--out", tmp_path / "out.json",
        "--max-unreadable", "1", broken=lambda e: e.domain == "bird")
    rows, captured = results(tmp_path)["none"], capsys.readouterr()
    assert list(rows) == ["toy-bird", "toy-fish", "toy-flower", "mean of 2"]
    assert rows["mean of 2"]["summary"]["correctness"] == pytest.approx(
        (rows["toy-fish"]["summary"]["correctness"] + rows["toy-flower"]["summary"]["correctness"]) / 2)
    assert captured.err.count("cannot read the image toy-bird/") == 10
    assert captured.out.count("included") == 2  # the column's title, and the legend


@pytest.mark.parametrize("rows", [1, 4, 256])
def test_too_many_unreadable_images_are_no_result_and_nothing_of_them_is_kept(rows, monkeypatch, tmp_path):
    """Six of ten, the last: one line. Once they are back, the same command reads them and leaves the same
    bytes as one that always could."""
    argv = ["--data", "toy-bird", "--rows", rows]
    run(monkeypatch, *argv, "--out", tmp_path / "whole.json")
    lost = {e.id for e in data.load("toy-bird", "test", limit=10)[4:]}
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *argv, "--out", tmp_path / "out.json", broken=lambda e: e.id in lost)
    assert str(e.value).startswith("evaluate.py: 6 of 10 images of toy-bird can't be read, --max-unreadable "
                                   "is 0.5 (cannot read the image toy-bird/")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out.json").exists()
    file = tmp_path / "out.jsonl"
    assert not file.exists() or "unreadable" not in file.read_text()
    run(monkeypatch, *argv, "--out", tmp_path / "out.json")
    for suffix in ("json", "jsonl"):
        assert (tmp_path / f"out.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


def test_half_of_the_images_unreadable_is_not_more_than_half(monkeypatch, tmp_path):
    lost = {e.id for e in data.load("toy-bird", "test", limit=10)[5:]}
    argv = ["--data", "toy-bird", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv, broken=lambda e: e.id in lost)
    assert results(tmp_path)["none"]["toy-bird"]["summary"]["unreadable"] == 5
    message = "out.jsonl says that 5 of 10 images of toy-bird can't be read, .* is 0.4: give another --out$"
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *argv, "--max-unreadable", ".4")  # those that are kept count too


def test_a_table_without_images_is_no_table(monkeypatch, tmp_path, capsys):
    argv = ["--data", "toy-bird,toy-fish", "--max-unreadable", "1", "--out", tmp_path / "out.json"]
    with pytest.raises(SystemExit, match="^evaluate.py: none of the images .* no table; .* another --out$"):
        run(monkeypatch, *argv, broken=lambda e: True)
    assert not (tmp_path / "out.json").exists()
    assert capsys.readouterr().out == ""


def test_a_list_of_pictures_that_are_not_there(checkpoint, tree, tmp_path, capsys):
    rows = [json.dumps({"image": f"{i}.jpg", "label": "Mallard", "split": "test"}) for i in range(4)]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    with pytest.raises(SystemExit, match="4 of 4 images of .*mine.jsonl can't be read.*0.jpg"):
        ev.main(["--data", str(tmp_path / "mine.jsonl"), "--model", str(checkpoint), "--judge", tree])
    assert capsys.readouterr().out == ""


def test_before_and_after_of_no_images(policy):
    """Too few that can be read; and none, whatever share is allowed."""
    lost = [data.Example(str(i), "x", "d", lambda: data.read_image("nowhere.jpg")) for i in range(3)]
    arguments = policy, None, {"mine": lost}, "what?", 4, 0
    with pytest.raises(opening.ImagesUnreadable, match="3 of 3 images of mine can't be read"):
        ev.before_and_after(*arguments, most_unreadable=0.5)
    with pytest.raises(opening.ImagesUnreadable, match="there is no table"):
        ev.before_and_after(*arguments)


def test_a_record_lost_within_a_batch_is_made_again_alone(monkeypatch, tmp_path):
    """What was written stays written wherever the kill fell; later batches begin where they would have."""
    argv = ["--data", "toy-bird", "--rows", "4", "--out", tmp_path / "out.json"]
    whole = run(monkeypatch, *argv)
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 7):  # nothing, the arguments only, and six records: half of the second batch
        (tmp_path / "out.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:-1])
        rest = run(monkeypatch, *argv)
        assert rest == (whole if kept < 2 else [whole[1][2:], whole[2]])
        assert (tmp_path / "out.jsonl").read_bytes() == b"".join(lines)


def test_a_real_model_goes_on_to_the_same_bytes(checkpoint, cub, tree, tmp_path, monkeypatch):
    argv = ["--data", "cub", "--root", str(cub), "--model", str(checkpoint), "--judge", tree, "--n", "3",
            "--max-new-tokens", "16", "--max-pixels", "3136", "--rows", "12", "--out"]
    ev.main([*argv, str(tmp_path / "whole.json")])
    calls, real = [], ev.sample

    def sample(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt  # not by exec(): Python remembers that, and exits with 130
        return real(*args, **kwargs)
    monkeypatch.setattr(ev, "sample", sample)
    with pytest.raises(SystemExit):
        ev.main([*argv, str(tmp_path / "out.json")])
    ev.main([*argv, str(tmp_path / "out.json")])
    assert len(calls) == 3 + 1 and len((tmp_path / "out.jsonl").read_text().splitlines()) == 13
    assert (tmp_path / "out.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_other_arguments_are_refused(monkeypatch, tmp_path, adapters):
    argv = ["--data", "toy-bird", "--adapter", adapters[0], "--n", "2", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    kept = (tmp_path / "out.jsonl").read_bytes()
    for other, words in ([["--n", "4"], "n was 2, now 4"], [["--seed", "1"], "seed was 0, now 1"],
                         [["--data", "toy-fish"], "data was toy-bird, now toy-fish"],
                         [["--prompt", "specific"], "prompt was base, now specific"],
                         [["--adapter", adapters[1]], "adapter was"], [["--temperature", ".6"], "now 0.6"]):
        with pytest.raises(SystemExit, match=words) as e:
            run(monkeypatch, *argv, *other)
        assert "\n" not in str(e.value) and "out.jsonl holds the answers to another command" in str(e.value)
    assert run(monkeypatch, *argv, "--rows", "7") == []  # memory is no answer's business
    (adapters[0] / "adapter_model.safetensors").write_text("trained again")
    with pytest.raises(SystemExit, match="weights was"):
        run(monkeypatch, *argv)
    assert (tmp_path / "out.jsonl").read_bytes() == kept


def test_records_that_do_not_fit_are_refused(monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    for spoilt, words in ((lines[1:], "line 1 is no record"), (["3\n"], "line 1 is no record"),
                          (['{"arguments": 3}\n'], "line 1 is no record"),
                          ([*lines[:4], "{\n", *lines[5:]], "line 5 is no record"),
                          ([*lines[:3], *lines[4:]], "they have changed"),
                          ([*lines, lines[-1]], "more answers than there are images")):
        (tmp_path / "out.jsonl").write_text("".join(spoilt))
        with pytest.raises(SystemExit, match=words) as e:
            run(monkeypatch, *argv)
        assert "\n" not in str(e.value) and (tmp_path / "out.jsonl").read_text() == "".join(spoilt)


def refused(monkeypatch, tmp_path, argv, words):
    """One line with these words; no file is another than before, and none is new."""
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=words) as e:
        run(monkeypatch, *argv)
    assert "\n" not in str(e.value)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change, words", [
    ({"categories": ["splendid", "wrong"]}, "it, categories is not one of malformed, wrong.*: 'splendid'"),
    ({"categories": ["wrong"]}, "categories is not a list of 2"), ({"categories": None}, "not a list of 2"),
    ({"categories": [4, 4]}, "categories is not one of"), ({"answers": [1, None]}, "answers is not a text"),
    ({"texts": ["x", None]}, "texts is not a text"), ({"truth": "robin"}, "truth is not '.*': 'robin'"),
    ({"scores": {}}, "scores lacks text_inclusion"), ({"domain": "fish"}, "domain is not 'bird': 'fish'"),
    ({"scores": {"text_inclusion": [1, 7], "thought_not_said": [0, 0]}}, "text_inclusion is not 0 or 1: 7"),
    ({"scores": {"text_inclusion": [1, 1], "thought_not_said": [0, 0.5]}}, "thought_not_said is not 0 or 1"),
    ({"colour": "red"}, "it holds 'colour'"), ({"id": "toy-bird/9"}, "they have changed, give another --out"),
    ({"adapter": "other"}, "they have changed"), ({"id": None}, "with None, the data with toy-bird/"),
    ({"unreadable": "no"}, "it holds '.*', which is nothing of its own"),
])
def test_a_record_that_this_command_has_not_written_is_refused(change, words, monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--n", "2", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    lines[3] = json.dumps(json.loads(lines[3]) | change) + "\n"
    (tmp_path / "out.jsonl").write_text("".join(lines))
    refused(monkeypatch, tmp_path, argv, f"out.jsonl, line 4 .*{words}")


def test_a_record_without_a_field_is_refused(monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    lines = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    for key in ("categories", "texts", "answers", "truth", "scores", "domain", "id", "data"):
        record = json.loads(lines[3])
        del record[key]
        (tmp_path / "out.jsonl").write_text("".join([*lines[:3], json.dumps(record) + "\n", *lines[4:]]))
        refused(monkeypatch, tmp_path, argv, "out.jsonl, line 4")


@pytest.mark.parametrize("content", [
    '{"image": "a.jpg", "label": "robin"}\n', '{"image": "a.jpg", "label": "robin"}', "notes", "\n", "[]\n",
    '{"arguments": {}}', '{"arguments": {}}\n', '{"arg', "[" * 10**5 + "\n"])
def test_somebody_elses_lines_are_neither_appended_to_nor_cut(content, monkeypatch, tmp_path):
    """With a line's end and without."""
    (tmp_path / "out.jsonl").write_text(content)
    if content == '{"arg':  # which could be ours, after a kill
        assert run(monkeypatch, "--data", "toy-bird", "--out", tmp_path / "out.json")
        return
    refused(monkeypatch, tmp_path, ["--data", "toy-bird", "--out", tmp_path / "out.json"], "out.jsonl")


@pytest.mark.parametrize("end", [b'{"adapter": "none", "data": "toy-fish", "id"', b"x", b'{"image": 1}'])
def test_a_half_line_of_somebody_elses_is_not_cut_off(end, monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_bytes(b"".join(lines[:4]) + end)
    refused(monkeypatch, tmp_path, argv, "ends in what is no record of this evaluation")
    (tmp_path / "out.jsonl").write_bytes(b"".join(lines) + end)  # there is nothing left to write
    refused(monkeypatch, tmp_path, argv, "more answers than there are images")


def test_arguments_beside_those_of_the_command_are_others(monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    text = (tmp_path / "out.jsonl").read_text()
    (tmp_path / "out.jsonl").write_text(text.replace('{"arguments": {', '{"arguments": {"top_k": 3, ', 1))
    refused(monkeypatch, tmp_path, argv, "top_k was 3, now not there")


def test_two_evaluations_at_one_file(monkeypatch, tmp_path):
    """The second is told who writes there; the first ends as if nothing had been."""
    argv = ["--data", "toy-bird", "--rows", "4", "--out", tmp_path / "out.json"]
    said = []

    def change(e, adapter, answers):
        if not said:
            said.append("")
            with pytest.raises(SystemExit) as stop:
                ev.main(trees.with_options(["--limit", "10"], *map(str, argv)))
            said.append(str(stop.value))
        return answers

    run(monkeypatch, *argv, change=change)
    assert said[1].startswith(f"evaluate.py: {tmp_path / 'out.jsonl'} is in use by process {os.getpid()} on ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.json", "out.jsonl"]


@pytest.mark.parametrize("how", ["folder", "file"])
def test_what_is_deleted_while_it_is_written_ends_the_command(how, monkeypatch, tmp_path):
    """Its folder, or the file of answers alone: no second half in a new file."""
    folder = tmp_path / "figures"
    calls = []

    def change(e, adapter, answers):
        calls.append(1)
        if len(calls) == 6:  # in the second batch
            shutil.rmtree(folder) if how == "folder" else (folder / "out.jsonl").unlink()
        return answers

    with pytest.raises(SystemExit, match="out.jsonl was deleted"):
        run(monkeypatch, "--data", "toy-bird", "--rows", "4", "--out", folder / "out.json", change=change)
    assert not (folder / "out.jsonl").exists() and not (folder / "out.json").exists()


@pytest.mark.parametrize("fault", ["kill", "torn", "full"])
def test_an_evaluation_that_stops_at_any_change_of_a_file_goes_on(fault, monkeypatch, tmp_path):
    folder = tmp_path / "figures"
    argv = ["--data", "toy-bird", "--rows", "4", "--out", folder / "out.json"]
    run(monkeypatch, *argv)
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    moment = 0
    while True:
        moment += 1
        shutil.rmtree(folder)
        torn = b'{"arguments": {"da' if fault == "torn" else b""
        said = stopped_at(folder, moment, fault, lambda: run(monkeypatch, *argv), torn)
        if said is None:
            break
        if fault == "torn" and folder.exists():  # a half line is the beginning of the one that belongs there
            mend_torn(folder / "out.jsonl", whole["out.jsonl"], torn)
        run(monkeypatch, *argv)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole, (moment, said)
    assert moment > 4


def mend_torn(file, whole, torn):
    """Puts the beginning of the next line in place of what the disk has left of it."""
    if file.exists() and file.read_bytes().endswith(torn):
        length = file.stat().st_size - len(torn)
        file.write_bytes(whole[:length + 40])


def test_no_more_than_two_batches_of_answers_are_in_memory(monkeypatch, tmp_path):
    class Text(str):
        pass

    made, alive = [], []

    def change(e, adapter, answers):
        alive.append(sum(ref() is not None for ref in made))
        answers = [Text(a or "x") for a in answers]
        made.extend(map(weakref.ref, answers))
        return answers

    run(monkeypatch, "--limit", "60", "--data", "toy-bird", "--n", "64", "--rows", "128", change=change)
    assert len(made) == 60 * 64 and max(alive) <= 2 * 128


def test_one_policy_at_a_time_is_in_memory(monkeypatch, adapters):
    """And one is loaded only when the first of its datasets is asked for, once for all of them."""
    loaded, alive = [], []

    def load(adapter):
        alive.append(sum(ref() is not None for ref in loaded))
        policy = Stub(adapter)
        loaded.append(weakref.ref(policy))
        return policy

    run(monkeypatch, "--data", "toy-bird,toy-fish", "--adapter", "none", *adapters, load=load)
    assert alive == [0, 0, 0]


def test_a_judge_that_is_gone_stops_it_and_is_no_result(monkeypatch, tmp_path):
    argv = ["--data", "toy-bird", "--n", "8", "--rows", "16", "--out", tmp_path / "out.json"]
    real = TaxonomyJudge(world.parents())
    calls = []

    def dying(pairs):
        calls.append(1)
        return real(pairs) if len(calls) < 3 else [None] * len(pairs)

    monkeypatch.setattr(ev, "load_judge", lambda *_: dying)
    with pytest.raises(SystemExit, match="the judge failed on .* of 16 answers.*goes on"):
        run(monkeypatch, *argv)
    monkeypatch.setattr(ev, "load_judge", lambda *_: real)
    assert len(run(monkeypatch, *argv)) == 5 - 2
    assert results(tmp_path)["none"]["toy-bird"]["summary"]["judge_errors"] == 0


def test_difference_to_the_first_over_what_both_could_judge(monkeypatch, tmp_path, adapters, capsys):
    """Ten images; `one` is right, `two` backs off: -.5 in specificity on the nine that both have a verdict
    for."""
    ids = [e.id for e in data.load("toy-bird", "test", limit=10)]

    def change(e, adapter, answers):
        return [e.label if "one" in adapter else "???" if e.id == ids[3] else e.domain]

    real = TaxonomyJudge(world.parents())
    monkeypatch.setattr(ev, "load_judge", lambda *_: lambda pairs: [
        None if a == "???" else v for (_, a), v in zip(pairs, real(pairs))])
    run(monkeypatch, "--data", "toy-bird", "--adapter", *adapters, "--out", tmp_path / "out.json",
        change=change)
    one, two = (results(tmp_path)[str(a)]["toy-bird"] for a in adapters)
    assert (one["images"], two["images"], two["summary"]["judge_errors"]) == (10, 9, 1)
    assert "difference" not in one and two["difference"]["images"] == 9
    assert two["difference"]["summary"] == pytest.approx(
        {"correctness": 0, "specificity": -.5, "harmonic_mean": -1 / 3})
    assert two["difference"]["intervals"]["specificity"] == [-.5, -.5]
    line = next(x for x in capsys.readouterr().out.splitlines() if "minus one" in x)
    assert line.split()[2:] == ["+0.000", "[+0.000", "+0.000]", "-0.500", "[-0.500", "-0.500]", "-0.333",
                                "[-0.333", "-0.333]", "9"]


def test_means_are_of_the_datasets_own_figures(monkeypatch, tmp_path, capsys):
    """The two families of datasets, by name; their figures are averaged, HM included."""
    monkeypatch.setattr(metrics, "FAMILIES", {"fine-grained": ("toy-bird", "toy-fish", "toy-flower"),
                                              "very fine-grained": ("toy-vehicle", "toy-car")})

    def change(e, adapter, answers):
        return [{"bird": e.label, "fish": e.domain, "vehicle": "rose"}[e.domain]]
    run(monkeypatch, "--data", "toy-bird,toy-fish,toy-vehicle", "--out", tmp_path / "out.json", change=change)
    found = results(tmp_path)["none"]
    assert list(found)[3:] == ["mean of 3", "fine-grained (2 of 3)"]
    assert found["fine-grained (2 of 3)"]["summary"] == pytest.approx(
        {"correctness": 1, "specificity": .75, "harmonic_mean": (1 + 2 / 3) / 2})
    assert found["mean of 3"]["summary"]["harmonic_mean"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["mean of 3"]["datasets"] == ["toy-bird", "toy-fish", "toy-vehicle"]
    assert found["mean of 3"]["scores"] == pytest.approx({"text_inclusion": 1 / 3, "thought_not_said": 2 / 3})
    assert max(map(len, capsys.readouterr().out.splitlines())) < 140


def test_thought_not_said():
    def named(text, answer, truth="Golden-winged Warbler"):
        return thought_not_said(truth, text, answer)
    assert named("<think>A golden-winged\n warbler, I'd say.</think><answer>a bird</answer>", "a bird")
    assert named("<think>golden-winged warbler <answer>bird</answer>", "bird")  # never closed: reasoning too
    assert named("<think><answer>golden-winged warbler</answer></think><answer>bird</answer>", "bird")
    assert not named("<think>golden-winged warblers</think><answer>bird</answer>", "bird")  # whole words
    said = "The GOLDEN-WINGED warbler!"
    assert not named(f"<think>golden-winged warbler</think><answer>{said}</answer>", said)
    second = "<answer>bird</answer><answer>golden-winged warbler</answer>"  # is no reasoning
    assert not named(f"<think>no idea</think>{second}", "bird")
    assert not named("<think>golden-winged warbler</think>", None)  # malformed is counted as that


def test_titles():
    assert tables.titles(["none", "runs/a/adapter", "b/"]) == ["base", "a", "b"]
    assert tables.titles(["x/a/adapter", "y/a/adapter"]) == ["x/a/adapter", "y/a/adapter"]


@pytest.fixture
def encoder(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "finch", "bird", "blue", "of", "prey"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=48, max_position_embeddings=24, initializer_range=0.5)
    BertModel(config).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")


def test_embedder_by_hand(encoder):
    """Padded to the longest or alone, a text has the same vector: its tokens' mean, of length 1."""
    texts = ["red finch", "a bird of prey", "bird", "a " * 60]
    together = load_embedder(encoder)(texts)
    model, tok = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)
    for text, vector in zip(texts, together):
        ids = tok(text)["input_ids"]
        ids = torch.tensor([ids if len(ids) <= 24 else [*ids[:23], ids[-1]]])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state[0].sum(0) / ids.shape[1]
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-6)
    assert not torch.allclose(together[0], together[2], atol=.01)


def test_semantic_similarity_in_the_table(encoder, monkeypatch, tmp_path, capsys):
    """Three answers an image: the truth (1), another (the dot product), and none to judge (0)."""
    run(monkeypatch, "--data", "toy-bird", "--n", "3", "--embedder", encoder, "--out", tmp_path / "out.json",
        change=lambda e, adapter, answers: [e.label, "bird", None])
    embed = load_embedder(encoder)
    truths = [e.label for e in data.load("toy-bird", "test", limit=10)]
    dots = [float(embed([t])[0] @ embed(["bird"])[0]) for t in truths]
    score = results(tmp_path)["none"]["toy-bird"]["scores"]
    assert score["semantic_similarity"] == pytest.approx((10 + sum(dots)) / 30, abs=2e-6)
    assert score["concept_similarity"] == pytest.approx((10 + sum(dots)) / 30, abs=2e-6)  # one concept each
    assert score["text_inclusion"] == pytest.approx(1 / 3) and "similar" in capsys.readouterr().out


def test_a_language_model_says_which_answers_hold_the_truth(tok, tmp_path, monkeypatch, capsys):
    """Yes where yes and Yes together are likelier than no and No, as a plain forward of each pair's own
    prompt says. Each different pair is asked once, equal names never."""
    chat_model("llama", tok).save_pretrained(tmp_path / "llm")
    tok.save_pretrained(tmp_path / "llm")
    inclusion = InclusionModel.load(str(tmp_path / "llm"))
    truths = ["red finch", "owl"]
    answers = [["a finch", None, "A finch!", "Red finch."], ["barn owl", "a finch"]]
    asked = []
    logprobs = inclusion.logprobs
    inclusion.logprobs = lambda pairs: asked.append(list(pairs)) or logprobs(pairs)
    found = inclusion(truths, answers)
    assert asked == [[("red finch", "a finch"), ("owl", "barn owl"), ("owl", "a finch")]]
    assert found[0][1] == 0 and found[0][3] == 1

    first = [tok.convert_ids_to_tokens(token) for token in inclusion.first_tokens]
    assert all(word.startswith(token) for word, token in zip(("no", "No", "yes", "Yes"), first))
    for truth, answer, score in [("red finch", "a finch", found[0][0]), ("red finch", "a finch", found[0][2]),
                                 ("owl", "barn owl", found[1][0]), ("owl", "a finch", found[1][1])]:
        prompt = inclusion.render((truth, answer))
        assert f'"{truth}"' in prompt and f'"{answer}"' in prompt
        ids = tok(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = inclusion.model(input_ids=ids).logits[0, -1].softmax(-1)[inclusion.first_tokens]
        assert score == int(p[2] + p[3] > p[0] + p[1])
    forced = torch.tensor([[.3, .1, .2, .15], [.1, .3, .15, .3]]).log()  # .4 against .35, .4 against .45
    inclusion.logprobs = lambda pairs: forced
    assert inclusion.says_yes([("a", "b"), ("c", "d")]) == [0, 1]
    inclusion.logprobs = logprobs

    # in the table; it goes on from what is stored, and is kept where stored answers are judged
    argv = ["--data", "toy-bird", "--language-inclusion", tmp_path / "llm", "--out", tmp_path / "out.json"]
    run(monkeypatch, *argv)
    assert "holds" in capsys.readouterr().out
    table = results(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    scores = [record["scores"]["language_inclusion"] for record in records]
    assert scores == inclusion([r["truth"] for r in records], [r["answers"] for r in records])
    mean = table["none"]["toy-bird"]["scores"]["language_inclusion"]
    assert mean == pytest.approx(sum(map(sum, scores)) / 10)
    monkeypatch.setattr(ev, "load_scorers", None)
    assert run(monkeypatch, *argv) == []
    monkeypatch.undo()
    ev.main(["--answers", str(tmp_path / "out.jsonl"), "--out", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())["results"]
    assert again["none"]["toy-bird"]["scores"] == table["none"]["toy-bird"]["scores"]

    with torch.no_grad():
        inclusion.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(OSError, match="returned NaN"):
        inclusion(truths, answers)


def test_a_question_without_tags_has_nothing_to_choose_among_and_is_marked(monkeypatch, capsys):
    argv = ["--data", "cub", "--model", "m", "--prompt", "owc", "--n", "2", "--choose"]
    args = ev.parser().parse_args(argv)
    with pytest.raises(ValueError, match="--choose lists answers between tags"):
        ev.resolve(args)
    args.choose = False
    for question, is_marked in ((PROMPTS["owc"], True), (PROMPTS["base"], False)):
        monkeypatch.setattr(ev, "table", lambda systems: "")
        command = SimpleNamespace(model="m", temperature=0, judge="J", question=question, adapters=[])
        ev.print_results(args, command, {}, None)
        assert (ev.WHOLE_REPLIES in capsys.readouterr().out) == is_marked


def test_cars_are_compared_by_names_with_the_year_first():
    example = SimpleNamespace(label="Acura TL Sedan 2012", domain="cars")
    said = SimpleNamespace(answers=["a 2012 Acura TL Sedan", "Acura TL Sedan 2012"],
                           texts=["<answer>a 2012 Acura TL Sedan</answer>", "a 2012 Acura TL Sedan"])
    assert plain_scores(example, said) == {"text_inclusion": [1, 0], "thought_not_said": [0, 1]}
    scorers = {"seen": lambda truths, answers: [[truth] for truth in truths]}
    assert model_scores(scorers, [example], [said]) == [{"seen": ["2012 Acura TL Sedan"]}]
    example.domain = "food"
    assert plain_scores(example, said)["text_inclusion"] == [0, 1]


def test_evaluations_have_the_releases_tokens_and_whole_images(monkeypatch, tmp_path):
    """But not in the embedded world; a smaller limit is an option."""
    def arguments(*argv):
        args = ev.parser().parse_args([*argv, "--model", "m"])
        command = ev.resolve(args)
        return command.max_new_tokens, command.max_pixels

    assert arguments("--data", "cub") == (2048, None)
    assert arguments("--data", "toy-bird") == (16, None)
    assert arguments("--data", "cub", "--max-pixels", "784", "--max-new-tokens", "9") == (9, 784)
    run(monkeypatch, "--data", "toy-bird", "--n", "2", "--temperature", "0.6", "--top-p", "0.95",
        "--out", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["arguments"]["top_p"] == 0.95
    with pytest.raises(SystemExit, match="command: top_p was 0.95, now 0.9$"):
        run(monkeypatch, "--data", "toy-bird", "--n", "2", "--temperature", "0.6", "--top-p", "0.9",
            "--out", tmp_path / "out.json")


def test_datasets_prompts_and_protocol_reach_where_they_belong(monkeypatch):
    seen = []
    monkeypatch.setattr(data, "load", lambda *args, **kwargs: seen.append((args, kwargs)) or [])
    run(monkeypatch, "--data", "food,pets", "--root", "x", "--protocol", "coop", "--judge", "taxonomy",
        "--model", "m", "--prompt", "elimination")
    assert seen == [((name, "test", "x", 10), {"protocol": "coop"}) for name in ("food", "pets")]


def test_prompt_variants():
    assert list(PROMPTS) == ["base", "specific", "calibrated", "elimination", "high_precision",
                             "max_correctness", "max_specificity", "direct", "owc"]
    assert len(set(PROMPTS.values())) == 9
    # The same format; one allows no way out, one no thoughts, and one is another benchmark's.
    for name, text in PROMPTS.items():
        assert ("between <think> and </think>" in text) == (name not in ("direct", "owc"))
        assert ("between <answer> and </answer>" in text) == (name != "owc")
        assert ("or None if you cannot name it" in text) == (name not in ("max_specificity", "owc"))


# ------------------------------------------------------------------------------------------------------------


def test_own_pictures(checkpoint, tmp_path, capsys):
    tiny.pictures((60, 60))[0].save(tmp_path / "photo.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"")
    ev.main(["--image", str(tmp_path / "photo.jpg"), str(tmp_path / "bad.jpg"), "--model", str(checkpoint),
             "--n", "8", "--max-new-tokens", "24"])
    captured = capsys.readouterr()
    counts = [int(line.split()[0]) for line in captured.out.splitlines() if " of 8" in line]
    assert "greedy" in captured.out and sum(counts) == 8 and counts == sorted(counts, reverse=True)
    assert "bad.jpg" in captured.err


@pytest.mark.parametrize("argv, message", [
    (["--n", "0"], "--n must be at least 1"), (["--data", "cats"], "unknown dataset"),
    (["--n", "4", "--temperature", "0"], "give a temperature"), (["--prompt", "rude"], "unknown prompt"),
    (["--adapter", "nowhere"], "no adapter in nowhere"), (["--model", "no/such"], "no model at"),
    (["--image", "nothing.jpg"], "none of the pictures could be read"),
    (["--root", "nowhere"], "CUB-200-2011 is not in"), (["--judge", "broken.json"], "broken.json"),
    (["--temperature", "-1"], "--temperature must be 0 or more"), (["--rows", "0"], "--rows must be"),
    (["--temperature", "nan"], "--temperature must be 0 or more"),
    (["--out", "broken.json"], "broken.json holds something else: give another --out"),
    (["--out", "broken.json/x.json"], "broken.json"), (["--adapter", "."], "is broken"),
    (["--max-new-tokens", "0"], "--max-new-tokens must be"), (["--data", "cub,cub"], "one thing twice"),
    (["--max-pixels", "0"], "--max-pixels must be"), (["--data", "toy,toy-bird"], "holds an image twice"),
    (["--image", "x.jpg", "--out", "x.json"], "give --data for --out"),
    (["--image", "x.jpg", "--n", "2", "--temperature", "0"], "give a temperature"),
    (["--out", "x.jsonl"], "--out names the figures' JSON"), (["--out", ""], "--out must not be empty"),
    (["--out", "."], "--out names the figures'"),
    (["--embedder", "nowhere"], "cannot load the embedder 'nowhere'"),
    (["--max-unreadable", "1.1"], "--max-unreadable must be in [0, 1]"),
    (["--max-unreadable", "nan"], "--max-unreadable must be in [0, 1]"),
    (["--image", "caf\udce9.jpg"], r"--image 'caf\udce9.jpg' is not UTF-8"),
    (["--adapter", "caf\udce9"], r"--adapter 'caf\udce9' is not UTF-8"),
])
def test_mistakes_end_in_one_line(checkpoint, cub, tree, tmp_path, argv, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.json", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{")
    base = {"--data": "cub", "--root": str(cub), "--model": str(checkpoint), "--judge": tree}
    with pytest.raises(SystemExit) as e:
        ev.main([x for pair in (base | dict(zip(argv[::2], argv[1::2]))).items() for x in pair])
    assert message in str(e.value) and "\n" not in str(e.value)
    assert (tmp_path / "broken.json").read_text() == "{"


def test_a_full_disk_ends_in_one_line(monkeypatch, tmp_path):
    class Full:
        def open(self, *mode, **options):
            raise OSError(28, "No space left on device")
        __str__ = staticmethod(lambda: "x.jsonl")

    with pytest.raises(OSError, match="cannot write x.jsonl: No space left"):
        append(Full(), [])


@pytest.mark.parametrize("whole_batches", [0, 2])
def test_what_is_said_to_stand_stands(monkeypatch, tmp_path, whole_batches):
    real, calls = append, []

    def full(path, lines):
        calls.append(path)
        if len(calls) > whole_batches:
            raise OSError(f"cannot write {path}: No space left on device")
        real(path, lines)

    argv = ["--data", "toy-bird", "--rows", "4", "--out", tmp_path / "out.json"]
    monkeypatch.setattr("support.answers.append", full)
    with pytest.raises(SystemExit) as e:
        run(monkeypatch, *argv)
    goes_on = "; what is written stands, the same command goes on"
    assert str(e.value) == (f"evaluate.py: cannot write {tmp_path / 'out.jsonl'}: No space left on device"
                            + goes_on * bool(whole_batches))
    monkeypatch.setattr("support.answers.append", real)
    assert len(run(monkeypatch, *argv)) == 3 - whole_batches


def test_comparison_averages_the_unseen_sets_own_figures():
    def cell(hm):
        return {"correctness": 1.0, "specificity": hm, "harmonic_mean": hm, "n": 10, "malformed": 0}
    sets = {"toy-bird": (0.5, 0.9), "toy-fish": (0.2, 0.6), "toy-flower": (0.4, 0.7)}
    results = {"greedy": {name: {"before": cell(a), "after": cell(b)} for name, (a, b) in sets.items()}}
    text = tables.comparison(results, ["toy"]).splitlines()
    assert "toy-bird (trained on)" in text[1]
    assert "mean of the unseen" in text[-1] and text[-1].split()[-3:] == ["0.300", "->", "0.650"]
