"""Seconds and memory of a training step: the plain path, ours, and TRL's GRPOTrainer where it is installed.

    python benchmarks/step.py                    about an hour on one CPU thread
    python benchmarks/step.py --only step --sizes cub
    python benchmarks/step.py --only growth      how the update grows with N

One tiny Qwen2.5-VL (hidden 256, 8 layers, random weights, float32), 2 images, N = 8, LoRA 64, completions of
a fixed length; CPU seconds of one thread, the median of 11 steps (growth: 5) after one to warm up. Each
system runs in a process of its own, and they take their steps in turn: a machine that is slow for a minute is
slow for all. Memory is how far the peak of a process rises above what it held before its first step. "plain":
every completion behind its own copy of the prompt, in rollout, reference and update; the rest of the code is
the same. TRL (`pip install trl peft`; no requirement of this project) samples, scores and updates the same
model on the same images, its rewards a constant-time function.

Sizes: "equal", all prompts of one length; "cub", 4 images of different sizes, as CUB's are (`cub_sizes`). The
rollout alone is measured by benchmarks/rollout.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
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
from support.checkpoints import limit_pixels, render_question

QUESTION = "what is it? be brief."
SIDE = 504  # pixels
IMAGES = {"equal": 2, "cub": 4}  # by their sizes
N = 8
STEPS = 12        # the first warms up
GROWTH_STEPS = 6  # for each N

RANK = 64
ALPHA = 32
LR = 1e-4
TEMPERATURE = 1.0

READY = "ready"  # what a process says before each of its steps

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
    processor = tiny.processor()
    limit_pixels(processor.image_processor, train.Config().max_pixels)
    policy = policies.from_parts(model.eval(), processor)
    policy.banned[policy.eos_ids] = True
    return policy


def pictures(sizes: str, count: int) -> list:
    """That many images: "equal", all of one size, or "cub"."""
    if sizes == "equal":
        return tiny.pictures(*[(SIDE, SIDE)] * count)
    return tiny.pictures(*cub_sizes(count))


def cub_sizes(count: int) -> list[tuple[int, int]]:
    """(width, height) of `count` images, drawn to be like those of CUB-200-2011, which is not read here: in
    nine of ten the longer side is 500, the other one is mostly 333 to 400, four of five are wider than
    high."""
    rng = np.random.default_rng(0)
    sizes = []
    for _ in range(count):
        longer = 500 if rng.random() < 0.9 else int(rng.integers(200, 500))
        kind = rng.random()
        if kind < 0.40:
            ratio = 375 / 500
        elif kind < 0.65:
            ratio = 333 / 500
        elif kind < 0.90:
            ratio = rng.uniform(333 / 500, 400 / 500)
        else:
            ratio = rng.uniform(0.4, 1.0)
        shorter = round(longer * ratio)
        is_wide = rng.random() < 0.8
        sizes.append((longer, shorter) if is_wide else (shorter, longer))
    return sizes


def resident_mb(key: str) -> float:
    """VmRSS or VmHWM (its peak) of this process, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no {key} in /proc/self/status")


def wait_for_turn() -> None:
    """Says that the next step can begin, and waits for a line; not where standard input is at its end."""
    print(f"\n{READY}", flush=True)  # a line of its own, whatever was printed before
    sys.stdin.readline()


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
        """The seconds of each part in each step, and memory in MB."""
        steps = self.steps[1:]  # the first warms up
        seconds = {}
        for part in steps[0]:
            seconds[part] = [step[part] for step in steps]
        return {"seconds": seconds, "memory": resident_mb("VmHWM") - self.base}


# ------------------------------------------------------------------------------------------------------------
# Plain and ours


