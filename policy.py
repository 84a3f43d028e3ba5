"""The policy: a frozen vision-language checkpoint, and the log-probs of its completions.

    policy = load("Qwen/Qwen2.5-VL-7B-Instruct", "cuda", torch.bfloat16)
    lora.add_lora(policy.model, rank=64, alpha=32)
    prompts = encode(policy, images, question)                          # B
    logprobs = completion_logprobs(policy, prompts, completions, mask)  # (R, T)

The reference of the KL is the same model with its adapters off, no second copy:

    with torch.no_grad(), lora.adapters_off(policy.model):
        ref_logprobs = completion_logprobs(policy, prompts, completions, mask)

B images, N completions each, R = B * N rows, P prompt tokens (image tokens included), T completion tokens
(right-padded), V vocabulary, H hidden size.

A prompt goes through the model once, and its N completions run on top of its keys and values: in rollout
(rollout.py) and, with gradient, in training (the last section). For one image with 8 short answers the prompt
is most of the tokens. plain_hidden is the same without that: read it first.

Where this departs from the usual stack:
1. No torchvision: images are always prepared by the PIL image processor, so numbers don't depend on what
   happens to be installed. (AutoProcessor without torchvision silently returns the tokenizer alone.)
2. Nothing of the checkpoint's generation_config is kept but its EOS ids.
3. Beside the paper's Qwen2.5-VL and InternVL: Qwen2-VL, Qwen3-VL and Idefics3, from checkpoints in Hugging
   Face's own format (FAMILIES in support/checkpoints.py).
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig
from transformers.processing_utils import ProcessorMixin

from grpo import chunked_logprobs
from support.attention import GROUPED, attention_by, mask_by_group
from support.checkpoints import (banned_tokens, check_chat_template, end_of_sequence_ids, limit_pixels,
                                 load_checkpoint, one_line, padding_id, render_question)

# Bounds on the vision tower's memory. One image goes through whatever its size.
IMAGES_AT_ONCE = 32
PIXELS_AT_ONCE = 32 * 512 * 28 * 28

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
    max_pixels: int | None = None      # larger images are scaled down
    planned_prompt: int | None = None  # tokens of a prompt, where memory is reckoned with (support/memory.py)

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
    model, processor = load_checkpoint(name, device, dtype)
    policy = from_parts(model, processor, name)
    try_picture(policy)
    if max_pixels is not None:
        limit_pixels(processor.image_processor, max_pixels)
    policy.max_pixels = max_pixels
    return policy


def try_picture(policy: Policy) -> None:
    """Raises ValueError where no picture gets into the model: settings of the image processor that can't be
    used, or that belong to another model, would otherwise show in the middle of a run."""
    try:
        encode(policy, [Image.new("RGB", (64, 64))], "?")
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as e:  # a wrong setting makes transformers raise anything
        raise ValueError(f"the checkpoint {policy.name!r} cannot take a picture: {one_line(e)}") from None


def from_parts(model: nn.Module, processor: ProcessorMixin, name: str = "") -> Policy:
    """A Policy from a model and a processor in memory. The model is frozen. Raises ValueError where the chat
    template has no place for an image, no token ends a completion, or attention is not sdpa's."""
    model.eval().requires_grad_(False)
    check_chat_template(processor, name)

    eos_ids = end_of_sequence_ids(model, processor, name)
    pad_id = padding_id(processor.tokenizer, eos_ids)
    banned = banned_tokens(model.config, processor.tokenizer, eos_ids)  # (V,)

    # A fresh config at generate() would still inherit repetition_penalty and top_k from the model's.
    model.generation_config = GenerationConfig(eos_token_id=eos_ids, pad_token_id=pad_id)

    attention = model.get_decoder().config._attn_implementation
    if attention != "sdpa":
        raise ValueError(f"{name or 'this model'} attends by {attention!r}: load it with "
                         "attn_implementation=\"sdpa\"")

    # On an H100, PyTorch prefers cuDNN's attention, which prepares itself for every new shape. Hardly two
    # batches share one here: it doubled the time of an update.
    torch.backends.cuda.enable_cudnn_sdp(False)

    # A window of attention that slides ends inside the prompt for some tokens of a completion.
    shared = getattr(model.config.get_text_config(), "sliding_window", None) is None
    if not shared:
        print(f"{name or 'this model'} has sliding-window attention: images are answered one at a time, and "
              "completions are scored by the plain path, each behind its own copy of the prompt, which takes "
              "several times as long", file=sys.stderr)
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
    prompts = []
    for some in split_images(images, IMAGES_AT_ONCE, PIXELS_AT_ONCE, policy.max_pixels):
        prompts += encode_together(policy, some, question)
    return prompts


