"""The policy: a frozen vision-language checkpoint, and the log-probs of its completions.

As a library: `policy = load("Qwen/Qwen2.5-VL-7B-Instruct")`, lora.py's `add_lora(policy.model, 64, 32)`, then
`encode` and `completion_logprobs`. The reference of the KL is the same with adapters off: no second copy.

A group's image and prompt go through the model once: its N completions run on top of the prompt's keys and
values, in rollout (rollout.py) and, with gradient, in training (`completion_logprobs`). For one image with 8
short answers the prompt is most of the tokens.

Where this departs from the usual stack:
1. No torchvision: images are always prepared by the PIL image processor, so numbers don't depend on what
   happens to be installed. (AutoProcessor without torchvision silently returns the tokenizer alone.)
2. Nothing of the checkpoint's generation_config is kept but its EOS ids.
3. Beside the paper's Qwen2.5-VL and InternVL: Qwen2-VL, Qwen3-VL and Idefics3, from checkpoints in Hugging
   Face's own format (FAMILIES).
"""

import re
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig
from transformers.processing_utils import ProcessorMixin

from grpo import chunked_logprobs
from support.checkpoints import FAMILIES, _ask, _chat_template, _limit_pixels, _turn_end, make_processor

# ------------------------------------------------------------------------------------------------------------
# Loading


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
    shared: bool = True  # completions are scored on top of their prompt's keys and values
    rows: int | None = None  # answers that can be decoded at a time, once memory has run out

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.banned.device


def load(name: str, device="cpu", dtype=torch.float32, max_pixels: int | None = None) -> Policy:
    """A checkpoint of one of FAMILIES from a folder or the hub, frozen, in eval mode (there is no dropout to
    want). max_pixels: larger images are scaled down to it. Raises ValueError or OSError, in one line, for
    what is no such checkpoint."""
    name = str(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as e:
        raise OSError(f"no model at {name!r}: neither a folder with a config.json nor a name the hub gives "
                      f"({str(e).splitlines()[0]})") from None
    if config.model_type not in FAMILIES:
        raise ValueError(f"{name} is a {config.model_type} model: choose a checkpoint of "
                         + ", ".join(FAMILIES))
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, attn_implementation="sdpa")
        tokenizer = AutoTokenizer.from_pretrained(name)
        images = FAMILIES[config.model_type][0].from_pretrained(name)
    except (OSError, ValueError, ImportError) as e:  # ImportError: quantised, by a package that is not here
        raise OSError(f"cannot load the checkpoint {name!r}: {str(e).strip().splitlines()[0]}") from None
    if max_pixels is not None:
        _limit_pixels(images, max_pixels)
    processor = make_processor(config, images, tokenizer, _chat_template(name, tokenizer))
    return from_parts(model.to(device), processor, name)


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
    eos_ids = list(dict.fromkeys(i for i in [_turn_end(processor), *eos, tokenizer.eos_token_id]
                                 if i is not None))  # the first is what a turn is taught to end with
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
    special += [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    banned[[i for i in {*special, *tokenizer.all_special_ids} if i is not None and i < size]] = True
    banned[eos_ids] = False
    # A window of attention that slides ends inside the prompt for some tokens of a completion.
    shared = getattr(config.get_text_config(), "sliding_window", None) is None
    if not shared:
        print(f"{name or 'this model'} has sliding-window attention: its completions are scored by the plain "
              "path, each behind its own copy of the prompt, which takes several times as long",
              file=sys.stderr)
    return Policy(model, processor, banned.to(model.device), eos_ids, pad_id, name, shared)


# ------------------------------------------------------------------------------------------------------------
# Prompts: one image and one question, through the frozen parts once


@dataclass
class Prompt:
    """ids (P,) token ids with the image's tokens expanded; embeds (P, H) with the image's features in place;
    positions (3, P) multimodal rotary positions, (1, P) in a family that counts plainly; start: the position
    of the first completion token; deep (D, P, H): what Qwen3-VL adds behind each of the first D layers."""
    ids: Tensor
    embeds: Tensor
    positions: Tensor
    start: int
    deep: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)