def plain_generate(policy: policies.Policy, images: list, names: list[tuple], n: int, max_new_tokens: int,
                   num_return_sequences: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' generate on the processor's output: completions and log-probs, (R, T) each. It repeats
    image and prompt N times itself (num_return_sequences = N), or they are handed over repeated (1). names:
    of the R rows, from which rollout.sample too draws its random numbers."""
    repeats = n // num_return_sequences
    repeated = []
    for image in images:
        repeated += [image] * repeats
    text = render_question(policy.processor, QUESTION)
    policy.tokenizer.padding_side = "left"
    inputs = policy.processor(text=[text] * len(repeated), images=repeated, return_tensors="pt", padding=True)

    # Sampling, since greedy decoding refuses several sequences; the sampler leaves nothing to chance.
    uniforms = rollout.draw_uniforms(names, max_new_tokens)
    sampler = rollout.Sampler(uniforms, TEMPERATURE, policy.banned)
    made = policy.model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                                 num_return_sequences=num_return_sequences, max_new_tokens=max_new_tokens,
                                 logits_processor=LogitsProcessorList([sampler]))
    completions = made[:, inputs["input_ids"].shape[1]:]                  # (R, T)
    return completions, torch.stack(sampler.logprobs, dim=1)


def plain_rollout(policy, images, ids, question, n, seed, stream, max_new_tokens):
    """rollout.sample by transformers' generate, image and prompt repeated N times."""
    names = [(seed, stream, name, k) for name in ids for k in range(n)]
    completions, logprobs = plain_generate(policy, images, names, n, max_new_tokens)
    mask = torch.ones_like(completions, dtype=torch.bool)

    groups = []
    for i, prompt in enumerate(policies.encode(policy, images, question)):
        own = slice(i * n, (i + 1) * n)
        texts = policy.tokenizer.batch_decode(completions[own])
        groups.append(rollout.Group(ids[i], prompt, completions[own], mask[own], logprobs[own], texts,
                                    answers=[None] * n, truncated=0))
    return groups


def ours(sizes: str, tokens: int) -> dict:
    """Our own step."""
    return run_steps(sizes, tokens, rollout.sample, shared=True, n=N, micro_batch=IMAGES[sizes], steps=STEPS)


def plain(sizes: str, tokens: int) -> dict:
    """The same with every completion behind its own copy of the prompt."""
    return run_steps(sizes, tokens, plain_rollout, shared=False, n=N, micro_batch=IMAGES[sizes], steps=STEPS)


def run_steps(sizes: str, tokens: int, sample, shared: bool, n: int, micro_batch: int, steps: int) -> dict:
    """Seconds of each part, memory, prompt lengths, and the first step's completions. micro_batch: images."""
    policy = build()
    images = pictures(sizes, IMAGES[sizes])
    ids = [str(i) for i in range(len(images))]
    lora.add_lora(policy.model, RANK, ALPHA)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LR)
    config = train.Config(n=n, minibatch=len(images), micro_batch=micro_batch, max_new_tokens=tokens,
                          checkpointing=False, beta=0.01, clip_low=0.2, clip_high=0.2)
    judge = TaxonomyJudge({"red finch": "finch", "finch": "bird", "bird": None})
    clock = Clock()
    score_reference_apart(clock, shared)

    rng = np.random.default_rng(0)
    first = None
    for step in range(steps):
        wait_for_turn()
        clock.new_step()
        with clock.part("step"):
            with clock.part("rollout"):
                groups = sample(policy, images, ids, QUESTION, n=n, seed=0, stream=f"train/{step}",
                                max_new_tokens=tokens)

            # Random weights say nothing that a judge could read: it gets answers made up for it.
            answers = [made_up_answers(rng, n) for _ in ids]
            with clock.part("judge"):
                categories = judge_groups(judge, ["red finch"] * len(images), answers)
            rewards = [train.group_rewards(group, config) for group in categories]
            advantages = train.group_advantages(torch.tensor(rewards))    # (B, N)

            with clock.part("update"):
                train.update(policy, optimizer, groups, advantages, config)
        clock.steps[-1]["update"] -= clock.steps[-1]["reference"]
        if first is None:
            first = [group.completions.tolist() for group in groups]
    lengths = [len(group.prompt) for group in groups]
    return clock.report() | {"prompts": lengths, "first": first}


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


