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
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen linear layer W with a trained low-rank correction: y = W x + (alpha / rank) * B A x.

    A is (rank, in) and B is (out, rank): where W has out * in weights, they have rank * (in + out). They are
    kept in float32 on a base of any dtype, because one Adam step is smaller than bfloat16 can resolve.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.enabled = True
        self.cast = None  # A and B in the base's dtype, inside cast_adapters
        device = base.weight.device

        # A as peft draws it (kaiming_uniform). It is drawn on the CPU: the same numbers on every device.
        bound = 1 / math.sqrt(base.in_features)
        A = torch.empty(rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(A.to(device))  # (rank, in)

        # B is 0, so B A x is 0: a fresh adapter changes nothing, and training starts at the base.
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=device))  # (out, rank)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)  # (..., out)
        if not self.enabled:
            return y

        # In the activations' dtype: float32 products would double what autograd keeps for backward.
        if self.cast is not None and not torch.is_grad_enabled():
            A, B = self.cast
        else:
            A = self.lora_A.to(x.dtype)
            B = self.lora_B.to(x.dtype)
        low = F.linear(x, A).flatten(0, -2)  # (tokens, rank)

        # y + scale * (low @ B.T), in one call: the product needs no (tokens, out) of its own.
        corrected = torch.addmm(y.flatten(0, -2), low, B.t(), alpha=self.scale)  # (tokens, out)
        return corrected.view_as(y)


def add_lora(model: nn.Module, rank: int, alpha: float, seed: int = 0) -> None:
    """Freezes the model and puts a LoRALinear in the place of every nn.Linear under its language decoder:
    never in the vision tower, never on lm_head (an adapter there would train the vocabulary)."""
    if rank < 1:
        raise ValueError(f"the LoRA rank must be at least 1, got {rank}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    decoder = model.get_decoder()
    # A list, since the tree of modules changes under the loop.
    for name, module in list(decoder.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            adapted = LoRALinear(module, rank, alpha, generator)
            setattr(decoder.get_submodule(parent), child, adapted)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Module path -> LoRALinear, in model order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def adapters_off(model: nn.Module):
    """Inside, the model is the reference: bit for bit the frozen base.

    That holds because W is never touched. An adapter that is merged into bfloat16 weights and taken out again
    leaves other weights behind.
    """
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


@contextmanager
def cast_adapters(model: nn.Module):
    """Inside, and where no gradient is recorded, the adapters are cast to their base's dtype once, and not
    again for every token that is decoded. Nothing may train inside: the copies would not follow."""
    layers = lora_layers(model).values()
    for layer in layers:
        dtype = layer.base.weight.dtype
        layer.cast = (layer.lora_A.detach().to(dtype), layer.lora_B.detach().to(dtype))
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


# ------------------------------------------------------------------------------------------------------------
# PEFT's file format
#
# A folder with adapter_model.safetensors, the tensors A and B of each layer, and adapter_config.json, where
# they go and their scale.


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's key names, float32."""
    state = {}
    for name, layer in lora_layers(model).items():
        state[f"base_model.model.{name}.lora_A.weight"] = layer.lora_A
        state[f"base_model.model.{name}.lora_B.weight"] = layer.lora_B
    return state


def set_lora_state(model: nn.Module, state: dict[str, Tensor], source="the adapter") -> None:
    """Copies an adapter's tensors into the model's LoRA layers. Raises ValueError unless keys and shapes are
    exactly the model's: a key that matches nothing would otherwise load as a silent no-op."""
    own = lora_state(model)
    unmatched = sorted(own.keys() ^ state.keys())
    if unmatched:
        raise ValueError(f"{source} does not fit this model: {len(unmatched)} keys differ, "
                         f"the first is {unmatched[0]}")
    for key, value in own.items():
        if value.shape != state[key].shape:
            raise ValueError(f"{source} does not fit this model: {key} is {tuple(state[key].shape)}, "
                             f"the model's {tuple(value.shape)}")
        value.data.copy_(state[key])


def target_modules(model: nn.Module) -> str:
    """The adapted layers as a regex on module paths.

    PEFT also takes a plain list of names, but that would match layers of the vision tower too: it has a
    down_proj of its own.
    """
    decoder = model.get_decoder()
    decoder_path = next(name for name, module in model.named_modules() if module is decoder)
    names = sorted({path.rsplit(".", 1)[-1] for path in lora_layers(model)})
    return rf"{re.escape(decoder_path)}\..*\.({'|'.join(names)})"


def save_adapter(model: nn.Module, folder, base_name: str = "") -> None:
    """Writes the adapter into `folder` as PEFT writes and reads it. base_name: the base model's folder or hub
    name. Raises OSError where it can't be written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(lora_layers(model).values()))  # all layers have one rank and one scale
    rank = first.lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": round(first.scale * rank, 6),
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": target_modules(model),
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }
    state = {key: value.detach().cpu().contiguous() for key, value in lora_state(model).items()}
    # The config comes last: where it is there, the adapter is.
    replace_file(folder / "adapter_model.safetensors", save(state, metadata={"format": "pt"}))
    replace_file(folder / "adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())


def replace_file(file: Path, content: bytes) -> None:
    """Writes beside the file, then puts it in its place: a kill or a full disk leaves the old one."""
    temporary = file.with_name(f".tmp-{file.name}")
    try:
        with temporary.open("wb") as beside:
            beside.write(content)
            beside.flush()
            os.fsync(beside.fileno())
        os.replace(temporary, file)
    except OSError as e:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"cannot write the adapter into {file.parent}: {e.strerror}") from None


def adapter_config(folder) -> dict:
    """The adapter_config.json that save_adapter, or PEFT, wrote. Raises OSError where there is none,
    ValueError where it is no plain LoRA's: another scale would be wrong without an error."""
    file = Path(folder) / "adapter_config.json"
    if not file.is_file():
        raise OSError(f"no adapter in {folder}: there is no adapter_config.json")
    try:
        config = json.loads(file.read_text())
        for needed in ("r", "lora_alpha"):
            config[needed]  # raises where it is missing, or where the file holds no dict
    except (ValueError, LookupError, TypeError) as e:
        raise ValueError(f"the adapter {folder} is broken: {e!r}") from None

    # What PEFT would scale in another way, layer by layer or as a whole.
    variants = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
    used = [key for key in variants if config.get(key)]
    if used:
        raise ValueError(f"the adapter {folder} is no plain LoRA: it has {', '.join(used)}")
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
