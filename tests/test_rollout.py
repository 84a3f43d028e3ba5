"""Rollouts on a small Qwen2.5-VL: the sampler by hand, and whole rollouts against transformers' own path."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rollout
import tiny
from policy import completion_logprobs
from rollout import (PROMPTS, Group, Sampler, first_eos_mask, nucleus, parse_answer, read_answer, sample,
                     seed_for, stack)
from support import shared_prompt_cache

ROOT = Path(__file__).resolve().parents[1]

# The first and the third prompt are equally long, and are decoded together, but start their answers at
# different positions.
SIZES = [(112, 84), (56, 56), (56, 168)]


def processor_inputs(policy, image, question):
    """What transformers' own forward takes."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = policy.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return policy.processor(text=[text], images=[image], return_tensors="pt")


@pytest.mark.parametrize("text, answer", [
    ("<think> a bird </think> <answer> red finch </answer>", "red finch"),
    ("<answer>a</answer><answer>b</answer>", "a"),                              # the first counts
    ("<think><answer>a</answer></think><answer>b</answer>", "b"),               # thought is not given
    ("<think>x</think><think><answer>a</answer></think>", None),
    ("<think> never closed <answer>owl</answer>", "owl"),                       # hides nothing
    ("<answer>two\nlines</answer>", "two\nlines"),
    ("<answer>red <think> or blue </think> finch</answer>", "red <think> or blue </think> finch"),
    ("<answer></answer>", None), ("<answer> \n</answer>", None), ("<answer>?!</answer>", None),
    ("<answer></answer><answer>b</answer>", None),                              # so does an empty first one
    ("<Answer>a</Answer>", None), ("<answer>a", None), ("a</answer>", None), ("red finch", None), ("", None),
    ("<answer>7</answer>", "7"), ("<answer>鶴</answer>", "鶴"), ("<answer><answer>a</answer>", "<answer>a"),
    ("</think><answer>a</answer>", "a"),
])
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


def test_mask_ends_with_the_first_eos_and_trains_it():
    """Also where padding is an EOS itself: by position, not by token id."""
    made = torch.tensor([[5, 2, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0], [5, 0, 2, 0]])
    mask = first_eos_mask(made, [2, 0])
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]


def test_sampled_answers_end_with_the_eos_they_train(policy):
    """A policy that knows two words and both EOS, one of which also pads: whichever comes first is the last
    token of the mask, and only a row without any is truncated."""
    policy.banned[:] = True
    policy.banned[[40, 50, *policy.eos_ids]] = False
    group, = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 16, max_new_tokens=2)
    lasts = set()
    truncated = 0
    for row, mask in zip(group.completions.tolist(), group.mask.tolist()):
        ends = [t for t, token in enumerate(row) if token in policy.eos_ids]
        if ends:
            lasts.add(row[ends[0]])
            assert mask == [t <= ends[0] for t in range(len(row))]
        else:
            truncated += 1
            assert all(mask)
    assert lasts == set(policy.eos_ids) and policy.pad_id in lasts
    assert 0 < truncated < 16 and truncated == group.truncated
    assert (group.logprobs[~group.mask] == 0).all() and (group.logprobs[group.mask] < 0).all()


def test_no_images_are_no_groups(policy):
    assert sample(policy, [], [], "what?", 4) == []


def test_stack_pads_shorter_groups_outside_the_mask():
    groups = []
    for width in (1, 3):
        ones = torch.ones(2, width)
        groups.append(Group("", None, 7 * ones.long(), ones.bool(), -ones, [], [], 0))
    completions, mask, logprobs = stack(groups, pad_id=5)
    assert completions.tolist() == [[[7, 5, 5]] * 2, [[7, 7, 7]] * 2]
    assert mask.tolist() == [[[True, False, False]] * 2, [[True] * 3] * 2] and mask.dtype == torch.bool
    assert logprobs.tolist() == [[[-1, 0, 0]] * 2, [[-1, -1, -1]] * 2]
    assert groups[0].mask.shape == (2, 1)


