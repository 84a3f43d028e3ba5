"""The other families: rollout, log-probs, one update and a whole run, each against transformers' own path."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import families
import lora
import policy as policies
import rollout
import tiny
import train
import trees
from evaluate import load_policy
from policy import completion_logprobs, encode
from rollout import sample
from support.checkpoints import FAMILIES, limit_pixels
from test_policy import SIZES, completions, shared_equals_plain


@pytest.fixture(scope="module", params=families.MODELS)
def folder(request, tmp_path_factory):
    return families.save_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def policy(folder):
    return adapted(policies.load(folder))


def adapted(policy):
    """Adapters with B != 0, so that they matter."""
    lora.add_lora(policy.model, 4, 8)
    generator = torch.Generator().manual_seed(1)
    for layer in lora.lora_layers(policy.model).values():
        layer.lora_B.data.normal_(0, 0.05, generator=generator)
    return policy


def inputs(policy, image):
    """What transformers' own forward takes, by its own path from a conversation to tensors."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    return policy.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True, return_dict=True,
        return_tensors="pt")


def logprobs_by_transformers(policy, image, target):
    """The completion behind the image's prompt, through the model's own full forward."""
    batch = inputs(policy, image)
    length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], target[None]], dim=1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = F.pad(batch["mm_token_type_ids"], (0, len(target)))
    logits = policy.model(**batch).logits[0, length - 1:-1].masked_fill(policy.banned, -torch.inf)
    return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def test_greedy_rollout_equals_plain_generate(policy):
    images = tiny.pictures(*SIZES)
    groups = sample(policy, images, ["a", "b", "c"], "what is it?", n=2, temperature=0.0, max_new_tokens=24)
    for image, group in zip(images, groups):
        batch = inputs(policy, image)
        made = policy.model.generate(**batch, do_sample=False, max_new_tokens=24, eos_token_id=policy.eos_ids,
                                     suppress_tokens=policy.banned.nonzero()[:, 0].tolist())
        own = made[0, batch["input_ids"].shape[1]:]
        for row, mask in zip(group.completions, group.mask):
            assert torch.equal(row[mask], own)


def test_rollouts_of_many_prompts_together_equal_plain_ones(policy):
    """Prompts of several lengths, each kept once, rows dropped as they end: the answers of each image alone
    on transformers' own cache."""
    images = tiny.pictures(*SIZES)
    options = dict(n=4, seed=3, max_new_tokens=24)
    together = sample(policy, images, ["a", "b", "c", "d"], "what is it?", **options)
    assert len({len(group.prompt) for group in together}) > 1
    policy.shared = False
    alone = sample(policy, images, ["a", "b", "c", "d"], "what is it?", **options)
    for a, b in zip(together, alone, strict=True):
        assert a.texts == b.texts and torch.equal(a.mask.sum(1), b.mask.sum(1))
        torch.testing.assert_close(a.logprobs[a.mask], b.logprobs[b.mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"shared": False}])
