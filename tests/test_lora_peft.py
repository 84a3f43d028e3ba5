"""Adapters as PEFT 0.21 saves them: plain LoRA is read as PEFT reads it, all else is refused by name."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora
import policy as policies
import tiny
from lora import lora_layers, lora_state
from support.answers import weights_hash

# What LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]).save_pretrained writes.
PLAIN = json.loads("""
{"alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
 "base_model_name_or_path": null, "bias": "none", "corda_config": null, "ensure_weight_tying": false,
 "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": false,
 "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
 "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0,
 "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
 "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
 "rank_pattern": {}, "revision": null, "target_modules": ["q_proj", "v_proj"], "target_parameters": null,
 "task_type": null, "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
 "use_qalora": false, "use_rslora": false, "velora_config": null}
""")

# What else it writes, one setting of LoraConfig after the other.
HARMLESS = json.loads(r"""
[{"target_modules": null},
 {"target_modules": "all-linear"},
 {"target_modules": "model\\.language_model\\..*(q|v)_proj"},
 {"init_lora_weights": false},
 {"init_lora_weights": "gaussian"},
 {"lora_dropout": 0.1},
 {"layers_to_transform": [0]},
 {"layers_to_transform": 0},
 {"layers_pattern": "layers", "layers_to_transform": [0]},
 {"exclude_modules": ["lm_head"]},
 {"exclude_modules": ".*visual.*"},
 {"task_type": "CAUSAL_LM"},
 {"auto_mapping": {"base_model_class": "Qwen2_5_VLForConditionalGeneration",
                   "parent_library": "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"}},
 {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "revision": "main", "inference_mode": true}]
""")
OTHERWISE = json.loads("""
[{"init_lora_weights": "pissa"},
 {"init_lora_weights": "pissa_niter_16"},
 {"init_lora_weights": "olora"},
 {"init_lora_weights": "orthogonal"},
 {"init_lora_weights": "mica"},
 {"init_lora_weights": "eva",
  "eva_config": {"adjust_scaling_factors": true, "label_mask_value": -100, "rho": 2.0, "tau": 0.99,
                 "use_label_mask": true, "whiten": false}},
 {"init_lora_weights": "corda",
  "corda_config": {"cache_file": null, "corda_method": "ipm", "covariance_file": null,
                   "prune_temporary_fields": true, "use_float16_for_covariance": false, "verbose": false}},
 {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
 {"init_lora_weights": "lora_ga",
  "lora_ga_config": {"direction": "ArB2r", "scale": "stable", "stable_gamma": 16}},
 {"alora_invocation_tokens": [5, 6]},
 {"alora_invocation_tokens": []},
 {"bias": "all"},
 {"bias": "lora_only"},
 {"use_rslora": true},
 {"use_dora": true},
 {"fan_in_fan_out": true},
 {"modules_to_save": ["lm_head"]},
 {"rank_pattern": {"q_proj": 2}},
 {"alpha_pattern": {"q_proj": 2}},
 {"use_qalora": true},
 {"velora_config": {"init_type": "batch_average", "num_groups": 64, "scale": 1.0}},
 {"monteclora_config": {"buffer_size": 150, "dirichlet_prior": 0.1, "kl_loss_weight": 1e-05,
                        "num_samples": 8, "sample_scaler": 0.0001, "use_entropy": false}},
 {"layer_replication": [[0, 2], [1, 2]]},
 {"lora_bias": true},
 {"target_parameters": ["x.weight"]},
 {"use_bdlora": {"match_strict": true, "nblocks": 1, "target_modules_bd_a": null,
                 "target_modules_bd_b": null}},
 {"arrow_config": {"gks_adapter_names": null, "rng_seed": null, "router_temperature": 1.0,
                   "task_adapter_names": null, "top_k": 3, "use_gks": false}},
 {"kasa_config": {"beta": 0.0001, "gamma": 0.001}},
 {"ensure_weight_tying": true},
 {"trainable_token_indices": [1, 2]},
 {"megatron_config": {"a": 1}},
 {"peft_type": "LOHA"},
 {"use_of_a_later_version": 0.5}]
""")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def write(folder, config, state=None):
    """A folder as PEFT leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if state is not None:
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def base():
    return tiny.model(tiny.tokenizer())


@pytest.fixture(scope="module")
def whole():
    """Tensors for every layer, drawn at random, by PEFT's names."""
    model = base()
    lora.add_lora(model, 4, 8)
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(value.shape, generator=generator) * 0.1
            for key, value in lora_state(model).items()}


def part(state, *names):
    return {key: value for key, value in state.items() if any(name in key for name in names)}


def merged(state, scale=2.0):
    """The independent path: a base whose weights hold the correction."""
    model = base()
    weights = dict(model.named_parameters())
    for key, B in state.items():
        if "lora_B" in key:
            A = state[key.replace("lora_B", "lora_A")]
            name = key.removeprefix("base_model.model.").replace("lora_B.weight", "weight")
            weights[name].data += scale * B @ A
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(4, 30)[None]).logits


