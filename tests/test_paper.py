"""benchmarks/paper.py: every command of the paper's tables parses and runs, what it costs by hand, what is
skipped."""

import copy
import functools
import importlib
import json
import os
import shlex

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import metrics
import policy
import train
import trees
from baselines import sft
from benchmarks import paper
from test_cased import save_clip

TRAIN_OPTIONS = ("--steps 1 --images-per-step 2 --minibatch 1 --micro-batch 1 --lora-rank 2 --eval-every 0 "
                 "--eval-limit 1 --max-pixels 3136 --judge-cache none")
EVALUATION_OPTIONS = "--max-new-tokens 4 --max-pixels 3136 --judge-cache none"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    """Its commands are for the repository's folder."""
    monkeypatch.chdir(paper.ROOT)


def arguments(*argv):
    return paper.read_arguments(["--root", "DIR", *argv])


def all_commands(args) -> list[paper.Command]:
    """Every distinct one, in order; nothing is there."""
    return paper.missing_commands(args)


def command_for(args, name: str) -> paper.Command:
    """The one whose result has this name."""
    return next(command for command in all_commands(args) if f"{name}-seed0" in str(command.result))


# ---- what is run


def test_the_main_training_and_its_evaluation_word_for_word(tmp_path):
    """The paper's settings: N = 10, 2,048 tokens, birds; tested on the five other sets by CoOp's splits."""
    args = arguments("--out", str(tmp_path), "--tables", "main")
    lines = [command.shown() for command in all_commands(args)]
    sets = "--data flowers,food,pets,cars,aircraft --protocol coop --root DIR"
    judge = "--judge meta-llama/Llama-3.1-8B-Instruct"
    assert lines == [
        f"python evaluate.py {sets} --max-new-tokens 2048 {judge} --out {tmp_path}/base.json",
        f"python evaluate.py {sets} --max-new-tokens 2048 --prompt specific {judge} "
        f"--out {tmp_path}/prompt-specific.json",
        f"python -m baselines.sft --data cub --n 10 --max-new-tokens 2048 --root DIR --seed 0 "
        f"--out {tmp_path}/sft-seed0",
        f"python evaluate.py {sets} --adapter {tmp_path}/sft-seed0 --max-new-tokens 2048 {judge} "
        f"--out {tmp_path}/sft-seed0.json",
        f"python train.py --data cub --n 10 --max-new-tokens 2048 --root DIR --reward exact --seed 0 "
        f"--out {tmp_path}/exact-seed0",
        f"python evaluate.py {sets} --adapter {tmp_path}/exact-seed0 --max-new-tokens 2048 {judge} "
        f"--out {tmp_path}/exact-seed0.json",
        f"python train.py --data cub --n 10 --max-new-tokens 2048 --root DIR --seed 0 "
        f"--out {tmp_path}/speciarl-seed0",
        f"python evaluate.py {sets} --adapter {tmp_path}/speciarl-seed0 --max-new-tokens 2048 {judge} "
        f"--out {tmp_path}/speciarl-seed0.json",
        f"python evaluate.py {sets} --max-new-tokens 2048 --n 64 --temperature 0.6 --top-p 0.95 --seed 0 "
        f"{judge} --out {tmp_path}/best-of-64-seed0.json"]


