"""Seconds, memory and model flops utilisation of a training step in the full Qwen2.5-VL shapes, on one GPU.

    python benchmarks/gpu.py                      the 7B shape: made to end within 8 minutes on an H100
    python benchmarks/gpu.py --shape 3b
    python benchmarks/gpu.py --steps 2            whole steps of train.py's loop instead of its parts
    python benchmarks/gpu.py --shape tiny --images 2 --n 2 --tokens 8 --text 40      does it run at all (CPU)

What it prints, line by line as it is measured, is Markdown for docs/speed.md: a table of the step's parts, a
line about the judge's rows, and a table of the cards on which the paper's run fits, with flags and hours.
With --steps: the memory of the rows that support/memory.py lets decode at a time, and a table of the steps.

Random weights, no download: speed does not ask for sense. bfloat16 with float32 LoRA of rank 64; pictures of
CUB's sizes, so prompts of many lengths, of 400 tokens for one of 500 x 375; completions of exactly 150
tokens, N = 10; a judge of Qwen3-4B's shape on the same card, asked about 1,500 distinct pairs a step. As many
images are measured as one decoding round holds, 16 of them for the update, and scaled to the paper's 165
steps of 256 images.

Utilisation counts what the shared-prompt form has to compute: 2 flops a linear parameter and token, backward
as much again (frozen weights have no gradient), 3 passes with checkpointing; attention and the vision tower
are left out. Memory is that of tensors, in GB of 1e9 bytes. A card must hold the step's longest completions
(--longest), not its average ones.
"""

import argparse
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3Config, Qwen3ForCausalLM

import data
import lora
import policy as policies
import rollout
import tiny
import train
import words
from judges.packed import PackedJudge
from support.checkpoints import limit_pixels
from support.files import write_json
from support.memory import USABLE, rows_at_a_time
from support.run_folder import lock_run

TEXT = {
    "3b": dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
               intermediate_size=11008, vocab_size=151936),
    "7b": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
               intermediate_size=18944, vocab_size=152064)}
JUDGE_4B = dict(hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
                head_dim=128, intermediate_size=9728, vocab_size=151936)
JUDGE_TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=8, intermediate_size=48, vocab_size=1000)
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, flops/s

PAPER_IMAGES = 256
PAPER_N = 10
PAPER_STEPS = 165
PAIRS = 1500  # distinct pairs of a truth and an answer in a step of 2,560 answers

CARDS = (24, 48, 80, 141)  # GB
ROWS = (64, 128, 256, 512, 1024, 2560)
UPDATES = ((True, 1), (True, 2), (True, 4), (True, 8), (False, 1), (False, 2))  # checkpointing, micro-batch
UPDATED = 16               # images of each update that is timed
ROW_TOKENS = (1024, 2048, 4096, 8192)

# ------------------------------------------------------------------------------------------------------------
# A policy and a judge of the full shapes, pictures of CUB's sizes, a prompt of the wanted length


def build_policy(shape: str, device: str, dtype) -> policies.Policy:
    """A policy of that shape. Tokens are a small tokenizer's, the vocabulary and so the head full-sized."""
    tok = tiny.tokenizer()
    if shape == "tiny":
        model = tiny.model(tok)
    else:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(policy_config(shape, tok), dtype=dtype,
                                                                    attn_implementation="sdpa")
    processor = tiny.processor()
    limit_pixels(processor.image_processor, train.Config.max_pixels)
    policy = policies.from_parts(model.to(device), processor, name=shape)
    policy.banned[policy.eos_ids] = True  # every completion has the full length
    lora.add_lora(policy.model, 64, 32)
    return policy


def policy_config(shape: str, tok) -> Qwen2_5_VLConfig:
    ids = tiny.special_ids(tok)
    tied = shape == "3b"
    text = TEXT[shape] | dict(
        rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=None,
        tie_word_embeddings=tied, max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]})
    vision = dict(depth=32, hidden_size=1280, num_heads=16, intermediate_size=3420, patch_size=14,
                  window_size=112, fullatt_block_indexes=[7, 15, 23, 31], out_hidden_size=text["hidden_size"])
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=tied,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"])