def trl(sizes: str, tokens: int) -> dict:
    """TRL's GRPOTrainer on the same model, images, N, LoRA and length."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy = build()
    banned = policy.banned.nonzero().flatten().tolist()
    policy.model.generation_config.suppress_tokens = banned
    policy.tokenizer.padding_side = "left"  # or TRL takes one prompt's image tokens for another's
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    rows = []
    for image in pictures(sizes, IMAGES[sizes]):
        rows.append({"prompt": [{"role": "user", "content": content}], "image": image})
    options = GRPOConfig(
        output_dir="/tmp/trl", per_device_train_batch_size=len(rows) * N, num_generations=N, beta=0.01,
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
            wait_for_turn()
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
# Growth with N


def growth(sizes: str, tokens: int) -> dict:
    """CPU seconds of reference and update together by N, at this completion length."""
    seconds = {}
    for n in (2, 4, 8, 16, 32):
        seen = run_steps(sizes, tokens, rollout.sample, shared=True, n=n, micro_batch=1, steps=GROWTH_STEPS)
        parts = seen["seconds"]
        seconds[n] = median(parts["reference"]) + median(parts["update"])
        prompt = sum(seen["prompts"]) / len(seen["prompts"])
    return {"seconds": seconds, "prompt": prompt}


# ------------------------------------------------------------------------------------------------------------
# The command


CHILDREN = {"plain": plain, "ours": ours, "trl": trl, "growth": growth}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # their environment


def child(script: str, *arguments) -> dict:
    """What that script's `--child` prints for these arguments, from a process of its own on one thread."""
    command = [sys.executable, script, "--child", *map(str, arguments)]
    made = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ONE_THREAD)
    if made.returncode:
        sys.exit(f"{' '.join(command[2:])} ended with status {made.returncode}:\n{made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def in_turns(systems: tuple, sizes: str, tokens: int) -> dict[str, dict]:
    """What `--child` prints for each system, whose processes take their steps in turn."""
    results = {}
    with ExitStack() as stack:
        # Start them one by one, each up to its first step.
        running = {}
        for what in systems:
            errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            command = [sys.executable, __file__, "--child", what, sizes, str(tokens)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                       text=True, env=ONE_THREAD)
            stack.callback(end, process)
            running[what] = (process, errors)
            read_until_ready(process, errors)

        # A turn for each in every round. After its last, a process prints its result.
        for _ in range(STEPS):
            for what, (process, errors) in running.items():
                with suppress(BrokenPipeError):  # it has died: why is in its errors
                    process.stdin.write("\n")
                    process.stdin.flush()
                results[what] = read_until_ready(process, errors)
    return {what: json.loads(line) for what, line in results.items()}


def read_until_ready(process: subprocess.Popen, errors) -> str:
    """The last line that a process prints before it waits for its turn, or ends. Exits with its `errors`, a
    file, where it ended without a result."""
    line = ""
    for line in process.stdout:
        line = line.strip()
        if line == READY:
            return line
    status = process.wait()
    if status != 0 or not line.startswith("{"):
        errors.seek(0)
        sys.exit(f"{' '.join(process.args[2:])} ended with status {status}:\n{errors.read()[-2000:]}")
    return line


def end(process: subprocess.Popen) -> None:
    """Kills it where it still runs, and closes its pipes."""
    process.kill()
    with suppress(BrokenPipeError):  # a turn that it did not live to see
        process.stdin.close()
    process.stdout.close()
    process.wait()


def print_step(systems: tuple, sizes: str, tokens: int) -> None:
    """A row of medians for each system; then its ratio to ours, the median of the turns', with the lowest and
    the highest: not quite the quotient of two medians."""
    seen = in_turns(systems, sizes, tokens)
    differ = 0
    rows = 0
    for plain_group, our_group in zip(seen["plain"]["first"], seen["ours"]["first"], strict=True):
        for plain_row, our_row in zip(plain_group, our_group, strict=True):
            rows += 1
            differ += plain_row != our_row
    lengths = ", ".join(map(str, seen["ours"]["prompts"]))
    print(f"\n{tokens} tokens, sizes {sizes}, prompts of {lengths}; of the first step's {rows} answers "
          f"{differ} differ between plain and ours")
    print(" " * 8 + "".join(f"{heading:>11}" for heading in (*PARTS, "tokens/s", "memory")))
    for what, figures in seen.items():
        line = f"{what:<8}"
        for part in PARTS:
            seconds = figures["seconds"].get(part)
            line += f"{median(seconds):>11.2f}" if seconds else f"{'-':>11}"
        rate = IMAGES[sizes] * N * tokens / median(figures["seconds"]["step"])
        print(line + f"{rate:>11.0f}{figures['memory']:>11.0f}")

    our_figures = seen["ours"]
    for what, figures in seen.items():
        if what == "ours":
            continue
        texts = []
        for part in ("rollout", "reference", "update", "step"):
            if part in figures["seconds"]:
                ratios = ratios_by_turn(figures["seconds"][part], our_figures["seconds"][part])
                texts.append(f"{part} {median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
        texts.append(f"memory {figures['memory'] / our_figures['memory']:.2f}x")
        print(f"{what} / ours: " + ", ".join(texts), flush=True)


def ratios_by_turn(seconds: list[float], our_seconds: list[float]) -> list[float]:
    """How many times as long a system took in each turn as ours took next to it."""
    return [a / b for a, b in zip(seconds, our_seconds, strict=True)]


def print_growth(tokens: int) -> None:
    seen = child(__file__, "growth", "equal", tokens)
    seconds = seen["seconds"]
    by_n = ", ".join(f"{n}: {value:.2f} s" for n, value in seconds.items())
    ratio = (seen["prompt"] + 32 * tokens) / (seen["prompt"] + 4 * tokens)
    print(f"\nreference and update by N at {tokens} tokens: {by_n}; from 4 to 32 "
          f"{seconds['32'] / seconds['4']:.2f}x, the tokens {ratio:.2f}x", flush=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=("step", "growth"))
    p.add_argument("--sizes", choices=tuple(IMAGES), help="of the images in `step` (default: both)")
    p.add_argument("--child", nargs=3, metavar=("WHAT", "SIZES", "TOKENS"), help=argparse.SUPPRESS)
    args = p.parse_args()

    # In a child's process: one measurement, one line of JSON.
    if args.child:
        what, sizes, tokens = args.child
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        print("\n" + json.dumps(CHILDREN[what](sizes, int(tokens))))
        return

    systems = ("plain", "trl", "ours")
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError:
        print("trl and peft are not installed: no comparison with TRL")
        systems = ("plain", "ours")

    if args.only in (None, "step"):
        print(f"CPU seconds a step, N = {N} (tokens/s: completions; memory: MB over base; ratios: the median "
              "of the turns', lowest to highest)")
        if args.sizes != "cub":
            print_step(systems, "equal", 64)
            print_step(systems, "equal", 150)
        if args.sizes != "equal":
            print_step(systems, "cub", 64)
    if args.only in (None, "growth"):
        for tokens in (64, 150):
            print_growth(tokens)


if __name__ == "__main__":
    main()
