"""The decoding cache that keeps each prompt once: its attention by hand, rollouts against plain ones."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, DynamicCache

import policy as policies
import rollout
import tiny
from lora import lora_layers
from rollout import sample
from support import shared_prompt_cache
from support.shared_prompt_cache import SharedPromptCache, attend, places_of

# Three prompt lengths among four images, two of which are equally long.
SIZES = [(112, 84), (56, 56), (56, 168), (140, 112)]
IDS = ["a", "b", "c", "d"]


def layer_by_hand(dtype=torch.float32):
    """A cache of one layer: prompts of 5 and 3 tokens (and a last one, not in it), the first with 3 rows and
    the second with 2, each row with 2 own tokens; 4 heads read 2. Returns it, and what went in."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    prompts = draw(2, 2, 2, 5, 8)   # keys and values (2, B, G, P, D)
    own = draw(2, 5, 2, 2, 8)       # keys and values (2, R, G, T, D)
    prefilled = DynamicCache()
    prefilled.update(prompts[0].clone(), prompts[1].clone(), 0)
    image_of_row = torch.tensor([0, 0, 0, 1, 1])
    cache = SharedPromptCache([prefilled], torch.tensor([5, 3]), image_of_row, room=4)
    for t in range(2):
        cache.update(own[0, :, :, t:t + 1], own[1, :, :, t:t + 1], 0)
    return cache, prompts, own, 8 * draw(5, 4, 1, 8)  # scores of some 20 apart


