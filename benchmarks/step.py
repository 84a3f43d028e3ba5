"""Seconds and memory of a training step: the plain path, ours, and TRL's GRPOTrainer where it is installed.

    python benchmarks/step.py                    about ten minutes on one CPU thread
    python benchmarks/step.py --only growth      how the update grows with N

One tiny Qwen2.5-VL (hidden 256, 8 layers, random weights, float32), 2 prompts of one length, N = 8, LoRA 64,
completions of a fixed length; CPU seconds of one thread, the median step of 5 after one to warm up. Each
system runs in a process of its own, one after the other; memory is how far the peak of that process rises
above what it held before its first step. "plain": every completion behind its own copy of the prompt, in
rollout, reference and update; the rest of the code is the same. TRL (`pip install trl peft`; no requirement
of this project) samples, scores and updates the same model on the same images, its rewards a constant-time
function.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import LogitsProcessorList, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import lora
import policy as policies
import rollout
import tiny
import train
from judge import judge_groups
from judges.taxonomy import TaxonomyJudge
from support import shared_prompt_cache
from support.checkpoints import render_question

QUESTION = "what is it? be brief."
SIDE = 504  # pixels
IMAGES = 2
N = 8
STEPS = 6  # the first warms up

RANK = 64
ALPHA = 32
LR = 1e-4
TEMPERATURE = 1.0

PARTS = ("rollout", "judge", "reference", "update", "step")

# ------------------------------------------------------------------------------------------------------------
# What every system steps: one policy, the same pictures


def build() -> policies.Policy:
    """The "mid" shape, 7 M parameters, random weights. EOS is banned: every completion has the full
    length."""
    tok = tiny.tokenizer()
    ids = tiny.special_ids(tok)
    text = dict(
        vocab_size=len(tok), hidden_size=256, intermediate_size=768, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=None,
        eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]})
    vision = dict(depth=4, hidden_size=128, num_heads=4, intermediate_size=384, out_hidden_size=256,
                  patch_size=14, window_size=112, fullatt_block_indexes=[3])
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, attn_implementation="sdpa",
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    tiny.spread_weights(model)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    policy = policies.from_parts(model.eval(), tiny.processor())
    policy.banned[policy.eos_ids] = True
    return policy


def pictures(count: int) -> list:
    return tiny.pictures(*[(SIDE, SIDE)] * count)


def resident_mb(key: str) -> float:
    """VmRSS or VmHWM (its peak) of this process, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {key} in /proc/self/status")


class Clock:
    """CPU seconds by part of a step, and the growth of peak memory."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.base = resident_mb("VmRSS")
        self.steps = []  # a dict part -> seconds for each

    def new_step(self) -> None:
        self.steps.append({})

    @contextmanager
    def part(self, name: str):
        start = time.process_time()
        yield
        step = self.steps[-1]
        step[name] = step.get(name, 0) + time.process_time() - start

    def report(self) -> dict:
        """The median of each part, and memory in MB."""
        steps = self.steps[1:]  # the first warms up
        figures = {}
        for part in steps[0]:
            figures[part] = median(step[part] for step in steps)
        figures["memory"] = resident_mb("VmHWM") - self.base
        return figures


# ------------------------------------------------------------------------------------------------------------
# Plain and ours


def plain_rollout(policy, images, ids, question, n, seed, stream, max_new_tokens):
    """transformers' generate on the processor's output, image and prompt repeated N times; the random numbers
    and so the answers are rollout.sample's."""
    names = []
    repeated_images = []
    for name, image in zip(ids, images):
        names += [(seed, stream, name, k) for k in range(n)]
        repeated_images += [image] * n
    text = render_question(policy.processor, question)
    inputs = policy.processor(text=[text] * len(names), images=repeated_images, return_tensors="pt",
                              padding=True)

    uniforms = rollout.draw_uniforms(names, max_new_tokens)
    sampler = rollout.Sampler(uniforms, TEMPERATURE, policy.banned)
    made = policy.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens,
                                 logits_processor=LogitsProcessorList([sampler]))
    completions = made[:, inputs["input_ids"].shape[1]:]                  # (R, T)
    logprobs = torch.stack(sampler.logprobs, dim=1)                       # (R, T)
    mask = torch.ones_like(completions, dtype=torch.bool)

    groups = []
    for i, prompt in enumerate(policies.encode(policy, images, question)):
        own = slice(i * n, (i + 1) * n)
        texts = policy.tokenizer.batch_decode(completions[own])
        groups.append(rollout.Group(ids[i], prompt, completions[own], mask[own], logprobs[own], texts,
                                    answers=[None] * n, truncated=0))
    return groups


