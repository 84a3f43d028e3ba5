"""Attention by groups of heads: against transformers' own, values and gradients, on fewer key heads, and with
what fused attention returns laid out as on a GPU."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import lora
import policy as policies
import tiny
from lora import adapters_off
from support.attention import GROUPED, attend_grouped, attention_by, mask_by_group
from test_policy import completions


def drawn(heads, groups, length=5, seen=9):
    """Query, keys and values of 3 rows, and which keys each row's tokens see: another mask for each row."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, length, heads, 8, generator=generator).transpose(1, 2)  # strided, as a layer's are
    keys, values = torch.randn(2, 3, groups, seen, 8, generator=generator)
    mask = torch.rand(3, 1, length, seen, generator=generator) < 0.5
    mask[..., 0] = True  # a token that sees nothing has no softmax
    return query, keys, values, mask


def lay_out_as_on_a_gpu(monkeypatch):
    """There, memory-efficient attention writes (R, L, G, D), and returns it as (R, G, L, D)."""
    fused = F.scaled_dot_product_attention

    def on_gpu(*args, **kwargs):
        return fused(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", on_gpu)


def with_gradients(attend, module, inputs, mask):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, _ = attend(module, *inputs, mask, scaling=0.3)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("layout", ["CPU", "GPU"])
@pytest.mark.parametrize("heads, groups", [(6, 2), (4, 1), (4, 4)])
@pytest.mark.parametrize("which", ["a mask a row", "one mask", "one token", "causal"])
def test_values_and_gradients_are_those_of_repeated_keys(heads, groups, which, layout, monkeypatch):
    query, keys, values, sees = drawn(heads, groups, length=1 if which == "one token" else 5)
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    if which == "one mask":
        sees = sees[:1]
    mask = mask_by_group(sees, heads // groups, torch.float32)
    if which == "causal":
        query, keys, values, _ = drawn(heads, groups, 9, 9)
        sees = None
        mask = None
    expected = with_gradients(sdpa_attention_forward, module, (query, keys, values), sees)
    if layout == "GPU":
        lay_out_as_on_a_gpu(monkeypatch)
    ours = with_gradients(attend_grouped, module, (query, keys, values), mask)
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_by_hand_one_query_head_after_the_other():
    """Head 0 and 1 read key head 0, head 2 and 3 key head 1: one softmax each, in float64."""
    query, keys, values, sees = drawn(4, 2)
    out, _ = attend_grouped(None, query, keys, values, mask_by_group(sees, 2, torch.float32), scaling=0.3)
    for row in range(3):
        for head in range(4):
            scores = 0.3 * query[row, head].double() @ keys[row, head // 2].double().T
            scores = scores.masked_fill(~sees[row, 0], -torch.inf)
            expected = scores.softmax(-1) @ values[row, head // 2].double()
            torch.testing.assert_close(out[row, :, head].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [7, 8, 9])
def test_a_mask_begins_its_rows_where_a_gpu_needs_them(width):
    """The values by hand, and steps in memory of 8 numbers: else fused attention copies the mask in every
    layer."""
    sees = torch.arange(width).expand(2, 1, 3, width) <= torch.tensor([0, 1, width])[:, None]
    mask = mask_by_group(sees, 2, torch.bfloat16)
    assert mask.shape == (2, 1, 6, width) and mask.dtype == torch.bfloat16
    for row in mask[:, 0].flatten(0, 1).split(3):
        assert row[0].tolist() == [0.0] + [-torch.inf] * (width - 1)
        assert row[1].tolist() == [0.0] * 2 + [-torch.inf] * (width - 2)
        assert row[2].tolist() == [0.0] * width
    assert mask.stride(-1) == 1
    assert all(step % 8 == 0 for step in mask.stride()[:-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_never_copies_a_key_for_each_head(monkeypatch, checkpointing, dtype):
    """Scoring and its backward, checkpointed or not: all keys that fused attention is given have 2 heads,
    where queries have 4; one mask serves all layers, of the queries' dtype (a GPU refuses another); and the
    model's own attention is back afterwards."""
    policy = policies.from_parts(tiny.model(tiny.tokenizer()).to(dtype), tiny.processor())
    lora.add_lora(policy.model, 4, 8)
    seen = []
    masks = set()
    fused = F.scaled_dot_product_attention

    def counting(query, key, *args, attn_mask=None, **kwargs):
        seen.append(key.shape[1])
        if attn_mask is not None:
            masks.add(attn_mask.data_ptr())
            assert attn_mask.dtype == query.dtype == dtype
            assert all(step % 8 == 0 for step in attn_mask.stride()[:-1])
        return fused(query, key, *args, attn_mask=attn_mask, **kwargs)

    prompts = policies.encode(policy, tiny.pictures((84, 84), (56, 56)), "what?")
    ids, mask = completions(policy, 4)
    before = policy.model.get_decoder().config._attn_implementation
    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    policies.completion_logprobs(policy, prompts, ids, mask, checkpointing=checkpointing).sum().backward()
    assert set(seen) == {2} and len(seen) == 2 * 2 * (1 + checkpointing)  # prompts, completions; 2 layers
    assert len(masks) == 1  # for all layers
    assert policy.model.get_decoder().config._attn_implementation == before != GROUPED

    with torch.no_grad(), adapters_off(policy.model):
        policies.completion_logprobs(policy, prompts, ids, mask)
    assert set(seen) == {2}


def test_the_models_own_attention_comes_back_also_after_an_error(policy):
    config = policy.model.get_decoder().config
    before = config._attn_implementation
    with pytest.raises(RuntimeError), attention_by(policy.model, GROUPED):
        assert config._attn_implementation == GROUPED
        raise RuntimeError
    assert config._attn_implementation == before != GROUPED
