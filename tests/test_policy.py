"""The policy on a small Qwen2.5-VL: loading, prompts, and log-probs against transformers' own forward."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import LlamaConfig, Qwen2_5_VLForConditionalGeneration

import lora
import policy as policies
import tiny
from grpo import token_logprobs
from policy import completion_logprobs, encode
from rollout import sample

# Prompts of two lengths; the first and the third are equally long (6 x 8 and 12 x 4 patches) but start their
# answers at different positions.
SIZES = [(112, 84), (56, 56), (56, 168), (112, 84)]


def completions(policy, rows, width=9, seed=0):
    """Random tokens of ragged lengths, padded with the banned padding token."""
    generator = torch.Generator().manual_seed(seed)
    allowed = (~policy.banned).nonzero().flatten()
    ids = allowed[torch.randint(len(allowed), (rows, width), generator=generator)]
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask = torch.arange(width) < lengths
    return ids.masked_fill(~mask, policy.pad_id), mask


def logprobs_by_transformers(policy, image, question, ids):
    """The independent path: the model's own full forward on processor output, one completion at a time."""
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = policy.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    inputs = policy.processor(text=[text], images=[image], return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[None]], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros(1, len(ids), dtype=types.dtype)], 1)
    logits = policy.model(**inputs).logits[0, length - 1:-1]
    return token_logprobs(logits, ids, banned=policy.banned)


def copy_files(source, target, names):
    for name in names:
        (target / name).write_bytes((source / name).read_bytes())


# ---- loading


def test_load_and_adapter_round_trip(checkpoint, tmp_path):
    made = policies.load(checkpoint, max_pixels=56 * 56)
    lora.add_lora(made.model, 2, 4)
    prompts = encode(made, tiny.pictures((300, 200)), "what?")
    image_tokens = int((prompts[0].ids == made.model.config.image_token_id).sum())
    assert 1 <= image_tokens <= 4  # 56 x 56 pixels hold 4 tokens
    for layer in lora.lora_layers(made.model).values():
        layer.lora_B.data.normal_()
    lora.save_adapter(made.model, tmp_path)
    again = policies.load(checkpoint, max_pixels=56 * 56)
    lora.load_adapter(again.model, tmp_path)
    ids, mask = completions(made, 2)
    assert torch.equal(completion_logprobs(made, prompts, ids, mask),
                       completion_logprobs(again, prompts, ids, mask))


def test_a_poisoned_generation_config_stays_outside(checkpoint, tmp_path):
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    model.generation_config.update(do_sample=True, repetition_penalty=1.3, top_k=1, temperature=0.01,
                                   top_p=0.1)
    model.save_pretrained(tmp_path)
    copy_files(checkpoint, tmp_path, ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json",
                                      "chat_template.jinja"])
    assert "repetition_penalty" in (tmp_path / "generation_config.json").read_text()

    def answers(folder):
        policy = policies.load(folder)
        group, = sample(policy, tiny.pictures((56, 56)), ["a"], "what?", 6, max_new_tokens=12)
        return group

    clean, poisoned = answers(checkpoint), answers(tmp_path)
    assert clean.texts == poisoned.texts
    assert torch.equal(clean.logprobs, poisoned.logprobs)
    assert len(set(clean.texts)) > 1  # top_k = 1 would make all completions one


