"""Seconds, memory and model flops utilisation of a training step in the full Qwen2.5-VL shapes, on one GPU.

    python benchmarks/gpu.py                      the 7B shape (give it a few minutes)
    python benchmarks/gpu.py --shape 3b
    python benchmarks/gpu.py --shape tiny --images 2 --n 2 --tokens 8 --text 40      does it run at all (CPU)

Random weights, no download: speed does not ask for sense. bfloat16 with float32 LoRA of rank 64, images of
448 x 448 (256 tokens), prompts of 400 tokens, completions of exactly 150, N = 10. A few images are measured
and scaled to the paper's step of 256 images x 10 answers, and that to its 165 steps; a judge costs extra, and
so does the second minibatch's pass for old log-probs (half a reference pass, counted). Utilisation counts
what the shared-prompt form has to compute: 2 flops a linear parameter and token, backward as much again
(frozen weights have no gradient), 3 passes with checkpointing; attention is left out.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import lora
import policy as policies
import rollout
import tiny
import train

TEXT = {
    "3b": dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
               intermediate_size=11008, vocab_size=151936),
    "7b": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
               intermediate_size=18944, vocab_size=152064)}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, flops/s
CARDS = (24, 48, 80, 141)  # GB
PAPER_IMAGES = 256
PAPER_N = 10
PAPER_STEPS = 165

# ------------------------------------------------------------------------------------------------------------
# A policy of the full shape, and a prompt of the wanted length


def build(shape: str, device: str, dtype) -> policies.Policy:
    """A policy of that shape. Tokens are a small tokenizer's, the vocabulary and so the head full-sized."""
    tok = tiny.tokenizer()
    if shape == "tiny":
        model = tiny.model(tok)
    else:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(full_config(shape, tok), dtype=dtype,
                                                                    attn_implementation="sdpa")
    policy = policies.from_parts(model.to(device), tiny.processor(), name=shape)
    policy.banned[policy.eos_ids] = True  # every completion has the full length
    return policy


def full_config(shape: str, tok) -> Qwen2_5_VLConfig:
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


