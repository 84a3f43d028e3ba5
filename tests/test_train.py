import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lora
import policy as policies
import rollout
import tiny
import train
import trees
from grpo import group_advantages
from judges.taxonomy import TaxonomyJudge
from reward import Category, dynamic_bar, speciarl_rewards
from rollout import PROMPTS, sample
from support.files import append
from support.opening import question_for
from support.run_folder import load_state, save_state

ROOT = Path(train.__file__).parent
W, A, G, L, S, M = Category
VOLATILE = ("time/", "mem/", "cache/")


def lines(path) -> list[dict]:
    """A log without what may differ from run to run."""
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(VOLATILE)}
            for line in Path(path).read_text().splitlines()]


def arguments(tmp_path, checkpoint, judge, *more) -> list[str]:
    """The README's command, scaled down: --data cub --n 8 on a format-exact tree."""
    if not (tmp_path / "CUB_200_2011").exists():
        trees.cub(tmp_path)
    argv = ["--data", "cub", "--n", "8", "--root", str(tmp_path), "--model", str(checkpoint),
            "--judge", str(judge), "--limit", "6", "--images-per-step", "4", "--minibatch", "2",
            "--steps", "3", "--max-new-tokens", "20", "--max-pixels", "6272", "--lora-rank", "8",
            "--lr", "1e-3", "--eval-every", "2", "--eval-limit", "3", "--judge-cache", "none",
            "--out", str(tmp_path / "run")]
    return trees.with_options(argv, *more)


def with_out(argv, folder) -> list[str]:
    """The same command with another run folder."""
    at = argv.index("--out") + 1
    return [*argv[:at], str(folder), *argv[at + 1:]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint):
    """A run of three steps, judged by the tree, that nothing happened to: to be read, or copied."""
    folder = tmp_path_factory.mktemp("finished")
    return train.main(arguments(folder, checkpoint, trees.judge_of_cub(folder)))


# ---- end to end


def test_cub_with_a_checkpoint_and_a_language_model_judge(tmp_path, checkpoint, judge_folder):
    run = train.main(arguments(tmp_path, checkpoint, judge_folder))
    log, samples = lines(run / "log.jsonl"), lines(run / "samples.jsonl")
    assert [line["step"] for line in log] == [0, 1, 2, 3] and len(samples) == 12
    assert ["val/harmonic_mean" in line for line in log[:3]] == [True, False, True]
    assert not any(line["judge_errors"] for line in log[1:])  # such a judge always has a verdict
    assert all(len(s["categories"]) == len(s["rewards"]) == 8 for s in samples)
    assert {c for s in samples for c in s["categories"]} - {"malformed"}
    for name in ("config.json", "state.pt", "eval.json", "adapter/adapter_config.json",
                 "adapter/adapter_model.safetensors", "report.html"):
        assert (run / name).exists(), name
    before_after = json.loads((run / "eval.json").read_text())["greedy"]["cub"]
    assert before_after["before"]["n"] + before_after["before"]["judge_errors"] == 3
    again = train.load_policy(str(checkpoint), adapter=run / "adapter")  # as evaluate.py does
    trained = torch.load(run / "state.pt", weights_only=True)["adapter"]
    assert all(torch.equal(v, trained[k]) for k, v in lora.lora_state(again.model).items())