def ours(tokens: int, n: int = N, micro_batch: int = IMAGES) -> dict:
    """Our own step."""
    return run_steps(tokens, rollout.sample, shared=True, n=n, micro_batch=micro_batch)


def plain(tokens: int) -> dict:
    """The same with every completion behind its own copy of the prompt."""
    return run_steps(tokens, plain_rollout, shared=False, n=N, micro_batch=IMAGES)


def run_steps(tokens: int, sample, shared: bool, n: int, micro_batch: int) -> dict:
    """Seconds of each part, memory, prompt length, and the first step's completions."""
    policy = build()
    images = pictures(IMAGES)
    ids = [str(i) for i in range(IMAGES)]
    lora.add_lora(policy.model, RANK, ALPHA)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LR)
    config = train.Config(n=n, minibatch=IMAGES, micro_batch=micro_batch, max_new_tokens=tokens, beta=0.01,
                          clip_low=0.2, clip_high=0.2)
    judge = TaxonomyJudge({"red finch": "finch", "finch": "bird", "bird": None})
    clock = Clock()
    score_reference_apart(clock, shared)

    rng = np.random.default_rng(0)
    first = None
    for step in range(STEPS):
        clock.new_step()
        with clock.part("step"):
            with clock.part("rollout"):
                groups = sample(policy, images, ids, QUESTION, n=n, seed=0, stream=f"train/{step}",
                                max_new_tokens=tokens)

            # Random weights say nothing that a judge could read: it gets answers made up for it.
            answers = [made_up_answers(rng, n) for _ in ids]
            with clock.part("judge"):
                categories = judge_groups(judge, ["red finch"] * IMAGES, answers)
            rewards = [train.group_rewards(group, config) for group in categories]
            advantages = train.group_advantages(torch.tensor(rewards))    # (B, N)

            with clock.part("update"):
                train.update(policy, optimizer, groups, advantages, config)
        clock.steps[-1]["update"] -= clock.steps[-1]["reference"]
        if first is None:
            first = [group.completions.tolist() for group in groups]
    return clock.report() | {"prompt": len(groups[0].prompt), "first": first}


def made_up_answers(rng: np.random.Generator, n: int) -> list[str]:
    names = ["red finch", "finch", "bird", "owl", "none", "a red finch"]
    return [names[k] for k in rng.integers(len(names), size=n)]


def score_reference_apart(clock: Clock, shared: bool) -> None:
    """train.update scores by the shared path or the plain one, the reference (scored without gradient) on the
    clock's own part."""
    score = policies.completion_logprobs

    def timed_score(*args, **kwargs):
        if torch.is_grad_enabled():
            return score(*args, **kwargs, shared=shared)
        with clock.part("reference"):
            return score(*args, **kwargs, shared=shared)

    train.completion_logprobs = timed_score


# ------------------------------------------------------------------------------------------------------------
# TRL


