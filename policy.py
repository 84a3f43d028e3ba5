"""The policy: a Qwen2.5-VL checkpoint with hand-written LoRA, and the log-probs of its completions.

As a library: `policy = load("Qwen/Qwen2.5-VL-7B-Instruct")`, then `encode`, `completion_logprobs`,
`adapters_off`, `save_adapter`. The reference model of the KL is the same weights with the adapters off: no
second copy.

A group's image and prompt go through the model once: its N completions run on top of the prompt's keys and
values, in rollout (rollout.py) and, with gradient, in training (`completion_logprobs`). For one image with 8
short answers the prompt is most of the tokens.

Where this departs from the usual stack:
1. No peft: LoRA is the forty lines below, and is saved under PEFT's file and key names.
2. No torchvision: images are always prepared by the PIL image processor, so numbers don't depend on what
   happens to be installed. (AutoProcessor without torchvision silently returns the tokenizer alone.)
3. Nothing of the checkpoint's generation_config is kept but its EOS ids.
"""

import json
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin
from transformers.utils import cached_file

from grpo import chunked_logprobs

# ------------------------------------------------------------------------------------------------------------
# LoRA


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
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
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


# ------------------------------------------------------------------------------------------------------------
# Loading


class ImageProcessor(Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without its video side, which alone needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


@dataclass
class Policy:
    """A model with what is needed to talk to it. banned: (V,) bool, tokens that are never sampled and
    therefore have no share in the scored distribution."""
    model: nn.Module
    processor: ProcessorMixin
    banned: Tensor
    eos_ids: list[int]
    pad_id: int
    name: str = ""

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.banned.device


def load(name: str, rank: int | None = None, alpha: float = 32, adapter=None, device="cpu",
         dtype=torch.float32, max_pixels: int | None = None, seed: int = 0) -> Policy:
    """A Qwen2.5-VL checkpoint from a folder or the hub, frozen, in eval mode (there is no dropout to want).

    rank: LoRA rank, None = no adapter; alpha: its scale is alpha / rank (official: 64 / 32). adapter: a
    folder in PEFT's format to load, whose own rank and alpha then count. max_pixels: larger images are scaled
    down to it. Raises ValueError or OSError, in one line, for what is no Qwen2.5-VL checkpoint or no fitting
    adapter.
    """
    name = str(name)
    try:
        family = AutoConfig.from_pretrained(name).model_type
    except (OSError, ValueError, KeyError) as e:
        raise OSError(f"no model at {name!r}: neither a folder with a config.json nor a name the hub gives "
                      f"({str(e).splitlines()[0]})") from None
    if family != "qwen2_5_vl":
        raise ValueError(f"{name} is a {family} model: only Qwen2.5-VL checkpoints (qwen2_5_vl) so far")
    try:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(name, dtype=dtype,
                                                                   attn_implementation="sdpa")
        tokenizer = AutoTokenizer.from_pretrained(name)
        images = Qwen2VLImageProcessorPil.from_pretrained(name)
    except (OSError, ValueError) as e:
        raise OSError(f"the checkpoint {name!r} is not complete: {str(e).splitlines()[0]}") from None
    processor = ImageProcessor(images, tokenizer, chat_template=_chat_template(name, tokenizer))
    policy = from_parts(model.to(device), processor, name=name)
    if max_pixels is not None:
        smallest = (images.patch_size * images.merge_size) ** 2
        if max_pixels < smallest:
            raise ValueError(f"max pixels must be at least one image token, {smallest}, got {max_pixels}")
        # set by hand: older checkpoints say min_pixels/max_pixels, newer ones size
        images.size = {"shortest_edge": min(images.size["shortest_edge"], max_pixels),
                       "longest_edge": max_pixels}
    if adapter is not None:
        config_file = Path(adapter) / "adapter_config.json"
        if not config_file.is_file():
            raise OSError(f"no adapter in {adapter}: there is no adapter_config.json")
        config = json.loads(config_file.read_text())
        add_lora(model, config["r"], config["lora_alpha"], seed)
        state = load_file(Path(adapter) / "adapter_model.safetensors")
        set_lora_state(model, state, f"the adapter {adapter}")
    elif rank is not None:
        add_lora(model, rank, alpha, seed)
    return policy


def _chat_template(name: str, tokenizer) -> str:
    """The processor's own template where the folder or hub repository has one, else the tokenizer's."""
    for file in ("chat_template.jinja", "chat_template.json"):
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False,
                            _raise_exceptions_for_connection_errors=False)
        if found:
            text = Path(found).read_text(encoding="utf-8")
            return json.loads(text)["chat_template"] if file.endswith("json") else text
    if tokenizer.chat_template is None:
        raise ValueError(f"the checkpoint {name!r} has no chat template")
    return tokenizer.chat_template