def test_rows_bound_every_rollout(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Validation and the final test too: what --rows is lowered for is memory, wherever it runs out."""
    decoded, decode = [], rollout.decode
    monkeypatch.setattr(rollout, "decode", lambda policy, prompts, *args: decoded.append(len(prompts))
                        or decode(policy, prompts, *args))
    train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "1", "--rows", "2"))
    assert max(decoded) == 2


def test_training_raises_the_reward(tmp_path, checkpoint, tree_judge):
    """The small checkpoint answers "bird" (right), "Mallard" (mostly wrong), or leaves out the tag; that is
    enough."""
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "12", "--eval-every", "0",
                               "--lr", "3e-3"))
    log = lines(run / "log.jsonl")[1:]
    first, last = (np.mean([line["reward"] for line in part]) for part in (log[:3], log[-3:]))
    assert last > first + 0.3 and log[-1]["malformed"] < log[0]["malformed"]
    assert all(line["policy/logprob_gap"] < 1e-5 for line in log)


# ---- resume


# Starts a run for each line of arguments. A run is a fork of this process, so that the imports, which take
# longer than the runs, are made once; it says its number first.
LAUNCHER = """
import json, os, sys
import torch
import train
torch.set_num_threads(1)
for line in sys.stdin:
    run = os.fork()
    if run == 0:
        print(os.getpid(), flush=True)
        sys.stdout = sys.stderr
        train.main(json.loads(line))
        os._exit(0)
    os.waitpid(run, 0)
"""


def test_killed_and_resumed_equals_uninterrupted(tmp_path, checkpoint, tree_judge):
    """kill -9 in the middle of a step, twice; then weights, optimizer and logs are those of a run left
    alone."""
    command = arguments(tmp_path, checkpoint, tree_judge, "--steps", "6", "--warmup", "6")
    part = tmp_path / "part"
    log = part / "log.jsonl"
    with (tmp_path / "printed").open("w+") as printed, subprocess.Popen(
            [sys.executable, "-c", LAUNCHER], cwd=ROOT, text=True, bufsize=1, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=printed) as launcher:
        for steps, argv in ((1, with_out(command, part)), (3, ["--resume", str(part)])):
            launcher.stdin.write(json.dumps(argv) + "\n")
            run = int(launcher.stdout.readline())
            deadline = time.time() + 120
            while (len(log.read_text().splitlines()) if log.exists() else 0) <= steps:
                assert time.time() < deadline, (tmp_path / "printed").read_text()
                time.sleep(0.01)
            os.kill(run, signal.SIGKILL)
        launcher.stdin.close()
    saved = torch.load(part / "state.pt", weights_only=True)["step"]
    assert 2 <= saved < 6  # killed before its end
    with log.open("a") as f:
        f.write('{"step": 4, "torn')  # what a kill in the middle of a write leaves
    train.main(["--resume", str(part)])
    whole = train.main(with_out(command, tmp_path / "whole"))
    for name in ("log.jsonl", "samples.jsonl"):
        assert lines(part / name) == lines(whole / name)
    a, b = (torch.load(folder / "state.pt", weights_only=True) for folder in (part, whole))
    assert all(torch.equal(a["adapter"][k], b["adapter"][k]) for k in b["adapter"])
    for i, moments in b["optimizer"]["state"].items():
        assert all(torch.equal(torch.as_tensor(a["optimizer"]["state"][i][k]), torch.as_tensor(v))
                   for k, v in moments.items())
    assert (part / "eval.json").read_text() == (whole / "eval.json").read_text()


def test_state_is_whole_or_not_at_all(tmp_path, policy, monkeypatch):
    """A kill in the middle of a save leaves the state before, and the logs are cut back to it; without any
    state there are no logs."""
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad])
    append(tmp_path / "log.jsonl", [{"step": 0}])
    assert load_state(tmp_path, policy, optimizer, 2) == -1 and not (tmp_path / "log.jsonl").exists()
    append(tmp_path / "log.jsonl", [{"step": 1}])
    save_state(tmp_path, policy, optimizer, 1)
    append(tmp_path / "log.jsonl", [{"step": 2}])

    def torn(state, file):
        file.write(b"half a state")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, policy, optimizer, 2)
    assert load_state(tmp_path, policy, optimizer, 2) == 1
    assert lines(tmp_path / "log.jsonl") == [{"step": 1}]

    def full(state, file):
        try:
            raise OSError("No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="cannot write .*state.pt: No space left on device"):
        save_state(tmp_path, policy, optimizer, 2)
    assert not list(tmp_path.glob(".tmp*")) and load_state(tmp_path, policy, optimizer, 2) == 1


def test_changed_setting_is_refused_with_the_difference(tmp_path, finished):
    run = shutil.copytree(finished, tmp_path / "run")
    for change, message in [(["--lr", "0.5"], "--lr was 0.001, now 0.5"), (["--n", "4"], "--n was 8, now 4")]:
        with pytest.raises(SystemExit) as e:
            train.main(["--resume", str(run), *change])
        assert message in str(e.value) and "\n" not in str(e.value)
    train.main(["--resume", str(run), "--n", "8"])  # the same setting again is none


def test_ctrl_c_saves_the_last_whole_step(tmp_path, checkpoint, tree_judge, monkeypatch):
    real, calls = train.update, []

    def interrupted(*args):
        stats = real(*args)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt  # weights have moved, nothing of the step is logged
        return stats

    monkeypatch.setattr(train, "update", interrupted)
    with pytest.raises(SystemExit, match="--resume"):
        train.main(arguments(tmp_path, checkpoint, tree_judge))
    run = tmp_path / "run"
    state = torch.load(run / "state.pt", weights_only=True)
    saved = train.load_policy(str(checkpoint), adapter=run / "adapter")
    assert (run / "report.html").exists()
    assert state["step"] == 1
    assert all(torch.equal(v, state["adapter"][k]) for k, v in lora.lora_state(saved.model).items())


def test_out_of_memory_names_the_flags_that_help(tmp_path, checkpoint, tree_judge, monkeypatch, capsys):
    """Before the loop, and in its second step: one line; the first step is kept and resumed from."""
    real, calls = train.update, []

    def too_large(*args):
        calls.append(1)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore")
        return real(*args)

    monkeypatch.setattr(train, "update", too_large)
    with pytest.raises(SystemExit) as stop:
        train.main(arguments(tmp_path, checkpoint, tree_judge))
    assert "\n" not in str(stop.value) and "out of GPU memory" in str(stop.value)
    assert all(flag in str(stop.value) for flag in ("--micro-batch", "--rows", "--max-pixels", "--n",
                                                    "--checkpointing"))
    log = lines(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in log] == [0, 1]
    peaks = [json.loads(line)["mem/peak_gb"] for line in open(tmp_path / "run" / "log.jsonl").readlines()[1:]]
    assert all(peak > 0.1 for peak in peaks)
    run = train.main(["--resume", str(tmp_path / "run"), "--micro-batch", "1", "--rows", "7",
                      "--checkpointing"])
    assert [line["step"] for line in lines(run / "log.jsonl")] == [0, 1, 2, 3]  # as the line said
    config = json.loads((run / "config.json").read_text())
    assert (config["micro_batch"], config["rows"], config["checkpointing"]) == (1, 7, True)
    with pytest.raises(SystemExit, match="--rows must be at least 1"):
        train.main(["--resume", str(run), "--rows", "0"])


def test_the_same_pictures_are_answered_before_and_after(finished):
    run = finished
    shown = lines(run / "shown.jsonl")
    before, after = ([s for s in shown if s["step"] == step] for step in (0, 3))
    assert [s["id"] for s in before] == [s["id"] for s in after] and len(before) == 3 == len(shown) / 2
    assert not {s["id"] for s in shown} & {s["id"] for s in lines(run / "samples.jsonl")}  # not trained on
    for s in shown:
        rungs = [next((k for k in Category if k.label == c), None) for c in s["categories"]]
        assert len(s["answers"]) == 8 and s["rewards"] == speciarl_rewards(rungs)
        assert s["bar"] == dynamic_bar(rungs).label
    assert "after" in (run / "report.html").read_text()


@pytest.mark.parametrize("options, name", [
    ([], "toy-speciarl-seed0"), (["--seed", "3", "--reward", "exact"], "toy-exact-seed3"),
    (["--loss", "dapo"], "toy-speciarl-dapo-seed0"),
    (["--prompt", "specific", "--odds", ".5"], "toy-speciarl-specific-odds0.5-seed0"),
    (["--loss", "dapo", "--overlong-buffer", "4", "--dynamic-sampling"],
     "toy-speciarl-dapo-overlong4-dynamic-seed0"),
    (["--length-penalty", "0.25"], "toy-speciarl-length0.25-seed0"),
    (["--control", "shuffled"], "toy-speciarl-shuffled-seed0"),
    (["--data", "toy-bird,toy-fish"], "toy-bird+toy-fish-speciarl-seed0")])
def test_a_run_is_named_by_what_sets_it_apart(options, name):
    assert train.parse_config(options)[0].out == f"runs/{name}"


# ---- the update


def rollouts(policy, n=4, images=4, temperature=1.0):
    sizes = [(112, 84), (56, 56), (56, 168), (84, 84)] * 2
    return sample(policy, tiny.pictures(*sizes[:images]), [f"i{k}" for k in range(images)], "what?", n,
                  temperature=temperature, max_new_tokens=10)


def updated(policy, groups, advantages, places=None, sampled=True, **settings):
    """Parameters and statistics after one update from the policy as it is, which is put back."""
    config = train.Config(**{"n": advantages.shape[1], "minibatch": max(1, len(groups)),
                             "max_new_tokens": 10} | settings)
    for name in ("beta", "clip_low", "clip_high"):
        if getattr(config, name) is None:
            setattr(config, name, train.LOSSES[config.loss][name])
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=config.lr)  # the step is the gradient itself
    stats = train.update(policy, optimizer, groups, advantages, config, places, sampled)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in zip(parameters, before)])
    for p, b in zip(parameters, before):
        p.data.copy_(b)
    return moved, stats


def test_a_skipped_update_leaves_no_gradient_behind(policy):
    """Two updates of a step: the first is poisoned, the second is what it would be alone."""
    groups, advantages = rollouts(policy), torch.ones(4, 4)
    alone, _ = updated(policy, groups[2:], advantages[2:], loss="dapo")
    advantages[0, 0] = torch.inf
    moved, stats = updated(policy, groups, advantages, minibatch=2, loss="dapo")
    assert stats["policy/skipped"] == 1
    torch.testing.assert_close(moved, alone, atol=1e-7, rtol=1e-4)


def test_an_update_without_anything_to_learn_moves_nothing(policy):
    """No weight decay, no momentum: with gradients of zeros, as several processes have them, as with none."""
    groups = rollouts(policy)
    config = train.Config(n=4, minibatch=4, max_new_tokens=10, loss="dapo", beta=0.0, clip_low=0.2,
                          clip_high=0.28)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    advantages = torch.tensor([[1.0, -1.0, 0.5, -0.5]] * 4)
    train.update(policy, optimizer, groups, advantages, config)
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    stats = train.update(policy, optimizer, groups, torch.zeros(4, 4), config)
    assert stats["policy/grad_norm"] == 0 and stats["policy/skipped"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, parameters))


def test_the_papers_defaults():
    config, _ = train.parse_config(["--data", "cub"])
    assert (config.malformed, config.temperature, config.weight_decay, config.betas, config.warmup) == (
        -1, 1, 0.01, (0.9, 0.999), 0)
    for options in (["--loss", "dr_grpo"], ["--loss", "dapo"], ["--loss", "gspo"]):
        assert train.parse_config(["--data", "cub", *options])[0].beta == 0



@pytest.mark.parametrize("loss", list(train.LOSSES))
def test_one_times_eight_equals_four_times_two(policy, loss):
    """Gradient accumulation changes neither the gradient nor the logged figures, in any loss: completions of
    unequal lengths, one group without advantages, micro-batches of 8, 4, 3, 2, 1."""
    groups = rollouts(policy, images=8)
    advantages = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    advantages[2] = 0
    assert len({int(m) for g in groups for m in g.mask.sum(1)}) > 2
    settings = dict(loss=loss, beta=0.05, lr=1.0)
    moved, stats = updated(policy, groups, advantages, micro_batch=8, **settings)
    assert moved.norm() > 1e-3
    for micro_batch in (4, 3, 2, 1):
        other, figures = updated(policy, groups, advantages, micro_batch=micro_batch, **settings)
        assert (other - moved).norm() < 1e-5 * moved.norm()
        assert figures == pytest.approx(stats, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("loss", list(train.LOSSES))
def test_the_steps_denominator_against_plain_formulas(policy, loss, beta):
    """The whole step's gradient, each loss written out: at ratio 1 the loss per token is -A * ratio, plus
    beta * k3 under the same denominator."""
    groups = rollouts(policy)
    advantages = torch.tensor([[1.0, -1, 0.5, 0], [0, 0, 0, 0], [2.0, 0, 0, -2], [-1.0, 1, 1, -1]])
    moved, _ = updated(policy, groups, advantages, loss=loss, micro_batch=1, beta=beta, lr=1.0,
                       max_new_tokens=12)  # what is allowed, not the longest completion (10), is the length
    completions, mask, _ = (x.flatten(0, 1) for x in train.stack(groups, policy.pad_id))
    args = policy, [g.prompt for g in groups], completions, mask
    logprobs = policies.completion_logprobs(*args, shared=False)
    with torch.no_grad(), lora.adapters_off(policy.model):
        reference = policies.completion_logprobs(*args, shared=False)
    d = reference - logprobs
    rows = ((advantages.flatten()[:, None] * logprobs - beta * (d.exp() - d - 1)) * mask).sum(1)
    if loss == "gspo":
        rows = rows / mask.sum(1)
    total = rows.sum() / {"grpo": mask.sum(), "dapo": mask.sum(), "dr_grpo": 16 * 12, "gspo": 16}[loss]
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
    # clipped at 1; a step of SGD goes down the loss -total
    expected *= min(1.0, 1.0 / float(expected.norm()))
    policy.model.zero_grad()
    assert (moved - expected).norm() < 1e-4 * expected.norm()


def test_each_minibatch_has_its_own_denominator_clipping_and_gradient(policy):
    """Two minibatches at a rate so small that the second still has ratio 1: the figures and the sum of both
    steps by hand. In float64; advantages large enough for the clipping to bite in the second."""
    policy.model.double()
    groups, lr = rollouts(policy), 1e-7
    groups[2].logprobs = groups[2].logprobs + 5  # the gap is measured where the policy is the sampler's
    advantages = torch.tensor([[0.01, -0.01, 0, 0], [0, 0, 0, 0.01], [9.0, 0, 0, -9], [-1.0, 1, 1, -1]])
    moved, stats = updated(policy, groups, advantages, loss="dapo", minibatch=2, micro_batch=1, lr=lr)
    expected, norms, losses = 0, [], []
    for k in (0, 2):
        completions, mask, _ = (x.flatten(0, 1) for x in train.stack(groups[k:k + 2], policy.pad_id))
        prompts = [g.prompt for g in groups[k:k + 2]]
        logprobs = policies.completion_logprobs(policy, prompts, completions, mask)
        weights = advantages[k:k + 2].flatten()[:, None] * mask / mask.sum()
        policy.model.zero_grad()
        (logprobs * weights).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])
        norms.append(float(gradient.norm()))
        losses.append(-float(weights.sum()))
        expected = expected + gradient * min(1.0, 1.0 / norms[-1])
    policy.model.zero_grad()
    assert norms[0] < 0.9 and norms[1] > 1.1
    assert (moved / lr - expected).norm() < 1e-3 * expected.norm()
    assert stats["policy/grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)
    assert stats["policy/loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert stats["policy/logprob_gap"] < 1e-4 and stats["policy/ratio_max"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("loss, settings", [
    ("grpo", (0.2, 0.2, 3.0, False)), ("dr_grpo", (0.2, 0.2, 3.0, False)), ("dapo", (0.2, 0.28, 10.0, False)),
    ("gspo", (3e-4, 4e-4, None, True))])
def test_clips_of_each_loss_reach_the_formula(policy, monkeypatch, loss, settings):
    seen, real = [], train.policy_loss
    monkeypatch.setattr(train, "policy_loss", lambda *args: seen.append(args[4:]) or real(*args))
    updated(policy, rollouts(policy, images=2), torch.ones(2, 4), loss=loss)
    assert set(seen) == {settings}


def test_the_update_changes_none_of_its_inputs(policy):
    """A mask or a label written through a view rescales a later minibatch's loss."""
    groups = rollouts(policy)
    advantages = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    inputs = [advantages] + [x for g in groups for x in (
        g.completions, g.mask, g.logprobs, g.prompt.ids, g.prompt.embeds, g.prompt.positions)]
    kept = [x.clone() for x in inputs]
    updated(policy, groups, advantages, minibatch=2, micro_batch=1)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept))