@torch.no_grad()
def encode(policy: Policy, images: list, question: str) -> list[Prompt]:
    """Each PIL image with the question in one user turn, image first. Vision tower and embeddings are frozen:
    what is made here serves rollout, reference and update. Raises ValueError for an image no patch grid fits
    (an aspect ratio above 200)."""
    if len(images) > 32:  # a bound on the vision tower's memory
        return encode(policy, images[:32], question) + encode(policy, images[32:], question)
    model, core = policy.model, policy.model.model
    text = _ask(policy.processor, question)
    bos = policy.tokenizer.bos_token  # some templates write it themselves: not twice
    batches = [policy.processor(text=[text], images=[image], return_tensors="pt",
                                add_special_tokens=not (bos and text.startswith(bos))).to(policy.device)
               for image in images]
    prompts = []
    for batch, (features, deep) in zip(batches, _features(core, batches)):
        ids = batch["input_ids"]
        where = (ids == model.config.image_token_id).unsqueeze(-1)
        if int(where.sum()) != len(features):
            raise ValueError(f"{int(where.sum())} image tokens for {len(features)} features: checkpoint and "
                             "image processor do not fit")
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(where, features.to(embeds.dtype))
        if deep is not None:
            still = torch.zeros_like(embeds)
            deep = torch.cat([still.masked_scatter(where, d.to(embeds.dtype)) for d in deep])
        positions, start = torch.arange(ids.shape[1], device=ids.device)[None, None], ids.shape[1]
        if hasattr(core, "get_rope_index"):
            # Without mm_token_type_ids the positions would silently be one-dimensional.
            positions, delta = core.get_rope_index(ids, mm_token_type_ids=batch["mm_token_type_ids"],
                                                   image_grid_thw=batch["image_grid_thw"])
            start += int(delta)
        prompts.append(Prompt(ids[0], embeds[0], positions[:, 0], start, deep))
    return prompts


def _features(core: nn.Module, batches: list) -> list[tuple]:
    """Each image's features (its tokens, H), and (D, its tokens, H) for deeper layers or None."""
    if "image_grid_thw" not in batches[0]:  # images of different numbers of tiles: one by one
        vision = [{k: b[k] for k in ("pixel_values", "pixel_attention_mask") if k in b} for b in batches]
        return [(core.get_image_features(**v).pooler_output.flatten(0, 1), None) for v in vision]
    # One call for all images; each image's patches stay with its own grid row.
    grids = torch.cat([b["image_grid_thw"] for b in batches])
    seen = core.get_image_features(torch.cat([b["pixel_values"] for b in batches]), grids)
    features, deep = seen.pooler_output, getattr(seen, "deepstack_features", None)
    if not deep:
        return [(f, None) for f in features]
    return list(zip(features, torch.stack(deep).split([len(f) for f in features], dim=1)))


def decoder_inputs(prompts: list[Prompt], end: int | None = None) -> dict:
    """What the language decoder takes for the first `end` tokens of B prompts of one length."""
    inputs = {"inputs_embeds": torch.stack([p.embeds[:end] for p in prompts]),
              "position_ids": _axes(torch.stack([p.positions[:, :end] for p in prompts], dim=1))}
    if prompts[0].deep is not None:  # zeros where there is no image: added everywhere, they change nothing
        deep = torch.stack([p.deep[:, :end] for p in prompts], dim=1)
        inputs["visual_pos_masks"] = torch.ones(deep.shape[1:3], dtype=torch.bool, device=deep.device)
        inputs["deepstack_visual_embeds"] = list(deep.flatten(1, 2))
    return inputs


def _axes(positions: Tensor) -> Tensor:
    """(3, R, L) as a multimodal decoder takes positions, (R, L) as a plain one."""
    return positions if len(positions) > 1 else positions[0]


# ------------------------------------------------------------------------------------------------------------
# Log-probs of completions