def test_sampler_is_the_inverse_transform_by_hand():
    """p = .1 .2 .3 .4 of the allowed ones; the banned one would have had most."""
    scores = torch.tensor([[9.0, .1, .2, .3, .4]]).log()
    banned = torch.tensor([True, False, False, False, False])
    for u, token in [(0.0, 1), (.0999, 1), (.1001, 2), (.2999, 2), (.3001, 3), (.5999, 3), (.6001, 4),
                     (1 - 2 ** -53, 4)]:
        sampler = Sampler(torch.tensor([[u]], dtype=torch.float64), 1.0, banned)
        out = sampler(None, scores.clone())
        assert out.argmax().item() == token and out.isfinite().sum() == 1
        torch.testing.assert_close(sampler.logprobs[0], torch.tensor([token / 10]).log())


def test_the_samplers_memory_is_bounded_and_the_rows_together_or_apart_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(10, 50, generator=generator)
    uniforms = torch.rand(10, 1, dtype=torch.float64, generator=generator)
    banned = torch.arange(50) % 7 == 0
    for temperature, top_p, bytes_a_token in ((1.0, 1.0, 24), (0.0, 1.0, 24), (1.0, 0.9, 48)):
        together = Sampler(uniforms, temperature, banned, top_p)
        chosen = together(None, scores.clone())
        monkeypatch.setattr(rollout, "SAMPLER_BYTES", 3 * bytes_a_token * 50)  # three rows at a time
        seen = []
        apart = Sampler(uniforms, temperature, banned, top_p)
        choose = apart.choose
        apart.choose = lambda some, u: (seen.append(len(some)), choose(some, u))[1]
        assert torch.equal(apart(None, scores.clone()), chosen)
        assert torch.equal(apart.logprobs[0], together.logprobs[0]) and seen == [3, 3, 3, 1]
        monkeypatch.undo()


@pytest.mark.parametrize("top_p, kept", [
    (1e-9, [2]), (.5, [2]), (.51, [0, 2]), (.8, [0, 2]), (.81, [0, 1, 2]), (.96, [0, 1, 2, 3])])
def test_the_nucleus_by_hand(top_p, kept):
    """.5, then .3, .15 and .05: as few of the likeliest as come to top_p; among themselves they are as
    before."""
    p = torch.tensor([[.3, .15, .5, .05], [.05, .15, .3, .5]], dtype=torch.float64)
    first, second = nucleus(p.log(), top_p).exp()
    want = torch.zeros(4, dtype=torch.float64)
    want[kept] = p[0, kept] / p[0, kept].sum()
    torch.testing.assert_close(first, want)
    torch.testing.assert_close(second, want[[3, 1, 0, 2]])


def test_a_sampler_with_top_p_draws_the_nucleus_as_often_as_it_should():
    uniforms = (torch.arange(1000, dtype=torch.float64)[:, None] + .5) / 1000  # a grid stands for all draws
    p = torch.tensor([.3, .15, .5, .05])
    sampler = Sampler(uniforms, 1.0, torch.zeros(4, dtype=torch.bool), top_p=.8)
    tokens = sampler(None, p.log().repeat(1000, 1)).argmax(-1)
    assert torch.bincount(tokens, minlength=4).tolist() == [375, 0, 625, 0]
    torch.testing.assert_close(sampler.logprobs[0].exp(), torch.tensor([.375, 0, .625])[tokens])


def test_top_p_reaches_every_token(policy):
    """As small as can be it is greedy, also where prompts can't be shared; at 1 it is not there."""
    images, ids = tiny.pictures((56, 84), (84, 56)), ["a", "b"]
    plain = sample(policy, images, ids, "what?", n=3, max_new_tokens=8)
    greedy = sample(policy, images, ids, "what?", n=3, max_new_tokens=8, temperature=0)
    one = sample(policy, images, ids, "what?", n=3, max_new_tokens=8, top_p=1.0)
    smallest = sample(policy, images, ids, "what?", n=3, max_new_tokens=8, top_p=1e-9)
    policy.shared = False
    alone = sample(policy, images, ids, "what?", n=3, max_new_tokens=8, top_p=1e-9)
    assert [g.texts for g in one] == [g.texts for g in plain] != [g.texts for g in greedy]
    assert [g.texts for g in smallest] == [g.texts for g in greedy] == [g.texts for g in alone]


def test_sampler_never_lands_on_a_banned_token_at_the_end():
    banned = torch.tensor([False, False, True, True])
    sampler = Sampler(torch.tensor([[1 - 2 ** -53]], dtype=torch.float64), 1.0, banned)
    assert sampler(None, torch.zeros(1, 4)).argmax().item() == 1