def test_trainings_are_the_releases(tmp_path):
    """Each training as its program reads it, against the release's settings: what differs from the main
    one."""
    args = arguments("--out", str(tmp_path))
    main = paper.config_of(command_for(args, "speciarl"))
    assert (main.data, main.n, main.images_per_step, main.minibatch, main.epochs, main.limit) == (
        "cub", 10, 256, 128, 15, 3000)
    assert (main.loss, main.beta, main.lr, main.max_new_tokens, main.reward) == (
        "grpo", 0.01, 3e-5, 2048, "speciarl")
    expected = {
        "sft": dict(method="sft", beta=0.0),
        "exact": dict(reward="exact"),
        "graded_abstain": dict(reward="graded_abstain"),
        "graded": dict(reward="graded"),
        "close": dict(reward="close"),
        "n5": dict(n=5),
        "n15": dict(n=15),
        "images128": dict(limit=128, images_per_step=128),
        "images1024": dict(limit=1024),
        "images2048": dict(limit=2048),
        "on-flowers": dict(data="flowers", protocol="coop"),
        "on-food": dict(data="food", protocol="coop"),
        "on-pets": dict(data="pets", protocol="coop"),
        "on-cars": dict(data="cars", protocol="coop"),
        "on-aircraft": dict(data="aircraft", protocol="coop"),
        "on-all": dict(data="cub,food,flowers,pets,aircraft,cars", protocol="coop", limit=500),
        "dr_grpo": dict(loss="dr_grpo", beta=0.0),
        "dapo": dict(loss="dapo", beta=0.0, clip_high=0.28, overlong_buffer=512),
        "dapo-dynamic": dict(loss="dapo", beta=0.0, clip_high=0.28, overlong_buffer=512,
                             dynamic_sampling=True),
        "noise5": dict(limit=1024, noise=0.05),
        "noise10": dict(limit=1024, noise=0.1),
        "noise25": dict(limit=1024, noise=0.25),
        "direct": dict(prompt="direct"),
        "length-penalty": dict(length_penalty=0.1),
    }
    found = {}
    for command in all_commands(args):
        if command.kind not in ("train", "sft"):
            continue
        config = vars(paper.config_of(command))
        name = command.leaves.name.removesuffix("-seed0")
        found[name] = {key: value for key, value in config.items()
                       if key != "out" and value != vars(main)[key]}
    assert found.pop("speciarl") == {}
    assert found == expected


def test_cased_is_there_with_captions(tmp_path):
    """Its answers by its own command, and their figures as stored answers; once those are there, neither."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a bird")
    args = arguments("--out", str(tmp_path), "--tables", "main", "--captions", str(captions),
                     "--cased-options", "--clip C", "--eval-options", "--rows 9 --judge-tokens 5")
    sets = "--data flowers,food,pets,cars,aircraft --protocol coop --root DIR"
    assert [command.shown() for command in all_commands(args)[-2:]] == [
        f"python -m baselines.cased {sets} --clip C --captions {captions} "
        f"--out {tmp_path}/cased-answers.jsonl",
        f"python evaluate.py --answers {tmp_path}/cased-answers.jsonl {sets} "
        f"--judge meta-llama/Llama-3.1-8B-Instruct --judge-tokens 5 --out {tmp_path}/cased.json"]
    assert [paper.hours(command, 150) is None for command in all_commands(args)[-2:]] == [True, False]
    figures(tmp_path, "cased", 0.5)
    assert all_commands(args)[-1].result.name == "best-of-64-seed0.json"


def test_every_evaluation_parses_and_is_never_on_what_was_trained_on(tmp_path):
    """Flowers and food share images across the protocols: whoever trains on them does so by CoOp's."""
    args = arguments("--out", str(tmp_path))
    for command in all_commands(args):
        if command.kind in ("evaluate", "measure"):
            options = paper.evaluation_options(command)
            assert (options.protocol, options.data) == ("coop", "flowers,food,pets,cars,aircraft")
        else:
            config = paper.config_of(command)
            assert config.data == "cub" or config.protocol == "coop"