def from_parts(model: nn.Module, processor: ProcessorMixin, name: str = "") -> Policy:
    """A Policy from a model and processor in memory; settles EOS, padding and the banned tokens."""
    model.eval().requires_grad_(False)
    tokenizer, config = processor.tokenizer, model.config
    try:
        places = _ask(processor, "?").count(processor.image_token)
    except Exception:  # a text model's template, given a list of parts, fails in any way
        places = 0
    if places != 1:
        raise ValueError(f"the chat template of {name!r} has no place for an image")
    eos = model.generation_config.eos_token_id
    eos = [eos] if isinstance(eos, int) else eos or []
    eos_ids = list(dict.fromkeys(i for i in [*eos, tokenizer.eos_token_id] if i is not None))
    if not eos_ids:
        raise ValueError(f"the checkpoint {name!r} names no end-of-sequence token")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    # A fresh config at generate() would still inherit repetition_penalty and top_k from the model's.
    model.generation_config = GenerationConfig(eos_token_id=eos_ids, pad_token_id=pad_id)

    # Banned: control tokens, what stands for an image or a video (sampled, it would make the later forward
    # look for a picture), and the rows of the embedding that no token has. But no EOS.
    banned = torch.ones(size := config.get_text_config().vocab_size, dtype=torch.bool)
    known = [i for i in tokenizer.get_vocab().values() if i < size]
    banned[known] = False
    special = [v for k, v in config.to_dict().items() if re.search(r"(image|video|vision).*token_id$", k)]
    vision = re.compile(r"<\|(image|video|vision)_\w+\|>")
    special += [i for t, i in tokenizer.get_vocab().items() if vision.fullmatch(t)]
    banned[[i for i in {*special, *tokenizer.all_special_ids} if i is not None and i < size]] = True
    banned[eos_ids] = False
    return Policy(model, processor, banned.to(model.device), eos_ids, pad_id, name)


# ------------------------------------------------------------------------------------------------------------
# Prompts: one image and one question, through the frozen parts once


@dataclass
class Prompt:
    """ids (P,) token ids with the image's tokens expanded; embeds (P, H) with the image's features in place;
    positions (3, P) multimodal rotary positions; start: the position of the first completion token."""
    ids: Tensor
    embeds: Tensor
    positions: Tensor
    start: int

    def __len__(self) -> int:
        return len(self.ids)


