"""An adapter merged into its base, in every family: the same logits, by transformers' own loading too."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import families
import lora
import policy as policies
from support import merge

QWEN = "qwen2_5_vl"


@pytest.fixture(scope="module")
def base(checkpoint, tmp_path_factory):
    """base(family): a checkpoint's folder, made once."""
    folders = {QWEN: checkpoint}

    def base(family):
        if family not in folders:
            folders[family] = families.save_checkpoint(family, tmp_path_factory.mktemp(family))
        return folders[family]
    return base


def adapted(folder, out):
    """An adapter of that checkpoint with B != 0, on disk."""
    policy = policies.load(str(folder))
    lora.add_lora(policy.model, 4, 8)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.lora_layers(policy.model).values():
        layer.lora_B.data.normal_(0, 0.05, generator=generator)
    lora.save_adapter(policy.model, out, str(folder))
    return policy


@pytest.mark.parametrize("family", [QWEN, *families.MODELS])
def test_a_merged_checkpoint_gives_the_logits_of_base_and_adapter(family, base, tmp_path, capsys):
    folder = base(family)
    policy = adapted(folder, tmp_path / "adapter")
    merge.main([str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")])
    assert "within" in capsys.readouterr().out

    expected = merge.logits_of(policy)
    merged = policies.load(str(tmp_path / "merged"))
    assert not lora.lora_layers(merged.model)
    assert (merge.logits_of(merged) - expected).abs().max() < 1e-5
    with lora.adapters_off(policy.model):
        assert (merge.logits_of(policy) - expected).abs().max() > 1e-2  # the adapter mattered

    # As anyone opens it.
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    policy.model = model
    assert (merge.logits_of(policy) - expected).abs().max() < 1e-5
    assert {file.name for file in folder.iterdir()} <= {file.name for file in (tmp_path / "merged").iterdir()}


def test_it_is_saved_in_the_bases_dtype(tmp_path, checkpoint, capsys):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    state = {key: value.bfloat16() for key, value in load_file(base / "model.safetensors").items()}
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))

    policy = adapted(base, tmp_path / "run/adapter")
    merge.main([str(tmp_path / "run"), "--model", str(base), "--out", str(tmp_path / "merged")])
    merged = load_file(tmp_path / "merged/model.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.bfloat16} and merged.keys() == state.keys()
    up_proj = "layers.0.mlp.up_proj"
    [layer] = [layer for name, layer in lora.lora_layers(policy.model).items() if name.endswith(up_proj)]
    [key] = [key for key in merged if key.endswith(f"{up_proj}.weight")]
    by_hand = layer.base.weight + 2 * layer.lora_B @ layer.lora_A
    assert torch.equal(merged[key], by_hand.bfloat16())
    said = float(capsys.readouterr().out.split("within ")[1].split()[0])
    assert 1e-5 < said < 0.1


def test_what_is_not_read_back_as_it_was_is_not_kept(tmp_path, checkpoint, monkeypatch):
    adapted(checkpoint, tmp_path / "adapter")
    copy = merge.copy_other_files

    def damaging(model, folder):
        copy(model, folder)
        state = load_file(folder / "model.safetensors")
        first = sorted(state)[0]
        state[first] += 0.1
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merge, "copy_other_files", damaging)
    with pytest.raises(SystemExit, match="than were in memory .*not kept") as stopped:
        merge.main([str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")])
    assert "\n" not in str(stopped.value)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_a_sum_that_is_not_base_and_adapter_is_not_kept(tmp_path, checkpoint, monkeypatch):
    adapted(checkpoint, tmp_path / "adapter")
    sums = merge.merge_adapters

    def doubling(model):
        for layer in lora.lora_layers(model).values():
            layer.scale *= 2
        sums(model)

    monkeypatch.setattr(merge, "merge_adapters", doubling)
    with pytest.raises(SystemExit, match="other logits than base and adapter"):
        merge.main([str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")])
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("arguments, message", [
    (["nowhere", "--out", "new"], "no adapter in nowhere"),
    (["adapter", "--out", "adapter"], "is there already"),
    (["adapter", "--model", "nowhere", "--out", "new"], "nowhere"),
    (["adapter", "--out", "adapter/adapter_config.json"], "is there already")])
def test_mistakes_end_in_one_line_and_leave_nothing(tmp_path, checkpoint, monkeypatch, arguments, message):
    adapted(checkpoint, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        merge.main(arguments)
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


# ------------------------------------------------------------------------------------------------------------
# Adapters with the names from before transformers 4.52

# Where the families had their language layers then.
OLDER = {QWEN: "model.layers.", "qwen2_vl": "model.layers.", "internvl": "language_model.model.layers."}


def with_older_names(family, folder, out, keys=lambda number: True):
    """The adapter in `folder`, some of its tensors named as then."""
    shutil.copytree(folder, out)
    state = {}
    for number, (key, value) in enumerate(load_file(folder / "adapter_model.safetensors").items()):
        if keys(number):
            key = key.replace("model.language_model.layers.", OLDER[family], 1)
        state[key] = value
    save_file(state, out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    config["target_modules"] = rf"{OLDER[family].replace('.', chr(92) + '.')}.*(proj)"
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("family", OLDER)
def test_an_adapter_with_the_older_names_gives_the_same_logits(family, base, tmp_path):
    folder = base(family)
    policy = adapted(folder, tmp_path / "adapter")
    older = with_older_names(family, tmp_path / "adapter", tmp_path / "older")
    loaded = policies.load(str(folder))
    lora.load_adapter(loaded.model, older)
    assert torch.equal(merge.logits_of(loaded), merge.logits_of(policy))


def test_an_adapter_that_mixes_both_is_refused(tmp_path, checkpoint):
    adapted(checkpoint, tmp_path / "adapter")
    mixed = with_older_names(QWEN, tmp_path / "adapter", tmp_path / "mixed", keys=lambda number: number % 2)
    with pytest.raises(ValueError, match="some of its tensors have the names from before transformers"):
        lora.load_adapter(policies.load(str(checkpoint)).model, mixed)


@pytest.mark.parametrize("family", [name for name in families.MODELS if name not in OLDER])
def test_in_other_families_the_names_mean_another_model(family, base, tmp_path):
    folder = base(family)
    adapted(folder, tmp_path / "adapter")
    state = load_file(tmp_path / "adapter/adapter_model.safetensors")
    renamed = {}
    for key, value in state.items():
        renamed["base_model.model.model.layers." + key.split(".layers.")[1]] = value
    save_file(renamed, tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit this model"):
        lora.load_adapter(policies.load(str(folder)).model, tmp_path / "adapter")


def test_an_older_adapter_of_the_vision_tower_is_refused_for_that(tmp_path, checkpoint):
    adapted(checkpoint, tmp_path / "adapter")
    older = with_older_names(QWEN, tmp_path / "adapter", tmp_path / "older")
    state = load_file(older / "adapter_model.safetensors")
    for x in "AB":
        state[f"base_model.model.visual.blocks.0.attn.qkv.lora_{x}.weight"] = torch.zeros(4, 4)
    save_file(state, older / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="it has base_model.model.visual.blocks.0"):
        lora.load_adapter(policies.load(str(checkpoint)).model, older)