def test_logprobs_equal_transformers_own_forward(policy, options):
    images = tiny.pictures(*SIZES)
    n = 2
    ids, mask = completions(policy, len(images) * n)
    with torch.no_grad():
        got = completion_logprobs(policy, encode(policy, images, "what is it?"), ids, mask, **options)
        for row in range(len(ids)):
            target = ids[row, :int(mask[row].sum())]
            expected = logprobs_by_transformers(policy, images[row // n], target)
            torch.testing.assert_close(got[row, :len(target)], expected, atol=1e-5, rtol=1e-5)


def test_shared_prompt_equals_plain_path_in_value_and_gradient(policy):
    shared_equals_plain(policy)


def test_adapters_are_in_the_language_model_alone_and_what_stands_for_images_is_banned(policy, folder):
    decoder = policy.model.get_decoder()
    name = next(n for n, m in policy.model.named_modules() if m is decoder)
    linears = [n for n, m in decoder.named_modules() if isinstance(m, lora.LoRALinear)]
    assert list(lora.lora_layers(policy.model)) == [f"{name}.{n}" for n in linears] and len(linears) == 21

    family = policy.model.config.model_type
    for token in families.CONTROL.get(family, []) + ["<|image_pad|>", "<|im_start|>"]:
        number = policy.tokenizer.convert_tokens_to_ids(token)
        assert policy.banned[number] or number in policy.eos_ids, token

    # As the family's template ends a turn.
    ends = "<end_of_utterance>" if family == "idefics3" else "<|im_end|>"
    assert policy.tokenizer.convert_tokens_to_ids(ends) in policy.eos_ids


def test_a_whole_run(folder, tmp_path):
    """train.py as it stands: sampled and scored log-probs agree, and every layer's adapter moves."""
    trees.cub(tmp_path)
    tree = tmp_path / "tree.json"
    parents = {bird.split(".")[1].replace("_", " "): "bird" for bird in trees.BIRDS}
    tree.write_text(json.dumps({"parents": parents | {"bird": None}}))
    run = train.main(["--data", "cub", "--root", str(tmp_path), "--model", str(folder), "--judge", str(tree),
                      "--n", "4", "--limit", "6", "--images-per-step", "4", "--minibatch", "4",
                      "--steps", "2", "--max-new-tokens", "32", "--max-pixels", "6272", "--lora-rank", "4",
                      "--lr", "1e-3", "--eval-every", "0", "--eval-limit", "2", "--judge-cache", "none",
                      "--out", str(tmp_path / "run")])
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in log[1:]:
        assert line["policy/logprob_gap"] < 1e-5 and line["policy/ratio_max"] == 1
        assert line["malformed"] < 1 and line["policy/grad_norm"] > 0
    again = load_policy(str(folder), adapter=run / "adapter")
    assert all(layer.lora_B.any() for layer in lora.lora_layers(again.model).values())


def test_fewer_pixels_make_shorter_prompts(folder):
    lengths = []
    for max_pixels in (None, 9 * 784, 4096):
        prompt, = encode(policies.load(folder, max_pixels=max_pixels), tiny.pictures((400, 300)), "?")
        lengths.append(len(prompt))
    assert lengths[0] > lengths[1] > lengths[2]
    with pytest.raises(ValueError, match="max pixels must be at least one image (tile|token), (784|1024)"):
        policies.load(folder, max_pixels=700)


def test_settings_saved_as_one_processor_file_are_read(folder, tmp_path):
    """As this version of transformers saves a processor: image settings inside processor_config.json."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = copy / "preprocessor_config.json"
    (copy / "processor_config.json").write_text(
        json.dumps({"image_processor": json.loads(settings.read_text()), "processor_class": "Any"}))
    settings.unlink()
    image = tiny.pictures((90, 200))
    expected, = encode(policies.load(folder), image, "?")
    prompt, = encode(policies.load(copy), image, "?")
    assert torch.equal(prompt.embeds, expected.embeds)


def test_a_sliding_window_takes_the_plain_path_and_says_so_once(tmp_path, capsys, monkeypatch):
    folder = families.save_checkpoint("internvl", tmp_path, use_sliding_window=True, sliding_window=8,
                                      max_window_layers=1)
    policy = adapted(policies.load(folder))
    test_logprobs_equal_transformers_own_forward(policy, {})
    test_greedy_rollout_equals_plain_generate(policy)
    monkeypatch.setattr(rollout, "decode", None)  # is not called
    group, = sample(policy, tiny.pictures(SIZES[0]), ["a"], "what is it?", n=3, max_new_tokens=24)
    scored = completion_logprobs(policy, [group.prompt], group.completions, group.mask)
    torch.testing.assert_close(scored, group.logprobs, atol=1e-5, rtol=1e-5)
    wrong = completion_logprobs(policy, [group.prompt], group.completions, group.mask, shared=True)
    assert (wrong - scored).abs().max() > 1e-3  # the window matters
    assert capsys.readouterr().err.count("sliding-window attention") == 1


def test_a_limit_only_lowers():
    for family in ("idefics3", "internvl", "qwen3_vl"):
        images = FAMILIES[family].image_processor(**families.IMAGES[family])
        edge = images.size.get("longest_edge")
        patches = getattr(images, "max_patches", None)
        limit_pixels(images, 10 ** 9)
        assert family == "qwen3_vl" or images.size.get("longest_edge") == edge
        assert getattr(images, "max_patches", None) == patches
    settings = families.IMAGES["qwen3_vl"] | {"size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    images = FAMILIES["qwen3_vl"].image_processor(**settings)
    limit_pixels(images, 4096)
    assert images.size["shortest_edge"] == 4096


def test_a_settings_file_of_other_tiles_is_refused(tmp_path):
    folder = families.save_checkpoint("internvl", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_seq_length": 5}))
    with pytest.raises(ValueError, match="image tokens for .* features: checkpoint and image processor"):
        encode(policies.load(folder), tiny.pictures((60, 40)), "?")
