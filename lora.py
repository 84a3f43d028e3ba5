"""LoRA by hand: low-rank adapters on a language model's linear layers, saved and read in PEFT's format.

As a library: `add_lora(model, rank=64, alpha=32)` freezes a transformers model and puts adapters into its
language decoder; `with adapters_off(model)` it is the frozen base again, bit for bit: the reference of the
KL needs no second copy. Copy this file alone; it needs torch and safetensors.

Where this departs from peft:
1. Float32 master weights whatever the base's dtype, cast in forward: bfloat16 loses Adam steps of 3e-5.
2. Never merged: merging and unmerging in bfloat16 would drift the frozen weights. No dropout.
3. An adapter that does not fit the model key by key is refused; peft loads it as a no-op with a warning. So
   is one that is called LoRA and computes something else (DoRA, PiSSA, aLoRA, ...).
"""

import json
import math
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
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
        if not self.enabled:
            return self.base(x)

        # In the activations' dtype: float32 products would double what autograd keeps for backward.
        if self.cast is not None and not torch.is_grad_enabled():
            A, B = self.cast
        else:
            A = self.lora_A.to(x.dtype)
            B = self.lora_B.to(x.dtype)

        tokens = x.flatten(0, -2)     # (tokens, in)
        y = self.base(tokens)         # (tokens, out)
        low = F.linear(tokens, A)     # (tokens, rank)

        # y + scale * (low @ B.T), in place: the product needs no (tokens, out) of its own. Backward does not
        # read y. `to` is for autocast, which casts nothing for an operation in place.
        y.addmm_(low, B.t().to(y.dtype), alpha=self.scale)
        return y.view(*x.shape[:-1], y.shape[-1])  # (..., out)


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
    try:
        for layer in layers:
            dtype = layer.base.weight.dtype
            layer.cast = (layer.lora_A.detach().to(dtype), layer.lora_B.detach().to(dtype))
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
    """Copies an adapter's tensors into the model's LoRA layers. Raises ValueError, and copies none, unless
    keys and shapes are exactly the model's (a key that matches nothing would otherwise load as a silent
    no-op) and all values are finite."""
    own = lora_state(model)
    unmatched = sorted(own.keys() ^ state.keys())
    if unmatched:
        raise ValueError(f"{source} does not fit this model: {len(unmatched)} keys differ, "
                         f"the first is {unmatched[0]}")
    for key, value in own.items():
        given = state[key]
        if not isinstance(given, Tensor) or not given.is_floating_point():
            raise ValueError(f"{source} is broken: {key} holds no real numbers")
        if given.shape != value.shape:
            raise ValueError(f"{source} does not fit this model: {key} is {tuple(given.shape)}, "
                             f"the model's {tuple(value.shape)}")
        if not given.float().isfinite().all():
            raise ValueError(f"{source} is broken: {key} holds NaN or infinity")

    for key, value in own.items():
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


# ------------------------------------------------------------------------------------------------------------
# Reading an adapter, this file's or PEFT's
#
# PEFT knows many kinds of adapters that are called LoRA and compute something else. They have the same
# tensors, and only the config tells. So what it may say is written down here, and all else is refused.

# Fields that may hold anything: they are not about what an adapted layer computes.
HARMLESS = {
    "base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version", "inference_mode",
    "lora_dropout",  # of training alone
    "megatron_core", "qalora_group_size",  # these do nothing where megatron_config and use_qalora are empty
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform",  # read below
    "layers_pattern",
}
# Fields that must hold one of these. A start other than PEFT's usual ones has changed the base's weights too:
# what is saved of the adapter is the difference to another base.
PLAIN = {
    "peft_type": ["LORA"],
    "bias": ["none"],
    "init_lora_weights": [True, False, "gaussian"],
    "alora_invocation_tokens": [None],
}
EMPTY = [None, False, "", [], {}]  # what every other field must be, of later versions too