def split_images(images: list, most: int, most_pixels: int, max_pixels: int | None = None) -> Iterator[list]:
    """The images in lists, in order: at most so many, and of so many pixels together, but one whatever its
    size. max_pixels: an image counts as no more, since it is scaled down."""

    def fit(some: list) -> bool:
        sizes = [image.width * image.height for image in some]
        counted = [min(size, max_pixels or size) for size in sizes]
        return len(some) <= most and sum(counted) <= most_pixels

    return split_where(images, fit)


def split_where(items: list, fit: Callable[[list], bool]) -> Iterator[list]:
    """The items in lists, in order, each as long as its items fit together. One item always does."""
    some = []
    for item in items:
        if some and not fit([*some, item]):
            yield some
            some = []
        some.append(item)
    if some:
        yield some


def encode_together(policy: Policy, images: list, question: str) -> list[Prompt]:
    """encode, all images in one forward of the vision tower."""
    # Render the chat, and prepare each image: token ids with a token for each image feature, and pixels.
    text = render_question(policy.processor, question)
    batches = [processor_inputs(policy, text, image) for image in images]

    # The vision tower runs once for all images.
    core = policy.model.model
    image_outputs = image_features(core, batches)

    prompts = []
    for batch, (features, deep) in zip(batches, image_outputs):
        # Put the image's features in the place of its tokens.
        ids = batch["input_ids"]                                          # (1, P)
        is_image = (ids == policy.model.config.image_token_id)[..., None]  # (1, P, 1)
        image_tokens = int(is_image.sum())
        if image_tokens != len(features):
            raise ValueError(f"{image_tokens} image tokens for {len(features)} features: checkpoint and "
                             "image processor do not fit")
        embeds = policy.model.get_input_embeddings()(ids)                 # (1, P, H)
        embeds = embeds.masked_scatter(is_image, features.to(embeds.dtype))
        if deep is not None:
            deep = place_deep_features(embeds, is_image, deep)            # (D, P, H)

        # Positions tell the image's rows and columns, and where the completion starts.
        positions, start = rotary_positions(core, batch)                  # (3 or 1, 1, P)
        prompts.append(Prompt(ids[0], embeds[0], positions[:, 0], start, deep))
    return prompts


def processor_inputs(policy: Policy, text: str, image):
    """What the family's processor makes of the rendered chat and one image."""
    # Some templates write the BOS themselves: not twice.
    bos = policy.tokenizer.bos_token
    has_bos = bool(bos) and text.startswith(bos)
    inputs = policy.processor(text=[text], images=[image], return_tensors="pt",
                              add_special_tokens=not has_bos)
    return inputs.to(policy.device)


def image_features(core: nn.Module, batches: list) -> list[tuple[Tensor, Tensor | None]]:
    """For each image its features, (its tokens, H), and those for deeper layers, (D, its tokens, H) or
    None."""
    # InternVL, Idefics3: images have different numbers of tiles, and go one by one.
    if "image_grid_thw" not in batches[0]:
        outputs = []
        for batch in batches:
            pixels = {k: batch[k] for k in ("pixel_values", "pixel_attention_mask") if k in batch}
            tiles = core.get_image_features(**pixels).pooler_output       # (tiles, tokens a tile, H)
            outputs.append((tiles.flatten(0, 1), None))
        return outputs

    # Qwen: one call for all images. Each image's patches stay with its own grid row.
    patches = torch.cat([batch["pixel_values"] for batch in batches])     # (patches of all images, pixels)
    grids = torch.cat([batch["image_grid_thw"] for batch in batches])     # (B, 3)
    output = core.get_image_features(patches, grids)
    features = output.pooler_output                                       # B tensors (its tokens, H)

    deep = getattr(output, "deepstack_features", None)
    if not deep:
        return [(image, None) for image in features]
    deep = torch.stack(deep)                                              # (D, tokens of all images, H)
    deep = deep.split([len(image) for image in features], dim=1)          # B tensors (D, its tokens, H)
    return list(zip(features, deep))


