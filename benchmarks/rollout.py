"""Rollouts alone: seconds, decoder passes, rounds and memory, beside other ways to N answers an image.

    python benchmarks/rollout.py                    about half an hour on one CPU thread
    python benchmarks/rollout.py --only counts      what a whole step's rollout must cost, counted: no timing

The model of benchmarks/step.py, with LoRA 64 and completions of a fixed length. Sizes: "equal", all prompts
of one length; "cub", as CUB-200-2011's images are (step.cub_sizes). The systems:

    ours          rollout.sample: all rows in one `generate`, each prompt's keys and values kept once
    by length     a `generate` for the prompts of each length, on transformers' cache, each prompt's keys and
                  values copied for its N rows
    left-padded   `generate` on the processor's output, images and prompts repeated N times, padded
    sequences     the same, repeated by `generate` itself (num_return_sequences = N)

All sample by rollout.Sampler with the same random numbers, so their answers are the same, but where a number
lies within rounding of the edge between two neighbouring tokens: "differ" counts those rows, at most 2 % or
one; any other difference fails. CPU seconds of one thread, each system in a process of its own, after a small
rollout to warm up; "before" is what passed until the decoder's first pass (the vision tower). Passes are
forward calls of the language decoder, rounds calls of `generate`. Memory is how far the peak rises above what
is held at the decoder's first pass, MB; memory that was freed before is given back first, or it would hide
growth.
"""

import argparse
import ctypes
import json
import math
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

import lora
import policy as policies
import rollout
import step
import tiny
from support import shared_prompt_cache

CASES = (  # sizes, images, N
    ("equal", 8, 4),
    ("equal", 8, 8),
    ("equal", 2, 64),
    ("cub", 16, 4),
    ("cub", 32, 8),
    ("cub", 2, 64))
TOKENS = 64

STEP_IMAGES = 256   # of a whole step
STEP_N = 8
STEP_ROWS = 512     # a ceiling on the rows decoded at a time
STEP_TOKENS = 8     # each token costs the same, a few are enough to count
ANSWER_TOKENS = 150  # of the paper's answers, about
LAYERS = 28         # of the 7B
VOCABULARY = 152064  # of the 7B

MISSED = []  # counts that are not what they must be

# ------------------------------------------------------------------------------------------------------------
# The systems: rows of tokens, image by image


def names_of(ids: list[str], n: int) -> list[tuple]:
    """Of the R rows, as rollout.sample names them."""
    return [(0, "", name, k) for name in ids for k in range(n)]


def sample_ours(policy, images: list, ids: list[str], n: int, tokens: int, max_rows: int) -> list[list[int]]:
    groups = rollout.sample(policy, images, ids, step.QUESTION, n, max_new_tokens=tokens, max_rows=max_rows)
    rows = []
    for group in groups:
        rows += [row[mask].tolist() for row, mask in zip(group.completions, group.mask)]
    return rows


def sample_by_length(policy, images: list, ids: list[str], n: int, tokens: int,
                     max_rows: int) -> list[list[int]]:
    prompts = rollout.encode(policy, images, step.QUESTION)
    images_at_once = max_rows // n
    of_image = {}
    for members in same_length(prompts):
        for start in range(0, len(members), images_at_once):
            some = members[start:start + images_at_once]
            names = names_of([ids[i] for i in some], n)
            uniforms = rollout.draw_uniforms(names, tokens)
            rows = decode_one_length(policy, [prompts[i] for i in some], n, uniforms, tokens)
            for place, i in enumerate(some):
                of_image[i] = rows[place * n:(place + 1) * n]

    rows = []
    for i in range(len(prompts)):
        rows += of_image[i]
    return rows


@torch.inference_mode()
def same_length(prompts: list) -> list[list[int]]:
    """The numbers of the prompts, those of one length in a list."""
    by_length = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    return list(by_length.values())