def build_judge(shape: str, device: str, dtype) -> PackedJudge:
    """Qwen3-4B's shape under the judge's short prompt, in tokens of a small tokenizer: about 474 shared ones
    and 33 a pair, where a real one makes some 500 and 20."""
    tok = words.chat_tokenizer()
    with torch.device(device):
        model = Qwen3ForCausalLM._from_config(judge_config(shape, tok), dtype=dtype,
                                              attn_implementation="sdpa")
    return PackedJudge(model.to(device), tok, prompt="short")


def judge_config(shape: str, tok) -> Qwen3Config:
    text = JUDGE_TINY if shape == "tiny" else JUDGE_4B
    return Qwen3Config(**text, tie_word_embeddings=True, max_position_embeddings=32768,
                       rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                       eos_token_id=tok.eos_token_id)


def bird_names() -> list[str]:
    """CUB's 200 classes."""
    lines = (ROOT / "tests" / "fixtures" / "cub200" / "classes.txt").read_text().splitlines()
    names = []
    for line in lines:  # 1 001.Black_footed_Albatross
        name = line.split(".")[1]
        names.append(name.replace("_", " ").lower())
    return names


def distinct_pairs(count: int) -> list[tuple[str, str]]:
    """That many different (truth, answer) of two different names of CUB's birds."""
    return random.Random(0).sample(list(itertools.permutations(bird_names(), 2)), count)