def place_deep_features(embeds: Tensor, is_image: Tensor, deep: Tensor) -> Tensor:
    """(D, P, H): each layer's features at the image's tokens, zeros elsewhere. embeds: (1, P, H); is_image:
    (1, P, 1); deep: (D, image tokens, H)."""
    zeros = torch.zeros_like(embeds)
    layers = [zeros.masked_scatter(is_image, layer.to(embeds.dtype)) for layer in deep]
    return torch.cat(layers)


def rotary_positions(core: nn.Module, batch) -> tuple[Tensor, int]:
    """A prompt's positions, (3, 1, P) or (1, 1, P), and the position of the first completion token."""
    ids = batch["input_ids"]                                              # (1, P)
    length = ids.shape[1]
    if not hasattr(core, "get_rope_index"):
        positions = torch.arange(length, device=ids.device)[None, None]
        return positions, length
    # Without mm_token_type_ids the positions would silently be one-dimensional.
    positions, delta = core.get_rope_index(ids, mm_token_type_ids=batch["mm_token_type_ids"],
                                           image_grid_thw=batch["image_grid_thw"])
    return positions, length + int(delta)


def pad_prompts(prompts: list[Prompt], end: int | None = None) -> tuple[Tensor, Tensor, Tensor | list]:
    """The first `end` tokens (None: all) of B prompts, shorter ones padded with zeros on the right, where
    causal attention hides them from every real token: embeds (B, P, H), positions (3 or 1, B, P), deep
    features (D, B, P, H) or []."""
    embeds = pad_sequence([p.embeds[:end] for p in prompts], batch_first=True)  # (B, P, H)
    positions = pad_sequence([p.positions[:, :end].T for p in prompts])   # (P, B, 3 or 1)
    positions = positions.permute(2, 1, 0)                                # (3 or 1, B, P)
    if prompts[0].deep is None:
        return embeds, positions, []
    deep = pad_sequence([p.deep[:, :end].transpose(0, 1) for p in prompts])  # (P, B, D, H)
    return embeds, positions, deep.permute(2, 1, 0, 3)


def decoder_inputs(prompts: list[Prompt], end: int | None = None) -> dict:
    """What the language decoder takes for the first `end` tokens (None: all) of B prompts."""
    embeds, positions, deep = pad_prompts(prompts, end)
    inputs = {"inputs_embeds": embeds, "position_ids": drop_single_axis(positions)}
    if len(deep) > 0:
        # Zeros stand where there is no image: added everywhere, they change nothing.
        inputs["visual_pos_masks"] = torch.ones(deep.shape[1:3], dtype=torch.bool, device=deep.device)
        inputs["deepstack_visual_embeds"] = list(deep.flatten(1, 2))      # D tensors (B * P, H)
    return inputs


def drop_single_axis(positions: Tensor) -> Tensor:
    """(3, R, L) as a multimodal decoder takes positions; (1, R, L) becomes (R, L) for a plain one."""
    if len(positions) == 1:
        return positions[0]
    return positions


def completion_positions(prompts: list[Prompt], n: int, length: int) -> Tensor:
    """(3 or 1, R, length): the rotary positions of each prompt's N completions. They are text, so all axes
    count alike."""
    device = prompts[0].positions.device
    axes = len(prompts[0].positions)
    start = torch.tensor([p.start for p in prompts], device=device)       # (B,)
    start = start.repeat_interleave(n)                                    # (R,)
    positions = start[:, None] + torch.arange(length, device=device)      # (R, length)
    return positions.expand(axes, -1, -1)