def _ask(processor: ProcessorMixin, question: str) -> str:
    """The rendered chat up to the model's turn: one user turn, image first."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    return processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


@torch.no_grad()
def encode(policy: Policy, images: list, question: str) -> list[Prompt]:
    """Each PIL image with the question in one user turn, image first. Vision tower and embeddings are frozen:
    what is made here serves rollout, reference and update. Raises ValueError for an image no patch grid fits
    (an aspect ratio above 200)."""
    model, core = policy.model, policy.model.model
    text = _ask(policy.processor, question)
    batches = [policy.processor(text=[text], images=[image], return_tensors="pt").to(policy.device)
               for image in images]
    # One call for all images; each image's patches stay with its own grid row.
    grids = torch.cat([b["image_grid_thw"] for b in batches])
    features = core.get_image_features(torch.cat([b["pixel_values"] for b in batches]), grids).pooler_output
    prompts = []
    for batch, grid, feature in zip(batches, grids, features):
        ids = batch["input_ids"]
        embeds = model.get_input_embeddings()(ids)
        where = (ids == model.config.image_token_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(where, feature.to(embeds.dtype))
        # Without mm_token_type_ids the positions would silently be one-dimensional.
        positions, delta = core.get_rope_index(ids, mm_token_type_ids=batch["mm_token_type_ids"],
                                               image_grid_thw=grid[None])
        prompts.append(Prompt(ids[0], embeds[0], positions[:, 0], ids.shape[1] + int(delta)))
    return prompts


# ------------------------------------------------------------------------------------------------------------
# Log-probs of completions


def completion_logprobs(policy: Policy, prompts: list[Prompt], completions: Tensor, mask: Tensor,
                        temperature: float = 1.0, checkpointing: bool = False, shared: bool = True) -> Tensor:
    """Log-probability of every completion token under the distribution it was sampled from.

    prompts: B; completions, mask: (R, T) with R = B * N, the N rows of a prompt together. Returns (R, T)
    float32 with gradient to the adapters, 0 outside the mask. Prompts of one length go through together,
    others apart: no prompt is ever padded. checkpointing: each layer is made again in backward. shared=False:
    the plain path, every completion behind its own copy of the prompt; same numbers, several times the
    tokens.
    """
    n, width = len(completions) // len(prompts), completions.shape[1]
    used = max(2, int(mask.sum(1).max()))  # trailing padding costs nothing; one token alone has no input
    completions = F.pad(completions, (0, max(0, used - width)), value=policy.pad_id)[:, :used]
    mask = F.pad(mask.bool(), (0, max(0, used - width)))[:, :used]
    targets = completions.masked_fill(~mask, policy.eos_ids[0])  # padding is banned: its -inf must not enter
    lengths = [len(p) for p in prompts]
    parts, order = [], []
    for length in dict.fromkeys(lengths):
        members = [i for i, other in enumerate(lengths) if other == length]
        rows = torch.tensor([i * n + j for i in members for j in range(n)], device=completions.device)
        run = _shared_hidden if shared else _plain_hidden
        hidden = run(policy, [prompts[i] for i in members], completions[rows], checkpointing)
        parts.append(chunked_logprobs(hidden, policy.model.lm_head.weight, targets[rows], temperature,
                                      policy.banned))
        order.append(rows)
    logprobs = torch.cat(parts)[torch.cat(order).argsort()]
    logprobs = torch.where(mask, logprobs, 0.0)
    return F.pad(logprobs, (0, max(0, width - used)))[:, :width]


class _SharedKV:
    """Stands where a layer expects a cache: keeps the prompt's keys and values, then hands them to all N
    rows."""

    def __init__(self, n: int):
        self.n, self.prompt = n, None

    def update(self, keys, values, layer_idx, *args, **kwargs):
        if self.prompt is None:
            self.prompt = keys, values
            return keys, values
        keys_p, values_p = (t.repeat_interleave(self.n, dim=0) for t in self.prompt)
        return torch.cat([keys_p, keys], dim=2), torch.cat([values_p, values], dim=2)


def _start_positions(prompts: list[Prompt], n: int, length: int, device) -> Tensor:
    """(3, R, length) rotary positions of completion tokens: text, so all three axes count alike."""
    start = torch.tensor([p.start for p in prompts], device=device).repeat_interleave(n)
    return (start[:, None] + torch.arange(length, device=device)).expand(3, -1, -1)


def _shared_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """(R, T, H) hidden states that predict the completions; prompts of one length, forwarded once each,
    nothing detached: the gradient of N completions meets in their prompt."""
    decoder = policy.model.get_decoder()
    n = len(completions) // len(prompts)
    x = torch.stack([p.embeds for p in prompts])               # (B, P, H)
    y = decoder.embed_tokens(completions[:, :-1])              # (R, T-1, H): the last token predicts nothing
    p_len, c_len = x.shape[1], y.shape[1]
    rope_x = decoder.rotary_emb(x, torch.stack([p.positions for p in prompts], dim=1))
    rope_y = decoder.rotary_emb(y, _start_positions(prompts, n, c_len, y.device))
    # A completion sees its whole prompt and its own past; padding is on the right, where no real token looks.
    sees = torch.ones(c_len, p_len + c_len, dtype=torch.bool, device=y.device).tril(p_len)[None, None]

    def both(layer, x, y):
        cache = _SharedKV(n)
        x = layer(x, position_embeddings=rope_x, past_key_values=cache)  # no mask: sdpa's own causal one
        return x, layer(y, attention_mask=sees, position_embeddings=rope_y, past_key_values=cache)

    for layer in decoder.layers:
        x, y = checkpoint(both, layer, x, y, use_reentrant=False) if checkpointing else both(layer, x, y)
    last = decoder.norm(x[:, -1:]).repeat_interleave(n, dim=0)  # predicts each completion's first token
    return torch.cat([last, decoder.norm(y)], dim=1)


def _plain_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """The same from full sequences, prompt repeated for every row."""
    decoder = policy.model.get_decoder()
    n = len(completions) // len(prompts)
    embeds = torch.stack([p.embeds for p in prompts]).repeat_interleave(n, dim=0)
    positions = torch.stack([p.positions for p in prompts], dim=1).repeat_interleave(n, dim=1)
    tail = decoder.embed_tokens(completions[:, :-1])
    tail_positions = _start_positions(prompts, n, tail.shape[1], tail.device)
    x = torch.cat([embeds, tail], dim=1)
    rope = decoder.rotary_emb(x, torch.cat([positions, tail_positions], dim=2))
    for layer in decoder.layers:
        run = lambda x, layer=layer: layer(x, position_embeddings=rope)
        x = checkpoint(run, x, use_reentrant=False) if checkpointing else run(x)
    return decoder.norm(x)[:, embeds.shape[1] - 1:]