def decode_one_length(policy, prompts: list, n: int, uniforms, tokens: int) -> list[list[int]]:
    """N rows for each of B prompts of one length, up to and including their EOS. All run to the end of the
    longest."""
    cache = DynamicCache(config=policy.model.config.get_text_config())
    policy.model.get_decoder()(**policies.decoder_inputs(prompts, end=-1), use_cache=True,
                               past_key_values=cache)
    cache.batch_repeat_interleave(n)

    ids = torch.stack([prompt.ids for prompt in prompts]).repeat_interleave(n, dim=0)        # (R, P)
    last_position = torch.tensor([[prompt.start - 1] for prompt in prompts]).repeat_interleave(n, dim=0)
    sampler = rollout.Sampler(uniforms, step.TEMPERATURE, policy.banned)
    made = rollout.generate(policy, ids, last_position, cache, sampler, tokens, criteria=[])
    completions = made[:, ids.shape[1]:]                                  # (R, T)
    mask = rollout.first_eos_mask(completions, policy.eos_ids)
    return [row[own].tolist() for row, own in zip(completions, mask)]


def sample_left_padded(policy, images, ids, n, tokens, max_rows) -> list[list[int]]:
    completions, _ = step.plain_generate(policy, images, names_of(ids, n), n, tokens)
    return completions.tolist()


def sample_sequences(policy, images, ids, n, tokens, max_rows) -> list[list[int]]:
    completions, _ = step.plain_generate(policy, images, names_of(ids, n), n, tokens, num_return_sequences=n)
    return completions.tolist()


SYSTEMS = {"ours": sample_ours, "by length": sample_by_length, "left-padded": sample_left_padded,
           "sequences": sample_sequences}

# ------------------------------------------------------------------------------------------------------------
# What one rollout takes


class Meter:
    """Rounds, decoder passes, CPU seconds until the first of them, and growth of memory, from `start` on."""

    def __init__(self, model):
        self.generate = model.generate
        model.generate = self.counted_generate
        model.get_decoder().register_forward_pre_hook(self.before_pass)
        self.start()

    def start(self) -> None:
        self.rounds = 0
        self.passes = 0
        self.started = time.process_time()

    def counted_generate(self, *args, **kwargs):
        self.rounds += 1
        return self.generate(*args, **kwargs)

    def before_pass(self, *args) -> None:
        if self.passes == 0:
            self.before = time.process_time() - self.started
            ctypes.CDLL(None).malloc_trim(0)
            self.clock = step.Clock()  # takes the base of memory
        self.passes += 1

    def report(self) -> dict:
        seconds = time.process_time() - self.started
        memory = step.resident_mb("VmHWM") - self.clock.base
        return {"seconds": seconds, "before": self.before, "passes": self.passes, "rounds": self.rounds,
                "memory": memory}


def measure(system: str, sizes: str, count: int, n: int) -> dict:
    """What a rollout of `count` images takes, and its rows."""
    policy = step.build()
    lora.add_lora(policy.model, step.RANK, step.ALPHA)
    meter = Meter(policy.model)
    sample = SYSTEMS[system]
    images = step.pictures(sizes, count)
    ids = [str(i) for i in range(count)]

    sample(policy, images[:1], ids[:1], 2, 2, 2)  # warms up
    meter.start()
    rows = sample(policy, images, ids, n, TOKENS, count * n)
    return meter.report() | {"rows": rows}


def rows_that_differ(rows: list, expected: list, banned: torch.Tensor) -> int:
    """How many rows differ. Each must part at two tokens that are neighbours among those that can be sampled,
    and 2 % of the rows may, of a few rows one."""
    place = (~banned).cumsum(0).tolist()  # of each token among those that can be sampled
    count = 0
    for row, other in zip(rows, expected, strict=True):
        pairs = [(a, b) for a, b in zip(row, other) if a != b]
        if pairs:
            a, b = pairs[0]
            assert abs(place[a] - place[b]) == 1, "answers depend on how they are decoded"
            count += 1
        else:
            assert len(row) == len(other), "answers depend on how they are decoded"
    assert count <= max(1, 0.02 * len(rows)), "answers depend on how they are decoded"
    return count


def print_case(sizes: str, count: int, n: int) -> None:
    """A row for each system."""
    banned = step.build().banned
    seen = {system: step.child(__file__, system, sizes, count, n) for system in SYSTEMS}
    ours = seen["ours"]
    lengths = len(set(prompt_lengths(sizes, count)))
    print(f"\n{sizes}, {count} images x {n}, {TOKENS} tokens, prompts of {lengths} lengths")
    print(f"{'':<13}{'CPU s':>8}{'before':>8}{'/ ours':>8}{'passes':>8}{'rounds':>8}{'MB':>8}{'/ ours':>8}"
          f"{'differ':>8}")
    for system, figures in seen.items():
        differ = rows_that_differ(figures["rows"], ours["rows"], banned)
        print(f"{system:<13}{figures['seconds']:>8.2f}{figures['before']:>8.2f}"
              f"{figures['seconds'] / ours['seconds']:>7.2f}x{figures['passes']:>8}{figures['rounds']:>8}"
              f"{figures['memory']:>8.0f}{figures['memory'] / ours['memory']:>7.2f}x{differ:>8}", flush=True)


