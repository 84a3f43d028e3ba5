"""Attention by groups of heads: against transformers' own, values and gradients, on fewer key heads."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import policy as policies
import tiny
from lora import adapters_off
from support.attention import GROUPED, attend_grouped, attention_by
from test_policy import completions


def drawn(heads, groups, length=5, seen=9):
    """Query, keys and values of 3 rows, and which keys each row's tokens see: another mask for each row."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, length, heads, 8, generator=generator).transpose(1, 2)  # strided, as a layer's are
    keys, values = torch.randn(2, 3, groups, seen, 8, generator=generator)
    mask = torch.rand(3, 1, length, seen, generator=generator) < 0.5
    mask[..., 0] = True  # a token that sees nothing has no softmax
    return query, keys, values, mask


def with_gradients(attend, module, inputs, mask):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out, _ = attend(module, *inputs, mask, scaling=0.3)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weights).sum().backward()
    return [out.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("heads, groups", [(6, 2), (4, 1), (4, 4)])
@pytest.mark.parametrize("which", ["a mask a row", "one mask", "causal"])
def test_values_and_gradients_are_those_of_repeated_keys(heads, groups, which):
    query, keys, values, mask = drawn(heads, groups)
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    if which == "one mask":
        mask = mask[:1]
    if which == "causal":
        query, keys, values, mask = *drawn(heads, groups, 9, 9)[:3], None
    expected = with_gradients(sdpa_attention_forward, module, (query, keys, values), mask)
    ours = with_gradients(attend_grouped, module, (query, keys, values), mask)
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_by_hand_one_query_head_after_the_other():
    """Head 0 and 1 read key head 0, head 2 and 3 key head 1: one softmax each, in float64."""
    query, keys, values, mask = drawn(4, 2)
    out, _ = attend_grouped(None, query, keys, values, mask, scaling=0.3)
    for row in range(3):
        for head in range(4):
            scores = 0.3 * query[row, head].double() @ keys[row, head // 2].double().T
            scores = scores.masked_fill(~mask[row, 0], -torch.inf)
            expected = scores.softmax(-1) @ values[row, head // 2].double()
            torch.testing.assert_close(out[row, :, head].double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_never_copies_a_key_for_each_head(policy, monkeypatch, checkpointing):
    """Scoring and its backward, checkpointed or not: all keys that fused attention is given have 2 heads,
    where queries have 4, and the model's own attention is back afterwards."""
    seen = []
    fused = F.scaled_dot_product_attention

    def counting(query, key, *args, **kwargs):
        seen.append(key.shape[1])
        return fused(query, key, *args, **kwargs)

    prompts = policies.encode(policy, tiny.pictures((84, 84), (56, 56)), "what?")
    ids, mask = completions(policy, 4)
    before = policy.model.get_decoder().config._attn_implementation
    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    policies.completion_logprobs(policy, prompts, ids, mask, checkpointing=checkpointing).sum().backward()
    assert set(seen) == {2} and len(seen) == 2 * 2 * (1 + checkpointing)  # prompts, completions; 2 layers
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
