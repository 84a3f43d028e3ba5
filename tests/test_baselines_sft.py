"""Supervised fine-tuning: the gradient of the labels' likelihood, on train.py's loop."""

import json
from types import SimpleNamespace

import pytest
import tiny
import torch
import trees
from test_train import arguments, lines, updated

import data
import train
from baselines import sft
from judge import parse_answer


def test_sft_is_the_likelihood_of_the_label(policy):
    """The gradient against transformers' own forward on prompt and label, cross-entropy over the label and
    its end token; the second of two minibatches moves by its own gradient, whatever the first has changed."""
    images = tiny.pictures((112, 84), (56, 56), (56, 168))
    labels = ["red finch", "owl", "Black footed Albatross"]
    examples = [SimpleNamespace(id=str(i), label=label) for i, label in enumerate(labels)]
    groups = sft.label_groups(policy, examples, images, "what?")
    assert [g.answers for g in groups] == [[label] for label in labels]
    assert [parse_answer(g.texts[0]) for g in groups] == labels
    losses, tokens = [], []
    for image, group in zip(images, groups):
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
        text = policy.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        target = f"<think></think> <answer>{group.answers[0]}</answer><|im_end|>"
        inputs = policy.processor(text=[text + target], images=[image], return_tensors="pt")
        length = len(policy.tokenizer(target)["input_ids"])
        logits = policy.model(**inputs).logits[0, -length - 1:-1].masked_fill(policy.banned, -torch.inf)
        losses.append(torch.nn.functional.cross_entropy(logits, inputs["input_ids"][0, -length:],
                                                        reduction="sum"))
        tokens.append(length)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses) / sum(tokens), parameters)])
    expected = -gradient * min(1.0, 1.0 / float(gradient.norm()))
    for micro_batch in (1, 3):
        moved, stats = updated(policy, groups, torch.ones(3, 1), sampled=False, beta=0.0, lr=1.0,
                               micro_batch=micro_batch)
        assert (moved - expected).norm() < 1e-4 * expected.norm()
        assert stats["policy/nll"] == pytest.approx(sum(losses).item() / sum(tokens), rel=1e-4)
    _, stats = updated(policy, groups, torch.ones(3, 1), sampled=False, beta=0.0, lr=50.0, minibatch=1)
    assert stats["policy/ratio_max"] == 1 and stats["policy/clipfrac"] == 0


def test_sft_learns_its_labels(tmp_path, checkpoint, tree_judge):
    run = sft.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "6"))
    log = lines(run / "log.jsonl")
    nll = [line["policy/nll"] for line in log[1:]]
    assert nll[-1] < 0.8 * nll[0] and "reward" not in log[1] and not lines(run / "samples.jsonl")
    assert [line["step"] for line in lines(run / "shown.jsonl")] == [0] * 3 + [6] * 3
    assert log[1]["images"] == 4 and log[1]["judge_errors"] == 0
    assert json.loads((run / "eval.json").read_text())["greedy"]["cub"]["after"]["n"] == 3


def test_sft_names_what_it_cannot_read(tmp_path, checkpoint, tree_judge):
    folder = trees.cub(tmp_path)
    for example in data.load("cub", root=folder, limit=6)[:2]:
        example.open.args[0].write_bytes(b"not a picture")
    run = sft.main(arguments(tmp_path, checkpoint, tree_judge, "--images-per-step", "6", "--steps", "1"))
    assert ["unreadable" in s for s in lines(run / "samples.jsonl")] == [True, True]


def test_sft_ends_where_too_little_can_be_read(tmp_path, checkpoint, tree_judge):
    folder = trees.cub(tmp_path)
    for example in data.load("cub", root=folder, limit=6)[:4]:
        example.open.args[0].unlink()
    with pytest.raises(SystemExit, match="baselines.sft: 4 of 6 images of step 1 can't be read"):
        sft.main(arguments(tmp_path, checkpoint, tree_judge, "--images-per-step", "6", "--steps", "1"))
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_run_of_labels_is_named_and_has_no_kl():
    config, _ = sft.parse_config([])
    assert (config.out, config.method, config.beta) == ("runs/toy-sft-seed0", "sft", 0)
    assert sft.parse_config(["--beta", "0.5"])[0].beta == 0.5


def test_mistakes_end_in_one_line(tmp_path, checkpoint, tree_judge):
    """Options that would do nothing, and a run of the other command."""
    with pytest.raises(SystemExit, match="^baselines.sft: .*: --reward and --noise would do nothing$"):
        sft.main(["--noise", "0.1", "--reward", "exact"])
    run = sft.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "1"))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match=f"^train.py: .*python -m baselines.sft --resume {run}$"):
        train.main(["--resume", str(run)])
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    sft.main(["--resume", str(run)])
    (run / "config.json").write_text((run / "config.json").read_text().replace('"sft"', '"rl"'))
    with pytest.raises(SystemExit, match=f"^baselines.sft: .*python train.py --resume {run}$"):
        sft.main(["--resume", str(run)])


def test_killed_and_resumed_equals_uninterrupted(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Ctrl-C in the second step, then --resume: logs and adapter of a run left alone."""
    whole = sft.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "3"))
    argv = arguments(tmp_path, checkpoint, tree_judge, "--steps", "3")
    argv[argv.index("--out") + 1] = str(tmp_path / "part")
    update = sft.update
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(*args, **kwargs)

    monkeypatch.setattr(sft, "update", interrupted)
    with pytest.raises(SystemExit, match="Go on with python -m baselines.sft --resume"):
        sft.main(argv)
    monkeypatch.setattr(sft, "update", update)
    sft.main(["--resume", str(tmp_path / "part")])
    assert lines(whole / "log.jsonl") == lines(tmp_path / "part" / "log.jsonl")
    adapters = [run / "adapter" / "adapter_model.safetensors" for run in (whole, tmp_path / "part")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
