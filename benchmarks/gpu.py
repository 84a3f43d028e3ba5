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

TEXT = {"hidden_size": (2048, 3584), "num_hidden_layers": (36, 28), "num_attention_heads": (16, 28),
        "num_key_value_heads": (2, 4), "intermediate_size": (11008, 18944), "vocab_size": (151936, 152064)}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bf16, flops/s
CARDS = (24, 48, 80, 141)  # GB
PAPER_IMAGES, PAPER_N, PAPER_STEPS = 256, 10, 165


def build(shape: str, device: str, dtype) -> policies.Policy:
    """A policy of that shape. Tokens are a small tokenizer's, the vocabulary and so the head full-sized."""
    tok = tiny.tokenizer()
    if shape == "tiny":
        model = tiny.model(tok)
    else:
        which = ("3b", "7b").index(shape)
        ids = dict(zip(tiny.SPECIALS, tok.convert_tokens_to_ids(tiny.SPECIALS)))
        text = {name: sizes[which] for name, sizes in TEXT.items()}
        config = Qwen2_5_VLConfig(
            text_config=text | dict(
                rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=None,
                tie_word_embeddings=shape == "3b", max_position_embeddings=32768,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}),
            vision_config=dict(depth=32, hidden_size=1280, num_heads=16, intermediate_size=3420,
                               patch_size=14, window_size=112, fullatt_block_indexes=[7, 15, 23, 31],
                               out_hidden_size=text["hidden_size"]),
            image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=shape == "3b")
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype,
                                                                    attn_implementation="sdpa")
    made = policies.from_parts(model.to(device), tiny.processor(), name=shape)
    made.banned[made.eos_ids] = True  # every completion has the full length
    return made


def question_of(policy, length: int, side: int) -> str:
    """A question that makes the prompt `length` tokens long."""
    image, question = tiny.pictures((side, side)), "what is it?"
    missing = length - len(policies.encode(policy, image, question)[0])
    return question + " ?" * (missing // max(1, len(policy.tokenizer(" ?")["input_ids"])))


def timed(device: str, function) -> tuple[float, float, object]:
    """Seconds, peak memory in GB (0 on a CPU), and what the function returns."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    made = function()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0, made


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
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = args.peak or next((v for k, v in PEAK.items() if k in card), None)
    torch.set_float32_matmul_precision("highest")
    policy = build(args.shape, device, torch.bfloat16 if device == "cuda" else torch.float32)
    lora.add_lora(policy.model, 64, 32)
    print(f"{card}, torch {torch.__version__}, {args.shape}: {args.images} images x {args.n} answers of "
          f"{args.tokens} tokens, {time.strftime('%Y-%m-%d')}")
    side = 448 if args.shape != "tiny" else 56
    question, images = question_of(policy, args.text, side), tiny.pictures(*[(side, side)] * args.images)
    ids = [str(i) for i in range(args.images)]

    def sample(count):
        return rollout.sample(policy, images[:count], ids[:count], question, args.n,
                              max_new_tokens=args.tokens, max_rows=args.rows)
    try:
        sample(1)  # warms up
        rollout_s, rollout_gb, groups = timed(device, lambda: sample(args.images))
    except torch.cuda.OutOfMemoryError:
        sys.exit("gpu.py: out of memory in the rollout: lower --rows, --images, --n or --tokens")
    prompt = len(groups[0].prompt)
    linear = sum(m.weight.numel() for m in policy.model.get_decoder().modules()
                 if isinstance(m, torch.nn.Linear))
    linear += sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    head = policy.model.lm_head.weight.numel()
    answers = args.n * args.tokens  # tokens an image
    once = 2 * (linear * (prompt + answers) + head * answers)  # one shared pass, flops an image
    vision_s, _, _ = timed(device, lambda: policies.encode(policy, images, question))

    config = train.Config(n=args.n, max_new_tokens=args.tokens, beta=0.01, clip_low=0.2, clip_high=0.2)
    completions, mask, _ = (x.flatten(0, 1) for x in train.stack(groups, policy.pad_id))

    def reference():
        with torch.no_grad(), lora.adapters_off(policy.model):
            for i in range(args.images):
                part = slice(i * args.n, (i + 1) * args.n)
                policies.completion_logprobs(policy, [groups[i].prompt], completions[part], mask[part])
    reference_s, reference_gb, _ = timed(device, reference)

    def update(count: int, micro_batch: int, checkpointing: bool):
        config.minibatch, config.micro_batch, config.checkpointing = count, micro_batch, checkpointing
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        advantages = torch.randn(count, args.n, generator=torch.Generator().manual_seed(0))
        beta, config.beta = config.beta, 0.0  # the reference pass is timed apart
        train.update(policy, torch.optim.AdamW(parameters, 3e-5), groups[:count], advantages, config)
        config.beta = beta

    print(f"\nprompts of {prompt} tokens, {linear / 1e9:.2f} G linear parameters; utilisation of "
          + (f"{peak / 1e12:.0f} TF/s" if peak else "an unknown peak"))
    print(f"{'':<34}{'s/image':>9}{'MFU':>7}{'peak GB':>9}   s/step of {PAPER_IMAGES} x {args.n}")
    rows = [("rollout (with vision and prefill)", rollout_s / args.images,
             2 * (linear * (prompt + answers) + head * answers), rollout_gb),
            ("  of it vision", vision_s / args.images, None, None),
            ("reference", reference_s / args.images, once, reference_gb)]
    memory, best = {}, {}
    count = min(args.images, 16)
    for checkpointing, passes in ((False, 2), (True, 3)):
        for micro_batch in [size for size in (1, 2, 4) if size <= count]:
            name = f"update, micro-batch {micro_batch}" + (", checkpointing" if checkpointing else "")
            try:
                update(micro_batch, micro_batch, checkpointing)  # warms up
                seconds, gb, _ = timed(device, lambda: update(count, micro_batch, checkpointing))
            except torch.cuda.OutOfMemoryError:
                print(f"{name:<34}out of memory")
                torch.cuda.empty_cache()
                continue
            rows.append((name, seconds / count, passes * once, gb))
            memory[checkpointing, micro_batch] = gb
            best[checkpointing] = min(best.get(checkpointing, seconds / count), seconds / count)
    for name, seconds, flops, gb in rows:
        used = f"{flops / seconds / peak:.1%}" if flops and peak else "-"
        memory_used = f"{gb:.1f}" if gb else "-"
        print(f"{name:<34}{seconds:>9.3f}{used:>7}{memory_used:>9}{seconds * PAPER_IMAGES:>10.1f}")
    for checkpointing, seconds in best.items():
        step = PAPER_IMAGES * (rollout_s + 1.5 * reference_s + seconds * args.images) / args.images
        how = " with checkpointing" if checkpointing else ""
        print(f"step{how}: {step:.0f} s; the paper's {PAPER_STEPS} steps: {step * PAPER_STEPS / 3600:.1f} h "
              "(without the judge)")
    for checkpointing in (False, True):
        if device == "cuda" and {(checkpointing, 1), (checkpointing, 2)} <= memory.keys():
            each = memory[checkpointing, 2] - memory[checkpointing, 1]
            base = memory[checkpointing, 1] - each
            fits = {card: max(0, int((0.95 * card - base) / each)) for card in CARDS}
            how = " with checkpointing" if checkpointing else ""
            print(f"micro-batch that fits{how}, by {base:.1f} GB + {each:.1f} GB an image: "
                  + ", ".join(f"{k} GB: {v}" for k, v in fits.items()))


if __name__ == "__main__":
    main()