def trl(tokens: int) -> dict:
    """TRL's GRPOTrainer on the same model, images, N, LoRA and length."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy = build()
    banned = policy.banned.nonzero().flatten().tolist()
    policy.model.generation_config.suppress_tokens = banned
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    rows = [{"prompt": [{"role": "user", "content": content}], "image": image} for image in pictures(IMAGES)]
    options = GRPOConfig(
        output_dir="/tmp/trl", per_device_train_batch_size=IMAGES * N, num_generations=N, beta=0.01,
        max_completion_length=tokens, max_steps=STEPS, learning_rate=LR, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", gradient_checkpointing=False, bf16=False,
        max_grad_norm=1.0, temperature=TEMPERATURE, disable_tqdm=True,
        generation_kwargs={"suppress_tokens": banned, "min_new_tokens": tokens})
    linears = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    adapters = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=rf".*language_model.*\.({linears})")

    def reward(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]

    class Steps(TrainerCallback):
        """Times each step; the clock is made once the trainer is."""
        clock = None

        def on_step_begin(self, *args, **kwargs):
            self.clock.new_step()
            self.start = time.process_time()

        def on_step_end(self, *args, **kwargs):
            self.clock.steps[-1]["step"] = time.process_time() - self.start

    steps = Steps()
    trainer = GRPOTrainer(model=policy.model, reward_funcs=reward, args=options, peft_config=adapters,
                          train_dataset=Dataset.from_list(rows), processing_class=policy.processor,
                          callbacks=[steps])
    steps.clock = Clock()

    generate = type(policy.model).generate

    def timed_generate(self, *args, **kwargs):
        with steps.clock.part("rollout"):
            made = generate(self, *args, **kwargs)
        assert made.shape[1] >= tokens
        return made

    type(policy.model).generate = timed_generate
    trainer.train()
    return steps.clock.report()


# ------------------------------------------------------------------------------------------------------------
# Dropping ended rows


def dropping(count: int) -> dict:
    """Rollouts of `count` images alone, their lengths spread evenly over 50 .. 150: ended rows dropped; run
    to the end ("kept"); and run to the end on transformers' own cache, as `generate` does by itself
    ("plain"). Answers are the same but where a random number lies within rounding of the edge between two
    neighbouring tokens (another number of rows is multiplied in another order): "differ" counts those rows,
    any other difference fails."""
    policy = build()
    images = pictures(count)
    ids = [str(i) for i in range(count)]
    end_at_spread_lengths(policy.eos_ids[0])

    share = shared_prompt_cache.DROP
    seconds = {"dropped": [], "kept": [], "plain": []}
    expected = None
    differ = 0
    for name in list(seconds) * 4:
        shared_prompt_cache.DROP = share if name == "dropped" else 2.0
        policy.shared = name != "plain"
        start = time.process_time()
        groups = rollout.sample(policy, images, ids, QUESTION, N, max_new_tokens=150)
        seconds[name].append(time.process_time() - start)

        rows = []  # what each row said, its padding cut off
        for group in groups:
            rows += [row[mask].tolist() for row, mask in zip(group.completions, group.mask)]
        lengths = [len(row) for row in rows]
        assert min(lengths) == 50 and max(lengths) == 150
        if expected is None:
            expected = rows
        differ = max(differ, rows_that_differ(rows, expected, policy.banned))

    found = {name: median(times[1:]) for name, times in seconds.items()}  # the first warms up
    return found | {"differ": differ}


def end_at_spread_lengths(eos: int) -> None:
    """From here on a rollout's rows say EOS at lengths spread evenly over 50 .. 150, in a fixed order."""
    decode = rollout.decode

    class Ending(rollout.Sampler):
        """Says EOS where the uniform number is 2."""

        def __call__(self, input_ids, scores):
            ends = self.uniforms[:, len(self.logprobs)] > 1
            out = super().__call__(input_ids, scores)
            out[ends] = -torch.inf
            out[ends, eos] = 0.0
            return out

    def spread(policy, prompts, uniforms, *args):
        lengths = np.linspace(50, 150, len(prompts)).astype(int)
        for row, length in enumerate(np.random.default_rng(0).permutation(lengths)):
            uniforms[row, length - 1:] = 2.0
        return decode(policy, prompts, uniforms, *args)

    rollout.Sampler = Ending
    rollout.decode = spread


def rows_that_differ(rows: list, expected: list, banned: torch.Tensor) -> int:
    """How many rows differ. Each must part at two tokens that are neighbours among those that can be sampled,
    and 2 % of the rows may."""
    place = (~banned).cumsum(0).tolist()  # of each token among those that can be sampled
    count = 0
    for row, other in zip(rows, expected, strict=True):
        pairs = [(a, b) for a, b in zip(row, other) if a != b]
        if pairs:
            a, b = pairs[0]
            assert abs(place[a] - place[b]) == 1, "answers depend on dropping rows"
            count += 1
    assert count <= 0.02 * len(rows), "answers depend on dropping rows"
    return count


