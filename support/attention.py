"""Attention of completions to a prompt and themselves, without a copy of each key for every query head that
reads it.

    mask = mask_by_group(sees, heads_a_group, dtype)     # once, for all layers
    with attention_by(model, GROUPED):
        y = layer(y, attention_mask=mask, ...)

A model has H query heads and G key and value heads, each read by H / G query heads. On a GPU, fused attention
under a mask wants as many key heads as query heads, and transformers copies keys and values H / G times for
it. Here the queries of the heads that read one key head stand one behind the other instead, as if they were
further tokens of one head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

GROUPED = "grouped_heads"  # its name among transformers' implementations
ALIGNED = 8                # numbers: the rows of a mask begin at multiples of it


@contextmanager
def attention_by(model, name: str) -> Iterator[None]:
    """Inside, the model's language decoder attends by the implementation that is registered under this name.
    transformers makes masks for its own ones alone: here the caller hands each layer its mask, or none."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def mask_by_group(sees: Tensor, heads_a_group: int, dtype: torch.dtype) -> Tensor:
    """attend_grouped's mask, (R or 1, 1, H/G * T, S): 0 where a token sees a key, -inf elsewhere. sees: (R or
    1, 1, T, S) bool; heads_a_group: H / G; dtype: the layers'."""
    sees = sees.repeat(1, 1, heads_a_group, 1)                            # (R or 1, 1, H/G * T, S)

    # Fused attention on a GPU would copy the mask in every layer, if its rows began elsewhere.
    width = sees.shape[-1]
    room = (width + ALIGNED - 1) // ALIGNED * ALIGNED
    mask = torch.full((*sees.shape[:-1], room), -torch.inf, dtype=dtype, device=sees.device)
    return mask[..., :width].masked_fill_(sees, 0)


def attend_grouped(module, query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
                   scaling: float, **kwargs) -> tuple[Tensor, None]:
    """Attention as transformers calls it, without dropout under a mask. query: (R, H, T, D); keys, values:
    (R, G, S, D); attention_mask: by mask_by_group, or None for causal attention by transformers' own. Returns
    (R, T, H, D)."""
    if attention_mask is None:
        return sdpa_attention_forward(module, query, keys, values, None, scaling=scaling, **kwargs)

    rows, heads, length, dim = query.shape
    groups = keys.shape[1]
    query = query.reshape(rows, groups, -1, dim)                          # (R, G, H/G * T, D)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=attention_mask, scale=scaling)

    # Back to heads. How `out` lies in memory differs with the device: flatten copies where it must.
    out = out.unflatten(2, (heads // groups, length))                     # (R, G, H/G, T, D)
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3), None


AttentionInterface.register(GROUPED, attend_grouped)