def test_what_rows_share_is_run_once(tmp_path, capsys):
    args = arguments("--out", str(tmp_path))
    commands = all_commands(args)
    results = [str(command.result) for command in commands]
    assert len(set(results)) == len(results)
    assert len([c for c in commands if c.kind in ("train", "sft")]) == len(paper.TRAININGS) == 25

    paper.main(["--root", "DIR", "--out", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("python ")] == [c.shown() for c in commands]
    assert all(line.startswith(("python ", "#")) or not line for line in printed)  # a shell script
    assert printed.count(f"# as in main, SpeciaRL: {tmp_path}/speciarl-seed0.json") == 7
    assert printed.count(f"# as in data, 1,024: {tmp_path}/images1024-seed0.json") == 1


def test_seeds_are_of_what_is_drawn(tmp_path):
    """Greedy answers of the model as it came have no seed."""
    args = arguments("--out", str(tmp_path), "--tables", "main", "--seeds", "3", "4")
    results = [str(command.result.relative_to(tmp_path)) for command in all_commands(args)]
    assert results[:2] == ["base.json", "prompt-specific.json"]
    assert results[-4:] == ["speciarl-seed4/eval.json", "speciarl-seed4.json", "best-of-64-seed3.json",
                            "best-of-64-seed4.json"]
    assert len(results) == 2 + 2 * (3 * 2 + 1)


def test_the_users_options_win_and_stand_once(tmp_path):
    args = arguments("--out", str(tmp_path / "a b"), "--tables", "n", "--judge", "J", "--model", "M",
                     "--train-options", "--n 3 --lr=1e-4 --no-checkpointing", "--eval-options", "--rows 9")
    first, second = all_commands(args)[:2]
    assert shlex.split(first.shown()) == [
        "python", "train.py", "--data", "cub", "--n", "3", "--max-new-tokens", "2048", "--root", "DIR",
        "--model", "M", "--judge", "J", "--lr", "1e-4", "--no-checkpointing", "--seed", "0",
        "--out", f"{tmp_path}/a b/n5-seed0"]
    assert second.words[-4:] == ["--rows", "9", "--out", f"{tmp_path}/a b/n5-seed0.json"]
    assert second.words[second.words.index("--model") + 1] == "M"


# ---- what it costs


def seconds(args, name: str, answer_tokens: int = 150) -> tuple[float, float]:
    expected, most = paper.hours(command_for(args, name), answer_tokens)
    return expected * 3600, most * 3600


@pytest.mark.parametrize("rows, step", [(1024, 131), (256, 205)])
def test_a_step_costs_what_speed_md_says(tmp_path, rows, step):
    """At 512 tokens, the table of cards: 131 seconds a step with 1,024 rows, 205 with 256."""
    args = arguments("--out", str(tmp_path), "--max-new-tokens", "512", "--tables", "main",
                     "--train-options", f"--rows {rows} --eval-every 0 --eval-limit 1 --steps 1000")
    one_step = paper.step_seconds(paper.config_of(command_for(args, "speciarl")), 1.0, 150, 150)
    assert one_step == pytest.approx(step, abs=1)


def test_a_trainings_hours_by_hand(tmp_path):
    """The paper's run at 2,048 tokens: 338 answers at a time, and so 7.6 rounds of 150 tokens a step."""
    args = arguments("--out", str(tmp_path))
    rows = 42e9 // (59_000 * (2048 + 572 / 10))
    assert rows == 338
    rollout = 256 * 0.052 + 2560 / rows * 150 * 0.066
    step = rollout + 3.0 + 63.8 + 16.7 + 9.7
    one = 300 * 0.052 + 300 / 256 * 150 * 0.066 + 300 * 3 / 2560  # a validation, or a test
    assert seconds(args, "speciarl")[0] == pytest.approx(165 * step + (1 + 33 + 4) * one)
    # At most: every round lasts 2,048 tokens.
    more = 165 * 2560 / rows * 1898 * 0.066 + 38 * 300 / 256 * 1898 * 0.066
    assert seconds(args, "speciarl")[1] == pytest.approx(165 * step + 38 * one + more)

    # N = 5: half the answers, each with a larger share of its prompt, and 1,150 of 1,900 tokens an image.
    step = 256 * 0.052 + 1280 / 329 * 9.9 + 1.5 + (63.8 + 16.7 + 9.7) * 1150 / 1900
    assert seconds(args, "n5")[0] == pytest.approx(165 * step + 38 * one)

    # 128 images: 15 steps of one minibatch, which has no old log-probs of its own; three validations.
    step = 128 * 0.052 + 1280 / rows * 9.9 + 1.5 + (63.8 + 16.7) / 2
    assert seconds(args, "images128")[0] == pytest.approx(15 * step + (1 + 3 + 4) * one)

    # No KL: no reference. DAPO's dynamic sampling: three batches of answers.
    plain = 165 * (rollout + 3.0 + 63.8 + 9.7) + 38 * one
    assert seconds(args, "dr_grpo")[0] == seconds(args, "dapo")[0] == pytest.approx(plain)
    assert seconds(args, "dapo-dynamic")[0] == pytest.approx(plain + 165 * 2 * (rollout + 3.0))

    # Labels: the image, and 415 of 1,900 tokens an image in the update.
    step = 256 * 0.052 + 63.8 * 415 / 1900
    assert seconds(args, "sft")[0] == pytest.approx(165 * step + 38 * one)

    # Pets: CoOp's 2,944 images are 11 steps an epoch too. All six: 3,000 images, six validations.
    assert seconds(args, "on-pets")[0] == seconds(args, "speciarl")[0]
    assert seconds(args, "on-all")[0] > seconds(args, "speciarl")[0] + 38 * 5 * one


def test_an_evaluations_hours_by_hand(tmp_path):
    """47,806 test images, 256 at a time; a picture of Aircraft counts as eight of CUB's. Of them as many are
    answered at a time as have the pixels of 256 smaller ones; of 64 answers an image as many as have the
    tokens, own and of the prompt."""
    args = arguments("--out", str(tmp_path))
    sets = {"flowers": 2463, "food": 30300, "pets": 3669, "cars": 8041, "aircraft": 8 * 3333}
    images = 2463 + 30300 + 3669 + 8041 + 3333
    assert 42e9 // (59_000 * (2048 + 572)) == 271
    rounds = (2463 + 30300 + 3669 + 8041) / 256 + 3333 / (256 * 512 * 784 / 1_500_000)
    by_hand = sum(sets.values()) * 0.052 + rounds * 150 * 0.066 + images * 3 / 2560
    evaluated = next(c for c in all_commands(args) if c.result == tmp_path / "speciarl-seed0.json")
    assert paper.hours(evaluated, 150)[0] * 3600 == pytest.approx(by_hand)
    best = next(c for c in all_commands(args) if "best-of-64" in str(c.result))
    few = 256 * (2048 + 572 / 64) / (2048 + (60 + 1_500_000 / 784) / 64)
    rounds_of_64 = 64 * (2463 + 30300 + 3669 + 8041) / 256 + 64 * 3333 / few
    by_hand = sum(sets.values()) * 0.052 + rounds_of_64 * 150 * 0.066 + 64 * images * 3 / 2560
    assert paper.hours(best, 150)[0] * 3600 == pytest.approx(by_hand)

    # Without thinking an answer has 15 tokens. Scores by further models were not measured.
    direct = next(c for c in all_commands(args) if c.result == tmp_path / "prompt-direct.json")
    by_hand = sum(sets.values()) * 0.052 + rounds * 15 * 0.066 + images * 3 / 2560
    assert paper.hours(direct, 150)[0] * 3600 == pytest.approx(by_hand)
    further = next(c for c in all_commands(args) if "broader" in str(c.result))
    assert paper.hours(further, 150) is None


def test_paper_md_says_what_it_computes(tmp_path):
    """Each table's trainings and hours, alone and all together."""
    page = (paper.ROOT / "docs/paper.md").read_text()
    for tables in [*[[name] for name in paper.TABLES], list(paper.TABLES)]:
        commands = all_commands(arguments("--out", str(tmp_path), "--tables", *tables))
        costs = [cost for cost in (paper.hours(command, 150) for command in commands) if cost]
        expected, most = [paper.amount(sum(numbers)) for numbers in zip(*costs)]
        trainings = sum(command.kind in ("train", "sft") for command in commands)
        title = f"`{tables[0]}`" if len(tables) == 1 else "all of them"
        line = next(line for line in page.splitlines() if line.startswith(f"| {title} |"))
        _, _, _, said, hours, at_most, _ = [cell.strip() for cell in line.split("|")]
        said = said.removeprefix("the same ")
        hours = hours.removesuffix(" and what is not measured")
        assert (int(said), hours, at_most) == (trainings, expected, most), title


# ---- what is there


def test_what_is_there_is_skipped(tmp_path):
    """A finished run, and figures whose run was deleted since."""
    args = arguments("--out", str(tmp_path), "--tables", "n")
    names = [command.result.relative_to(tmp_path) for command in all_commands(args)]
    assert [str(name) for name in names] == [
        "n5-seed0/eval.json", "n5-seed0.json", "speciarl-seed0/eval.json", "speciarl-seed0.json",
        "n15-seed0/eval.json", "n15-seed0.json"]
    (tmp_path / "n5-seed0").mkdir()
    (tmp_path / "n5-seed0/eval.json").write_text("{}")
    (tmp_path / "n15-seed0.json").write_text("{}")
    assert [c.result.relative_to(tmp_path) for c in all_commands(args)] == names[1:4]

    # Further scores need the answers, not the run that gave them.
    args = arguments("--out", str(tmp_path), "--tables", "broader")
    (tmp_path / "speciarl-seed0.json").write_text("{}")
    last = all_commands(args)[-1].result.relative_to(tmp_path)
    assert str(last) == "speciarl-seed0-broader.json"
    assert str(all_commands(args)[-2].result.relative_to(tmp_path)) == "exact-seed0-broader.json"


def test_a_training_that_was_stopped_goes_on(tmp_path):
    args = arguments("--out", str(tmp_path), "--tables", "n")
    (tmp_path / "n5-seed0").mkdir()
    (tmp_path / "n5-seed0/config.json").write_text("{}")
    assert all_commands(args)[0].shown() == (f"python train.py --data cub --n 5 --max-new-tokens 2048 --root "
                                             f"DIR --seed 0 --resume {tmp_path}/n5-seed0")


@pytest.mark.parametrize("argv, line", [
    (["--train-options", "3"], "paper.py: --train-options: an option starts with --, got '3'"),
    (["--eval-options", "'"], "paper.py: --eval-options: No closing quotation"),
    (["--train-options", "--n 1"], "paper.py: runs/paper/sft-seed0: --n must be at least 2"),
    (["--captions", "nowhere.txt"], "paper.py: --captions nowhere.txt is no file"),
    (["--limit", "0"], "paper.py: --limit must be at least 1"),
    (["--seeds", "1", "1"], "paper.py: --seeds names one twice"),
    (["--out", __file__], "is a file")])
def test_mistakes_end_in_one_line(argv, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        paper.main(argv)
    assert line in stopped.value.code and "\n" not in stopped.value.code


def test_elsewhere_its_commands_would_not_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="start it in "):
        paper.main([])


def figures(out, name: str, correctness: float, n: int = 1, **arguments) -> None:
    """A figures' file as evaluate.py leaves it, with HM as correctness, less .1 on cars and aircraft."""
    results = {}
    for mean, value in (("fine-grained", correctness), ("very fine-grained", correctness - 0.1)):
        summary = {"correctness": value, "specificity": 0.5, "harmonic_mean": value}
        results[mean] = {"summary": summary, "scores": {"text_inclusion": value / 2}}
        if n > 1:
            best = {"correctness": 0.9, "specificity": 0.8, "harmonic_mean": 0.85}
            results[mean]["best_of"] = {"1": {"summary": summary}, str(n): {"summary": best}}
    (out / f"{name}.jsonl").write_text("")
    (out / f"{name}.json").write_text(json.dumps({"arguments": {"n": n} | arguments,
                                                  "results": {"none": results}}))


def test_the_tables_by_hand(tmp_path, capsys):
    """Two seeds of SpeciaRL, and one of best of 64; the paper's figures beside them."""
    figures(tmp_path, "base", 0.6)
    figures(tmp_path, "speciarl-seed0", 0.7)
    figures(tmp_path, "speciarl-seed1", 0.8)
    figures(tmp_path, "best-of-64-seed1", 0.5, n=64)
    figures(tmp_path, "base-broader", 0.6)
    paper.main(["--out", str(tmp_path), "--seeds", "0", "1", "--tables", "main", "n", "broader"])
    printed = capsys.readouterr().out
    assert printed.split("### The main table\n\n")[1].startswith("""\
| | fine-grained C / S / **HM** | very fine-grained C / S / **HM** | the paper's fine-grained HM |
|---|---|---|---|
| base | 0.600 / 0.500 / **0.600** | 0.500 / 0.500 / **0.500** | 0.790 |
| SpeciaRL | 0.750 / 0.500 / **0.750** ± 0.050 | 0.650 / 0.500 / **0.650** ± 0.050 | 0.883 |
| best of 64 | 0.900 / 0.800 / **0.850** | 0.900 / 0.800 / **0.850** | 0.933 |
""")
    assert "| N = 10 | 0.750 / 0.500 / **0.750** ± 0.050 | 0.650 / 0.500 / **0.650** ± 0.050 |\n" in printed
    assert printed.endswith("| | fine-grained: text inclusion | very fine-grained: text inclusion |\n"
                            "|---|---|---|\n| base | 0.300 | 0.250 |\n\n")


@pytest.mark.parametrize("made_by, line", [
    ({"limit": 5}, "base.json was made with --limit 5, not None: give another --out"),
    ({"judge": "J"}, "base.json was made with --judge J, not meta-llama/Llama-3.1-8B-Instruct: give another"),
    ({"max_new_tokens": 512}, "base.json was made with --max-new-tokens 512, not 2048: give another --out"),
    ({"model": "M"}, "base.json was made with --model M, not Qwen/Qwen2.5-VL-7B-Instruct: give another"),
    ({"max_pixels": 784}, "base.json was made with --max-pixels 784, not None: give another --out"),
    ({"split": "val"}, "base.json was made with --split val, not test: give another --out"),
    ({"judge_prompt": "short"}, "base.json was made with --judge-prompt short, not None: give another --out"),
    ({"choose": True}, "base.json was made with --choose True, not False: give another --out")])
def test_figures_of_another_command_are_refused(tmp_path, made_by, line):
    figures(tmp_path, "base", 0.6, **made_by)
    with pytest.raises(SystemExit, match=line):
        paper.main(["--out", str(tmp_path), "--tables", "main"])
    (tmp_path / "base.json").write_text("[]")
    with pytest.raises(SystemExit, match="^paper.py: .*base.json holds no figures of evaluate.py"):
        paper.main(["--out", str(tmp_path), "--tables", "main"])


def test_ctrl_c_waits_for_what_the_command_has_to_write(monkeypatch):
    waited = []

    class Process:
        def __init__(self, words):
            pass

        def wait(self):
            waited.append(1)
            if len(waited) == 1:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr(paper.subprocess, "Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        paper.execute(["train.py"])
    assert len(waited) == 2


def test_which_images_holds_wherever_something_is_measured(tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a bird")
    args = arguments("--out", str(tmp_path), "--tables", "main", "broader", "--captions", str(captions),
                     "--eval-options", "--limit 5 --split val --rows 9")
    measured = [command.shown() for command in all_commands(args) if command.kind not in ("train", "sft")]
    assert len(measured) == 13  # six evaluations of the main table, CaSED's two, five broader ones
    assert all("--limit 5 --split val" in words for words in measured)


@pytest.mark.parametrize("option", ["--train-options", "--eval-options", "--cased-options"])
def test_what_a_row_decides_is_no_option_of_the_users(option):
    with pytest.raises(SystemExit, match=f"{option}: --seed can't be given here"):
        paper.main([option, "--seed 7 --rows 3"])


# ---- all of it, run


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small encoder of texts with random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "finch", "bird", "mallard", "none"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=48, max_position_embeddings=24)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def in_this_process(words: list[str]) -> int:
    """What a process would do: the command's own main. Returns its exit status."""
    if words[0] == "-m":
        program, argv = words[1], words[2:]
    else:
        program, argv = words[0].removesuffix(".py"), words[1:]
    try:
        importlib.import_module(program).main(argv)
    except SystemExit as stop:
        print(stop.code)
        return 1
    return 0


def small(tmp_path, checkpoint, encoder, judge_folder) -> list[str]:
    """The command line at the size of the miniature trees."""
    tree = str(trees.all_sets(tmp_path))
    save_clip(tmp_path / "clip")
    (tmp_path / "captions.txt").write_text("a red bird\na bird on a red tree\nthe sky\n")
    return ["--root", str(tmp_path), "--out", str(tmp_path / "out"), "--model", str(checkpoint),
            "--judge", tree, "--eval-judge", tree, "--max-new-tokens", "16", "--limit", "1",
            "--embedder", str(encoder), "--language-inclusion", str(judge_folder),
            "--captions", str(tmp_path / "captions.txt"), "--cased-options", f"--clip {tmp_path / 'clip'}",
            "--train-options", TRAIN_OPTIONS, "--eval-options", EVALUATION_OPTIONS]


@pytest.fixture
def in_less_time(monkeypatch):
    """Without what takes most of the time of sixty commands and none of them is about: waiting for a disk,
    1,000 bootstrap draws, transformers' look at the type of every field of a config that it copies, the
    checkpoint read again and again, and the tests at the end of all trainings but the first."""
    drawn_sums = metrics.drawn_sums
    monkeypatch.setattr(metrics, "drawn_sums", lambda sums, resamples, seed: drawn_sums(sums, 20, seed))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr("huggingface_hub.dataclasses.type_validator", lambda name, value, kind: None)
    load = functools.cache(policy.load_checkpoint)
    monkeypatch.setattr(policy, "load_checkpoint", lambda *args: copy.deepcopy(load(*args)))
    before_and_after = train.before_and_after
    tested = []

    def tested_once(*args):
        if not tested:
            tested.append(before_and_after(*args))
        return tested[0]

    monkeypatch.setattr(train, "before_and_after", tested_once)


@pytest.mark.usefixtures("in_less_time")
def test_every_command_runs(tmp_path, checkpoint, encoder, judge_folder, monkeypatch, capsys):
    """Format-exact trees of all six sets, small checkpoints, one step: every training and evaluation of every
    table, and the tables. One training is stopped in its step: the same command goes on, and runs nothing
    twice."""
    argv = small(tmp_path, checkpoint, encoder, judge_folder)
    commands = all_commands(paper.read_arguments(argv))
    ran = []

    def execute(words):
        ran.append(words)
        if len(ran) != 3:
            return in_this_process(words)
        with monkeypatch.context() as patch:
            patch.setattr(sft, "update", interrupted)
            return in_this_process(words)

    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(paper, "execute", execute)
    with pytest.raises(SystemExit) as stopped:
        paper.main([*argv, "--run"])
    assert stopped.value.code == ("paper.py: this command ended with status 1, what is done is kept: "
                                  + commands[2].shown().replace("--resume", "--out"))
    assert ran == [command.words for command in commands[:3]]

    # It goes on; and then other settings are refused, before anything is run.
    paper.main([*argv, "--run"])
    resumed = [word.replace("--out", "--resume") for word in commands[2].words]
    assert ran[3:] == [resumed, *[command.words for command in commands[3:]]]
    other = [word.replace("--lora-rank 2", "--lora-rank 3") for word in argv]
    with pytest.raises(SystemExit, match="^paper.py: .*/sft-seed0: a resumed run keeps its settings: "
                                         "--lora-rank was 2, now 3$"):
        paper.main([*other, "--run"])

    # Everything is there, whatever memory is given now, and each table has all of its rows with figures.
    capsys.readouterr()
    paper.main([*[word.replace("--micro-batch 1", "--micro-batch 2") for word in argv], "--run"])
    printed = capsys.readouterr().out
    assert "missing: 0 commands" in printed and "begun" not in printed and "; missing" not in printed
    assert len(ran) == len(commands) + 1
    for table, rows in paper.TABLES.items():
        block = printed.split(f"### {paper.TITLES[table]}\n\n")[1].split("\n\n")[0].splitlines()
        shown = {line.split(" | ")[0].removeprefix("| "): line for line in block[2:]}
        assert list(shown) == [row.title for row in rows]
        shown.pop("CaSED", "")  # it has no figure of the paper's here
        assert not any(" - |" in line for line in shown.values())
    assert "| CaSED | 0." in printed