def test_temperature_sharpens():
    uniforms = torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(uniforms, 0.5, torch.zeros(2, dtype=torch.bool))
    ones = sampler(None, torch.tensor([[0.0, 1.0]]).repeat(4000, 1)).argmax(-1).float().mean()
    assert abs(ones - torch.tensor(2.0).sigmoid()) < 0.02  # softmax([0, 1] / .5), standard error .005


def test_greedy_equals_plain_generate(policy):
    """Shared prompt cache, image encoded once, N rows: against transformers' own generate on processor
    output."""
    images = tiny.pictures(*SIZES)
    groups = sample(policy, images, ["a", "b", "c"], "what is it?", 3, temperature=0, max_new_tokens=16)
    banned = policy.banned.nonzero().flatten().tolist()
    for image, group in zip(images, groups):
        inputs = processor_inputs(policy, image, "what is it?")
        made = policy.model.generate(**inputs, max_new_tokens=16, do_sample=False, suppress_tokens=banned)
        expected = made[0, inputs["input_ids"].shape[1]:]
        for row in group.completions:
            assert row[:len(expected)].tolist() == expected.tolist()


def test_samples_depend_on_nothing_but_seed_stream_image_and_n(policy):
    """Alone, together, in another order, in small batches, as part of a larger N: the same tokens."""
    images = tiny.pictures(*SIZES, (112, 84))
    ids = ["a", "b", "c", "d"]
    options = dict(seed=3, stream="train/7", max_new_tokens=16)
    together = sample(policy, images, ids, "what?", 4, **options)
    for i in range(4):
        alone, = sample(policy, [images[i]], [ids[i]], "what?", 4, **options)
        assert alone.texts == together[i].texts
    reverse = sample(policy, images[::-1], ids[::-1], "what?", 4, max_rows=4, **options)
    assert [g.id for g in reverse] == ["d", "c", "b", "a"]
    assert [g.texts for g in reverse[::-1]] == [g.texts for g in together]
    fewer = sample(policy, images, ids, "what?", 2, **options)
    assert [g.texts[:2] for g in together] == [g.texts for g in fewer]
    for other in (dict(options, seed=4), dict(options, stream="train/8")):
        assert sample(policy, images, ids, "what?", 4, **other)[0].texts != together[0].texts
    assert all(len(set(g.texts)) > 1 for g in together)  # the N answers are N draws


def test_same_uniforms_by_the_plain_path(policy):
    """Token by token with full forwards over the whole sequence, no cache: the same samples."""
    image, = tiny.pictures((84, 112))
    group, = sample(policy, [image], ["a"], "what?", 2, seed=5, stream="s", max_new_tokens=6)
    for n in range(2):
        inputs = processor_inputs(policy, image, "what?")
        uniforms = np.random.default_rng(seed_for(5, "s", "a", n)).random(6)
        for t in range(int(group.mask[n].sum())):
            logits = policy.model(**inputs).logits[0, -1].masked_fill(policy.banned, -torch.inf)
            token = int((logits.softmax(-1).double().cumsum(0) <= uniforms[t]).sum())
            assert token == int(group.completions[n, t])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            types = inputs["mm_token_type_ids"]
            inputs["mm_token_type_ids"] = torch.cat([types, types.new_zeros(1, 1)], 1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_logprobs_equal_scored_ones(policy, temperature):
    """Scored on the full vocabulary, or at another temperature, they would not."""
    images = tiny.pictures(*SIZES)
    groups = sample(policy, images, ["a", "b", "c"], "what?", 4, temperature=temperature, max_new_tokens=12)
    for group in groups:
        scored = completion_logprobs(policy, [group.prompt], group.completions, group.mask, temperature)
        torch.testing.assert_close(scored, group.logprobs, atol=1e-5, rtol=1e-5)
        other = completion_logprobs(policy, [group.prompt], group.completions, group.mask, 1.6 - temperature)
        assert (other - group.logprobs).abs().max() > 1e-2


def test_image_tokens_are_never_sampled(policy):
    """Even by a policy that would like nothing better."""
    policy.model.lm_head.weight.data[policy.banned] *= 50
    group, = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 16, max_new_tokens=12)
    assert not policy.banned[group.completions[group.mask]].any()