def refused(folder, words, error=ValueError):
    with pytest.raises(error) as e:
        lora.load_adapter(base(), folder)
    line = str(e.value)
    assert words in line and "\n" not in line and len(line) < 500, line
    return line


# ---- the config


@pytest.mark.parametrize("change", HARMLESS, ids=json.dumps)
def test_configs_of_plain_lora_are_read(tmp_path, change):
    assert lora.adapter_config(write(tmp_path, PLAIN | change)) == PLAIN | change


@pytest.mark.parametrize("change", OTHERWISE, ids=lambda change: json.dumps(change)[:50])
def test_whatever_else_a_config_says_is_refused_by_field_and_value(tmp_path, change):
    with pytest.raises(ValueError) as e:
        lora.adapter_config(write(tmp_path, PLAIN | change))
    field = next(field for field in PLAIN | change if field in change)
    value = json.dumps(change[field])[:60]
    assert f"is no plain LoRA: its config says {field} = {value}" in str(e.value)
    assert "\n" not in str(e.value)


def test_fields_that_are_empty_or_not_there_are_no_matter(tmp_path):
    for empty in (None, False, "", [], {}):
        lora.adapter_config(write(tmp_path, PLAIN | {"use_of_a_later_version": empty}))
    lora.adapter_config(write(tmp_path, {"r": 4, "lora_alpha": 8}))


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
def test_ranks_and_alphas_that_are_no_numbers(tmp_path, whole, field):
    for value in (None, "x", [], {}, True, float("nan"), float("inf"), -float("inf"), 10 ** 400, 1e300):
        refused(write(tmp_path, PLAIN | {field: value}, whole), "the adapter")


@pytest.mark.parametrize("rank", [0, -4, 4.0, 0.5])
def test_a_rank_counts(tmp_path, whole, rank):
    refused(write(tmp_path, PLAIN | {"r": rank}, whole), "its rank r is")


def test_a_rank_that_the_tensors_do_not_have_is_met_before_memory_is_asked_for(tmp_path, whole):
    refused(write(tmp_path, PLAIN | {"r": 10 ** 12}, whole), "does not fit its config")


def test_a_config_that_is_no_json_object(tmp_path, whole):
    write(tmp_path, PLAIN, whole)
    for text in (b"", b"{", b"[]", b"7", b"[" * 100_000, b"\xff\xfe", b"version https://git-lfs"):
        (tmp_path / "adapter_config.json").write_bytes(text)
        refused(tmp_path, "is broken: its adapter_config.json")
    for base_name in (["a"], 7, {"a": 1}):
        write(tmp_path, PLAIN | {"base_model_name_or_path": base_name})
        refused(tmp_path, "its base_model_name_or_path is")


# ---- the layers


