import json

import pytest
import tiny
import trees

import data
import evaluate as ev
import policy as policies
from judge import JUDGE_ERROR
from reward import Category as C


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

    def ask(policy, examples, question, **kwargs):
        read, groups, unreadable = real(policy, examples, question, **kwargs)
        for group, answers in zip(groups, (["a", "b", None], ["c", "d", "e"])):
            group.answers = answers
        return read, groups, unreadable

    real = ev.ask
    monkeypatch.setattr(ev, "ask", ask)
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
    policy, judge = policies.load(checkpoint, max_pixels=3136), ev.load_judge(tree)
    examples = data.load("cub", "test", cub)
    args = policy, judge, examples, "what?", 2, 1.0, 8
    assert ev.evaluate(*args)["records"] == ev.evaluate(*args, rows=4)["records"]


def test_before_is_the_base_and_after_the_policy(policy, monkeypatch):
    enabled = []

    def measured(policy, *args, **kwargs):
        enabled.append({layer.enabled for layer in policies.lora_layers(policy.model).values()})
        return {"summary": ev.summarize([])}

    monkeypatch.setattr(ev, "evaluate", measured)
    results = ev.before_and_after(policy, None, {"cub": []}, "what?", 4, 0)
    assert enabled == [{False}, {False}, {True}, {True}]
    assert list(results["greedy"]["cub"]) == ["before", "after"]


def test_command_line_table_and_json(checkpoint, cub, tree, tmp_path, capsys):
    policy = policies.load(checkpoint, rank=2)
    policies.save_adapter(policy.model, tmp_path / "adapter", str(checkpoint))
    ev.main(["--data", "cub", "--root", str(cub), "--adapter", "none", str(tmp_path / "adapter"),
             "--judge", tree, "--n", "4", "--max-new-tokens", "24", "--max-pixels", "3136",
             "--out", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    # the model is the adapter's base
    assert f"{checkpoint}, prompt 'base', 4 samples at temperature 1.0" in printed
    assert printed.count("best of 4") == 2 and "base · cub" in printed
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    base, fresh = results["none"]["cub"], results[str(tmp_path / "adapter")]["cub"]
    # B = 0 changes nothing
    assert base["summary"] == fresh["summary"] and base["records"] == fresh["records"]
    assert base["summary"]["n"] == 48 and base["best_of_n"]["n"] == 12
    assert base["best_of_n"]["harmonic_mean"] >= base["summary"]["harmonic_mean"]
    low, high = base["intervals"]["correctness"]
    assert low <= base["summary"]["correctness"] <= high


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
    (["--temperature", "-1"], "--temperature must not be negative"),
])
def test_mistakes_end_in_one_line(checkpoint, cub, tree, tmp_path, argv, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    base = {"--data": "cub", "--root": str(cub), "--model": str(checkpoint), "--judge": tree}
    with pytest.raises(SystemExit) as e:
        ev.main([x for pair in (base | dict(zip(argv[::2], argv[1::2]))).items() for x in pair])
    assert message in str(e.value) and "\n" not in str(e.value)


def test_comparison_averages_the_unseen_sets_own_figures():
    def cell(hm):
        return {"correctness": 1.0, "specificity": hm, "harmonic_mean": hm, "n": 10, "malformed": 0}
    sets = {"toy-bird": (0.5, 0.9), "toy-fish": (0.2, 0.6), "toy-flower": (0.4, 0.7)}
    results = {"greedy": {name: {"before": cell(a), "after": cell(b)} for name, (a, b) in sets.items()}}
    text = ev.comparison(results, ["toy"]).splitlines()
    assert "toy-bird (trained on)" in text[1]
    assert "mean of the unseen" in text[-1] and text[-1].split()[-3:] == ["0.300", "->", "0.650"]
