"""What vLLM 0.32 reads of an adapter, restated: the fields that it refuses, and the names under which it
looks for the weights. (vLLM itself needs more than a CPU machine has.)"""

import json
import re

from safetensors import safe_open

import lora

# Qwen2_5_VLForConditionalGeneration.hf_to_vllm_mapper: whose names begin so are renamed.
RENAMED = {"model.language_model.": "language_model.model.", "model.visual.": "visual.",
           "lm_head.": "language_model.lm_head."}
DECODER = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def name_in_vllm(key: str) -> str:
    """A tensor's name in the file -> the module that vLLM puts it into."""
    name, _, kind = key.removeprefix("base_model.model.").rpartition(".lora_")
    assert key.startswith("base_model.model.") and kind in ("A.weight", "B.weight")
    for begin, new in RENAMED.items():
        if name.startswith(begin):
            return new + name.removeprefix(begin)
    return name


def test_vllm_finds_every_module_under_its_own_name(policy, tmp_path):
    lora.save_adapter(policy.model, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    layers = len(policy.model.get_decoder().layers)
    pattern = re.compile(r"language_model\.model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)")
    found = [pattern.fullmatch(name_in_vllm(key)).groups() for key in keys]
    expected = [(str(layer), module) for layer in range(layers) for module in DECODER]
    assert sorted(found) == sorted(expected * 2)  # A and B of each


def test_vllm_meets_no_field_that_it_refuses(policy, tmp_path):
    lora.save_adapter(policy.model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    # PEFTHelper takes these three, and refuses an adapter for the others.
    assert isinstance(config["r"], int) and config["r"] > 0
    assert config["lora_alpha"] > 0 and config["target_modules"]
    assert config["bias"] == "none"
    assert not config.get("modules_to_save") and not config.get("use_dora") and not config["use_rslora"]