def cub_like_sizes(count: int, longest: int = 500) -> list[tuple[int, int]]:
    """(width, height) of pictures like CUB's, in pixels: the longer side nearly always 500, the other mostly
    333 to 400 and sometimes up to 500, most of them wider than high. longest: another number for the 500."""
    rng = random.Random(0)
    sizes = []
    for _ in range(count):
        longer = 500 if rng.random() < 0.95 else rng.randint(300, 499)
        shorter = rng.randint(333, 400) if rng.random() < 0.85 else rng.randint(400, 500)
        shorter = min(shorter, longer)
        size = (longer, shorter) if rng.random() < 0.8 else (shorter, longer)
        width, height = size
        sizes.append((width * longest // 500, height * longest // 500))
    return sizes


def question_of(policy, length: int, size: tuple[int, int]) -> str:
    """A question that makes the prompt `length` tokens long for a picture of that size."""
    question = "what is it?"
    prompt, = policies.encode(policy, tiny.pictures(size), question)
    missing = length - len(prompt)
    word = max(1, len(policy.tokenizer(" ?")["input_ids"]))  # tokens
    return question + " ?" * (missing // word)


# ------------------------------------------------------------------------------------------------------------
# The parts of a step, each timed


@dataclass
class Setup:
    """What is measured, and on what. pairs: what the judge is asked in a step; peak: the card's dense bf16
    flops a second, None where they are not known; args: the command's."""
    policy: policies.Policy
    optimizer: torch.optim.Optimizer
    judge: PackedJudge
    images: list
    question: str
    pairs: list
    device: str
    peak: float | None
    args: argparse.Namespace


def set_up(device: str, peak: float | None, args) -> Setup:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    policy = build_policy(args.shape, device, dtype)
    optimizer = torch.optim.AdamW([p for p in policy.model.parameters() if p.requires_grad], 3e-5)
    judge = build_judge(args.shape, device, dtype)
    is_tiny = args.shape == "tiny"
    longest_side = 60 if is_tiny else 500
    images = tiny.pictures(*cub_like_sizes(args.images, longest_side))
    question = question_of(policy, args.text, (longest_side, longest_side * 3 // 4))
    pairs = distinct_pairs(20 if is_tiny else PAIRS)
    return Setup(policy, optimizer, judge, images, question, pairs, device, peak, args)


def timed(device: str, function: Callable, *args) -> tuple[float, float | None, object]:
    """Seconds, peak memory in GB (None on a CPU), and what function(*args) returns."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    made = function(*args)
    if device != "cuda":
        return time.perf_counter() - start, None, made
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e9, made


def timed_if_it_fits(device: str, function: Callable, *args) -> tuple[float, float | None] | None:
    """Seconds and GB; None where memory runs out."""
    try:
        seconds, gb, _ = timed(device, function, *args)
        return seconds, gb
    except torch.cuda.OutOfMemoryError:
        pass
    # Outside the except clause, whose traceback holds the memory.
    torch.cuda.empty_cache()
    return None


def encode(setup: Setup, count: int) -> list[policies.Prompt]:
    return policies.encode(setup.policy, setup.images[:count], setup.question)


def sample(setup: Setup, count: int, tokens: int) -> list[rollout.Group]:
    """The groups of the first `count` images, with completions of that many tokens."""
    ids = [str(i) for i in range(count)]
    return rollout.sample(setup.policy, setup.images[:count], ids, setup.question, setup.args.n,
                          max_new_tokens=tokens, max_rows=setup.args.rows)


@torch.no_grad()
def score(setup: Setup, groups: list) -> None:
    """The log-probs of the groups' completions, as many images at a time as train.py takes."""
    at_once = train.Config.micro_batch
    for start in range(0, len(groups), at_once):
        some = groups[start:start + at_once]
        completions, mask, _ = rollout.stack(some, setup.policy.pad_id)   # (B, N, T)
        prompts = [group.prompt for group in some]
        policies.completion_logprobs(setup.policy, prompts, completions.flatten(0, 1), mask.flatten(0, 1))


def score_reference(setup: Setup, groups: list) -> None:
    with lora.adapters_off(setup.policy.model):
        score(setup, groups)


def update(setup: Setup, groups: list, micro_batch: int, checkpointing: bool, beta: float) -> None:
    """One optimizer update on these groups. beta 0 leaves the reference out."""
    args = setup.args
    setup.optimizer.zero_grad(set_to_none=True)  # of an update that ran out of memory
    config = train.Config(n=args.n, max_new_tokens=args.longest, beta=beta, clip_low=0.2, clip_high=0.2,
                          minibatch=len(groups), micro_batch=micro_batch, checkpointing=checkpointing)
    advantages = torch.randn(len(groups), args.n, generator=torch.Generator().manual_seed(0))
    train.update(setup.policy, setup.optimizer, groups, advantages, config)


def lengthened(group: rollout.Group, longest: int) -> rollout.Group:
    """The group with completions of that many tokens: its own, over and over."""
    times = -(-longest // group.completions.shape[1])
    completions = group.completions.repeat(1, times)[:, :longest]         # (N, longest)
    logprobs = group.logprobs.repeat(1, times)[:, :longest]
    return replace(group, completions=completions, mask=torch.ones_like(completions, dtype=torch.bool),
                   logprobs=logprobs)


@dataclass
class Rollout:
    """A rollout with that many rows decoded at a time: seconds an image, peak GB."""
    rows: int
    seconds: float
    gb: float | None


@dataclass
class Update:
    """An update made in this way: seconds an image, and the peak GB with the longest completions (None on a
    CPU, or where they did not fit)."""
    flags: str
    seconds: float
    longest_gb: float | None


def time_rollouts(setup: Setup, flops: float) -> tuple[list[Rollout], list[rollout.Group]]:
    """With few rows at a time, and with many, vision and prefill in it; and the groups of the second."""
    args = setup.args
    rollouts = []
    few_images = max(1, min(args.images, args.rows // args.n) // 4)
    for count in (few_images, args.images):
        seconds, gb, groups = timed(setup.device, sample, setup, count, args.tokens)
        if setup.policy.rows is not None:
            sys.exit(f"gpu.py: out of memory in the rollout: try again with --rows {setup.policy.rows}")
        rows = min(count * args.n, args.rows)
        rollouts.append(Rollout(rows, seconds / count, gb))
        print_part(f"rollout, {rows:,} rows at a time", seconds * PAPER_IMAGES / count, flops, gb, setup.peak)
    return rollouts, groups


def time_updates(setup: Setup, groups: list, flops: float) -> list[Update]:
    """Each way to make the update that fits into memory. flops: of a step's forward pass."""
    updates = []
    for checkpointing, micro_batch in UPDATES:
        if micro_batch > len(groups):
            continue
        flags = update_flags(micro_batch, checkpointing)
        name = f"update, `{flags}`"

        # The reference is timed apart: without it. The first call warms up.
        way = (micro_batch, checkpointing)
        first = timed_if_it_fits(setup.device, update, setup, groups[:micro_batch], *way, 0.0)
        usual = timed_if_it_fits(setup.device, update, setup, groups, *way, 0.0) if first else None
        if usual is None:
            print(f"| {name} | out of memory | | |", flush=True)
            continue

        # One long answer makes its whole micro-batch as long; and the reference is scored while all that
        # backward needs is held.
        long_groups = [lengthened(group, setup.args.longest) for group in groups[:micro_batch]]
        longest = timed_if_it_fits(setup.device, update, setup, long_groups, *way, 0.01)

        seconds, gb = usual
        updates.append(Update(flags, seconds / len(groups), longest[1] if longest else None))
        # Backward costs as much as forward; with checkpointing the forward is made twice.
        passes = 3 if checkpointing else 2
        print_part(name, seconds * PAPER_IMAGES / len(groups), passes * flops, gb, setup.peak)
    return updates


def update_flags(micro_batch: int, checkpointing: bool) -> str:
    """Of train.py, which makes activations again unless told otherwise."""
    return f"--micro-batch {micro_batch}" + ("" if checkpointing else " --no-checkpointing")


def pairs_a_second(setup: Setup) -> str:
    """A line of the judge's speed by the length of its rows."""
    judge = setup.judge
    pairs = setup.pairs
    found = []
    for row_tokens in ROW_TOKENS:
        judge.row_tokens = row_tokens
        first = timed_if_it_fits(setup.device, judge.logprobs, pairs)  # warms up
        second = timed_if_it_fits(setup.device, judge.logprobs, pairs) if first else None
        if second is None:
            found.append(f"{row_tokens:,}: out of memory")
        else:
            found.append(f"{row_tokens:,}: {len(pairs) / second[0]:,.0f}")
    judge.row_tokens = None
    return "The judge's pairs a second by row_tokens: " + " · ".join(found)


# ------------------------------------------------------------------------------------------------------------
# Whole steps of train.py's loop

TAGS = ["<answer>", "</answer>"]
NAMES = [" red", " finch", " bird"]


def whole_steps(setup: Setup, folder: Path) -> None:
    """Some steps of train.train, from image files to the saved state, and what they took. The sampler is left
    the tags, a token each, and a few names, so that many of the answers of random weights can be read."""
    args = setup.args
    policy = setup.policy
    policy.tokenizer.add_tokens(TAGS)
    policy.banned[:] = True
    policy.banned[policy.tokenizer("".join(TAGS + NAMES))["input_ids"]] = False
    set_rows(setup)

    config = train.make_config(dict(
        data="cub", n=args.n, images_per_step=args.images, minibatch=max(1, args.images // 2),
        micro_batch=args.micro_batch, checkpointing=args.checkpointing, rows=args.rows, steps=args.steps,
        max_new_tokens=args.tokens, eval_every=0, out=str(folder / "run")))
    run = Path(config.out)
    with lock_run(run, new=True) as lock:
        write_json(run / "config.json", asdict(config))
        train.train(train.Job(
            config, run, lock, policy, setup.optimizer, setup.judge, setup.question,
            examples=save_pictures(setup.images, folder), validation={}, tests={}, shown=[],
            evaluation_rows=args.rows, steps=args.steps, done=0))
    print_steps(run, config)


def set_rows(setup: Setup) -> None:
    """As many rows at a time as train.py finds by itself; and, printed, what such a round comes to in memory
    where every completion is as long as it may be."""
    args = setup.args
    args.rows = rows_at_a_time(setup.policy, setup.judge, setup.question, args.n, args.images, args.longest,
                               train.Config.max_pixels, most=args.rows)
    seconds, gb, _ = timed(setup.device, sample, setup, max(1, args.rows // args.n), args.longest)
    if setup.policy.rows is not None:
        sys.exit(f"gpu.py: support/memory.py lets {args.rows:,} rows decode at a time, and memory ran out")
    memory = f" and {gb:.1f} GB" if gb is not None else ""
    print(f"By itself train.py decodes {args.rows:,} rows at a time. A round of them, {args.longest} tokens "
          f"each, took {seconds:.1f} s{memory}.", flush=True)


def save_pictures(images: list, folder: Path) -> list[data.Example]:
    """Examples of these images, each saved as a file, with CUB's names in turn."""
    names = bird_names()
    examples = []
    for number, image in enumerate(images):
        file = folder / f"{number}.jpg"
        image.save(file)
        name = names[number % len(names)]
        examples.append(data.Example(file.name, name, "cub", partial(data.read_image, file)))
    return examples


def print_steps(run: Path, config: train.Config) -> None:
    """The run's steps, as its log tells them."""
    flags = update_flags(config.micro_batch, config.checkpointing)
    print(f"\nSteps of {config.images_per_step} images x {config.n} answers of {config.max_new_tokens} "
          f"tokens, `--rows {config.rows} {flags}`:\n")
    print("| step | rollout | judge | update | seconds | tokens/s | peak GB | malformed | log-prob gap |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in (run / "log.jsonl").read_text().splitlines():
        figures = json.loads(line)
        seconds = [f"{figures['time/' + part]:.1f}" for part in ("rollout", "judge", "update", "step")]
        print(f"| {figures['step']} | {' | '.join(seconds)} | {figures['time/tokens_per_s']:,.0f} | "
              f"{figures['mem/peak_gb']:.1f} | {figures['malformed']:.2f} | "
              f"{figures['policy/logprob_gap']:.1e} |")


# ------------------------------------------------------------------------------------------------------------
# Flops and sizes


def linear_parameters(decoder) -> int:
    """Of a decoder's linear layers, adapters and no head."""
    count = 0
    for module in decoder.modules():
        if isinstance(module, torch.nn.Linear):
            count += module.weight.numel()
        if isinstance(module, lora.LoRALinear):
            count += module.lora_A.numel() + module.lora_B.numel()
    return count


def flops_an_image(policy, prompt: float, args) -> float:
    """Flops of one shared pass over an image's prompt and answers. The head reads the answers alone."""
    answers = args.n * args.tokens
    linear = linear_parameters(policy.model.get_decoder())
    head = policy.model.get_output_embeddings().weight.numel()
    return 2 * (linear * (prompt + answers) + head * answers)


def judge_flops(judge: PackedJudge, pairs: list) -> float:
    """Flops of these pairs' own tokens behind the shared prompt. The head reads the last token of each."""
    tokens = sum(len(own) for own in judge.own_tokens(pairs))
    linear = linear_parameters(judge.model.get_decoder())
    head = judge.model.get_output_embeddings().weight.numel()
    return 2 * (linear * tokens + head * len(pairs))


def weights_gb(model) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9


def own_token_gb(policy) -> float:
    """What the decoding cache keeps of one token of a row."""
    config = policy.model.config.get_text_config()
    head_dim = config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return numbers * policy.model.dtype.itemsize / 1e9


# ------------------------------------------------------------------------------------------------------------
# What it comes to


@dataclass
class Measured:
    """few, many: rollouts with few rows and with many. others_s: seconds a step of what is neither rollout
    nor update; others_gb: its peak. kept_gb: what a whole step keeps beside what was measured; more_a_row_gb:
    what a row needs, beside what was measured, for the longest completion. images: in a step."""
    few: Rollout
    many: Rollout
    updates: list[Update]
    others_s: float
    others_gb: float
    kept_gb: float
    more_a_row_gb: float
    images: int = PAPER_IMAGES


def line_through(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
    """(y at x = 0, slope)."""
    slope = (y1 - y0) / (x1 - x0)
    return y0 - slope * x0, slope


def rollout_seconds(measured: Measured, rows: int) -> float:
    """Seconds an image with that many rows at a time: what an image costs by itself, and its share of what a
    round costs, whatever it holds."""
    few = measured.few
    many = measured.many
    an_image, a_round = line_through(1 / few.rows, few.seconds, 1 / many.rows, many.seconds)
    return an_image + a_round / rows


def rollout_gb(measured: Measured, rows: int) -> float:
    few = measured.few
    many = measured.many
    fixed, a_row = line_through(few.rows, few.gb, many.rows, many.gb)
    return fixed + measured.kept_gb + (a_row + measured.more_a_row_gb) * rows


def step_seconds(measured: Measured, rows: int, how: Update) -> float:
    return measured.images * (rollout_seconds(measured, rows) + how.seconds) + measured.others_s


def hours(step_s: float) -> float:
    return step_s * PAPER_STEPS / 3600


def card_line(measured: Measured, card: int) -> str:
    """A table's line: with which flags the run fits a card of that many GB, and how long it takes with them
    on the card that was measured."""
    usable = USABLE * card
    others_gb = measured.others_gb + measured.kept_gb
    update_gb = {}  # of those whose longest completions fit the measured card
    for how in measured.updates:
        if how.longest_gb is not None:
            update_gb[how.flags] = how.longest_gb + measured.kept_gb

    rows = [count for count in ROWS if rollout_gb(measured, count) <= usable]
    updates = [how for how in measured.updates if update_gb.get(how.flags, math.inf) <= usable]
    if not rows or not updates or others_gb > usable:
        least = max(rollout_gb(measured, ROWS[0]), others_gb, min(update_gb.values(), default=math.inf))
        needed = f"{least:.1f}" if least < math.inf else "more than was there"
        return f"| {card} GB | does not fit | {needed} | | |"

    # As many rows at a time as fit, and of the updates that fit the fastest.
    most = max(rows)
    fastest = min(updates, key=lambda how: how.seconds)
    gb = max(rollout_gb(measured, most), others_gb, update_gb[fastest.flags])
    step_s = step_seconds(measured, most, fastest)
    return f"| {card} GB | `--rows {most} {fastest.flags}` | {gb:.1f} | {step_s:.0f} | {hours(step_s):.1f} |"


def print_cards(measured: Measured, setup: Setup, card: str) -> None:
    args = setup.args
    judge_gb = weights_gb(setup.judge.model)
    print(f"\nWhere the paper's run fits (`--n {args.n}`, completions of up to {args.longest} tokens), with "
          f"the judge's {judge_gb:.1f} GB on the card, and how long it takes with these flags on the {card}; "
          "a smaller card is slower.\n")
    print("| card | flags of train.py | GB needed | seconds a step | hours |")
    print("|---|---|---|---|---|")
    for size in CARDS:
        print(card_line(measured, size))


def print_part(name: str, seconds: float, flops: float | None, gb: float | None, peak: float | None) -> None:
    """A line of the step's table. seconds and flops: of a whole step."""
    used = f"{flops / seconds / peak:.1%}" if flops and peak else ""
    peak_gb = f"{gb:.1f}" if gb is not None else ""
    print(f"| {name} | {seconds:.1f} | {used} | {peak_gb} |", flush=True)


def print_setup(setup: Setup, card: str) -> None:
    args = setup.args
    date = time.strftime("%Y-%m-%d")
    policy_gb = weights_gb(setup.policy.model)
    judge_gb = weights_gb(setup.judge.model)
    print(f"**{card}**, torch {torch.__version__}, {date}. Qwen2.5-VL's {args.shape} shape, "
          f"{policy_gb:.1f} GB with adapters; a judge of {judge_gb:.1f} GB.", flush=True)


def print_heading(lengths: list[int], args) -> None:
    print(f"A step of {PAPER_IMAGES} images x {args.n} answers of {args.tokens} tokens, scaled from "
          f"{args.images} images; prompts of {min(lengths)} to {max(lengths)} tokens, {len(set(lengths))} "
          "different lengths.\n")
    print("| part | seconds a step | MFU | peak GB |")
    print("|---|---|---|---|", flush=True)


def card_and_peak(device: str, given: float | None) -> tuple[str, float | None]:
    """The card's name, and its dense bf16 flops a second where they are known."""
    if device == "cpu":
        return "CPU", given
    card = torch.cuda.get_device_name()
    if given is not None:
        return card, given
    for name, flops in PEAK.items():
        if name in card:
            return card, flops
    return card, None


# ------------------------------------------------------------------------------------------------------------
# The command


def measure(device: str, args) -> None:
    start = time.perf_counter()
    card, peak = card_and_peak(device, args.peak)
    setup = set_up(device, peak, args)
    print_setup(setup, card)

    # Warm up. From here on the optimizer has its state, as in every step but the first.
    update(setup, sample(setup, 2, tokens=2), 1, False, 0.0)
    if args.steps:
        with tempfile.TemporaryDirectory() as folder:
            whole_steps(setup, Path(folder))
    else:
        parts(setup, card)
    print(f"\nMeasured in {(time.perf_counter() - start) / 60:.1f} minutes.")


def parts(setup: Setup, card: str) -> None:
    """Times every part, and prints each as soon as it is known: what comes later may run out of memory."""
    args = setup.args
    device = setup.device
    peak = setup.peak
    scale = PAPER_IMAGES / args.images

    # The vision tower, images prepared for it on the CPU. What it makes tells the prompts' lengths.
    vision_s, vision_gb, prompts = timed(device, encode, setup, args.images)
    lengths = [len(prompt) for prompt in prompts]
    prompt_gb = sum(prompt.embeds.nbytes for prompt in prompts) / len(prompts) / 1e9
    del prompts
    print_heading(lengths, args)
    flops = PAPER_IMAGES * flops_an_image(setup.policy, sum(lengths) / len(lengths), args)

    rollouts, groups = time_rollouts(setup, flops)
    few, many = rollouts
    print_part("of it vision", vision_s * scale, None, vision_gb, peak)

    # The judge. Its shared prompt is encoded by the first call, as by a run's first step.
    setup.judge.logprobs(setup.pairs)
    judge_s, judge_gb, _ = timed(device, setup.judge.logprobs, setup.pairs)
    print_part(f"judge, {len(setup.pairs):,} pairs", judge_s, judge_flops(setup.judge, setup.pairs), judge_gb,
               peak)

    # The log-probs of the reference, and the old ones of the second minibatch: half of the images.
    reference_s, reference_gb, _ = timed(device, score_reference, setup, groups)
    print_part("reference", reference_s * scale, flops, reference_gb, peak)
    old_s, old_gb, _ = timed(device, score, setup, groups)
    print_part("old log-probs", old_s * scale / 2, flops / 2, old_gb, peak)

    updates = time_updates(setup, groups[:UPDATED], flops)
    if not updates:
        sys.exit("gpu.py: no update fits into memory: lower --n or --tokens, or try --shape 3b")

    # The step and the paper's run, with the fastest update.
    others_s = judge_s + (reference_s + old_s / 2) * scale
    others_gb = max(vision_gb, judge_gb, reference_gb, old_gb) if device == "cuda" else 0.0
    measured = Measured(few, many, updates, others_s, others_gb,
                        kept_gb=(PAPER_IMAGES - args.images) * prompt_gb,
                        more_a_row_gb=(args.longest - args.tokens) * own_token_gb(setup.policy))
    fastest = min(updates, key=lambda how: how.seconds)
    step_s = step_seconds(measured, many.rows, fastest)
    print_part(f"**step**, `--rows {many.rows} {fastest.flags}`", step_s, None, None, peak)
    print(f"\nThe paper's run, {PAPER_STEPS} such steps: {hours(step_s):.1f} hours, validation and test "
          f"aside. Of it {judge_s / step_s:.1%} is the judge's.")

    # What a CPU's process holds says nothing about a card.
    if device == "cuda":
        print_cards(measured, setup, card)
    print(f"\n{pairs_a_second(setup)}")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="7b", choices=("7b", "3b", "tiny"), help="the policy's shape")
    p.add_argument("--images", type=int, help="images measured (default: as many as --rows holds)")
    p.add_argument("--n", type=int, default=PAPER_N, help="answers an image")
    p.add_argument("--tokens", type=int, default=150, help="completion length")
    p.add_argument("--longest", type=int, default=train.Config.max_new_tokens,
                   help="the longest completion that memory must hold, train.py's --max-new-tokens")
    p.add_argument("--text", type=int, default=400, help="prompt length of a 500 x 375 picture, with image")
    p.add_argument("--rows", type=int,
                   help="answers decoded at a time (default: 512, with --steps what fits)")
    p.add_argument("--steps", type=int, default=0, help="so many whole steps instead of the parts")
    p.add_argument("--micro-batch", type=int, default=train.Config.micro_batch, help="of those steps")
    p.add_argument("--checkpointing", action=argparse.BooleanOptionalAction,
                   default=train.Config.checkpointing, help="in those steps")
    p.add_argument("--peak", type=float, help="the card's dense bf16 flops a second (default: by its name)")
    args = p.parse_args(argv)

    if args.n < 1 or args.tokens < 2 or args.longest < args.tokens:
        sys.exit("gpu.py: at least 1 answer and 2 tokens, and --longest no less than --tokens")
    if args.steps and args.n < 2:
        sys.exit("gpu.py: --steps needs groups of at least 2, --n 2")
    if args.steps < 0 or args.micro_batch < 1:
        sys.exit("gpu.py: --steps must be 0 or more, --micro-batch at least 1")
    if args.rows is None and not args.steps:
        args.rows = 512
    if args.rows is not None and args.rows < 2 * args.n:
        sys.exit("gpu.py: --rows must hold two images' answers, twice --n")
    if args.images is None:
        args.images = PAPER_IMAGES if args.steps else min(PAPER_IMAGES, args.rows // args.n)
    if args.images < 2:
        sys.exit("gpu.py: --images must be at least 2")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and args.shape != "tiny":
        sys.exit("gpu.py: there is no GPU here; --shape tiny tries the path on a CPU")
    try:
        measure(device, args)
    except torch.cuda.OutOfMemoryError:
        sys.exit("gpu.py: out of memory: lower --rows, --n or --tokens, or try --shape 3b")


if __name__ == "__main__":
    main()