def test_a_group_that_left_the_step_leaves_a_hole_in_its_minibatch(policy):
    """Places 0 to 7 in minibatches of 2. The image at place 1 has left, so have both at 4 and 5: the others
    are updated as a minibatch of one image and two of two, each under its own denominator; a minibatch of
    holes alone moves nothing and enters no mean."""
    groups = rollouts(policy, images=5)
    advantages = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    settings = dict(images_per_step=8, minibatch=2, micro_batch=2, loss="dapo", lr=1e-6)
    moved, stats = updated(policy, groups, advantages, places=[0, 2, 3, 6, 7], **settings)
    expected, losses = 0, []
    for members in ([0], [1, 2], [3, 4]):
        alone, figures = updated(policy, [groups[i] for i in members], advantages[members], **settings)
        expected = expected + alone
        losses.append(figures["policy/loss"])
    assert (moved - expected).norm() < 1e-3 * expected.norm() and expected.norm() > 0
    assert stats["policy/loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    other, _ = updated(policy, groups, advantages, **settings)  # without holes the minibatches are others
    assert (other - expected).norm() > 1e-2 * expected.norm()


def test_a_step_of_holes_alone_makes_no_update(policy):
    moved, stats = updated(policy, rollouts(policy, images=1)[:0], torch.zeros(0, 4), n=4)
    assert stats == {} and not moved.any()


def test_groups_of_equal_rewards_cost_nothing_without_kl(policy, monkeypatch):
    groups = rollouts(policy)
    advantages = torch.zeros(4, 4)
    advantages[1] = torch.tensor([1.0, -1, 1, -1])
    forwarded = []
    real = train.completion_logprobs

    def counted(policy, prompts, *args):
        forwarded.append(len(prompts))
        return real(policy, prompts, *args)

    monkeypatch.setattr(train, "completion_logprobs", counted)
    skipping, _ = updated(policy, groups, advantages, loss="dapo", micro_batch=4, lr=1.0)
    assert forwarded == [1]
    forwarded.clear()
    updated(policy, groups, advantages, loss="grpo", micro_batch=4, lr=1.0)
    assert forwarded == [4, 4]  # the policy's and the reference's: the KL of a dead group still counts
    # skipped groups stay in the denominator: the same as forwarding them all with no KL
    monkeypatch.setattr(torch.Tensor, "any", lambda self, *a, **k: torch.tensor(True))
    full, _ = updated(policy, groups, advantages, loss="dapo", micro_batch=4, lr=1.0)
    assert (full - skipping).norm() < 1e-5 * full.norm()


def test_second_minibatch_is_off_policy_and_the_first_is_not(policy):
    """Old log-probs are taken before the first update: at a large rate the second minibatch sees ratios that
    left the clip range; were they taken after it, clipfrac would be 0 for ever."""
    groups = rollouts(policy)
    advantages = group_advantages(torch.rand(4, 4, generator=torch.Generator().manual_seed(0)))
    _, one = updated(policy, groups, advantages, minibatch=4, micro_batch=2, lr=50.0)
    assert one["policy/clipfrac"] == 0 and one["policy/ratio_max"] == pytest.approx(1)
    _, two = updated(policy, groups, advantages, minibatch=2, micro_batch=2, lr=50.0)
    assert two["policy/clipfrac"] > 0.05 and two["policy/ratio_max"] > 1.2 and two["policy/approx_kl"] > 0
    for order in ([0, 1, 2, 3], [0, 1, 3, 2]):  # each micro-batch counts, whichever is the last
        _, split = updated(policy, [groups[i] for i in order], advantages[order], minibatch=2, micro_batch=1,
                           lr=50.0)
        assert split == pytest.approx(two, rel=0.02, abs=1e-4)
    _, still = updated(policy, groups, advantages, minibatch=2, micro_batch=2, lr=1e-12)
    assert still["policy/clipfrac"] == 0 and still["policy/ratio_max"] == 1.0


def test_a_poisoned_gradient_is_skipped_and_named(policy, capsys):
    groups = rollouts(policy)
    advantages = torch.ones(4, 4)
    advantages[1, 0] = torch.inf
    moved, stats = updated(policy, groups, advantages, micro_batch=1)
    assert stats["policy/skipped"] == 1 and (moved == 0).all()
    assert "update skipped" in capsys.readouterr().err


SPLITS = {
    "two minibatches": [],
    "one minibatch": ["--loss", "dapo", "--minibatch", "4"],
    # in each minibatch one process holds nothing, once both
    "single images": ["--images-per-step", "2", "--minibatch", "1"],
    # groups are replaced, those of one process by what the other draws
    "dynamic sampling": ["--images-per-step", "2", "--dynamic-sampling", "--overlong-buffer", "8"],
}

# train.py as a command, once for each line of arguments that it is given.
COMMANDS = """
import json, runpy, sys
sys.path.insert(0, ".")
for argv in sys.argv[1:]:
    sys.argv = ["train.py", *json.loads(argv)]
    runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, checkpoint):
    """torchrun with gloo, once for all of SPLITS: starting it takes longer than its runs. One image is
    unreadable. The runs' folders and commands, by name."""
    folder = tmp_path_factory.mktemp("processes")
    tree = trees.judge_of_cub(folder)
    commands = {name: with_out(arguments(folder, checkpoint, tree, *options), folder / name)
                for name, options in SPLITS.items()}
    example = train.load_data(train.parse_config(commands["two minibatches"])[0])[0][1]
    (folder / "CUB_200_2011" / "images" / example.id.removeprefix("cub/")).write_bytes(b"no picture")
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    made = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           "--nproc-per-node", "2", "--", str(script), *map(json.dumps, commands.values())],
                          cwd=ROOT, text=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert made.returncode == 0, made.stderr
    assert made.stdout.count('"data"') == len(SPLITS)  # one process speaks
    return folder, commands