# Where a family's language layers were, by the model's type; since transformers 4.52 they are at NEWER.
OLDER = {
    "qwen2_vl": "model.layers.",
    "qwen2_5_vl": "model.layers.",
    "internvl": "language_model.model.layers.",  # in its authors' own code
}
NEWER = "model.language_model.layers."

LARGEST_ALPHA = 1e6


def find_adapter(folder) -> Path:
    """The folder that holds adapter_config.json: this one, or the only one in it that does (PEFT keeps an
    adapter that has a name so). Raises OSError where there is none, ValueError where there are several."""
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file():
        return folder
    named = sorted(file.parent for file in folder.glob("*/adapter_config.json"))
    if not named:
        raise OSError(f"no adapter in {folder}: there is no adapter_config.json")
    if len(named) > 1:
        raise ValueError(f"{folder} holds several adapters, name one: {', '.join(map(str, named))}")
    return named[0]


def adapter_weights(folder) -> Path:
    """The file with an adapter's tensors. Raises OSError where there is none."""
    folder = find_adapter(folder)
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise OSError(f"no weights in {folder}: there is no adapter_model.safetensors")


def adapter_config(folder) -> dict:
    """The adapter_config.json that save_adapter, or PEFT, wrote. Raises OSError where there is none,
    ValueError where it is broken or no plain LoRA's: what another kind computes would be wrong without an
    error."""
    file = find_adapter(folder) / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        rank = config["r"]  # raises where it is missing, or where the file holds no dict
        alpha = config["lora_alpha"]
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        reason = f"{type(e).__name__}: {str(e)[:100]}"
        raise ValueError(f"the adapter {folder} is broken: its adapter_config.json ({reason})") from None

    if type(rank) is not int or rank < 1:
        raise ValueError(f"the adapter {folder} is broken: its rank r is {say(rank)}, not 1 or more")
    is_number = type(alpha) in (int, float)
    if not is_number or not abs(alpha) <= LARGEST_ALPHA:
        raise ValueError(f"the adapter {folder} is broken: its lora_alpha is {say(alpha)}, no number up to "
                         f"{LARGEST_ALPHA:g}")
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        raise ValueError(f"the adapter {folder} is broken: its base_model_name_or_path is {say(base)}")

    for field, value in config.items():
        may_be = PLAIN.get(field, EMPTY)
        if field not in HARMLESS and value not in may_be:
            raise ValueError(f"the adapter {folder} is no plain LoRA: its config says {field} = {say(value)}")
    return config