def one_softmax(prompts, own, query, image, row):
    """(H, D): a row's attention to its prompt's real tokens and its own, in one softmax."""
    length = [5, 3][image]
    outputs = []
    for head in range(4):
        keys = torch.cat([prompts[0, image, head // 2, :length], own[0, row, head // 2]]).double()
        values = torch.cat([prompts[1, image, head // 2, :length], own[1, row, head // 2]]).double()
        scores = keys @ query[row, head, 0].double() * 0.3
        outputs.append(scores.softmax(0) @ values)
    return torch.stack(outputs)


@pytest.mark.parametrize("dtype, gap", [(torch.float32, 1e-5), (torch.bfloat16, 2 ** -8)])
def test_attention_is_one_softmax_over_prompt_and_own_tokens(dtype, gap):
    """In bfloat16 weights and result are rounded, to 1 in 256, but not the scores."""
    cache, prompts, own, query = layer_by_hand(dtype)
    out, _ = attend(None, query, cache.layers[0], None, None, scaling=0.3)
    assert out.shape == (5, 1, 4, 8) and out.dtype == dtype
    for row, image in enumerate([0, 0, 0, 1, 1]):
        expected = one_softmax(prompts, own, query, image, row)
        torch.testing.assert_close(out[row, 0].double(), expected, atol=gap, rtol=gap)


def test_where_no_place_is_empty_nothing_is_gathered_and_all_is_the_same():
    """Two images with three rows each, against the way that also does for unequal numbers of rows."""
    places = places_of(torch.tensor([5, 3]), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert places.is_full
    gathered = replace(places, is_full=False)
    x = torch.randn(6, 2, 4, 8)
    by_image = places.by_image(x)
    assert by_image.shape == (2, 2, 12, 8) and torch.equal(by_image, gathered.by_image(x))
    assert torch.equal(by_image[1, 1, 4:8], x[4, 1])  # the second row of the second image
    assert torch.equal(places.by_row(by_image), x) and torch.equal(gathered.by_row(by_image), x)
    assert not places_of(torch.tensor([5, 3]), torch.tensor([0, 0, 0, 1, 1])).is_full


def test_dropped_rows_change_nothing_for_the_others():
    """One in the middle of its image, and then all of the other image's."""
    cache, prompts, own, query = layer_by_hand()
    for rows in ([0, 2, 3, 4], [0, 1]):
        cache.keep(torch.tensor(rows))
        query = query[rows]
        own = own[:, rows]
        out, _ = attend(None, query, cache.layers[0], None, None, scaling=0.3)
        for row, image in enumerate([0, 0, 1, 1][:len(rows)]):
            expected = one_softmax(prompts, own, query, image, row)
            torch.testing.assert_close(out[row, 0].double(), expected, atol=1e-5, rtol=1e-5)
    assert cache.layers[0].prompt_keys.shape[1] == 1  # of the other image's rows none is left
    assert cache.get_seq_length() == 2 and cache.get_mask_sizes(1, 0) == (3, 0)
    assert cache.get_max_length() == 4


def test_a_prompt_is_kept_once_and_a_row_keeps_its_own_tokens_alone(policy, monkeypatch):
    made = []

    class Seen(SharedPromptCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(rollout, "SharedPromptCache", Seen)
    groups = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 8, max_new_tokens=6, temperature=0)
    cache, = made
    longest = max(len(group.prompt) for group in groups)
    for layer in cache.layers:
        assert layer.prompt_keys.shape[1:3] == layer.prompt_values.shape[1:3] == (4, longest - 1)
        assert layer.own_keys.shape[::2] == layer.own_values.shape[::2] == (32, 6)


def ending_at(monkeypatch, policy, lengths):
    """From here on the rows of every image end at these lengths, N an image."""
    draw = rollout.draw_uniforms

    class Ending(rollout.Sampler):
        """Says EOS where the uniform number is 2."""

        def __call__(self, input_ids, scores):
            ends = self.uniforms[:, len(self.logprobs)] > 1
            out = super().__call__(input_ids, scores)
            out[ends] = -torch.inf
            out[ends, policy.eos_ids[0]] = 0.0
            return out

    def drawn(names, width):
        uniforms = draw(names, width)
        for row, (_, _, image, k) in enumerate(names):
            uniforms[row, lengths[image][k] - 1] = 2.0
        return uniforms

    policy.banned[policy.eos_ids] = True
    monkeypatch.setattr(rollout, "Sampler", Ending)
    monkeypatch.setattr(rollout, "draw_uniforms", drawn)


def test_rows_that_end_in_any_order_decode_as_plainly(policy, monkeypatch):
    """A row in the middle of its image, an image all of whose rows have ended, one of whom only the last goes
    on: as each image alone on transformers' own cache, run to the end."""
    lengths = {"a": [2, 9, 2, 9], "b": [1, 1, 1, 1], "c": [9, 9, 9, 3], "d": [4, 5, 6, 7]}
    ending_at(monkeypatch, policy, lengths)
    options = dict(seed=4, max_new_tokens=9)
    together = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 4, **options)
    policy.shared = False
    alone = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 4, **options)
    for a, b in zip(together, alone, strict=True):
        assert a.mask.sum(1).tolist() == b.mask.sum(1).tolist() == lengths[a.id]
        width = max(lengths[a.id])
        assert torch.equal(a.completions[:, :width][a.mask[:, :width]], b.completions[:, :width][b.mask])
        torch.testing.assert_close(a.logprobs[:, :width], b.logprobs, atol=1e-5, rtol=1e-5)


def test_nothing_in_the_padding_of_a_prompt_is_read(policy, monkeypatch):
    """Not the embeddings that stand there, and not the keys and values: 0 times NaN would be NaN."""
    prefill = rollout.prefill
    inputs_of = rollout.decoder_inputs

    def answers():
        return sample(policy, tiny.pictures(*SIZES), IDS, "what?", 3, seed=1, max_new_tokens=8)

    def poisoned_inputs(prompts, end):
        inputs = inputs_of(prompts, end)
        for row, prompt in enumerate(prompts):
            inputs["inputs_embeds"][row, len(prompt) - 1:] = 1e4
        return inputs

    def poisoned_prefill(policy, prompts):
        caches = prefill(policy, prompts)
        assert len(caches) == 1
        for layer in caches[0].layers:
            for row, prompt in enumerate(prompts):
                layer.keys[row, :, len(prompt) - 1:] = torch.nan
                layer.values[row, :, len(prompt) - 1:] = torch.inf
        return caches

    clean = answers()
    monkeypatch.setattr(rollout, "decoder_inputs", poisoned_inputs)
    monkeypatch.setattr(rollout, "prefill", poisoned_prefill)
    for a, b in zip(clean, answers(), strict=True):
        assert torch.equal(a.completions, b.completions) and torch.equal(a.logprobs, b.logprobs)


@pytest.mark.parametrize("failing", [1, 7, 15])
def test_out_of_memory_amid_a_round_leaves_nothing_behind(policy, monkeypatch, failing):
    """The cache is gone before the round is tried again with half its rows, the model attends as before, and
    the answers are the same."""
    caches = []
    calls = 0

    class Seen(SharedPromptCache):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            assert all(cache() is None for cache in caches)
            caches.append(weakref.ref(self))

    def fails_once(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == failing:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return attend(*args, **kwargs)

    def answers():
        groups = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 4, seed=1, max_new_tokens=8)
        return [group.texts for group in groups]

    before = policy.model.get_decoder().config._attn_implementation
    expected = answers()
    monkeypatch.setattr(rollout, "SharedPromptCache", Seen)
    monkeypatch.setitem(AttentionInterface._global_mapping, shared_prompt_cache.SHARED_PROMPT, fails_once)
    gc.disable()
    try:
        with pytest.warns(UserWarning, match="16 rows decoded at a time: going on with 8"):
            assert answers() == expected
    finally:
        gc.enable()
    assert len(caches) == 3 and policy.rows == 8
    assert policy.model.get_decoder().config._attn_implementation == before
    assert all(layer.cast is None for layer in lora_layers(policy.model).values())


def test_prompts_are_forwarded_a_few_at_a_time(policy, monkeypatch):
    """Which bounds the memory of their forward, and changes nothing."""
    def answers():
        groups = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 2, seed=1, max_new_tokens=8)
        return [group.texts for group in groups]

    together = answers()
    monkeypatch.setattr(rollout, "PROMPTS_AT_ONCE", 3)
    forwards = []
    hook = policy.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: forwards.append(kwargs["inputs_embeds"].shape[:2]), with_kwargs=True)
    assert answers() == together
    hook.remove()
    assert [rows for rows, length in forwards if length > 1] == [3, 1]


def test_an_image_may_be_split_between_rounds(policy):
    together = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 5, seed=1, max_new_tokens=8)
    split = sample(policy, tiny.pictures(*SIZES), IDS, "what?", 5, seed=1, max_new_tokens=8, max_rows=7)
    assert [group.texts for group in together] == [group.texts for group in split]


def test_decoding_waits_for_the_device_once_a_token(policy):
    """That is `generate`'s own question whether all rows have ended. Every other number that Python reads
    from a tensor would stall a GPU at every token."""
    policy.banned[policy.eos_ids] = True
    prompts = policies.encode(policy, tiny.pictures(*SIZES), "what?")

    def reads(tokens):
        uniforms = torch.rand(4, tokens, dtype=torch.float64)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            rollout.decode(policy, prompts, uniforms, 1.0, tokens)
        names = [event.name for event in profile.events()]
        return names.count("aten::_local_scalar_dense") + names.count("aten::nonzero")

    assert reads(12) - reads(2) == 10