def prompt_lengths(sizes: str, count: int) -> list[int]:
    """By the number of each image's tokens: a length is one for 28 x 28 pixels, and the question's."""
    if sizes == "equal":
        return [step.SIDE] * count
    return [round(w / 28) * round(h / 28) for w, h in step.cub_sizes(count)]


# ------------------------------------------------------------------------------------------------------------
# Dropping ended rows


def dropping(sizes: str, count: int, n: int) -> dict:
    """Seconds of rollouts whose lengths are spread evenly over 50 .. 150: ended rows dropped; run to the end
    ("kept"); and by length, run to the end."""
    policy = step.build()
    images = step.pictures(sizes, count)
    ids = [str(i) for i in range(count)]
    end_at_spread_lengths(policy.eos_ids[0], count, n)

    share = shared_prompt_cache.DROP
    seconds = {"dropped": [], "kept": [], "by length": []}
    expected = None
    differ = 0
    for name in list(seconds) * 3:
        shared_prompt_cache.DROP = share if name == "dropped" else 2.0
        sample = sample_by_length if name == "by length" else sample_ours
        start = time.process_time()
        rows = sample(policy, images, ids, n, 150, count * n)
        seconds[name].append(time.process_time() - start)

        lengths = [len(row) for row in rows]
        assert min(lengths) == 50 and max(lengths) == 150
        if expected is None:
            expected = rows
        differ = max(differ, rows_that_differ(rows, expected, policy.banned))

    found = {name: median(times[1:]) for name, times in seconds.items()}  # the first warms up
    return found | {"differ": differ}


def end_at_spread_lengths(eos: int, count: int, n: int) -> None:
    """From here on a rollout's rows say EOS at lengths spread evenly over 50 .. 150, in a fixed order."""
    draw_uniforms = rollout.draw_uniforms
    lengths = np.linspace(50, 150, count * n).astype(int)
    lengths = np.random.default_rng(0).permutation(lengths)

    class Ending(rollout.Sampler):
        """Says EOS where the uniform number is 2."""

        def __call__(self, input_ids, scores):
            ends = self.uniforms[:, len(self.logprobs)] > 1
            out = super().__call__(input_ids, scores)
            out[ends] = -torch.inf
            out[ends, eos] = 0.0
            return out

    def spread(names, length):
        uniforms = draw_uniforms(names, length)
        for row, (_, _, image, k) in enumerate(names):
            end = lengths[int(image) * n + k]
            uniforms[row, end - 1:] = 2.0
        return uniforms

    rollout.Sampler = Ending
    rollout.draw_uniforms = spread


def print_dropping(sizes: str, count: int, n: int) -> None:
    seen = step.child(__file__, "dropping", sizes, count, n)
    kept = seen["kept"] / seen["dropped"]
    by_length = seen["by length"] / seen["dropped"]
    print(f"\n{sizes}, {count} images x {n}, lengths over 50 .. 150, {seen['differ']} answers differ: "
          f"{seen['dropped']:.2f} s; with ended rows kept {seen['kept']:.2f} s, {kept:.2f}x; by length "
          f"{seen['by length']:.2f} s, {by_length:.2f}x", flush=True)


# ------------------------------------------------------------------------------------------------------------
# A whole step's rollout, counted: 256 images x 8 of CUB's sizes on a tiny model


def counted(what: str, value: float, at_least: float, at_most: float) -> None:
    """Prints a count beside what it must be. Where it is not, the command goes on and ends with an error."""
    if at_least == at_most:
        must = f"{at_most:,}"
    elif at_least == -math.inf:
        must = f"at most {at_most:,}"
    else:
        must = f"at least {at_least:,}"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
    print(f"  {what}: {shown} (must be {must})", flush=True)
    if not at_least <= value <= at_most:
        MISSED.append(f"{what} is {shown}, must be {must}")


