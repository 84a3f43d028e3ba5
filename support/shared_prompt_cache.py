"""A decoding cache that keeps each prompt once, for rows whose prompts have any length.

    cache = SharedPromptCache(prefilled, lengths, image_of_row, room)
    with attention_by(model, SHARED_PROMPT):
        model.generate(input_ids=last_prompt_tokens, past_key_values=cache, position_ids=positions, ...)
        cache.keep(rows)                     # some have ended: go on without them

The N completions of an image stand behind one prompt. transformers' own cache would copy the prompt's keys
and values N times, and would need all prompts of a batch to be equally long. Here a row keeps its own tokens
alone, and the rows of an image attend to their prompt together. `generate` is told of the rows' own tokens
only: it believes that a row begins with the last token of its prompt, which is the first that it feeds.

The scores of the prompt and of the row's own tokens share one float32 softmax.

B prompts, R rows, at most N of them behind one prompt, P prompt tokens without the last, H heads and G key
and value heads (each read by H / G heads), D the size of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache, StoppingCriteria
from transformers.cache_utils import CacheLayerMixin

SHARED_PROMPT = "shared_prompt"  # the attention's name among transformers' implementations
DROP = 1 / 8  # share of the rows that must have ended before the others go on without them


@dataclass
class Places:
    """Where the rows stand: those of an image side by side, each in a place of its own.

    image, place: (R,), each row's image and its place there. row_at: (B, N), the row at each place; an empty
    one, where an image has fewer rows than others, holds 0, and what is computed there is never read. bias:
    (B, 1, P) float32, -inf behind a prompt's end, 0 elsewhere. is_full: no place is empty.
    """
    image: Tensor
    place: Tensor
    row_at: Tensor
    bias: Tensor
    is_full: bool

    def by_image(self, x: Tensor) -> Tensor:
        """(G, B, N * Q, D) from (R, G, Q, D): the rows of an image together."""
        x = x.transpose(0, 1)                                             # (G, R, Q, D)
        if self.is_full:
            x = x.unflatten(1, self.row_at.shape)                         # (G, B, N, Q, D)
        else:
            x = x[:, self.row_at]                                         # the same; several times the cost
        return x.flatten(2, 3)

    def by_row(self, x: Tensor) -> Tensor:
        """The way back."""
        n = self.row_at.shape[1]
        x = x.unflatten(2, (n, -1))                                       # (G, B, N, Q, D)
        if self.is_full:
            x = x.flatten(1, 2)                                           # (G, R, Q, D)
        else:
            x = x[:, self.image, self.place]
        return x.transpose(0, 1)


def places_of(lengths: Tensor, image_of_row: Tensor) -> Places:
    """lengths: (B,) tokens of each prompt, without the last; image_of_row: (R,) numbers of prompts, in their
    order, none left out."""
    device = lengths.device
    rows = torch.arange(len(image_of_row), device=device)                 # (R,)
    counts = image_of_row.bincount(minlength=len(lengths))                # (B,)
    first_row = counts.cumsum(0) - counts                                 # (B,)
    place = rows - first_row[image_of_row]                                # (R,)
    row_at = torch.zeros(len(lengths), int(counts.max()), dtype=torch.long, device=device)  # (B, N)
    row_at[image_of_row, place] = rows
    bias = torch.zeros(padding_of(lengths).shape, device=device)
    bias.masked_fill_(padding_of(lengths), -torch.inf)
    is_full = row_at.numel() == len(image_of_row)
    return Places(image_of_row, place, row_at, bias[:, None], is_full)


def padding_of(lengths: Tensor) -> Tensor:
    """(B, P) bool, true behind the end of each prompt."""
    return torch.arange(int(lengths.max()), device=lengths.device) >= lengths[:, None]


class SharedPromptCache(Cache):
    """The keys and values of B prompts, and of the own tokens of R rows that go on from them.

    prefilled: what the decoder has made of the prompts without their last tokens, a few prompts after the
    other, padded on the right; emptied here, layer by layer. lengths, image_of_row: as places_of takes them.
    room: own tokens that a row may come to have.
    """

    def __init__(self, prefilled: list[DynamicCache], lengths: Tensor, image_of_row: Tensor, room: int):
        self.lengths = lengths
        places = places_of(lengths, image_of_row)
        padding = padding_of(lengths)
        layers = []
        for number in range(len(prefilled[0].layers)):
            keys = join([cache.layers[number].keys for cache in prefilled], padding)
            values = join([cache.layers[number].values for cache in prefilled], padding)
            for cache in prefilled:
                cache.layers[number] = None
            layers.append(SharedPromptLayer(keys, values, places, room))
        super().__init__(layers=layers)

    def keep(self, rows: Tensor) -> None:
        """Only these rows (numbers, in their order) go on, and only prompts that still have rows."""
        if len(rows) == 0:
            return
        image_of_row = self.layers[0].places.image[rows]
        images, image_of_row = image_of_row.unique(return_inverse=True)
        self.lengths = self.lengths[images]
        places = places_of(self.lengths, image_of_row)
        for layer in self.layers:
            layer.keep(rows, images, places)


def join(parts: list[Tensor], padding: Tensor) -> Tensor:
    """(G, B, P, D) from parts (b, G, p, D), each of b prompts with p tokens at most. What stands in the
    padding becomes 0: it has no weight, but 0 times infinity would be NaN."""
    _, groups, _, dim = parts[0].shape
    joined = parts[0].new_zeros(groups, *padding.shape, dim)
    start = 0
    for part in parts:
        end = start + len(part)
        joined[:, start:end, :part.shape[2]] = part.transpose(0, 1)
        start = end
    return joined.masked_fill_(padding[:, :, None], 0)


class SharedPromptLayer(CacheLayerMixin):
    """One layer's keys and values: prompt_keys, prompt_values (G, B, P, D); own_keys, own_values (R, G, room,
    D), of which the first `length` tokens are written."""
    is_sliding = False

    def __init__(self, prompt_keys: Tensor, prompt_values: Tensor, places: Places, room: int):
        super().__init__()
        groups, _, _, dim = prompt_keys.shape
        rows = len(places.image)
        self.prompt_keys = prompt_keys
        self.prompt_values = prompt_values
        self.places = places
        self.own_keys = prompt_keys.new_empty(rows, groups, room, dim)
        self.own_values = prompt_values.new_empty(rows, groups, room, dim)
        self.length = 0
        self.is_initialized = True

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple:
        """Adds a token to every row: (R, G, 1, D). transformers hands on to the attention what this returns
        as keys and values: `attend` gets the layer."""
        self.own_keys[:, :, self.length] = keys[:, :, 0]
        self.own_values[:, :, self.length] = values[:, :, 0]
        self.length += 1
        return self, self

    def keep(self, rows: Tensor, images: Tensor, places: Places) -> None:
        """The rows that go on move to the front of the room; prompts without rows are let go of."""
        count = len(rows)
        self.own_keys[:count, :, :self.length] = self.own_keys[rows, :, :self.length]
        self.own_values[:count, :, :self.length] = self.own_values[rows, :, :self.length]
        self.own_keys = self.own_keys[:count]
        self.own_values = self.own_values[:count]
        if len(images) < self.prompt_keys.shape[1]:
            longest = places.bias.shape[2]
            self.prompt_keys = self.prompt_keys[:, images, :longest]
            self.prompt_values = self.prompt_values[:, images, :longest]
        self.places = places

    # What `generate` asks: of the rows' own tokens alone.

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.own_keys.shape[2]

    def lazy_initialization(self, keys: Tensor, values: Tensor) -> None:
        """Nothing is left to do."""


# ------------------------------------------------------------------------------------------------------------
# Attention


def attend(module, query: Tensor, layer: SharedPromptLayer, _, attention_mask, scaling: float,
           **kwargs) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with a layer of the cache in the place of keys and values, and
    without a mask: `generate` makes none for an implementation of ours, and so need not wait for the device
    at every token. query: (R, H, 1, D). Returns (R, 1, H, D).

    For one row it is (keys and values of its prompt, then its own):

        weights = softmax(scaling * query @ cat([prompt_keys, own_keys]).T)
        out = weights @ cat([prompt_values, own_values])
    """
    rows, heads, _, dim = query.shape
    places = layer.places
    own_keys = layer.own_keys[:, :, :layer.length]                        # (R, G, T, D)
    own_values = layer.own_values[:, :, :layer.length]
    # Heads that read the same key head stand together.
    query = query.reshape(rows, own_keys.shape[1], -1, dim)               # (R, G, H/G, D)

    # Scores: of an image's rows with its prompt, all in one product; of each row with its own tokens.
    prompt_scores = product(places.by_image(query), layer.prompt_keys.transpose(2, 3))  # (G, B, N*H/G, P)
    prompt_scores = torch.add(places.bias, prompt_scores, alpha=scaling)  # -inf where there is padding
    own_scores = scaling * product(query, own_keys.transpose(2, 3))       # (R, G, H/G, T)

    # One softmax over both, laid out by image: the prompt's part, mostly the longer one, need not move.
    scores = torch.cat([prompt_scores, places.by_image(own_scores)], dim=-1)
    weights = scores.softmax(-1).to(query.dtype)                          # (G, B, N*H/G, P + T)
    prompt_weights, own_weights = weights.tensor_split([weights.shape[-1] - layer.length], dim=-1)
    own_weights = places.by_row(own_weights)                              # (R, G, H/G, T)

    # Values by their weights, in the same two ways.
    from_prompt = product(prompt_weights, layer.prompt_values)            # (G, B, N*H/G, D)
    from_own = product(own_weights, own_values)                           # (R, G, H/G, D)
    out = (from_own + places.by_row(from_prompt)).to(query.dtype)
    return out.reshape(rows, 1, heads, dim), None


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices in two leading dimensions, float32 also where they are not: a score in bfloat16 would
    be off by up to 1 in 256."""
    if a.dtype == torch.float32:
        return a @ b
    # The product with a float32 result is an Ampere card's or newer.
    if a.device.type != "cuda" or torch.cuda.get_device_capability(a.device) < (8, 0):
        return a.float() @ b.float()
    out = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return out.unflatten(0, a.shape[:2])


AttentionInterface.register(SHARED_PROMPT, attend)

# ------------------------------------------------------------------------------------------------------------
# Ended rows


class EndedRows(StoppingCriteria):
    """Ends `generate` once the share DROP of its rows has met an EOS, so that the others can go on without
    them. It counts on the device, without waiting for it. ended: (R,) bool."""

    def __init__(self, eos: Tensor, rows: int):
        self.eos = eos
        self.ended = torch.zeros(rows, dtype=torch.bool, device=eos.device)

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.eos)
        enough = self.ended.float().mean() >= DROP
        return self.ended | enough  # (R,), true: this row is done