@pytest.mark.parametrize("name", SPLITS)
def test_two_processes_are_one(tmp_path, two_processes, capsys, name):
    """The same samples, and but for the order of sums the same weights and log. With two minibatches one is
    off-policy."""
    folder, commands = two_processes
    two = folder / name
    one = train.main(with_out(commands[name], tmp_path / "one"))
    assert capsys.readouterr().out.count('"data"') == 1
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    redrawn = [line for line in lines(one / "log.jsonl")[1:] if line.get("batches", 1) > 1]
    assert bool(redrawn) == ("--dynamic-sampling" in commands[name])
    for a, b in zip(lines(one / "log.jsonl"), lines(two / "log.jsonl"), strict=True):
        figures = {k: v for k, v in a.items() if not k.startswith(("time/", "mem/"))}
        assert figures == pytest.approx({k: v for k, v in b.items() if k in figures}, abs=1e-5)
    states = [torch.load(r / "state.pt", weights_only=True)["adapter"] for r in (one, two)]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], atol=1e-5, rtol=1e-4)
    assert (one / "eval.json").read_text() == (two / "eval.json").read_text()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_reference_is_the_base_not_the_policy(policy, temperature):
    """KL against the adapters-off model, by its formula; policy, reference and sampler at one temperature."""
    groups = rollouts(policy, temperature=temperature)
    for group in groups:  # a known gap, in the answers only
        group.logprobs = group.logprobs + 0.25 * group.mask
    _, stats = updated(policy, groups, torch.zeros(4, 4), micro_batch=4, temperature=temperature)
    completions, mask, _ = (x.flatten(0, 1) for x in train.stack(groups, policy.pad_id))
    args = policy, [g.prompt for g in groups], completions, mask, temperature
    assert stats["policy/logprob_gap"] == pytest.approx(0.25, abs=1e-5) and not mask.all()
    assert stats["policy/kl_clamped"] == 0 and stats["policy/loss"] == 0  # the KL stands beside it, not in it
    with torch.no_grad():
        new = policies.completion_logprobs(*args)
        with lora.adapters_off(policy.model):
            ref = policies.completion_logprobs(*args)
    d = (ref - new)[mask]
    assert stats["policy/kl"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-4)
    assert stats["policy/kl"] > 0