def count_rounds() -> None:
    """Rounds, decoder passes and the size of the prompts' cache."""
    model = tiny.model(tiny.tokenizer())
    policy, images, ids, prompts = whole_step(model)
    meter = Meter(model)
    lengths = [len(prompt) for prompt in prompts]
    print(f"\na step of {STEP_IMAGES} images x {STEP_N} of CUB's sizes, prompts of {len(set(lengths))} "
          f"lengths, {STEP_TOKENS} tokens, tiny model")

    # By length, without and with the ceiling: what there is to gain.
    for max_rows in (STEP_IMAGES * STEP_N, STEP_ROWS):
        meter.start()
        sample_by_length(policy, images, ids, STEP_N, STEP_TOKENS, max_rows)
        print(f"  by length, {max_rows} rows at a time: {meter.rounds} rounds, {meter.passes} decoder passes")

    cache_bytes = record_prompt_bytes()
    for max_rows in (STEP_IMAGES * STEP_N, STEP_ROWS):
        meter.start()
        sample_ours(policy, images, ids, STEP_N, STEP_TOKENS, max_rows)
        rounds = STEP_IMAGES * STEP_N // max_rows
        prefills = STEP_IMAGES // rollout.PROMPTS_AT_ONCE
        counted(f"ours, {max_rows} rows at a time, rounds", meter.rounds, rounds, rounds)
        passes = prefills + rounds * STEP_TOKENS
        counted(f"ours, {max_rows} rows at a time, decoder passes", meter.passes, passes, passes)

    # The prompts without their last tokens, once for each image, all as long as the longest.
    text = model.config.get_text_config()
    head = text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * 4  # bytes: keys, values, float32
    once = STEP_IMAGES * (max(lengths) - 1) * token
    counted("bytes of the prompts' cache, all rows at a time", cache_bytes[0], once, once)
    copies = STEP_N * (sum(lengths) - STEP_IMAGES) * token
    print(f"  a copy for each row would take {copies:,} bytes")


def whole_step(model) -> tuple:
    """A policy, the images of a step, their names and their prompts. They are encoded here, once and for all
    rollouts that follow."""
    policy = policies.from_parts(model, tiny.processor())
    policy.banned[policy.eos_ids] = True
    images = step.pictures("cub", STEP_IMAGES)
    ids = [str(i) for i in range(STEP_IMAGES)]
    prompts = policies.encode(policy, images, step.QUESTION)
    rollout.encode = lambda *args: prompts
    return policy, images, ids, prompts


def record_prompt_bytes() -> list[int]:
    """A list that takes the bytes of the prompts' keys and values of each decoding cache from here on."""
    sizes = []

    def recorded(*args, **kwargs):
        cache = shared_prompt_cache.SharedPromptCache(*args, **kwargs)
        size = 0
        for layer in cache.layers:
            size += layer.prompt_keys.nbytes + layer.prompt_values.nbytes
        sizes.append(size)
        return cache

    rollout.SharedPromptCache = recorded
    return sizes


# ------------------------------------------------------------------------------------------------------------
# Kernel launches: what a GPU waits for, whatever the number of rows


NO_KERNEL = ("aten::_unsafe_view", "aten::detach_")  # views by another name


class Launches(TorchDispatchMode):
    """Inside, aten calls that are no views are counted: total; and adapted, those of the linear layers with
    adapters while a pass decodes one token of each row. passes: those passes."""

    def __init__(self, model):
        super().__init__()
        self.total = 0
        self.adapted = 0
        self.passes = 0
        self.is_inside = False
        model.get_decoder().register_forward_pre_hook(self.before_pass, with_kwargs=True)
        for layer in lora.lora_layers(model).values():
            layer.register_forward_pre_hook(self.enter)
            layer.register_forward_hook(self.leave)

    def before_pass(self, decoder, args, kwargs) -> None:
        given = kwargs.get("inputs_embeds")
        if given is None:
            given = kwargs["input_ids"]
        self.decodes = given.shape[1] == 1
        self.passes += self.decodes

    def enter(self, *args) -> None:
        self.is_inside = self.decodes

    def leave(self, *args) -> None:
        self.is_inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Without autograd a call that is made of others arrives whole.
        with self:
            made = func.decompose(*args, **kwargs)
        if made is not NotImplemented:
            return made
        if not func.is_view and func._schema.name not in NO_KERNEL:
            self.total += 1
            self.adapted += self.is_inside
        return func(*args, **kwargs)

    def product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """shared_prompt_cache.product as on a GPU: one launch. A CPU has to cast both sides first."""
        first = a.flatten(0, 1)
        second = b.flatten(0, 1)
        self.total += 1
        with _disable_current_modes():
            out = torch.bmm(first.float(), second.float())
        return out.unflatten(0, a.shape[:2])