def test_checkpoints_of_older_versions_load(checkpoint, tmp_path):
    """4.x nests keys otherwise, says min_pixels/max_pixels, and keeps the template in chat_template.json."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint)
    old = {}
    for key, value in model.state_dict().items():
        key = key.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        old[key] = value.clone()
    assert "model.layers.0.self_attn.q_proj.weight" in old
    assert any(key.startswith("visual.") for key in old)
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})

    copy_files(checkpoint, tmp_path, ["config.json", "generation_config.json", "tokenizer.json"])
    tokens = json.loads((checkpoint / "tokenizer_config.json").read_text())
    tokens.pop("chat_template", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokens))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": tiny.TEMPLATE}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136,
        "max_pixels": 12845056}))

    ids, mask = completions(policies.load(checkpoint), 2)

    def logprobs(folder):
        policy = policies.load(folder)
        prompts = encode(policy, tiny.pictures((112, 84)), "what?")
        return completion_logprobs(policy, prompts, ids, mask)

    assert torch.equal(logprobs(checkpoint), logprobs(tmp_path))


def test_what_is_no_checkpoint_says_so_in_one_line(checkpoint, tmp_path):
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="llama model: choose a checkpoint of qwen2_vl, qwen2_5_vl"):
        policies.load(tmp_path / "llama")
    with pytest.raises(OSError, match="no model at"):
        policies.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="max pixels"):
        policies.load(checkpoint, max_pixels=10)


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m.role }}{% endfor %}",
                                      "{{ 'user ' + messages[0].content }}"])
def test_a_text_models_template_is_refused(template):
    blind = tiny.processor()
    blind.chat_template = template
    with pytest.raises(ValueError, match="no place for an image"):
        policies.from_parts(tiny.model(tiny.tokenizer()), blind)


def test_tied_embeddings_as_in_the_3b():
    """Scored and sampled alike when lm_head is the embedding; the adapters leave both alone."""
    tied = policies.from_parts(tiny.model(tiny.tokenizer(), tie=True), tiny.processor())
    lora.add_lora(tied.model, 4, 8)
    assert tied.model.lm_head.weight is tied.model.get_input_embeddings().weight
    group, = sample(tied, tiny.pictures((56, 56)), ["a"], "what?", 4, max_new_tokens=8)
    scored = completion_logprobs(tied, [group.prompt], group.completions, group.mask)
    torch.testing.assert_close(scored, group.logprobs, atol=1e-5, rtol=1e-5)


def test_banned_tokens(policy):
    tok = policy.tokenizer
    eos = tok.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert policy.eos_ids == eos and not policy.banned[eos].any()
    for token in tiny.SPECIALS:
        banned = bool(policy.banned[tok.convert_tokens_to_ids(token)])
        assert banned == (token not in ("<|im_end|>", "<|endoftext|>"))
    assert policy.banned[len(tok):].all() and len(policy.banned) == len(tok) + 5  # rows no token has
    for word in ("<think>", "</answer>", "red finch"):
        assert not policy.banned[tok(word)["input_ids"]].any()


# ---- prompts and log-probs


def test_logprobs_equal_transformers_own_forward(policy):
    """Batch of images of different sizes, N completions each, against one full forward a completion. Catches
    patches and grids in different orders, one-dimensional positions, padding that leaks."""
    images = tiny.pictures(*SIZES)
    n = 3
    ids, mask = completions(policy, len(images) * n)
    with torch.no_grad():
        got = completion_logprobs(policy, encode(policy, images, "what is it?"), ids, mask)
        for row in range(len(ids)):
            length = int(mask[row].sum())
            expected = logprobs_by_transformers(policy, images[row // n], "what is it?", ids[row, :length])
            torch.testing.assert_close(got[row, :length], expected, atol=1e-5, rtol=1e-5)
            assert (got[row, length:] == 0).all()


def test_one_dimensional_positions_would_differ(policy):
    """The negative side: positions do matter, so the equality above is no accident."""
    prompt, = encode(policy, tiny.pictures((112, 84)), "what is it?")
    ids, mask = completions(policy, 2)
    right = completion_logprobs(policy, [prompt], ids, mask)
    flat = torch.arange(len(prompt)).expand(3, -1)
    assert not torch.equal(prompt.positions, flat)
    prompt.positions = flat
    prompt.start = len(prompt)
    wrong = completion_logprobs(policy, [prompt], ids, mask)
    assert (wrong - right).abs().max() > 1e-3


def shared_equals_plain(policy, tolerance=1e-5):
    """Value and gradient of both forms, each with checkpointing and without."""
    prompts = encode(policy, tiny.pictures(*SIZES), "what is it?")
    ids, mask = completions(policy, 12)
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(2), dtype=policy.model.dtype)

    def value_and_gradient(shared, checkpointing):
        policy.model.zero_grad()
        logprobs = completion_logprobs(policy, prompts, ids, mask, 0.7, checkpointing, shared)
        (logprobs * weights).sum().backward()
        gradient = [p.grad.flatten() for p in policy.model.parameters() if p.requires_grad]
        return logprobs.detach(), torch.cat(gradient)

    expected_logprobs, expected_gradient = value_and_gradient(shared=False, checkpointing=False)
    for shared, checkpointing in [(True, False), (True, True), (False, True)]:
        logprobs, gradient = value_and_gradient(shared, checkpointing)
        torch.testing.assert_close(logprobs, expected_logprobs, atol=tolerance, rtol=tolerance)
        assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()
    assert not any(module.training for module in policy.model.modules())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_shared_prompt_equals_plain_path_in_value_and_gradient(policy, dtype, tolerance):
    policy.model.to(dtype)
    shared_equals_plain(policy, tolerance)


def test_a_prompt_is_scored_once_for_all_its_completions(policy):
    """What sharing is for: the N rows hold completions only."""
    prompts = encode(policy, tiny.pictures((84, 84)), "what is it?")
    ids, mask = completions(policy, 4)
    seen = []
    handle = policy.model.get_decoder().layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[:2])))
    completion_logprobs(policy, prompts, ids, mask)
    handle.remove()
    assert seen == [(1, len(prompts[0])), (4, int(mask.sum(1).max()) - 1)]


def test_one_by_one_and_single_tokens(policy):
    prompts = encode(policy, tiny.pictures(*SIZES), "what is it?")
    ids, mask = completions(policy, 8)
    together = completion_logprobs(policy, prompts, ids, mask)
    for i, prompt in enumerate(prompts):
        rows = slice(2 * i, 2 * i + 2)
        alone = completion_logprobs(policy, [prompt], ids[rows], mask[rows])
        torch.testing.assert_close(alone, together[rows], atol=1e-5, rtol=1e-5)
    first = completion_logprobs(policy, prompts, ids[:, :1], mask[:, :1])
    torch.testing.assert_close(first, together[:, :1], atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_padding_does_not_matter(policy):
    prompts = encode(policy, tiny.pictures((84, 84)), "what is it?")
    ids, mask = completions(policy, 4)
    expected = completion_logprobs(policy, prompts, ids, mask)
    junk = torch.where(mask, ids, policy.model.config.image_token_id)
    assert torch.equal(completion_logprobs(policy, prompts, junk, mask), expected)


@pytest.mark.parametrize("width", [9, 1])
def test_scoring_changes_none_of_its_inputs(policy, width):
    """A mask or a label written through a view rescales whatever is counted later."""
    prompts = encode(policy, tiny.pictures((84, 84)), "what is it?")
    ids, mask = completions(policy, 4, width)
    mask[0] = True  # the longest row reaches the end: nothing is cut off, views stay views
    inputs = [ids, mask, policy.banned, prompts[0].ids, prompts[0].embeds, prompts[0].positions]
    kept = [x.clone() for x in inputs]
    completion_logprobs(policy, prompts, ids, mask).sum().backward()
    for before, after in zip(kept, inputs):
        assert torch.equal(before, after)


def test_one_small_image_does_not_shrink_the_next(policy):
    small, large = tiny.pictures((10, 8), (112, 84))
    _, together = encode(policy, [small, large], "what?")
    alone, = encode(policy, [large], "what?")
    assert torch.equal(together.ids, alone.ids)
    torch.testing.assert_close(together.embeds, alone.embeds, atol=1e-5, rtol=1e-5)


def test_many_images_go_through_the_tower_in_parts_and_none_at_all_is_no_prompt(policy):
    """More than one call's images come out in their order, each as it does alone."""
    images = tiny.pictures(*[(56, 56)] * (policies.IMAGES_AT_ONCE + 2))
    vision = []
    handle = policy.model.model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: vision.append(1), with_kwargs=True)
    together = encode(policy, images, "what?")
    handle.remove()
    assert len(together) == len(images) and len(vision) == 2
    for i in (0, -1):
        alone, = encode(policy, [images[i]], "what?")
        torch.testing.assert_close(together[i].embeds, alone.embeds, atol=1e-5, rtol=1e-5)
    assert encode(policy, [], "what?") == []


def test_large_images_are_split_by_their_pixels():
    sides = [5, 5, 7, 6, 5, 20, 1, 1, 1, 1]
    images = [Image.new("RGB", (side, side)) for side in sides]
    parts = policies.split_images(images, 3, 100)
    assert [[image.width for image in some] for some in parts] == [[5, 5, 7], [6, 5], [20], [1, 1, 1], [1]]
    parts = policies.split_images(images, 10, 100, max_pixels=36)  # what they are scaled down to counts
    assert [[image.width for image in some] for some in parts] == [[5, 5, 7], [6, 5, 20, 1, 1, 1], [1]]
