"""Checkpoints that are broken: policy and judge say so in one line, and nothing loads as random weights."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import judge
import policy as policies
import tiny
from policy import encode
from support.checkpoints import internvl_twin, render_question
from support.embedder import refuse_random_weights

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 1234567\n"


@pytest.fixture
def policy_copy(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "policy")


@pytest.fixture
def judge_copy(judge_folder, tmp_path):
    return shutil.copytree(judge_folder, tmp_path / "judge")


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    """A question on the terminal fails the test."""
    def fail(*args):
        raise AssertionError("asked on the terminal")
    monkeypatch.setattr("builtins.input", fail)


def refused(load, *arguments) -> str:
    """The one line that ends it."""
    with pytest.raises((ValueError, OSError)) as e:
        load(*arguments)
    line = str(e.value)
    assert line and "\n" not in line and len(line) < 600
    return line


def change_weights(folder, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def change_config(folder, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


# ---- weights


def without(part):
    return lambda state: {key: value for key, value in state.items() if part not in key}


def with_prefix(state):
    return {f"module.{key}": value for key, value in state.items()}


def of_another_shape(state):
    key = next(key for key in state if "layers.1.mlp.gate_proj" in key)
    return state | {key: state[key][:3].clone()}


@pytest.mark.parametrize("change, words", [
    (without("layers.1."), r"of its weights are missing, the first is model\.(language_model\.)?layers\.1"),
    (without("layers.1.self_attn.q_proj.weight"), "1 of its weights are missing, the first is .*q_proj"),
    (without("lm_head"), "1 of its weights are missing, the first is lm_head.weight"),
    (with_prefix, "of its weights are missing"),
    (of_another_shape, r"gate_proj.weight is \(3, \d+\) in its file, \(\d+, \d+\) by its config.json"),
], ids=["a layer", "a weight", "lm_head", "a prefix", "a shape"])
def test_weights_that_would_be_random_are_refused(policy_copy, judge_copy, capfd, change, words):
    for folder, load in ((policy_copy, policies.load), (judge_copy, judge.open_judge)):
        change_weights(folder, change)
        line = refused(load, str(folder))
        assert re.search(words, line), line
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_judge_that_is_loaded_leaves_transformers_as_loud_as_it_was(judge_folder):
    from transformers.utils import logging
    before = logging.get_verbosity()
    judge.open_judge(str(judge_folder))
    assert logging.get_verbosity() == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_with_nan_or_infinity_is_refused(policy_copy, value):
    def poison(state):
        state["lm_head.weight"][3, 5] = value
        return state
    change_weights(policy_copy, poison)
    assert "lm_head.weight holds NaN or infinity" in refused(policies.load, policy_copy)


def test_tied_embeddings_are_not_missing(tmp_path):
    """The file holds one tensor for both."""
    tok = tiny.tokenizer()
    tiny.model(tok, tie=True).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    tiny.images().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = policies.load(tmp_path).model
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_weights_without_a_place_are_named(policy_copy, capfd):
    change_weights(policy_copy, lambda state: state | {"model.language_model.extra": torch.ones(2)})
    policies.load(policy_copy)
    assert "weights have no place in the model, the first is model.language_model.extra" in \
        capfd.readouterr().err


def test_files_of_weights_that_are_cut_off_empty_or_gone(policy_copy, judge_copy):
    for folder, load in ((policy_copy, policies.load), (judge_copy, judge.open_judge)):
        weights = folder / "model.safetensors"
        whole = weights.read_bytes()
        for part in (whole[:len(whole) // 2], whole[:20], b""):
            weights.write_bytes(part)
            assert "a file of weights is cut off" in refused(load, str(folder))
        weights.write_text(POINTER)
        assert "Git LFS" in refused(load, str(folder))
        weights.unlink()
        assert "no file named model.safetensors" in refused(load, str(folder))
        (folder / "pytorch_model.bin").write_bytes(b"abc")
        refused(load, str(folder))
        torch.save({"lm_head.weight": os.system}, folder / "pytorch_model.bin")
        assert "Weights only load failed" in refused(load, str(folder))


def test_a_pooler_may_be_missing_in_an_embedder():
    refuse_random_weights({"pooler.dense.weight", "pooler.dense.bias"})
    with pytest.raises(ValueError, match="1 of its weights are missing, the first is encoder.layer.0.a"):
        refuse_random_weights({"pooler.dense.weight", "encoder.layer.0.a"})


# ---- the other files


NO_JSON = ["", "{", "[]", "7", "null", '"a"', "[" * 100_000, POINTER, "\udcff"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json",
                                  "preprocessor_config.json", "generation_config.json"])
def test_files_that_hold_no_json_object_are_named(policy_copy, name):
    for text in NO_JSON:
        (policy_copy / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        assert name in refused(policies.load, policy_copy)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_judges_broken_files_end_in_one_line(judge_copy, name):
    for text in NO_JSON:
        (judge_copy / name).write_text(text, encoding="utf-8", errors="surrogateescape")
        assert "cannot load the judge" in refused(judge.open_judge, str(judge_copy))


@pytest.mark.parametrize("values", [
    {"hidden_size": "x", "text_config": "x"}, {"hidden_size": None, "text_config": {"hidden_size": None}},
    {"hidden_size": -3, "text_config": {"hidden_size": -3}}, {"model_type": 7}, {"model_type": None},
    {"model_type": "no_such"}])
def test_settings_of_a_wrong_kind(policy_copy, judge_copy, values):
    for folder, load in ((policy_copy, policies.load), (judge_copy, judge.open_judge)):
        change_config(folder, **values)
        assert folder.name in refused(load, str(folder))


def test_without_tokenizer_files_nothing_loads(policy_copy, judge_copy):
    """transformers makes a Qwen tokenizer of control tokens alone where the files are gone."""
    for folder, load in ((policy_copy, policies.load), (judge_copy, judge.open_judge)):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        assert "tokenizer" in refused(load, str(folder))


def test_settings_of_pictures_that_cannot_be_used_show_at_once(policy_copy):
    file = policy_copy / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    for change in ({"patch_size": "x"}, {"patch_size": 7}, {"size": 7}, {"merge_size": 3}):
        file.write_text(json.dumps(settings | change))
        assert "cannot take a picture" in refused(policies.load, policy_copy, "cpu", torch.float32, 56 * 56)
    file.unlink()
    assert "cannot load the checkpoint" in refused(policies.load, policy_copy)


def test_what_ends_an_answer_must_be_a_token(policy_copy):
    for token in ("x", 10 ** 6, -1, 1.5):
        (policy_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [token]}))
        assert f"ends its answers with {token!r}, which is no token" in refused(policies.load, policy_copy)


# ---- foreign code


def test_foreign_code_is_never_run_and_nobody_is_asked(policy_copy, judge_copy):
    """As the original InternVL repositories are made; the code would leave a file."""
    for folder, load in ((policy_copy, policies.load), (judge_copy, judge.open_judge)):
        left = folder / "was_run"
        for name in ("configuration_internvl_chat", "modeling_internvl_chat"):
            (folder / f"{name}.py").write_text(f"open({str(left)!r}, 'w')\n")
        change_config(folder, model_type="internvl_chat", auto_map={
            "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
            "AutoModel": "modeling_internvl_chat.InternVLChatModel",
            "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel"})
        line = refused(load, str(folder))
        assert "never run here" in line and "-hf" in line and not left.exists()
        change_config(folder, model_type="somebodys_own")
        assert "never run here" in refused(load, str(folder))
        assert not left.exists()


def test_code_beside_a_known_family_is_passed_over(policy_copy):
    """Some repositories carry both. The numbers are those of the checkpoint without it."""
    left = policy_copy / "was_run"
    (policy_copy / "own.py").write_text(f"open({str(left)!r}, 'w')\n")
    image = tiny.pictures((60, 60))
    expected, = encode(policies.load(policy_copy), image, "?")
    change_config(policy_copy, auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.M"})
    prompt, = encode(policies.load(policy_copy), image, "?")
    assert torch.equal(prompt.embeds, expected.embeds) and not left.exists()


def test_the_repository_to_take_instead():
    for name, twin in {"OpenGVLab/InternVL2_5-8B": "InternVL2_5-8B-MPO-hf",
                       "OpenGVLab/InternVL2_5-8B-MPO": "InternVL2_5-8B-MPO-hf",
                       "OpenGVLab/InternVL3-8B": "InternVL3-8B-hf",
                       "/models/InternVL3-8B-Instruct": "InternVL3-8B-hf",
                       "OpenGVLab/InternVL3_5-8B": "InternVL3_5-8B-HF"}.items():
        assert internvl_twin(name) == f"OpenGVLab/{twin}"


def test_a_chat_template_that_writes_the_date_asks_the_same_every_day(checkpoint):
    """A run that goes on tomorrow asks what it asked today."""
    processor = policies.load(str(checkpoint)).processor
    plain = render_question(processor, "?")
    processor.chat_template = "{{ strftime_now('%d %b %Y') }}" + processor.chat_template
    assert render_question(processor, "?") == "01 Jan 2026" + plain