def say(value) -> str:
    """A value of a config as it stands there, in a few letters."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + " ..."


def load_adapter(model: nn.Module, folder) -> None:
    """Adds a saved adapter, which may be on fewer layers than add_lora's. Raises OSError where there is none,
    ValueError where it is broken, no plain LoRA, or does not fit."""
    config = adapter_config(folder)
    source = f"the adapter {folder}"
    state = read_tensors(adapter_weights(folder), source)

    # Before the model is touched: a rank that the tensors don't have would ask for any amount of memory.
    for key, tensor in state.items():
        if key.endswith("lora_A.weight") and tensor.shape[:1] != (config["r"],):
            raise ValueError(f"{source} does not fit its config: {key} is {tuple(tensor.shape)}, the rank "
                             f"{say(config['r'])}")
    add_lora(model, config["r"], config["lora_alpha"])
    older = older_path(model, state, source)
    if older is not None:
        state = {key.replace(older, NEWER, 1): value for key, value in state.items()}
    check_layers(model, state, config, source, older)

    # A layer that the adapter leaves alone keeps its B of zeros, which changes nothing.
    set_lora_state(model, lora_state(model) | state, source)


def read_tensors(file: Path, source: str) -> dict[str, Tensor]:
    """An adapter's tensors by PEFT's names. Raises ValueError where the file holds anything else."""
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)  # never code
    except OSError:
        raise
    except Exception as e:  # whatever a broken file leads to
        reason = " ".join(str(e).split())[:100]
        raise ValueError(f"{source} is broken: {file.name} is cut off, damaged, or only a pointer of Git LFS "
                         f"({type(e).__name__}: {reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{source} is broken: {file.name} holds something else than tensors by name")
    return state


def older_path(model: nn.Module, state: dict[str, Tensor], source: str) -> str | None:
    """Where the adapter's layers are if all have their older names, else None. Raises ValueError where some
    have and some have not."""
    config = getattr(model, "config", None)
    older = OLDER.get(getattr(config, "model_type", None))
    if older is None:
        return None
    paths = [key.removeprefix("base_model.model.") for key in state]
    is_older = {path.startswith(older) for path in paths if path.startswith((older, NEWER))}
    if is_older == {True, False}:
        raise ValueError(f"{source} is broken: some of its tensors have the names from before transformers "
                         "4.52, and some have not")
    return older if is_older == {True} else None


def check_layers(model: nn.Module, state: dict[str, Tensor], config: dict, source: str,
                 older: str | None = None) -> None:
    """Raises ValueError, naming the first, where an adapter has tensors that no LoRALinear of the model
    takes, or has not those that its config promises. older: where its config says that layers are, instead
    of at NEWER."""
    own = lora_state(model).keys()

    # A and B of a layer come first: they tell most.
    strange = sorted(state.keys() - own, key=lambda key: (".lora_" not in key, key))
    if strange:
        layer = strange[0].removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        paths = [path for path, _ in model.named_modules()]
        reason = "this model has no such layer"
        if layer in paths:
            reason = "adapters are on the language model's linear layers alone"
        raise ValueError(f"{source} does not fit this model: it has {strange[0]}, and {reason}")

    # Both of a layer's tensors, of each layer that the config names.
    promised = set()
    for layer in lora_layers(model):
        pair = {f"base_model.model.{layer}.lora_{x}.weight" for x in "AB"}
        if config.get("target_modules") is None:  # it names none: those that are there
            is_promised = bool(pair & state.keys())
        else:
            its_name = layer.replace(NEWER, older, 1) if older else layer
            is_promised = is_target(its_name, config, source)
        if is_promised:
            promised |= pair
    differing = sorted(promised ^ state.keys())
    if differing:
        raise ValueError(f"{source} is not whole: its config and its tensors differ in {len(differing)} "
                         f"keys, the first is {differing[0]}")
    if not state:
        raise ValueError(f"{source} holds no tensor for this model")


def is_target(layer: str, config: dict, source: str) -> bool:
    """Whether the config says that this layer (its path in the model) is adapted, as PEFT reads it."""
    targets = config.get("target_modules")
    try:
        is_named = names_layer(targets, layer)
        is_excluded = names_layer(config.get("exclude_modules") or [], layer)
        return is_named and not is_excluded and is_in_chosen_layers(layer, config)
    except (TypeError, re.error):
        raise ValueError(f"{source} is broken: its config's target_modules ({say(targets)}), or what limits "
                         "them, cannot be read") from None


def names_layer(names: str | list[str], layer: str) -> bool:
    """Whether a regex on whole paths, or a list of paths' ends, names a layer."""
    if names == "all-linear":
        return True
    if isinstance(names, str):
        return re.fullmatch(names, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def is_in_chosen_layers(layer: str, config: dict) -> bool:
    """Whether the number in a layer's path ("model.layers.7.mlp") is one of layers_to_transform, if there are
    any."""
    numbers = config.get("layers_to_transform")
    if numbers is None or numbers == []:
        return True
    if isinstance(numbers, int):
        numbers = [numbers]
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    if isinstance(patterns, str):
        patterns = [patterns]
    for pattern in patterns:
        found = re.match(rf"(?:.*?\.)?{pattern}\.(\d+)\.", layer)
        if found:
            return int(found[1]) in numbers
    return False