def test_prompt_is_forwarded_once_and_decoding_reads_one_token_at_a_time(policy):
    """The vision tower sees each image once, the decoder no token twice: the cache is really used."""
    seen = []
    vision = []

    def see_decoder(module, args, kwargs):
        seen.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    def see_tower(module, args, kwargs):
        vision.append(len(args[0]))

    decoder = policy.model.get_decoder().register_forward_pre_hook(see_decoder, with_kwargs=True)
    tower = policy.model.model.visual.register_forward_pre_hook(see_tower, with_kwargs=True)
    policy.model.train()  # neither a forgotten train mode nor HF's checkpointing must cost the cache
    policy.model.gradient_checkpointing_enable()
    group, = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 4, temperature=0, max_new_tokens=5)
    decoder.remove()
    tower.remove()
    steps = group.completions.shape[1]
    assert vision == [16] and seen == [(1, len(group.prompt) - 1)] + [(4, 1)] * steps


def eager(policy):
    """A policy that knows few words, and so ends soon, at another length in every row."""
    policy.banned[:] = True
    policy.banned[[*range(40, 70), policy.eos_ids[0]]] = False
    return policy


def test_ended_rows_are_dropped_and_change_nothing(policy, monkeypatch):
    """The decoder sees fewer and fewer rows, the cache follows them, and the answers are those of a batch
    that runs to the end."""
    policy = eager(policy)
    images = tiny.pictures(*SIZES)

    def groups_and_rows():
        rows = []
        hook = policy.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True)
        groups = sample(policy, images, ["a", "b", "c"], "what?", 8, max_new_tokens=90, seed=2)
        hook.remove()
        return groups, rows

    dropped, dropped_rows = groups_and_rows()
    monkeypatch.setattr(shared_prompt_cache, "DROP", 2)
    kept, kept_rows = groups_and_rows()

    lengths = sorted(int(x) for group in dropped for x in group.mask.sum(1))
    assert lengths[0] < 5 and lengths[-1] > 65
    for a, b in zip(dropped, kept, strict=True):
        assert a.texts == b.texts
        width = min(a.mask.shape[1], b.mask.shape[1])
        assert torch.equal(a.mask[:, :width], b.mask[:, :width]) and a.mask.sum() == b.mask.sum()
        torch.testing.assert_close(a.logprobs[:, :width], b.logprobs[:, :width], atol=1e-5, rtol=1e-5)
    assert set(kept_rows) == {3, 24} and len(set(dropped_rows)) > 8  # 3 prompts first
    assert sum(dropped_rows) < 0.75 * sum(kept_rows)


def test_out_of_memory_is_met_with_half_the_rows_once(policy, monkeypatch):
    decode = rollout.decode
    tried = []

    def answers():
        groups = sample(policy, tiny.pictures(*[(56, 56)] * 3), ["a", "b", "c"], "what?", 4, max_new_tokens=8)
        return [group.texts for group in groups]

    def fits(limit):
        def run(policy, prompts, *args):
            tried.append(len(prompts))
            if len(prompts) > limit:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return decode(policy, prompts, *args)
        return run

    expected = answers()
    monkeypatch.setattr(rollout, "decode", fits(6))
    with pytest.warns(UserWarning, match="12 rows decoded at a time: going on with 6"):
        assert answers() == expected
    assert tried == [12, 6, 6]  # the second image's group in two halves
    tried.clear()
    assert answers() == expected
    assert tried == [6, 6] and policy.rows == 6  # the next call knows, and does not run out again
    monkeypatch.setattr(rollout, "decode", fits(2))
    with pytest.raises(torch.cuda.OutOfMemoryError), pytest.warns(UserWarning):
        answers()


def test_a_small_round_that_runs_out_does_not_halve_what_has_fitted(policy, monkeypatch):
    """16 rows fit, then the last 4 do not, and are tried once more: from then on there are 16 again."""
    decode = rollout.decode
    tried = []

    def run(policy, prompts, *args):
        tried.append(len(prompts))
        if len(tried) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(policy, prompts, *args)

    monkeypatch.setattr(rollout, "decode", run)
    with pytest.warns(UserWarning, match="4 rows decoded at a time: going on with 16"):
        sample(policy, tiny.pictures(*[(56, 56)] * 5), list("abcde"), "what?", 4, max_new_tokens=4,
               max_rows=16)
    assert tried == [16, 4, 4] and policy.rows == 16


def test_no_state_stays_in_the_model(policy):
    first = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 2, max_new_tokens=8)
    sample(policy, tiny.pictures((112, 84)), ["b"], "what?", 3, max_new_tokens=8)
    assert policy.model.model.rope_deltas is None
    again = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 2, max_new_tokens=8)
    assert again[0].texts == first[0].texts