def question_of(policy, length: int, side: int) -> str:
    """A question that makes the prompt `length` tokens long."""
    question = "what is it?"
    prompt, = policies.encode(policy, tiny.pictures((side, side)), question)
    missing = length - len(prompt)
    word = max(1, len(policy.tokenizer(" ?")["input_ids"]))  # tokens
    return question + " ?" * (missing // word)


# ------------------------------------------------------------------------------------------------------------
# The three parts of a step, each timed


@dataclass
class Row:
    """One line of the table. seconds: an image; flops: an image, None where they are not counted; gb: peak
    memory, 0 on a CPU, None where it is not measured."""
    name: str
    seconds: float
    flops: float | None = None
    gb: float | None = None


def timed(device: str, function, *args) -> tuple[float, float, object]:
    """Seconds, peak memory in GB (0 on a CPU), and what function(*args) returns."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    made = function(*args)
    if device != "cuda":
        return time.perf_counter() - start, 0, made
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e9, made


def flops_an_image(policy, prompt: int, args) -> tuple[float, int]:
    """Flops of one shared pass over an image's prompt and answers, 2 a linear parameter and token, and the
    number of linear parameters. The head reads the answers alone."""
    linear = 0
    for module in policy.model.get_decoder().modules():
        if isinstance(module, torch.nn.Linear):
            linear += module.weight.numel()
    linear += sum(p.numel() for p in policy.model.parameters() if p.requires_grad)  # the adapters
    head = policy.model.lm_head.weight.numel()
    answers = args.n * args.tokens
    return 2 * (linear * (prompt + answers) + head * answers), linear


def score_reference(policy, groups: list) -> None:
    """The reference's log-probs, image by image."""
    completions, mask, _ = rollout.stack(groups, policy.pad_id)           # (B, N, T)
    with torch.no_grad(), lora.adapters_off(policy.model):
        for i, group in enumerate(groups):
            policies.completion_logprobs(policy, [group.prompt], completions[i], mask[i])


def update(policy, groups: list, micro_batch: int, checkpointing: bool, args) -> None:
    """One optimizer update on these groups. Without KL: the reference pass is timed apart."""
    config = train.Config(n=args.n, max_new_tokens=args.tokens, beta=0.0, clip_low=0.2, clip_high=0.2,
                          minibatch=len(groups), micro_batch=micro_batch, checkpointing=checkpointing)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    advantages = torch.randn(len(groups), args.n, generator=torch.Generator().manual_seed(0))
    train.update(policy, torch.optim.AdamW(parameters, 3e-5), groups, advantages, config)


def time_updates(policy, groups: list, device: str, flops: float, args) -> dict[tuple[bool, int], Row]:
    """A row for each (checkpointing, micro-batch) that fits into memory; says which do not."""
    rows = {}
    for checkpointing in (False, True):
        # Backward costs as much as forward; with checkpointing the forward is made twice.
        passes = 3 if checkpointing else 2
        for micro_batch in (1, 2, 4):
            if micro_batch > len(groups):
                continue
            name = f"update, micro-batch {micro_batch}"
            if checkpointing:
                name += ", checkpointing"
            try:
                update(policy, groups[:micro_batch], micro_batch, checkpointing, args)  # warms up
                seconds, gb, _ = timed(device, update, policy, groups, micro_batch, checkpointing, args)
            except torch.cuda.OutOfMemoryError:
                print(f"{name:<34}out of memory")
                torch.cuda.empty_cache()
                continue
            rows[checkpointing, micro_batch] = Row(name, seconds / len(groups), passes * flops, gb)
    return rows


# ------------------------------------------------------------------------------------------------------------
# What it comes to


def print_row(row: Row, peak: float | None) -> None:
    used = f"{row.flops / row.seconds / peak:.1%}" if row.flops and peak else "-"
    gb = f"{row.gb:.1f}" if row.gb else "-"
    print(f"{row.name:<34}{row.seconds:>9.3f}{used:>7}{gb:>9}{row.seconds * PAPER_IMAGES:>10.1f}")


def print_paper_run(rollout_s: float, reference_s: float, updates: dict) -> None:
    """The paper's step and run by the fastest update, from seconds an image."""
    for checkpointing in (False, True):
        times = [row.seconds for (how, _), row in updates.items() if how == checkpointing]
        if not times:
            continue
        # Half a reference pass more: the old log-probs of the second minibatch.
        step = PAPER_IMAGES * (rollout_s + 1.5 * reference_s + min(times))
        how = " with checkpointing" if checkpointing else ""
        print(f"step{how}: {step:.0f} s; the paper's {PAPER_STEPS} steps: {step * PAPER_STEPS / 3600:.1f} h "
              "(without the judge)")


def print_what_fits(updates: dict) -> None:
    """The micro-batch that fits each card, from what one image and two images took."""
    for checkpointing in (False, True):
        if (checkpointing, 1) not in updates or (checkpointing, 2) not in updates:
            continue
        one = updates[checkpointing, 1].gb
        each = updates[checkpointing, 2].gb - one
        base = one - each
        fits = []
        for card in CARDS:
            micro_batch = max(0, int((0.95 * card - base) / each))
            fits.append(f"{card} GB: {micro_batch}")
        how = " with checkpointing" if checkpointing else ""
        print(f"micro-batch that fits{how}, by {base:.1f} GB + {each:.1f} GB an image: " + ", ".join(fits))


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


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", default="7b", choices=("7b", "3b", "tiny"))
    p.add_argument("--images", type=int, default=64, help="images measured")
    p.add_argument("--n", type=int, default=PAPER_N)
    p.add_argument("--tokens", type=int, default=150, help="completion length")
    p.add_argument("--text", type=int, default=400, help="prompt length, image included")
    p.add_argument("--rows", type=int, default=640, help="answers decoded at a time")
    p.add_argument("--peak", type=float, help="the card's dense bf16 flops a second (default: by its name)")
    args = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and args.shape != "tiny":
        sys.exit("gpu.py: there is no GPU here; --shape tiny tries the path on a CPU")
    card, peak = card_and_peak(device, args.peak)
    print(f"{card}, torch {torch.__version__}, {args.shape}: {args.images} images x {args.n} answers of "
          f"{args.tokens} tokens, {time.strftime('%Y-%m-%d')}")
    measure(device, peak, args)


def measure(device: str, peak: float | None, args) -> None:
    """Times every part on args.images images, and prints the table."""
    torch.set_float32_matmul_precision("highest")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    policy = build(args.shape, device, dtype)
    lora.add_lora(policy.model, 64, 32)
    side = 56 if args.shape == "tiny" else 448
    question = question_of(policy, args.text, side)
    images = tiny.pictures(*[(side, side)] * args.images)
    ids = [str(i) for i in range(args.images)]

    def sample(count: int) -> list[rollout.Group]:
        return rollout.sample(policy, images[:count], ids[:count], question, args.n,
                              max_new_tokens=args.tokens, max_rows=args.rows)

    # Rollout, vision in it, reference: the first rollout warms up.
    try:
        sample(1)
        rollout_s, rollout_gb, groups = timed(device, sample, args.images)
    except torch.cuda.OutOfMemoryError:
        sys.exit("gpu.py: out of memory in the rollout: lower --rows, --images, --n or --tokens")
    vision_s, _, _ = timed(device, policies.encode, policy, images, question)
    reference_s, reference_gb, _ = timed(device, score_reference, policy, groups)
    rollout_s /= args.images
    vision_s /= args.images
    reference_s /= args.images

    prompt = len(groups[0].prompt)
    flops, linear = flops_an_image(policy, prompt, args)
    of_peak = f"{peak / 1e12:.0f} TF/s" if peak else "an unknown peak"
    print(f"\nprompts of {prompt} tokens, {linear / 1e9:.2f} G linear parameters; utilisation of {of_peak}")
    print(f"{'':<34}{'s/image':>9}{'MFU':>7}{'peak GB':>9}   s/step of {PAPER_IMAGES} x {args.n}")
    updates = time_updates(policy, groups[:16], device, flops, args)
    print_row(Row("rollout (with vision and prefill)", rollout_s, flops, rollout_gb), peak)
    print_row(Row("  of it vision", vision_s), peak)
    print_row(Row("reference", reference_s, flops, reference_gb), peak)
    for row in updates.values():
        print_row(row, peak)

    print_paper_run(rollout_s, reference_s, updates)
    if device == "cuda":
        print_what_fits(updates)


if __name__ == "__main__":
    main()