# ---- the loop


def test_settings_reach_the_step(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Two steps away from every default: what the update is given, by hand from the files."""
    steps, asked = [], []
    update, sample = train.update, train.sample

    def recorded(policy, optimizer, groups, advantages, *rest):
        group, = optimizer.param_groups
        steps.append((groups, advantages, {k: group[k] for k in ("lr", "betas", "weight_decay")}))
        return update(policy, optimizer, groups, advantages, *rest)

    monkeypatch.setattr(train, "update", recorded)
    monkeypatch.setattr(train, "sample", lambda *args, **kw: asked.append(kw) or sample(*args, **kw))
    run = train.main(arguments(
        tmp_path, checkpoint, tree_judge, "--loss", "dr_grpo", "--temperature", "0.7", "--odds", "1",
        "--malformed", "-2", "--warmup", "4", "--betas", "0.8", "0.7", "--weight-decay", "0.3", "--seed", "5",
        "--lora-alpha", "12", "--steps", "2"))
    log, samples = lines(run / "log.jsonl")[1:], lines(run / "samples.jsonl")
    assert len(steps) == 2 and [k["seed"] for k in asked] == [5, 5]
    assert len({k["stream"] for k in asked}) == 2  # new random numbers each step
    for step, ((groups, advantages, optimizer), line) in enumerate(zip(steps, log), start=1):
        mine = [s for s in samples if s["step"] == step]
        assert [g.id for g in groups] == [s["id"] for s in mine]
        for s, row in zip(mine, advantages.tolist()):
            categories = [None if c == "malformed" else Category[c.upper().replace(" ", "_")]
                          for c in s["categories"]]
            assert s["rewards"] == speciarl_rewards(categories, odds=1, malformed=-2.0)
            assert row == pytest.approx([r - np.mean(s["rewards"]) for r in s["rewards"]], abs=1e-6)
        assert optimizer == {"lr": 1e-3 * step / 4, "betas": (0.8, 0.7), "weight_decay": 0.3}
        assert line["lr"] == optimizer["lr"] and line["policy/logprob_gap"] < 1e-5
        assert line["length"] == np.mean([g.mask.sum() / 8 for g in groups])
        assert line["truncated"] == np.mean([g.truncated / 8 for g in groups])
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 12


def test_noise_is_drawn_anew_for_each_step_and_image():
    verdicts, config = [Category.GENERIC] * 40, train.Config(noise=0.5)
    other = train.Config(noise=0.5, seed=1)
    draws = [train.with_noise(verdicts, c, step, image)
             for c, step, image in ((config, 1, "a"), (config, 2, "a"), (config, 1, "b"), (other, 1, "a"))]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])
    assert train.with_noise(verdicts, config, 1, "a") == draws[0]


def test_validation_images_are_not_trained_on(tmp_path):
    trees.cub(tmp_path)
    config = train.Config(data="cub", root=str(tmp_path), limit=9, images_per_step=4)
    examples, validation, tests = train.load_data(config)
    sets = [{e.id for e in part} for part in (examples, validation["cub"], tests["cub"])]
    assert len(examples) == 9 and sets[1] and all(not a & b for i, a in enumerate(sets) for b in sets[:i])


def test_an_epoch_visits_every_image_once_in_its_own_order():
    config = train.Config(images_per_step=4, seed=1)
    epochs = [[x for step in (e * 3 + 1, e * 3 + 2, e * 3 + 3)
               for x in train.step_examples(list(range(14)), config, step)] for e in range(3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert train.step_examples(list(range(14)), config, 2) == epochs[0][4:8]
    assert train.step_examples(list(range(14)), train.Config(images_per_step=4, seed=2), 1) != epochs[0][:4]


def test_logged_rewards_are_those_trained_on(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Each group is rewarded once; a control that deals rewards at random must log what it dealt."""
    dealt, used = [], []
    monkeypatch.setattr(train, "group_rewards",
                        lambda *args: dealt.append([float(len(dealt))] * 7 + [0.0]) or dealt[-1])
    real = train.group_advantages

    def seen(rewards, *args, **settings):
        used.extend(rewards.tolist())
        return real(rewards, *args, **settings)

    monkeypatch.setattr(train, "group_advantages", seen)
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "2", "--eval-every", "0"))
    assert [s["rewards"] for s in lines(run / "samples.jsonl")] == used == dealt and len(dealt) == 8