def completion_logprobs(policy: Policy, prompts: list[Prompt], completions: Tensor, mask: Tensor,
                        temperature: float = 1.0, checkpointing: bool = False,
                        shared: bool | None = None) -> Tensor:
    """Log-probability of every completion token under the distribution it was sampled from.

    prompts: B; completions, mask: (R, T) with R = B * N, the N rows of a prompt together. Returns (R, T)
    float32 with gradient to the adapters, 0 outside the mask. Prompts of one length go through together,
    others apart: no prompt is ever padded. checkpointing: each layer is made again in backward. shared=False:
    the plain path, every completion behind its own copy of the prompt; same numbers, several times the
    tokens. None: as the policy can.
    """
    shared = policy.shared if shared is None else shared
    n, width = len(completions) // len(prompts), completions.shape[1]
    used = max(2, int(mask.sum(1).max()))  # trailing padding costs nothing; one token alone has no input
    completions = F.pad(completions, (0, used - width), value=policy.pad_id)  # a negative pad cuts
    mask = F.pad(mask.bool(), (0, used - width))
    lengths = [len(p) for p in prompts]
    parts, order = [], []
    for length in dict.fromkeys(lengths):
        members = [i for i, other in enumerate(lengths) if other == length]
        rows = torch.tensor([i * n + j for i in members for j in range(n)], device=completions.device)
        run = _shared_hidden if shared else _plain_hidden
        hidden = run(policy, [prompts[i] for i in members], completions[rows], checkpointing)
        head = policy.model.get_output_embeddings().weight
        parts.append(chunked_logprobs(hidden, head, completions[rows], temperature, policy.banned))
        order.append(rows)
    logprobs = torch.cat(parts)[torch.cat(order).argsort()]
    return F.pad(torch.where(mask, logprobs, 0.0), (0, width - used))  # padding is -inf


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
    """(3 or 1, R, length) rotary positions of completion tokens: text, so all axes count alike."""
    start = torch.tensor([p.start for p in prompts], device=device).repeat_interleave(n)
    return (start[:, None] + torch.arange(length, device=device)).expand(len(prompts[0].positions), -1, -1)


def _shared_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """(R, T, H) hidden states that predict the completions; prompts of one length, forwarded once each,
    nothing detached: the gradient of N completions meets in their prompt."""
    decoder = policy.model.get_decoder()
    n = len(completions) // len(prompts)
    x = torch.stack([p.embeds for p in prompts])               # (B, P, H)
    y = decoder.embed_tokens(completions[:, :-1])              # (R, T-1, H): the last token predicts nothing
    p_len, c_len = x.shape[1], y.shape[1]
    rope_x = decoder.rotary_emb(x, _axes(torch.stack([p.positions for p in prompts], dim=1)))
    rope_y = decoder.rotary_emb(y, _axes(_start_positions(prompts, n, c_len, y.device)))
    deep = [torch.stack(layer) for layer in zip(*(p.deep for p in prompts if p.deep is not None))]
    # A completion sees its whole prompt and its own past; padding is on the right, where no real token looks.
    sees = torch.ones(c_len, p_len + c_len, dtype=torch.bool, device=y.device).tril(p_len)[None, None]

    def both(layer, x, y):
        cache = _SharedKV(n)
        x = layer(x, position_embeddings=rope_x, past_key_values=cache)  # no mask: sdpa's own causal one
        return x, layer(y, attention_mask=sees, position_embeddings=rope_y, past_key_values=cache)

    for i, layer in enumerate(decoder.layers):
        x, y = checkpoint(both, layer, x, y, use_reentrant=False) if checkpointing else both(layer, x, y)
        x = x + deep[i] if i < len(deep) else x
    last = decoder.norm(x[:, -1:]).repeat_interleave(n, dim=0)  # predicts each completion's first token
    return torch.cat([last, decoder.norm(y)], dim=1)


def _plain_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """The same by transformers' own forward of the full sequences, prompt repeated for every row."""
    decoder = policy.model.get_decoder()
    n, length = len(completions) // len(prompts), len(prompts[0])
    tail = decoder.embed_tokens(completions[:, :-1])
    places = _start_positions(prompts, n, tail.shape[1], tail.device)
    each = [prompt for prompt in prompts for _ in range(n)]
    whole = [Prompt(p.ids, torch.cat([p.embeds, t]), torch.cat([p.positions, places[:, r]], dim=1), p.start,
                    None if p.deep is None else F.pad(p.deep, (0, 0, 0, len(t))))
             for r, (p, t) in enumerate(zip(each, tail))]
    if checkpointing:  # transformers' own, which works in train mode alone
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    decoder.train(checkpointing)
    hidden = decoder(**decoder_inputs(whole), use_cache=False).last_hidden_state
    decoder.eval()
    return hidden[:, length - 1:]
