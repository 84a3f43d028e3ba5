"""LoRA by hand: low-rank adapters on a language model's linear layers, saved and read in PEFT's format.

As a library: `add_lora(model, rank=64, alpha=32)` freezes a transformers model and puts adapters into its
language decoder; `with adapters_off(model)` it is the frozen base again, bit for bit: the reference of the
KL needs no second copy. Copy this file alone; it needs torch and safetensors.

Where this departs from peft:
1. Float32 master weights whatever the base's dtype, cast in forward: bfloat16 loses Adam steps of 3e-5.
2. Never merged: merging and unmerging in bfloat16 would drift the frozen weights. No dropout.
3. An adapter that does not fit the model key by key is refused; peft loads it as a no-op with a warning.
"""

import json
import math
import re
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer plus (alpha / rank) * B A x. Float32 master weights on a base of any dtype: they
    are cast to the activations' dtype in forward (a float32 product would double what autograd keeps)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.base, self.scale, self.enabled = base, alpha / rank, True
        bound = 1 / math.sqrt(base.in_features)  # as peft's kaiming_uniform; B = 0: nothing changes yet
        a = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        low = F.linear(x, self.lora_A.to(x.dtype)).flatten(0, -2)  # (tokens, rank)
        return torch.addmm(y.flatten(0, -2), low, self.lora_B.to(x.dtype).t(), alpha=self.scale).view_as(y)


def add_lora(model: nn.Module, rank: int, alpha: float, seed: int = 0) -> None:
    """Freezes the model and puts a LoRALinear in the place of every nn.Linear under its language decoder:
    never in the vision tower, never on lm_head (an adapter there would train the vocabulary)."""
    if rank < 1:
        raise ValueError(f"the LoRA rank must be at least 1, got {rank}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    decoder = model.get_decoder()
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, LoRALinear(module, rank, alpha, generator))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Module path -> LoRALinear, in model order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's key names, float32."""
    state = {}
    for name, layer in lora_layers(model).items():
        state[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A
        state[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B
    return state


@contextmanager
def adapters_off(model: nn.Module):
    """Inside, the model is the reference: bit for bit the frozen base."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def save_adapter(model: nn.Module, folder, base_name: str = "") -> None:
    """adapter_model.safetensors and adapter_config.json as PEFT writes and reads them. The targets go in as a
    regex: a plain list of names would also match layers of the vision tower."""
    folder, layers = Path(folder), lora_layers(model)
    folder.mkdir(parents=True, exist_ok=True)
    decoder = next(n for n, m in model.named_modules() if m is model.get_decoder())
    targets, first = sorted({name.rsplit(".", 1)[-1] for name in layers}), next(iter(layers.values()))
    rank = first.lora_A.shape[0]
    config = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": base_name, "r": rank,
              "lora_alpha": round(first.scale * rank, 6), "lora_dropout": 0.0, "bias": "none",
              "target_modules": rf"{re.escape(decoder)}\..*\.({'|'.join(targets)})",
              "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "use_rslora": False}
    state = {k: v.detach().cpu().contiguous() for k, v in lora_state(model).items()}
    try:
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    except SafetensorError as e:  # a full disk
        raise OSError(f"cannot write the adapter into {folder}: {e}") from None
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def set_lora_state(model: nn.Module, state: dict[str, Tensor], source="the adapter") -> None:
    """Copies an adapter's tensors into the model's LoRA layers. Raises ValueError unless keys and shapes are
    exactly the model's: a key that matches nothing would otherwise load as a silent no-op."""
    own = lora_state(model)
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        raise ValueError(f"{source} does not fit this model: {len(odd)} keys differ, the first is {odd[0]}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise ValueError(f"{source} does not fit this model: {key} is {tuple(state[key].shape)}, "
                             f"the model's {tuple(value.shape)}")
        value.data.copy_(state[key])


def adapter_config(folder) -> dict:
    """The adapter_config.json that save_adapter, or PEFT, wrote. Raises OSError where there is none,
    ValueError where it is no plain LoRA's: another scale would be wrong without an error."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        raise OSError(f"no adapter in {folder}: there is no adapter_config.json")
    try:
        config = json.loads(file.read_text())
        config["r"], config["lora_alpha"]
    except (ValueError, LookupError, TypeError) as e:
        raise ValueError(f"the adapter {folder} is broken: {e!r}") from None
    scaled = [k for k in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern") if config.get(k)]
    if scaled:
        raise ValueError(f"the adapter {folder} is no plain LoRA: it has {', '.join(scaled)}")
    return config


def load_adapter(model: nn.Module, folder) -> None:
    """Adds a saved adapter. Raises OSError where there is none, ValueError where it is broken or does not
    fit."""
    config = adapter_config(folder)
    try:
        state = load_file(Path(folder) / "adapter_model.safetensors")
    except SafetensorError as e:
        raise ValueError(f"the adapter {folder} is broken: {e!r}") from None
    add_lora(model, config["r"], config["lora_alpha"])
    set_lora_state(model, state, f"the adapter {folder}")