@pytest.mark.parametrize("config, names", [
    ({"target_modules": ATTENTION}, ["self_attn"]),
    ({"target_modules": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"]),
    ({"target_modules": ["self_attn.q_proj"]}, ["q_proj"]),
    ({"target_modules": ["model.language_model.layers.1.mlp.up_proj"]}, ["layers.1.mlp.up_proj"]),
    ({"target_modules": "all-linear"}, [""]),
    ({"target_modules": r"model\.language_model\..*\.(up|down)_proj"}, ["up_proj", "down_proj"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": 1}, ["layers.1.self_attn.q_proj"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
     ["layers.1.self_attn.q_proj"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layers"]},
     ["q_proj"]),
    ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": ["up_proj"]}, ["q_proj"]),
    ({"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*\.layers\.0\..*"},
     ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]),
    ({"target_modules": None}, ["layers.0.mlp.gate_proj"])])
def test_an_adapter_on_fewer_layers_is_the_base_with_those_corrected(tmp_path, whole, config, names):
    state = part(whole, *names)
    model = base()
    lora.load_adapter(model, write(tmp_path, PLAIN | config, state))
    torch.testing.assert_close(logits(model), logits(merged(state)), atol=1e-4, rtol=1e-4)
    assert (logits(model) - logits(base())).abs().max() > 0.01
    left_alone = [name for name, layer in lora_layers(model).items() if not layer.lora_B.any()]
    assert len(left_alone) == 14 - len(state) // 2


def test_tensors_that_the_config_promises_must_be_there(tmp_path, whole):
    """A layer whose tensors were lost would else be a layer without adapter."""
    state = part(whole, "q_proj", "v_proj")
    for gone in state:
        rest = {key: value for key, value in state.items() if key != gone}
        line = refused(write(tmp_path, PLAIN, rest), "differ in 1 keys")
        assert gone in line
    no_targets = PLAIN | {"target_modules": None}
    gone = next(iter(state))
    rest = {key: value for key, value in state.items() if key != gone}
    assert gone in refused(write(tmp_path, no_targets, rest), "is not whole")
    refused(write(tmp_path, no_targets, {}), "holds no tensor for this model")
    refused(write(tmp_path, PLAIN, whole), "differ in 20 keys")
    for targets in (7, [7], "(", {"a": 1}):
        refused(write(tmp_path, PLAIN | {"target_modules": targets}, state), "is")


@pytest.mark.parametrize("key, reason", [
    ("model.visual.blocks.0.attn.qkv.lora_A.weight", "language model's linear layers alone"),
    ("lm_head.lora_A.weight", "language model's linear layers alone"),
    ("model.language_model.embed_tokens.lora_embedding_A", "language model's linear layers alone"),
    ("model.language_model.layers.7.mlp.up_proj.lora_A.weight", "this model has no such layer"),
    ("lm_head.weight", "this model has no such layer")])
def test_layers_that_take_no_adapter_are_refused_by_name(tmp_path, whole, key, reason):
    state = part(whole, "q_proj", "v_proj") | {f"base_model.model.{key}": torch.ones(4, 4)}
    line = refused(write(tmp_path, PLAIN, state), reason)
    assert key in line


# ---- the tensors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused(tmp_path, whole, value):
    state = part(whole, "q_proj", "v_proj")
    for key in list(state)[:2]:
        poisoned = state[key].clone()
        poisoned[1, 2] = value
        line = refused(write(tmp_path, PLAIN, state | {key: poisoned}), "holds NaN or infinity")
        assert key in line


def test_other_kinds_of_numbers(tmp_path, whole):
    state = part(whole, "q_proj", "v_proj")
    for dtype in (torch.int8, torch.int64, torch.bool, torch.complex64):
        odd = {key: value.to(dtype) for key, value in state.items()}
        refused(write(tmp_path, PLAIN, odd), "holds no real numbers")
    huge = {key: value.double() * 1e300 for key, value in state.items()}
    refused(write(tmp_path, PLAIN, huge), "holds NaN or infinity")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = base()
        write(tmp_path, PLAIN, {key: value.to(dtype) for key, value in state.items()})
        lora.load_adapter(model, tmp_path)
        torch.testing.assert_close(logits(model), logits(merged(state)), atol=0.05, rtol=0.05)


def test_nothing_is_copied_where_one_tensor_is_wrong(policy):
    before = {key: value.detach().clone() for key, value in lora_state(policy.model).items()}
    wrong = {key: torch.ones_like(value) for key, value in before.items()}
    wrong[list(wrong)[-1]][0, 0] = torch.nan
    with pytest.raises(ValueError, match="the state is broken: .* holds NaN or infinity"):
        lora.set_lora_state(policy.model, wrong, "the state")
    assert all(torch.equal(value, before[key]) for key, value in lora_state(policy.model).items())


def test_files_that_are_cut_off_or_pointers(tmp_path, whole):
    weights = write(tmp_path, PLAIN, part(whole, "q_proj", "v_proj")) / "adapter_model.safetensors"
    data = weights.read_bytes()
    for content in (data[:len(data) // 2], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        weights.write_bytes(content)
        refused(tmp_path, "is cut off, damaged, or only a pointer of Git LFS")
    weights.unlink()
    refused(tmp_path, "there is no adapter_model.safetensors", OSError)


# ---- the folder


def test_the_older_file_of_weights_is_read_without_running_code(tmp_path, whole):
    state = part(whole, "q_proj", "v_proj")
    write(tmp_path, PLAIN)
    file = tmp_path / "adapter_model.bin"
    torch.save(state, file)
    model = base()
    lora.load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(merged(state)), atol=1e-4, rtol=1e-4)
    assert len(weights_hash(str(tmp_path))) == 16

    torch.save(state | {"x": print}, file)
    refused(tmp_path, "adapter_model.bin is cut off, damaged")
    for content in ([1, 2], {"x": 7}, {"x": {"y": torch.ones(2)}}):
        torch.save(content, file)
        refused(tmp_path, "holds something else than tensors by name")
    file.write_bytes(b"abc")
    refused(tmp_path, "adapter_model.bin is cut off, damaged")


def test_an_adapter_with_a_name_lies_one_folder_deeper(tmp_path, whole):
    state = part(whole, "q_proj", "v_proj")
    write(tmp_path / "birds", PLAIN | {"base_model_name_or_path": "a/b"}, state)
    assert lora.adapter_config(tmp_path)["base_model_name_or_path"] == "a/b"
    model = base()
    lora.load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(merged(state)), atol=1e-4, rtol=1e-4)
    assert weights_hash(str(tmp_path)) == weights_hash(str(tmp_path / "birds"))
    write(tmp_path / "cars", PLAIN, state)
    assert "birds" in refused(tmp_path, "holds several adapters, name one")


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "no adapter in", OSError)


def test_an_adapter_of_a_run_is_still_read(policy, tmp_path):
    lora.save_adapter(policy.model, tmp_path)
    again = policies.from_parts(base(), tiny.processor())
    lora.load_adapter(again.model, tmp_path)
    loaded = lora_state(again.model)
    assert all(torch.equal(value, loaded[key]) for key, value in load_file(
        tmp_path / "adapter_model.safetensors").items())