def test_rollouts_are_sampled_and_judged_once_a_step(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Two minibatches: neither new rollouts nor new verdicts in between."""
    calls = {"sample": 0, "judge": 0}

    def count(name, real):
        def counted(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)
        return counted

    monkeypatch.setattr(train, "sample", count("sample", train.sample))
    monkeypatch.setattr(train, "judge_groups", count("judge", train.judge_groups))
    train.main(arguments(tmp_path, checkpoint, tree_judge))
    assert calls == {"sample": 3, "judge": 3}


def test_judge_errors_take_their_group_out_and_are_counted(tmp_path, checkpoint, monkeypatch):
    """Never a reward of 0; the other groups learn as if the failed one had not been in the step."""
    def judge(pairs):
        return [None if truth == "Mallard" else Category.GENERIC for truth, _ in pairs]

    monkeypatch.setattr(train, "load_judge", lambda *args: judge)
    run = train.main(arguments(tmp_path, checkpoint, "x", "--steps", "2"))
    log, samples = lines(run / "log.jsonl")[1:], lines(run / "samples.jsonl")
    failed = [s for s in samples if "judge error" in s["categories"]]
    assert failed and all(s["truth"] == "Mallard" and "rewards" not in s and "bar" not in s for s in failed)
    assert sum(line["judge_errors"] for line in log) == len(failed)
    assert all(line["images"] + line["judge_errors"] == 4 for line in log)


def test_a_judge_that_is_gone_stops_the_run_and_resume_goes_on(tmp_path, checkpoint, tree_judge, finished,
                                                               monkeypatch):
    """Nothing is learned from missing verdicts; once the judge is back, the run ends as if it never left."""
    judge, calls = TaxonomyJudge.from_json(tree_judge), []

    def leaves(pairs):
        calls.append(1)
        gone = len(calls) > 3  # validation, its pictures, step 1, then no more
        return [None] * len(pairs) if gone else judge(pairs)

    monkeypatch.setattr(train, "load_judge", lambda *args: leaves)
    with pytest.raises(SystemExit, match=r"the judge failed on \d of 4 groups of step 2.*--resume"):
        train.main(arguments(tmp_path, checkpoint, "x"))
    run = tmp_path / "run"
    assert [line["step"] for line in lines(run / "log.jsonl")] == [0, 1]
    assert torch.load(run / "state.pt", weights_only=True)["step"] == 1
    monkeypatch.setattr(train, "load_judge", lambda *args: judge)
    train.main(["--resume", str(run)])
    assert lines(run / "log.jsonl") == lines(finished / "log.jsonl")


def test_unreadable_images_are_named_and_counted(tmp_path, checkpoint, tree_judge):
    folder = trees.cub(tmp_path)
    bad = [e.open.args[0] for e in train.data.load("cub", root=folder, limit=6)][:2]
    for path in bad:
        path.write_bytes(b"not a picture")
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--images-per-step", "6", "--steps", "1"))
    line, samples = lines(run / "log.jsonl")[1], lines(run / "samples.jsonl")
    assert (line["unreadable"], line["images"]) == (2, 4)
    assert sorted(s["unreadable"].split(": ")[0][-10:] for s in samples if "unreadable" in s) \
        == sorted(str(p)[-10:] for p in bad)


def lose(tmp_path, examples) -> None:
    """Takes the pictures of these away."""
    for example in examples:
        example.open.args[0].unlink()


def test_a_run_whose_pictures_are_gone_ends(tmp_path, checkpoint, tree_judge):
    """In the validation before the first step. It goes on once they are back."""
    folder = trees.cub(tmp_path)
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").mkdir()
    with pytest.raises(SystemExit, match="^train.py: 3 of 3 images of the validation on cub can't be") as e:
        train.main(arguments(tmp_path, checkpoint, tree_judge))
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "eval.json").exists()
    (folder / "images").rmdir()
    (tmp_path / "elsewhere").rename(folder / "images")
    train.main(["--resume", str(tmp_path / "run")])
    assert len(lines(tmp_path / "run" / "log.jsonl")) == 4


def test_more_than_a_share_of_a_step_unreadable_ends_the_run(tmp_path, checkpoint, tree_judge, monkeypatch):
    folder = trees.cub(tmp_path)
    six = train.data.load("cub", root=folder, limit=6)
    lose(tmp_path, six[:3])
    argv = arguments(tmp_path, checkpoint, tree_judge, "--images-per-step", "6", "--steps", "1")
    with pytest.raises(SystemExit, match=r"3 of 6 images of step 1 can't be read, .* is 0.4 \(cannot read"):
        train.main([*argv, "--max-unreadable", "0.4"])
    assert [line["step"] for line in lines(tmp_path / "run" / "log.jsonl")] == [0]
    argv[argv.index("--out") + 1] = str(tmp_path / "half")
    run = train.main(argv)  # half is not more than half
    assert lines(run / "log.jsonl")[1]["unreadable"] == 3


def test_a_test_set_whose_pictures_are_gone_is_no_table(tmp_path, checkpoint, tree_judge):
    """The steps, which could be made, are kept."""
    folder = trees.cub(tmp_path)
    lose(tmp_path, train.data.load("cub", "test", folder))
    with pytest.raises(SystemExit, match="train.py: 3 of 3 images of cub can't be read.*whole step is saved"):
        train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "1"))
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "run" / "eval.json").exists()


def control_groups():
    """Two images' verdicts; what else a group holds plays no part."""
    verdicts = {"a": [S, S, S, None], "b": [W, W, G, A]}
    return [SimpleNamespace(id=image_id, categories=row) for image_id, row in verdicts.items()]


def test_controls_deal_what_there_is_by_step():
    """shuffled: each group's own rewards, its verdicts as they were; permuted: the step's own verdicts, the
    malformed answer where it was, and the rewards of what stands there now."""
    plain = control_groups()
    train.give_rewards(plain, train.Config(), 1)
    assert [group.rewards for group in plain] == [[1, 1, 1, -1], [0, 0, 1, 0]]

    seen = {"shuffled": set(), "permuted": set()}
    for control in seen:
        for step in range(1, 9):
            groups, again = control_groups(), control_groups()
            train.give_rewards(groups, train.Config(control=control), step)
            train.give_rewards(again, train.Config(control=control), step)
            assert [g.rewards for g in groups] == [g.rewards for g in again]
            seen[control].add(str([group.rewards for group in groups]))
            for group, before in zip(groups, plain):
                if control == "shuffled":
                    assert group.categories == before.categories
                    assert sorted(group.rewards) == sorted(before.rewards)
                else:
                    assert group.rewards == speciarl_rewards(group.categories)
            verdicts = groups[0].categories + groups[1].categories
            assert verdicts[3] is None and Counter(verdicts) == Counter([S, S, S, None, W, W, G, A])
        assert len(seen[control]) > 3


def test_dynamic_sampling_keeps_groups_whose_rewards_differ(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Every second image that is drawn gets one verdict throughout. The step's groups are the first others,
    trimmed; length has its price on top; a resumed run draws the same."""
    drawn = []

    def judged(judge, truths, answers):
        groups = []
        for _ in truths:
            drawn.append(len(drawn))
            groups.append([W] * 8 if len(drawn) % 2 else [S] + [W] * 7)
        return groups

    updates = []
    update = train.update
    monkeypatch.setattr(train, "judge_groups", judged)
    monkeypatch.setattr(train, "update", lambda *args: updates.append(args[2:4] + args[5:]) or update(*args))
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "1", "--eval-every", "0",
                               "--images-per-step", "2", "--overlong-buffer", "19", "--dynamic-sampling"))
    samples = [s for s in lines(run / "samples.jsonl") if s["step"] == 1]
    (groups, advantages, places), = updates
    assert [s["id"] for s in samples] == [g.id for g in groups] and list(places) == [0, 1]
    assert lines(run / "log.jsonl")[1]["batches"] == 2 and lines(run / "log.jsonl")[1]["images"] == 2
    for sample_, group in zip(samples, groups):
        prices = [min(-(int(length) - 1) / 19, 0.0) for length in group.mask.sum(dim=1)]
        assert sample_["rewards"] == pytest.approx([r + p for r, p in zip([1] + [0] * 7, prices)])


def test_every_token_has_its_price_before_the_advantages(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Verdicts that are all alike: what a group learns is to be shorter. 20 tokens cost .5, and beside it
    DAPO's buffer of the last 10 counts too."""
    updates = []
    update = train.update
    monkeypatch.setattr(train, "judge_groups", lambda judge, truths, answers: [[S] * 8 for _ in truths])
    monkeypatch.setattr(train, "update", lambda *args: updates.append(args[2:4]) or update(*args))
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--steps", "1", "--eval-every", "0",
                               "--length-penalty", "0.5", "--overlong-buffer", "10"))
    samples = {s["id"]: s for s in lines(run / "samples.jsonl") if s["step"] == 1}
    (groups, advantages), = updates
    for group, row in zip(groups, advantages):
        tokens = group.mask.sum(dim=1).tolist()
        prices = [0.5 * t / 20 + max(0, t - 10) / 10 for t in tokens]
        assert samples[group.id]["rewards"] == pytest.approx([1 - price for price in prices])
        shortest = [a for a, t in zip(row.tolist(), tokens) if t == min(tokens)]  # of equal verdicts
        assert len(set(tokens)) == 1 or min(shortest) > 0
    assert any(len(set(group.mask.sum(dim=1).tolist())) > 1 for group in groups)