# ------------------------------------------------------------------------------------------------------------
# Log-probs of completions


def completion_logprobs(policy: Policy, prompts: list[Prompt], completions: Tensor, mask: Tensor,
                        temperature: float = 1.0, checkpointing: bool = False,
                        shared: bool | None = None) -> Tensor:
    """Log-probability of every completion token under the distribution it was sampled from.

    prompts: B of any length; completions, mask: (R, T) with R = B * N, the N rows of a prompt together.
    Returns (R, T) float32 with gradient to the adapters, 0 outside the mask. checkpointing: each layer is
    made again in backward. shared=False: the plain path, every completion behind its own copy of the prompt;
    same numbers, several times the tokens. None: as the policy can.
    """
    if shared is None:
        shared = policy.shared
    head = policy.model.get_output_embeddings().weight                    # (V, H)

    # Trailing padding costs nothing: it is cut off here and put back at the end (a negative pad cuts). Two
    # tokens stay at least: the input is all but the last.
    width = completions.shape[1]
    longest = max(2, int(mask.sum(1).max()))
    completions = F.pad(completions, (0, longest - width), value=policy.pad_id)
    mask = F.pad(mask.bool(), (0, longest - width))

    if shared:
        hidden = shared_hidden(policy, prompts, completions, checkpointing)
    else:
        hidden = plain_hidden(policy, prompts, completions, checkpointing)
    logprobs = chunked_logprobs(hidden, head, completions, temperature, policy.banned)

    # where, not multiplication: what stands in the padding can be -inf.
    logprobs = torch.where(mask, logprobs, 0.0)
    return F.pad(logprobs, (0, width - longest))


def prompt_lengths(prompts: list[Prompt]) -> Tensor:
    """(B,) tokens of each."""
    return torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].ids.device)