# ------------------------------------------------------------------------------------------------------------
# Growth with N


def growth(tokens: int) -> dict:
    """CPU seconds of reference and update together by N, at this completion length."""
    seconds = {}
    for n in (2, 4, 8, 16, 32):
        seen = ours(tokens, n=n, micro_batch=1)  # as train.py's default
        seconds[n] = seen["reference"] + seen["update"]
        prompt = seen["prompt"]
    return {"seconds": seconds, "prompt": prompt}


# ------------------------------------------------------------------------------------------------------------
# The command


CHILDREN = {"plain": plain, "ours": ours, "trl": trl, "dropping": dropping, "growth": growth}


def child(what: str, size: int) -> dict:
    """What one of CHILDREN returns for this many tokens (dropping: images), from a process of its own."""
    made = subprocess.run([sys.executable, __file__, "--child", what, str(size)], capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if made.returncode:
        sys.exit(f"{what} {size} failed:\n{made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def print_step(systems: tuple, tokens: int) -> None:
    """A row for each system, then each one's ratio to ours."""
    seen = {what: child(what, tokens) for what in systems}
    same = seen["plain"]["first"] == seen["ours"]["first"]
    print(f"\n{tokens} tokens, prompts of {seen['ours']['prompt']}; plain and ours sample the same "
          f"answers in the first step: {same}")
    print(" " * 8 + "".join(f"{heading:>11}" for heading in (*PARTS, "tokens/s", "memory")))
    for what, figures in seen.items():
        line = f"{what:<8}"
        for part in PARTS:
            line += f"{figures[part]:>11.2f}" if part in figures else f"{'-':>11}"
        rate = IMAGES * N * tokens / figures["step"]
        print(line + f"{rate:>11.0f}{figures['memory']:>11.0f}")
    for what in systems:
        if what == "ours":
            continue
        ratios = []
        for name in ("rollout", "reference", "update", "step", "memory"):
            if name in seen[what]:
                ratios.append(f"{name} {seen[what][name] / seen['ours'][name]:.2f}x")
        print(f"{what} / ours: " + ", ".join(ratios))


def print_dropping(count: int) -> None:
    seen = child("dropping", count)
    print(f"\nrollout of {count} x {N}, lengths over 50..150, {seen['differ']} answers differ: "
          f"{seen['dropped']:.2f} s; with ended rows kept {seen['kept']:.2f} s, "
          f"{seen['kept'] / seen['dropped']:.2f}x; and on transformers' own cache "
          f"{seen['plain']:.2f} s, {seen['plain'] / seen['dropped']:.2f}x")


def print_growth(tokens: int) -> None:
    seen = child("growth", tokens)
    seconds = seen["seconds"]
    by_n = ", ".join(f"{n}: {value:.2f} s" for n, value in seconds.items())
    ratio = (seen["prompt"] + 32 * tokens) / (seen["prompt"] + 4 * tokens)
    print(f"\nreference and update by N at {tokens} tokens: {by_n}; from 4 to 32 "
          f"{seconds['32'] / seconds['4']:.2f}x, the tokens {ratio:.2f}x")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=("step", "dropping", "growth"))
    p.add_argument("--child", nargs=2, metavar=("WHAT", "SIZE"), help=argparse.SUPPRESS)
    args = p.parse_args()

    # In a child's process: one measurement, one line of JSON.
    if args.child:
        what, size = args.child
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        print(json.dumps(CHILDREN[what](int(size))))
        return

    systems = ("plain", "trl", "ours")
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError:
        print("trl and peft are not installed: no comparison with TRL")
        systems = ("plain", "ours")

    if args.only in (None, "step"):
        print(f"CPU seconds a step, {IMAGES} prompts, N = {N} (tokens/s: completions; memory: MB over base)")
        for tokens in (64, 150):
            print_step(systems, tokens)
    if args.only in (None, "dropping"):
        for count in (2, 8, 32):
            print_dropping(count)
    if args.only in (None, "growth"):
        for tokens in (64, 150):
            print_growth(tokens)


if __name__ == "__main__":
    main()
