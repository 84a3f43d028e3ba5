"""Attention of completions to a prompt and themselves, without a copy of each key for every query head that
reads it.

    with attention_by(model, GROUPED):
        y = layer(y, attention_mask=mask, ...)

A model has H query heads and G key and value heads, each read by H / G query heads. Under a mask,
transformers copies keys and values H / G times, which PyTorch's fused attention on a GPU would need. Here the
queries of the heads that read one key head stand one behind the other instead, as if they were
further tokens of one head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

GROUPED = "grouped_heads"  # its name among transformers' implementations


@contextmanager
def attention_by(model, name: str) -> Iterator[None]:
    """Inside, the model's language decoder attends by that one of transformers' implementations."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_grouped(module, query: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None,
                   scaling: float, **kwargs) -> tuple[Tensor, None]:
    """Attention as transformers calls it. query: (R, H, T, D); keys, values: (R, G, S, D); attention_mask: (R
    or 1, 1, T, S) bool, or None for causal attention by sdpa itself. Returns (R, T, H, D)."""
    if attention_mask is None:
        return sdpa_attention_forward(module, query, keys, values, None, scaling=scaling, **kwargs)

    rows, heads, _, dim = query.shape
    groups = keys.shape[1]
    grouped = query.reshape(rows, groups, -1, dim)                        # (R, G, H/G * T, D)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)                # (R or 1, 1, H/G * T, S)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return out.view(query.shape).transpose(1, 2), None


AttentionInterface.register(GROUPED, attend_grouped)