def plain_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """(R, T, H) hidden states that predict the completions (R, T), by transformers' own forward: every
    completion stands behind its own copy of the prompt."""
    decoder = policy.model.get_decoder()
    n = len(completions) // len(prompts)

    # The last token predicts nothing and is not read.
    embeds = decoder.embed_tokens(completions[:, :-1])                    # (R, T-1, H)
    positions = completion_positions(prompts, n, embeds.shape[1])         # (3 or 1, R, T-1)
    sequences = []
    for row in range(len(completions)):
        sequences.append(extend(prompts[row // n], embeds[row], positions[:, row]))

    # transformers' own checkpointing works in train mode alone.
    if checkpointing:
        decoder.gradient_checkpointing_enable({"use_reentrant": False})
    decoder.train(checkpointing)
    hidden = decoder(**decoder_inputs(sequences), use_cache=False).last_hidden_state  # (R, P+T-1, H)
    decoder.eval()

    # The prompt's last token, which stands where its own prompt ends, predicts the completion's first.
    last = (prompt_lengths(prompts) - 1).repeat_interleave(n)             # (R,)
    wanted = last[:, None] + torch.arange(completions.shape[1], device=last.device)  # (R, T)
    rows = torch.arange(len(hidden), device=last.device)
    return hidden[rows[:, None], wanted]


def extend(prompt: Prompt, embeds: Tensor, positions: Tensor) -> Prompt:
    """The prompt with a completion behind it. embeds: (T-1, H); positions: (3 or 1, T-1)."""
    deep = prompt.deep
    if deep is not None:
        deep = F.pad(deep, (0, 0, 0, len(embeds)))  # a completion shows no image
    return Prompt(prompt.ids, torch.cat([prompt.embeds, embeds]),
                  torch.cat([prompt.positions, positions], dim=1), prompt.start, deep)


# ------------------------------------------------------------------------------------------------------------
# The same hidden states, the prompt forwarded once


class PromptKV:
    """Stands where a layer expects a cache. The layer's first call is the prompts': their keys and values are
    kept. In the second, the completions', each of a prompt's N rows finds them before its own."""

    def __init__(self, n: int):
        self.n = n
        self.prompt = None  # keys and values, (B, heads, P, dim) each

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if self.prompt is None:
            self.prompt = (keys, values)
            return keys, values
        prompt_keys, prompt_values = self.prompt
        prompt_keys = prompt_keys.repeat_interleave(self.n, dim=0)        # (R, heads, P, dim)
        prompt_values = prompt_values.repeat_interleave(self.n, dim=0)
        keys = torch.cat([prompt_keys, keys], dim=2)                      # (R, heads, P+T-1, dim)
        values = torch.cat([prompt_values, values], dim=2)
        return keys, values


def shared_hidden(policy: Policy, prompts: list[Prompt], completions: Tensor, checkpointing: bool) -> Tensor:
    """plain_hidden's (R, T, H), every prompt forwarded once. Nothing is detached: the gradient of N
    completions meets in their prompt."""
    decoder = policy.model.get_decoder()
    n = len(completions) // len(prompts)

    # Two batches go through the layers side by side: the prompts, padded on the right, and the completions.
    x, x_positions, deep = pad_prompts(prompts)                           # (B, P, H), (3 or 1, B, P)
    y = decoder.embed_tokens(completions[:, :-1])                         # (R, T-1, H)
    y_positions = completion_positions(prompts, n, y.shape[1])            # (3 or 1, R, T-1)
    x_rope = decoder.rotary_emb(x, drop_single_axis(x_positions))
    y_rope = decoder.rotary_emb(y, drop_single_axis(y_positions))

    # One mask for all layers, (R or 1, 1, heads_a_group * (T-1), P+T-1).
    sees = what_completions_see(prompts, n, y.shape[1])                   # (R or 1, 1, T-1, P+T-1)
    heads_a_group = decoder.config.num_attention_heads // decoder.config.num_key_value_heads
    mask = mask_by_group(sees, heads_a_group, y.dtype)

    def both(layer, x, y):
        cache = PromptKV(n)
        with attention_by(policy.model, GROUPED):
            x = layer(x, position_embeddings=x_rope, past_key_values=cache)  # no mask: sdpa's own causal one
            y = layer(y, attention_mask=mask, position_embeddings=y_rope, past_key_values=cache)
        return x, y

    for number, layer in enumerate(decoder.layers):
        if checkpointing:
            # Nothing in a layer is random, so no random state is kept.
            x, y = checkpoint(both, layer, x, y, use_reentrant=False, preserve_rng_state=False)
        else:
            x, y = both(layer, x, y)
        if number < len(deep):
            x = x + deep[number]

    # The prompt's last token predicts the first token of each of its completions.
    images = torch.arange(len(prompts), device=x.device)
    last = x[images, prompt_lengths(prompts) - 1][:, None]                # (B, 1, H)
    first = decoder.norm(last).repeat_interleave(n, dim=0)                # (R, 1, H)
    return torch.cat([first, decoder.norm(y)], dim=1)                     # (R, T, H)


def what_completions_see(prompts: list[Prompt], n: int, length: int) -> Tensor:
    """(R, 1, length, P + length) bool: a completion's token sees its whole prompt, none of the padding behind
    it, and its own past. The completion's padding is on the right, where no real token looks. Where no prompt
    is padded, one row (1, 1, ...) stands for all."""
    lengths = prompt_lengths(prompts)                                     # (B,)
    longest = max(map(len, prompts))
    place = torch.arange(longest, device=lengths.device)                  # (P,)
    is_prompt = (place < lengths[:, None]).repeat_interleave(n, dim=0)    # (R, P)
    if min(map(len, prompts)) == longest:
        is_prompt = is_prompt[:1]
    own = torch.ones(length, length, dtype=torch.bool, device=lengths.device).tril()
    is_prompt = is_prompt[:, None, None].expand(-1, 1, length, -1)        # (R, 1, length, P)
    own = own.expand(len(is_prompt), 1, -1, -1)                           # (R, 1, length, length)
    return torch.cat([is_prompt, own], dim=-1)
