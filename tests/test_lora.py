import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lora
import policy as policies
import tiny
from lora import adapters_off, lora_layers, lora_state
from policy import completion_logprobs, encode
from rollout import sample
from test_policy import completions

LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj"]


def test_adapted_modules_are_exactly_the_decoders_linears(policy):
    """Neither the vision tower nor lm_head (silent bug: a filter by name that lets lm_head through)."""
    expected = [f"model.language_model.layers.{i}.{name}" for i in range(2) for name in LINEARS]
    assert list(lora_layers(policy.model)) == expected
    trained = [n for n, p in policy.model.named_parameters() if p.requires_grad]
    assert trained == [f"{name}.lora_{x}" for name in expected for x in "AB"]


def test_lora_is_w_plus_scaled_ba(policy):
    layer = next(iter(lora_layers(policy.model).values()))
    x = torch.randn(3, 64)
    merged = layer.base.weight + 8 / 4 * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer(x), x @ merged.T + layer.base.bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, has_bias", [("self_attn.q_proj", True), ("mlp.down_proj", False)])
def test_gradients_are_those_of_the_merged_weights(policy, name, has_bias):
    """The correction is added in place: nothing that backward needs may be lost by it."""
    layer = policy.model.get_decoder().layers[0].get_submodule(name)
    assert (layer.base.bias is not None) == has_bias
    bias = layer.base.bias if has_bias else 0
    x = torch.randn(2, 3, layer.base.in_features)
    weights = torch.randn(2, 3, layer.base.out_features)

    def gradients(forward):
        leaf = x.clone().requires_grad_()
        loss = (forward(leaf) * weights).square().sum()
        return torch.autograd.grad(loss, (leaf, layer.lora_A, layer.lora_B))

    def merged(x):
        return x @ (layer.base.weight + 8 / 4 * layer.lora_B @ layer.lora_A).T + bias

    for ours, expected in zip(gradients(layer), gradients(merged), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_under_autocast_it_is_the_same_but_for_bfloat16s_rounding(policy):
    layer = next(iter(lora_layers(policy.model).values()))
    x = torch.randn(2, 3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), atol=5e-2, rtol=2e-2)


def test_fresh_adapter_changes_nothing_and_off_is_the_base_bit_for_bit():
    made = policies.from_parts(tiny.model(tiny.tokenizer()), tiny.processor())
    prompt = encode(made, tiny.pictures((84, 84)), "what?")
    ids, mask = completions(made, 2)
    base = completion_logprobs(made, prompt, ids, mask)
    lora.add_lora(made.model, 4, 8, seed=3)
    assert torch.equal(completion_logprobs(made, prompt, ids, mask), base)
    for layer in lora_layers(made.model).values():
        assert layer.lora_A.abs().max() <= 1 / layer.base.in_features ** 0.5 and layer.lora_A.std() > 0.01
        layer.lora_B.data.normal_()
    with adapters_off(made.model):
        assert torch.equal(completion_logprobs(made, prompt, ids, mask), base)
    assert not torch.allclose(completion_logprobs(made, prompt, ids, mask), base)


def test_adapters_come_back_on_after_an_error(policy):
    with pytest.raises(RuntimeError), adapters_off(policy.model):
        raise RuntimeError
    assert all(layer.enabled for layer in lora_layers(policy.model).values())


def test_float32_masters_on_a_bfloat16_base():
    made = policies.from_parts(tiny.model(tiny.tokenizer()).bfloat16(), tiny.processor())
    lora.add_lora(made.model, 4, 8)
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.float32}
    prompt = encode(made, tiny.pictures((84, 84)), "what?")
    ids, mask = completions(made, 2)
    out = completion_logprobs(made, prompt, ids, mask)
    layer = next(iter(lora_layers(made.model).values()))
    assert out.dtype == torch.float32 and layer(torch.randn(1, 64).bfloat16()).dtype == torch.bfloat16
    out.sum().backward()
    assert layer.lora_B.grad.dtype == torch.float32 and layer.lora_B.grad.abs().sum() > 0


def test_adapters_cast_once_for_decoding_never_become_stale():
    """In bfloat16: a rollout leaves the gradients as they are, and an update changes the next rollout."""
    made = policies.from_parts(tiny.model(tiny.tokenizer()).bfloat16(), tiny.processor())
    lora.add_lora(made.model, 4, 8)
    prompt = encode(made, tiny.pictures((84, 84)), "what?")
    ids, mask = completions(made, 2)
    layers = lora_layers(made.model).values()

    def gradients():
        made.model.zero_grad()
        completion_logprobs(made, prompt, ids, mask).sum().backward()
        return [p.grad for p in made.model.parameters() if p.requires_grad]

    def rollout_logprobs():
        group, = sample(made, tiny.pictures((84, 84)), ["a"], "what?", 4, max_new_tokens=8)
        assert all(layer.cast is None for layer in layers)
        return group.logprobs

    before = gradients()
    first = rollout_logprobs()
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(), strict=True))
    with torch.no_grad():
        for layer in layers:
            layer.lora_B += 0.5 * torch.randn_like(layer.lora_B)
    assert not torch.equal(rollout_logprobs()[:, 0], first[:, 0])

    # Inside, what is trained is what the masters hold, and without gradients the copies are read.
    layer = next(iter(layers))
    x = torch.randn(3, 64).bfloat16()
    with lora.cast_adapters(made.model):
        with torch.no_grad():
            expected = layer(x)
            layer.lora_B += 1
            assert torch.equal(layer(x), expected)
        assert not torch.equal(layer(x), expected) and layer(x).requires_grad
    with torch.no_grad():
        assert not torch.equal(layer(x), expected)