def test_dynamic_sampling_resumes_bit_for_bit(tmp_path, checkpoint, tree_judge, monkeypatch):
    """Stopped in its third step, after that step's images were drawn: it draws the same ones again."""
    command = arguments(tmp_path, checkpoint, tree_judge, "--steps", "3", "--eval-every", "0",
                        "--images-per-step", "2", "--n", "4", "--temperature", "0.7", "--dynamic-sampling")
    whole = train.main(with_out(command, tmp_path / "whole"))
    log = lines(whole / "log.jsonl")
    assert log[3]["batches"] > 1

    update, calls = train.update, []

    def stopped(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*args)

    part = tmp_path / "part"
    monkeypatch.setattr(train, "update", stopped)
    with pytest.raises(SystemExit, match="stopped"):
        train.main(with_out(command, part))
    monkeypatch.setattr(train, "update", update)
    train.main(["--resume", str(part)])
    assert lines(part / "log.jsonl") == log
    assert lines(part / "samples.jsonl") == lines(whole / "samples.jsonl")
    states = [torch.load(run / "state.pt", weights_only=True)["adapter"] for run in (part, whole)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_dynamic_sampling_trims_in_the_order_of_drawing(monkeypatch):
    """Of six images in batches of two, the first is dull; two batches give three groups for two places."""
    examples = [SimpleNamespace(id=str(i)) for i in range(6)]
    verdicts = dict.fromkeys("12345", [S, W]) | {"0": [W, W]}
    drawn = []

    def sample_groups(job, step, batch):
        drawn.extend(example.id for example in batch)
        return [SimpleNamespace(id=e.id, categories=verdicts[e.id]) for e in batch], []

    monkeypatch.setattr(train, "sample_groups", sample_groups)
    monkeypatch.setattr(train, "judged", lambda job, groups: (groups, []))
    config = train.Config(dynamic_sampling=True, images_per_step=2)
    job = SimpleNamespace(config=config, examples=examples, judge=None)
    first, _ = sample_groups(job, 1, examples[:2])
    batch, groups = train.draw_until_full(job, 1, examples[:2], first, [], [], train.StepLog())
    assert [group.id for group in groups] == ["1", drawn[2]] == [example.id for example in batch[:2]]
    assert len(drawn) == 4 and {example.id for example in batch} == set(drawn)


def test_dynamic_sampling_that_finds_nothing_says_so(tmp_path, checkpoint, tree_judge, monkeypatch):
    monkeypatch.setattr(train, "judge_groups", lambda judge, truths, answers: [[W] * 8 for _ in truths])
    with pytest.raises(SystemExit, match="found too few groups .* step 1 in 2 batches") as e:
        train.main(arguments(tmp_path, checkpoint, tree_judge, "--eval-every", "0", "--dynamic-sampling"))
    assert "\n" not in str(e.value)


def test_noise_and_static_rewards_reach_the_samples(tmp_path, checkpoint, tree_judge, finished):
    """And only the dynamic reward has a bar."""
    assert all("bar" in s and "rewards" in s for s in lines(finished / "samples.jsonl"))
    run = train.main(arguments(tmp_path, checkpoint, tree_judge, "--reward", "exact", "--noise", "1",
                               "--malformed", "-2", "--steps", "1"))
    judge = TaxonomyJudge.from_json(tree_judge)
    ladder = ["wrong", "abstain", "generic", "less specific", "specific"]
    samples = lines(run / "samples.jsonl")
    assert len(samples) == 4
    for s in samples:
        assert "bar" not in s
        for answer, category, reward in zip(s["answers"], s["categories"], s["rewards"]):
            assert reward == {"malformed": -2.0, "specific": 1.0}.get(category, 0.0)
            if answer is not None:  # every verdict moved one rung
                before = judge([(s["truth"], answer)])[0].label
                assert abs(ladder.index(before) - ladder.index(category)) == 1


# ---- what a user can get wrong


@pytest.mark.parametrize("change, message", [
    (["--n", "1"], "--n must be at least 2"), (["--odds", "-1"], "--odds must be 0 or more"),
    (["--odds", "inf"], "--odds must be 0 or more"),
    (["--odds", "1", "--reward", "exact"], "--odds moves the bar, and --reward exact has none"),
    (["--overlong-buffer", "20"], "--overlong-buffer must be below --max-new-tokens 20"),
    (["--root", "nowhere"], "CUB-200-2011 is not in nowhere"), (["--data", "dogs"], "unknown dataset 'dogs'"),
    (["--images-per-step", "99"], "lower --images-per-step"),
    (["--model", "no/such"], "no model at 'no/such'"),
    (["--judge", "no/such"], "cannot load the judge"), (["--prompt", "rude"], "unknown prompt 'rude'"),
    (["--temperature", "0"], "--temperature must be above 0"), (["--max-pixels", "3"], "max pixels must be"),
    (["--lora-rank", "0"], "--lora-rank must be"), (["--resume", "nowhere"], "nothing to resume in nowhere"),
    (["--temperature", "inf"], "--temperature must be above 0"), (["--malformed", "nan"], "a finite number"),
    (["--method", "sft"], "a command of its own: python -m baselines.sft"),
    (["--lora-alpha", "0"], "--lora-alpha must be above 0"), (["--betas", "0.9", "1"], "Invalid beta"),
    (["--data", "cub,cub"], "holds an image twice"),
    (["--max-unreadable", "1.5"], "--max-unreadable must be in [0, 1]"),
])
def test_mistakes_end_in_one_line(tmp_path, checkpoint, tree_judge, change, message):
    argv = change if change[0] == "--resume" else arguments(tmp_path, checkpoint, tree_judge, *change)
    with pytest.raises(SystemExit) as e:
        train.main(argv)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_ends_in_one_line(tmp_path, checkpoint, tree_judge):
    argv = with_out(arguments(tmp_path, checkpoint, tree_judge), tree_judge / "run")
    with pytest.raises(SystemExit, match="^train.py: .*tree.json"):
        train.main(argv)


def test_a_resume_that_cannot_be_loses_nothing(tmp_path, finished):
    """The state broken, then gone; another version's configuration: one line, every file as it was."""
    run = shutil.copytree(finished, tmp_path / "run")

    def refused(message):
        before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
        with pytest.raises(SystemExit) as e:
            train.main(["--resume", str(run)])
        assert message in str(e.value) and "\n" not in str(e.value)
        assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}

    whole = (run / "log.jsonl").read_bytes()
    (run / "log.jsonl").write_bytes(whole[:-5])  # not filled up with zero bytes
    refused(f"cannot resume: {run / 'log.jsonl'} has lost lines")
    (run / "log.jsonl").write_bytes(whole)
    state = (run / "state.pt").read_bytes()
    torch.save({"step": 1}, run / "state.pt")
    refused("state.pt is not this run's (it lacks adapter)")
    (run / "state.pt").write_bytes(state)
    (run / "state.pt").write_bytes((run / "state.pt").read_bytes()[:1000])
    refused(f"cannot resume: {run / 'state.pt'} is broken")
    (run / "state.pt").unlink()
    refused("state.pt is gone; --out DIR starts another run")
    odd = (run / "config.json").read_text().replace('"lr": ', '"lr": "a", "lr_": ')
    for config in ("{", "{}", '{"betas": [0, 0], "colour": 1}', odd, odd.replace('"lr_": ', '"beta": ')):
        (run / "config.json").write_text(config)
        refused("config.json is not the configuration of a run of this version")


