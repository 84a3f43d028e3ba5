"""The ends of every number on the command lines, met before anything is opened."""

import json
from types import SimpleNamespace

import pytest

import evaluate
import train
from baselines import sft
from support.command_line import saved_config
from support.opening import load_judge
from train import Config

# What each option may be at its two ends, and values just beyond them.
ENDS = {
    "--n": ([2, 10_000], [1, 10_001, 100_000_000]),
    "--limit": ([1, 10 ** 9], [0, -5, 10 ** 20]),
    "--images-per-step": ([1, 10 ** 9], [0, 10 ** 20]),
    "--minibatch": ([1, 10 ** 9], [0, 10 ** 20]),
    "--micro-batch": ([1, 10 ** 9], [0, 10 ** 20]),
    "--rows": ([1, 10 ** 9], [0, 10 ** 20]),
    "--epochs": ([1, 10 ** 9], [0, 10 ** 20]),
    "--steps": ([1, 10 ** 9], [0, 10 ** 20, 10 ** 400]),
    "--lr": ([1e-12, 1], [0, -1, 1.1, "1e300", "inf", "nan", "1e999"]),
    "--warmup": ([0, 10 ** 6], [-1, 10 ** 20, 10 ** 400]),
    "--weight-decay": ([0, 10 ** 6], [-1, "1e300", "inf", "nan"]),
    "--beta": ([0, 10 ** 6], [-1, "1e300", "inf", "nan"]),
    "--clip-low": ([0, 10 ** 6], [-1, "1e300", "inf", "nan"]),
    "--clip-high": ([0, 10 ** 6], [-1, "1e300", "inf", "nan"]),
    "--odds": ([0, 10 ** 6], [-0.1, "1e300", "inf", "nan"]),
    "--overlong-buffer": ([1, 15], [0, -1, 16, 10 ** 20]),
    "--length-penalty": ([0, 10 ** 6], [-0.1, "1e300", "inf", "nan"]),
    "--corpo-floor": ([-10 ** 6, 10 ** 6], ["-1e300", "1e300", "inf", "nan"]),
    "--malformed": ([-10 ** 6, 10 ** 6], ["-1e300", "1e300", "inf", "nan"]),
    "--noise": ([0, 1], [-0.1, 1.1, "nan"]),
    "--temperature": ([0.001, 1000], [0, 1e-300, 1001, "1e300", "inf", "nan"]),
    "--max-new-tokens": ([1, 100_000], [0, 100_001, 10 ** 20]),
    "--max-pixels": ([1, 10 ** 9], [0, -1, 10 ** 20]),
    "--lora-rank": ([1, 10_000], [0, 10_001, 10 ** 20]),
    "--lora-alpha": ([1e-6, 10 ** 6], [0, -1, "1e300", "inf", "nan"]),
    "--seed": ([-2 ** 63 + 1, 2 ** 63 - 1], [2 ** 63, -2 ** 63, 10 ** 40]),
    "--eval-every": ([0, 10 ** 6], [-1, 10 ** 20]),
    "--eval-limit": ([1, 10 ** 9], [0, 10 ** 20]),
    "--judge-timeout": ([0.1, 86_400], [0, -1, 86_401, "1e300", "inf", "nan"]),
    "--judge-patience": ([0.1, 86_400], [0, -1, 86_401, "1e300", "inf", "nan"]),
    "--judge-workers": ([1, 1_000], [0, -1, 1_001, 10 ** 20]),
    "--judge-tokens": ([1, 100_000], [0, -1, 100_001, 10 ** 20]),
    "--max-judge-errors": ([0, 1], [-0.1, 1.1, "nan"]),
    "--max-unreadable": ([0, 1], [-0.1, 1.1, "nan"]),
}


@pytest.mark.parametrize("option", ENDS)
def test_the_ends_of_a_number_of_train(option):
    passes, fails = ENDS[option]
    for value in passes:
        train.parse_config([f"{option}={value}"])
    for value in fails:
        with pytest.raises(ValueError) as e:
            train.parse_config([f"{option}={value}"])
        line = str(e.value)
        assert line.startswith(f"{option} must be ") and "\n" not in line and len(line) < 200


def test_no_number_of_train_is_without_ends():
    numbers = set()
    for name, made in Config.__dataclass_fields__.items():
        if ("int" in str(made.type) or "float" in str(made.type)) and name != "betas":  # torch checks them
            numbers.add("--" + name.replace("_", "-"))
    assert numbers == ENDS.keys()


def test_baselines_sft_has_the_same_ends():
    with pytest.raises(ValueError, match="--lr must be above 0, at most 1, got 1e\\+300"):
        sft.parse_config(["--lr", "1e300"])


@pytest.mark.parametrize("option", ["--n", "--limit", "--rows", "--max-new-tokens", "--max-pixels", "--seed",
                                    "--temperature", "--judge-timeout", "--judge-patience", "--judge-workers",
                                    "--judge-tokens"])
def test_the_ends_of_a_number_of_evaluate(option):
    passes, fails = ENDS[option]
    also_fine = {"--n": [1], "--temperature": [0]}.get(option, [])
    parser = evaluate.parser()
    for value in passes + also_fine:
        evaluate.check_options(parser.parse_args([f"{option}={value}"]))
    for value in fails:
        if value in also_fine:
            continue
        with pytest.raises(ValueError, match=f"^{option} must be "):
            evaluate.check_options(parser.parse_args([f"{option}={value}"]))


def test_a_configuration_that_is_nested_too_deep(tmp_path):
    for text in ("[" * 100_000, '{"betas": ' + "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="is not the configuration of a run of this version"):
            saved_config(tmp_path, Config)


def test_verdicts_without_a_home(tmp_path, monkeypatch, judge_folder):
    """A home that is no folder; a tree of names remembers nothing, and needs none."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    options = SimpleNamespace(judge_cache="~/.cache/speciarl/verdicts.sqlite", judge_model=None,
                              judge_prompt=None, judge_key_file=None, judge_timeout=1, judge_patience=1,
                              judge_workers=1, judge_tokens=1)
    with pytest.raises(OSError) as e:
        load_judge(str(judge_folder), options, "cpu")
    assert "cannot remember verdicts in ~/.cache" in str(e.value) and "--judge-cache none" in str(e.value)

    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps({"parents": {"gull": "bird", "bird": None}}))
    assert load_judge(str(tree), options, "cpu")([("gull", "bird")])[0].label == "generic"