def test_cast_adapters_are_let_go_of_also_after_an_error(policy):
    with pytest.raises(RuntimeError), lora.cast_adapters(policy.model):
        raise RuntimeError
    assert all(layer.cast is None for layer in lora_layers(policy.model).values())


def test_adapter_file_has_pefts_keys_and_comes_back(policy, tmp_path):
    lora.save_adapter(policy.model, tmp_path, "base/name")
    keys = [f"base_model.model.model.language_model.layers.{i}.{name}.lora_{x}.weight"
            for i in range(2) for name in LINEARS for x in "AB"]
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(state) == sorted(keys)
    k_proj = "base_model.model.model.language_model.layers.0.self_attn.k_proj"
    assert state[f"{k_proj}.lora_B.weight"].shape == (32, 4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["bias"]) == ("LORA", 4, 8, "none")
    assert config["base_model_name_or_path"] == "base/name"
    linears = [n for n, m in policy.model.named_modules() if isinstance(m, torch.nn.Linear)]
    names = [name.replace(".base", "") for name in linears]
    matched = [n for n in names if re.fullmatch(config["target_modules"], n)]  # as peft matches a string
    assert matched == list(lora_layers(policy.model))

    other = policies.from_parts(tiny.model(tiny.tokenizer()), tiny.processor())
    lora.add_lora(other.model, 4, 8, seed=9)
    lora.set_lora_state(other.model, state)
    back = lora_state(other.model)
    assert all(torch.equal(value, back[key]) for key, value in lora_state(policy.model).items())


def test_an_adapter_that_does_not_fit_is_refused(policy):
    state = {k: v.detach().clone() for k, v in lora_state(policy.model).items()}
    renamed = {k.replace("language_model", "text_model"): v for k, v in state.items()}
    with pytest.raises(ValueError, match="keys differ"):
        lora.set_lora_state(policy.model, renamed)
    key = next(iter(state))
    with pytest.raises(ValueError, match="q_proj"):
        lora.set_lora_state(policy.model, state | {key: state[key][:2]})


def test_copied_alone_it_adapts_any_transformers_language_model(tmp_path, judge_folder):
    """In a folder of its own, on a model that sees no pictures: trained, saved, read back."""
    shutil.copy(Path(lora.__file__), tmp_path)
    done = subprocess.run([sys.executable, "-c", f"""
import torch
from transformers import AutoModelForCausalLM
from lora import add_lora, adapters_off, load_adapter, lora_layers, save_adapter


def base():
    return AutoModelForCausalLM.from_pretrained({str(judge_folder)!r}).eval()


ids = torch.arange(9)[None]
model = base()
add_lora(model, rank=2, alpha=4)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
for _ in range(2):
    optimizer.zero_grad()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
save_adapter(model, "adapter")
again = base()
load_adapter(again, "adapter")
assert len(lora_layers(model)) == 14 and torch.equal(model(ids).logits, again(ids).logits)
with adapters_off(model):
    assert torch.equal(model(ids).logits, base()(ids).logits)
assert not torch.allclose(model(ids).logits, base()(ids).logits)
"""], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_adapter_that_is_gone_or_broken_says_so_in_one_line(policy, tmp_path):
    with pytest.raises(OSError, match="no adapter in .*nothing"):
        lora.load_adapter(policy.model, tmp_path / "nothing")
    lora.save_adapter(policy.model, tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    config = tmp_path / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="the adapter .* is broken"):
        lora.load_adapter(policy.model, tmp_path)
    weights.write_bytes(whole)
    for text in ("{}", "[]", "{"):
        config.write_text(text)
        with pytest.raises(ValueError, match="the adapter .* is broken"):
            lora.load_adapter(policy.model, tmp_path)


def test_an_adapter_that_cannot_be_written_says_so_in_one_line(policy, tmp_path):
    """A file may not grow beyond 1000 bytes here: the same kind of error as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="cannot write the adapter into .*File too large"):
            lora.save_adapter(policy.model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_seeds_draw_other_adapters_and_the_scale_is_plain(checkpoint, policy, tmp_path):
    first = policies.load(checkpoint).model
    second = policies.load(checkpoint).model
    lora.add_lora(first, 2, 32, seed=0)
    lora.add_lora(second, 2, 32, seed=1)
    drawn = [next(iter(lora_state(model).values())) for model in (first, second)]
    assert not torch.equal(drawn[0], drawn[1])
    lora.save_adapter(policy.model, tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    assert not config["use_rslora"] and not config["fan_in_fan_out"]
    for other in ({"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}, {"rank_pattern": {"q_proj": 3}}):
        file.write_text(json.dumps(config | other))
        with pytest.raises(ValueError, match=f"no plain LoRA: its config says {next(iter(other))} = "):
            lora.load_adapter(policy.model, tmp_path)