def test_a_run_is_never_overwritten(tmp_path, checkpoint, tree_judge, finished):
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match="holds a run already"):
        train.main(with_out(arguments(tmp_path, checkpoint, tree_judge), finished))
    assert before == {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}


def test_defaults_are_the_papers_and_flags_win():
    paper, _ = train.parse_config(["--data", "cub"])
    assert (paper.limit, paper.images_per_step, paper.minibatch, paper.n) == (3000, 256, 128, 8)
    assert (paper.lr, paper.lora_rank, paper.lora_alpha) == (3e-5, 64, 32)
    assert (paper.beta, paper.clip_low, paper.clip_high) == (0.01, 0.2, 0.2)
    assert (paper.epochs, paper.steps) == (15, None)
    toy, _ = train.parse_config([])
    assert (toy.model, toy.judge, toy.lora_rank, toy.steps) == ("toy", "taxonomy", 16, 60)
    mixed, _ = train.parse_config(["--loss", "dapo", "--clip-high", "0.3", "--lora-rank", "4"])
    assert (mixed.beta, mixed.clip_low, mixed.clip_high, mixed.lora_rank) == (0.0, 0.2, 0.3, 4)


def test_help_shows_defaults_toy_values_and_sources(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "AdamW learning rate, constant (default 3e-05; toy 0.0007; official)" in text
    for name in ("--data --root --limit --model --judge --prompt --n --images-per-step --minibatch "
                 "--micro-batch --epochs --steps --lr --warmup --betas --weight-decay --beta --clip-low "
                 "--clip-high --loss --reward --odds --malformed --noise --control --temperature "
                 "--max-new-tokens --max-pixels --lora-rank --lora-alpha --checkpointing --seed --out "
                 "--resume --eval-every --eval-limit").split():
        assert name + " " in text or name + "," in text, name


def test_a_question_from_a_file_is_kept_with_the_run(tmp_path, checkpoint, judge_folder):
    """Another text under its name, or none, is no other question for a run that goes on."""
    file = tmp_path / "which.txt"
    file.write_text("which bird is it?\n")
    options = ["--prompt", str(file), "--steps", "1", "--n", "2"]
    run = train.main(arguments(tmp_path, checkpoint, judge_folder, *options))
    assert (run / "question.txt").read_text() == "which bird is it?"
    config = train.Config(**json.loads((run / "config.json").read_text()))
    assert f"-{file.stem}-" in f"-{train.run_name(config)}-" and "/" not in train.run_name(config)
    file.write_text("another question")
    assert question_for(str(file), ["cub"], run) == "which bird is it?"
    file.unlink()
    assert question_for(str(file), ["cub"], run) == "which bird is it?"
    with pytest.raises(ValueError, match="or a text file"):
        question_for(str(file), ["cub"])


def test_a_name_wins_over_a_file_and_the_embedded_world_takes_names_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").write_text("another question")
    assert question_for("base", ["cub"]) == PROMPTS["base"]
    (tmp_path / "own.txt").write_text("which is it?")
    assert question_for("own.txt", ["cub"]) == "which is it?"
    with pytest.raises(ValueError, match="the embedded world's are base"):
        question_for("own.txt", ["toy"])