def test_seeds_are_the_same_in_every_process():
    """Not Python's hash(), which is salted."""
    code = "from rollout import seed_for; print(seed_for(0, 'train/1', 'cub/x.jpg', 3))"
    expected = seed_for(0, "train/1", "cub/x.jpg", 3)
    for _ in range(2):
        printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                                 check=True).stdout
        assert printed == f"{expected}\n"
    assert seed_for(1, 23) != seed_for(12, 3)


def test_very_long_prompts_share_their_room():
    """Seven rows of 10 tokens, of 3 answers an image, and two prompts of 100: room for 270. Seven rows with
    3 x 66 fit, five with 2 x 90, but no sixth with 3 x 105; 500 go alone, with all their rows. Where nothing
    was reckoned with, all rows go together."""
    prompts = [range(length) for length in (60, 60, 66, 90, 105, 500)]

    def rounds(policy):
        queue = rollout.rows_by_prompt_length(prompts, 3)
        found = []
        while queue:
            rows = rollout.next_round(queue, prompts, n=3, max_rows=7, max_new_tokens=10, policy=policy)
            found.append([i for i, _ in rows])
            queue = queue[len(rows):]
        return found

    planned = SimpleNamespace(shared=True, planned_prompt=100)
    assert rounds(planned) == [[0] * 3 + [1] * 3 + [2], [2] * 2 + [3] * 3, [4] * 3, [5] * 3]
    assert [len(found) for found in rounds(SimpleNamespace(shared=True, planned_prompt=None))] == [7, 7, 4]


def test_long_prompts_are_forwarded_in_parts(monkeypatch):
    """At most 3 at once, and 200 tokens when padded: 3 x 60, but 80 with 110 are 220; 300 goes alone."""
    monkeypatch.setattr(rollout, "PROMPTS_AT_ONCE", 3)
    monkeypatch.setattr(rollout, "PROMPT_TOKENS_AT_ONCE", 200)
    prompts = [range(length) for length in (60, 60, 10, 80, 110, 90, 300, 5)]
    parts = [[len(prompt) for prompt in some] for some in rollout.split_prompts(prompts)]
    assert parts == [[60, 60, 10], [80], [110], [90], [300], [5]]


def test_small_bounds_change_no_answer(policy, monkeypatch):
    images, ids = tiny.pictures((112, 84), (56, 56), (84, 168), (84, 84)), ["a", "b", "c", "d"]

    def answers():
        return [g.texts for g in sample(policy, images, ids, "what?", 3, seed=2, max_new_tokens=8)]

    together = answers()
    policy.planned_prompt = 1
    monkeypatch.setattr(rollout, "PROMPT_TOKENS_AT_ONCE", 1)
    monkeypatch.setattr("policy.PIXELS_AT_ONCE", 1)
    assert answers() == together


@pytest.mark.parametrize("text, answer", [
    (" A golden retriever.\n", "A golden retriever."), ("?!", None), ("", None),
    ("<think>a dog</think> <answer> a cat </answer>", "a cat"), ("<answer>", None),
    ("<answer> </answer> a cat", None), ("<think>maybe a dog</think> a cat", "a cat"),
    ("A <think>dog</think> cat", "A  cat"), ("<think>a dog or maybe", None), ("a dog</answer>", None),
    ("<Answer>a dog</Answer>", None), ("<think>I put <answer>dog</answer></think> a cat", "a cat"),
    ("<think>a dog</think>", None)])
def test_the_whole_reply_answers_a_question_that_asks_for_no_tags(text, answer):
    assert read_answer(text, PROMPTS["owc"]) == answer
    assert read_answer(text, PROMPTS["direct"]) == parse_answer(text)


def test_whole_replies_are_a_groups_answers(policy):
    """The small policy's words have no tags, mostly: each is an answer to the one question, none to the
    other."""
    images = tiny.pictures((56, 84))
    whole, = sample(policy, images, ["a"], PROMPTS["owc"], n=4, max_new_tokens=8)
    tagged, = sample(policy, images, ["a"], PROMPTS["base"], n=4, max_new_tokens=8)
    assert whole.answers == [text.strip() for text in whole.texts] and all(whole.answers)
    assert tagged.answers == [None] * 4