def shortened(prompts: list) -> list:
    """The ends of the prompts, as many lengths as before, from 8 tokens on: a launch is one for a prompt of
    any length, and a CPU is slow at so many tokens in bfloat16."""
    lengths = sorted({len(prompt) for prompt in prompts})
    short = []
    for prompt in prompts:
        keep = 8 + lengths.index(len(prompt))
        short.append(policies.Prompt(prompt.ids[-keep:], prompt.embeds[-keep:], prompt.positions[:, -keep:],
                                     prompt.start))
    return short


def launches(sample, sampler_bytes: int, tokens: int) -> Launches:
    """Those of a step's rollout, images encoded before, on a model as deep as the 7B."""
    config = tiny.config(tiny.tokenizer(), layers=LAYERS)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16)
    policy, images, ids, prompts = whole_step(model)
    short = shortened(prompts)
    rollout.encode = lambda *args: short
    lora.add_lora(model, step.RANK, step.ALPHA)

    seen = Launches(model)
    shared_prompt_cache.product = seen.product
    rollout.SAMPLER_BYTES = sampler_bytes
    with seen:
        sample(policy, images, ids, STEP_N, tokens, STEP_ROWS)
    return seen


def count_launches() -> None:
    """Ours beside by length, whose adapters are cast for every token and whose sampler takes all rows at
    once. Every token costs the same, so two lengths tell of all."""
    print(f"\nits kernel launches, {LAYERS} layers of the tiny width with LoRA {step.RANK}, bfloat16, "
          f"{STEP_ROWS} rows at a time")
    # In as many pieces as the whole vocabulary takes.
    sampler_bytes = rollout.SAMPLER_BYTES * len(tiny.tokenizer()) // VOCABULARY
    systems = {"by length": (sample_by_length, 1 << 40), "ours": (sample_ours, sampler_bytes)}
    long = {}
    for name, (sample, memory) in systems.items():
        few = launches(sample, memory, STEP_TOKENS // 2)
        many = launches(sample, memory, STEP_TOKENS)
        a_token = (many.total - few.total) / (STEP_TOKENS - STEP_TOKENS // 2)
        long[name] = many.total + (ANSWER_TOKENS - STEP_TOKENS) * a_token
        adapted = many.adapted // (many.passes * LAYERS)
        print(f"  {name}: {few.total:,} at {STEP_TOKENS // 2} tokens, {many.total:,} at {STEP_TOKENS}, so "
              f"{long[name]:,.0f} at {ANSWER_TOKENS}")
        expected = {"by length": 35, "ours": 21}[name]
        counted(f"launches of the adapted layers, a layer and token, {name}", adapted, expected, expected)
    counted(f"by length / ours at {ANSWER_TOKENS} tokens", long["by length"] / long["ours"], 6, math.inf)


# ------------------------------------------------------------------------------------------------------------
# The command


def child(what: str, sizes: str, count: str, n: str) -> dict:
    """One of SYSTEMS, or dropping."""
    if what == "dropping":
        return dropping(sizes, int(count), int(n))
    return measure(what, sizes, int(count), int(n))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=("systems", "dropping", "counts"))
    p.add_argument("--child", nargs=4, metavar=("WHAT", "SIZES", "IMAGES", "N"), help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)

    # In a child's process: one measurement, one line of JSON.
    if args.child:
        print(json.dumps(child(*args.child)))
        return

    if args.only in (None, "counts"):
        count_rounds()
        count_launches()
    if args.only in (None, "systems"):
        for sizes, count, n in CASES:
            print_case(sizes, count, n)
    if args.only in (None, "dropping"):
        for sizes in ("equal", "cub"):
            print_dropping(sizes, 8, 8)
    if MISSED:
        sys.exit("rollout.py: " + "; ".join(MISSED))


if __name__ == "__main__":
    main()
