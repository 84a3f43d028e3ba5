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
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from transformers import LogitsProcessorList, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.cache_utils import DynamicLayer

import lora
import policy as policies
import rollout
import tiny
import train
from judge import judge_groups
from judges.taxonomy import TaxonomyJudge
from support import checkpoints, decoding_cache

QUESTION, SIDE, IMAGES, N = "what is it? be brief.", 504, 2, 8
RANK, ALPHA, LR, TEMPERATURE = 64, 32, 1e-4, 1.0


def build() -> policies.Policy:
    """The "mid" shape, 7 M parameters; std .08, so that logits are far enough apart for equal answers to mean
    something. EOS is banned: every completion has the full length."""
    tok = tiny.tokenizer()
    ids = dict(zip(tiny.SPECIALS, tok.convert_tokens_to_ids(tiny.SPECIALS)))
    config = Qwen2_5_VLConfig(
        text_config=dict(vocab_size=len(tok), hidden_size=256, intermediate_size=768, num_hidden_layers=8,
                         num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096,
                         bos_token_id=None, eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
                         rope_parameters={"rope_type": "default", "rope_theta": 1e6,
                                          "mrope_section": [4, 6, 6]}),
        vision_config=dict(depth=4, hidden_size=128, num_heads=4, intermediate_size=384, out_hidden_size=256,
                           patch_size=14, window_size=112, fullatt_block_indexes=[3]),
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False, attn_implementation="sdpa")
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.08)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    made = policies.from_parts(model.eval(), tiny.processor())
    made.banned[made.eos_ids] = True
    return made


def resident_mb(key: str) -> float:
    """VmRSS or VmHWM (its peak) of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


class Clock:
    """CPU seconds by part of a step, and the growth of peak memory."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self.base, self.steps = resident_mb("VmRSS"), []

    def timed(self, part: str, function):
        def run(*args, **kwargs):
            start = time.process_time()
            made = function(*args, **kwargs)
            self.steps[-1][part] = self.steps[-1].get(part, 0) + time.process_time() - start
            return made
        return run

    def report(self) -> dict:
        steps = self.steps[1:]  # the first warms up
        parts = {part: median(s[part] for s in steps) for part in steps[0]}
        return parts | {"memory": resident_mb("VmHWM") - self.base}


def plain_rollout(policy, images, ids, question, n, seed, stream, max_new_tokens):
    """transformers' generate on the processor's output, image and prompt repeated N times; the random numbers
    and so the answers are rollout.sample's."""
    text = checkpoints.render_question(policy.processor, question)
    inputs = policy.processor(text=[text] * len(images), images=images, return_tensors="pt", padding=True)
    rows = [np.random.default_rng(rollout.seed_for(seed, stream, i, k)).random(max_new_tokens)
            for i in ids for k in range(n)]
    sampler = rollout.Sampler(torch.from_numpy(np.stack(rows)), TEMPERATURE, policy.banned)
    repeated = policy.processor(text=[text] * (len(images) * n), return_tensors="pt", padding=True,
                                images=[image for image in images for _ in range(n)])
    made = policy.model.generate(**repeated, do_sample=False, max_new_tokens=max_new_tokens,
                                 logits_processor=LogitsProcessorList([sampler]))
    completions = made[:, inputs["input_ids"].shape[1]:]
    prompts = policies.encode(policy, images, question)
    logprobs, mask = torch.stack(sampler.logprobs, 1), torch.ones_like(completions, dtype=torch.bool)
    texts = policy.tokenizer.batch_decode(completions)
    return [rollout.Group(ids[i], prompts[i], *(t[i * n:(i + 1) * n] for t in (completions, mask, logprobs)),
                          texts[i * n:(i + 1) * n], [None] * n, 0) for i in range(len(images))]


def ours(tokens: int, plain: bool, n: int = N, steps: int = 6, micro_batch: int = IMAGES) -> dict:
    """Our own step, or the same with every completion behind its own copy of the prompt."""
    policy, images = build(), tiny.pictures(*[(SIDE, SIDE)] * IMAGES)
    lora.add_lora(policy.model, RANK, ALPHA)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LR)
    config = train.Config(n=n, minibatch=IMAGES, micro_batch=micro_batch, max_new_tokens=tokens, beta=0.01,
                          clip_low=0.2, clip_high=0.2)
    judge = TaxonomyJudge({"red finch": "finch", "finch": "bird", "bird": None})
    ids, sample = [str(i) for i in range(IMAGES)], plain_rollout if plain else rollout.sample
    rng, answers = np.random.default_rng(0), ["red finch", "finch", "bird", "owl", "none", "a red finch"]
    score, first = policies.completion_logprobs, None
    clock = Clock()

    def scored(*args):
        run = score if torch.is_grad_enabled() else clock.timed("reference", score)
        return run(*args, shared=not plain)
    train.completion_logprobs = scored
    for step in range(steps):
        clock.steps.append({})
        start = time.process_time()
        groups = clock.timed("rollout", sample)(policy, images, ids, QUESTION, n=n, seed=0,
                                                stream=f"train/{step}", max_new_tokens=tokens)
        said = [[answers[k] for k in rng.integers(len(answers), size=n)] for _ in ids]
        judged = clock.timed("judge", judge_groups)(judge, ["red finch"] * IMAGES, said)
        rewards = [train.group_rewards(c, config) for c in judged]
        advantages = train.group_advantages(torch.tensor(rewards))
        clock.timed("update", train.update)(policy, optimizer, groups, advantages, config)
        clock.steps[-1]["update"] -= clock.steps[-1]["reference"]
        clock.steps[-1]["step"] = time.process_time() - start
        first = first or [g.completions.tolist() for g in groups]
    return clock.report() | {"prompt": len(groups[0].prompt), "first": first}


def trl(tokens: int, steps: int = 6) -> dict:
    """TRL's GRPOTrainer on the same model, images, N, LoRA and length."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    policy, images = build(), tiny.pictures(*[(SIDE, SIDE)] * IMAGES)
    banned = policy.banned.nonzero().flatten().tolist()
    policy.model.generation_config.suppress_tokens = banned
    rows = [{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
             "image": image} for image in images]
    options = GRPOConfig(
        output_dir="/tmp/trl", per_device_train_batch_size=IMAGES * N, num_generations=N, beta=0.01,
        max_completion_length=tokens, max_steps=steps, learning_rate=LR, report_to="none", use_cpu=True,
        save_strategy="no", logging_strategy="no", gradient_checkpointing=False, bf16=False,
        max_grad_norm=1.0, temperature=TEMPERATURE, disable_tqdm=True,
        generation_kwargs={"suppress_tokens": banned, "min_new_tokens": tokens})
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=r".*language_model.*\.(q_proj|k_proj|v_proj|"
                      r"o_proj|gate_proj|up_proj|down_proj)")
    clock = None

    class Steps(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            clock.steps.append({})
            self.start = time.process_time()

        def on_step_end(self, *args, **kwargs):
            clock.steps[-1]["step"] = time.process_time() - self.start

    def reward(completions, **kwargs):
        return [float(i % 2) for i in range(len(completions))]
    trainer = GRPOTrainer(model=policy.model, reward_funcs=reward, args=options, peft_config=lora,
                          train_dataset=Dataset.from_list(rows), processing_class=policy.processor,
                          callbacks=[Steps()])
    clock = Clock()
    generate = type(policy.model).generate

    def timed_generate(self, *args, **kwargs):
        made = clock.timed("rollout", generate)(self, *args, **kwargs)
        assert made.shape[1] >= tokens
        return made
    type(policy.model).generate = timed_generate
    trainer.train()
    return clock.report()


def dropping(count: int) -> dict:
    """Rollouts of `count` images alone, their lengths spread evenly over 50 .. 150: ended rows dropped; run
    to the end; and run to the end on transformers' own cache, as `generate` does by itself. Answers are the
    same but where a random number lies within rounding of the edge between two neighbouring tokens (another
    number of rows is multiplied in another order): "differ" counts those rows, any other difference fails."""
    policy, images = build(), tiny.pictures(*[(SIDE, SIDE)] * count)
    decode, eos, found = rollout._decode, policy.eos_ids[0], {}

    class Ending(rollout.Sampler):
        """Says EOS where the uniform number is 2."""
        def __call__(self, input_ids, scores):
            ends = self.uniforms[:, len(self.logprobs)] > 1
            out = super().__call__(input_ids, scores)
            out[ends] = torch.full_like(out[ends], -torch.inf).index_fill(1, torch.tensor([eos]), 0.0)
            return out

    def spread(policy, prompts, uniforms, *args):
        lengths = np.random.default_rng(0).permutation(np.linspace(50, 150, len(prompts)).astype(int))
        for row, length in enumerate(lengths):
            uniforms[row, length - 1:] = 2.0
        return decode(policy, prompts, uniforms, *args)
    rollout._decode, rollout.Sampler = spread, Ending
    share, layer = decoding_cache.DROP, rollout._Layer
    place = (~policy.banned).cumsum(0).tolist()  # of each token among those that can be sampled
    for name in ("dropped", "kept", "plain") * 4:
        decoding_cache.DROP = share if name == "dropped" else 2.0
        rollout._Layer = DynamicLayer if name == "plain" else layer
        start = time.process_time()
        groups = rollout.sample(policy, images, list(map(str, range(count))), QUESTION, N, max_new_tokens=150)
        found.setdefault(name, []).append(time.process_time() - start)
        rows = [row[mask].tolist() for g in groups for row, mask in zip(g.completions, g.mask)]
        firsts = [next((pair for pair in zip(*both) if pair[0] != pair[1]), None)
                  for both in zip(rows, found.setdefault("rows", rows), strict=True)]
        edges = [abs(place[a] - place[b]) for a, b in filter(None, firsts)]
        assert set(edges) <= {1} and len(edges) <= 0.02 * len(rows), "answers depend on dropping rows"
        found["differ"] = max(len(edges), found.get("differ", 0))
        lengths = [int(x) for g in groups for x in g.mask.sum(1)]
        assert min(lengths) == 50 and max(lengths) == 150
    return {name: median(found[name][1:]) for name in ("dropped", "kept", "plain")} | {
        "differ": found["differ"]}


def growth(tokens: int) -> dict:
    """CPU seconds of reference and update together by N, at this completion length."""
    found = {}
    for n in (2, 4, 8, 16, 32):
        seen = ours(tokens, plain=False, n=n, micro_batch=1)  # as train.py's default
        found[n] = seen["reference"] + seen["update"]
        prompt = seen["prompt"]
    return {"seconds": found, "prompt": prompt}


CHILDREN = {"plain": lambda tokens: ours(tokens, plain=True),
            "ours": lambda tokens: ours(tokens, plain=False),
            "trl": trl, "dropping": dropping, "growth": growth}


def child(what: str, size: int) -> dict:
    """What one of CHILDREN returns for this many tokens (dropping: images), from a process of its own."""
    made = subprocess.run([sys.executable, __file__, "--child", what, str(size)], capture_output=True,
                          text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if made.returncode:
        sys.exit(f"{what} {size} failed:\n{made.stderr[-2000:]}")
    return json.loads(made.stdout.splitlines()[-1])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", choices=("step", "dropping", "growth"))
    p.add_argument("--child", nargs=2, metavar=("WHAT", "SIZE"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        print(json.dumps(CHILDREN[args.child[0]](int(args.child[1]))))
        return
    try:
        import peft  # noqa: E401, F401
        import trl
        systems = ("plain", "trl", "ours")
    except ImportError:
        print("trl and peft are not installed: no comparison with TRL")
        systems = ("plain", "ours")
    if args.only in (None, "step"):
        print(f"CPU seconds a step, {IMAGES} prompts, N = {N} (tokens/s: completions; memory: MB over base)")
        for tokens in (64, 150):
            seen = {what: child(what, tokens) for what in systems}
            same = seen["plain"].pop("first") == seen["ours"].pop("first")
            print(f"\n{tokens} tokens, prompts of {seen['ours']['prompt']}; plain and ours sample the same "
                  f"answers in the first step: {same}\n{'':<8}" + "".join(f"{h:>11}" for h in (
                      "rollout", "judge", "reference", "update", "step", "tokens/s", "memory")))
            for what, s in seen.items():
                s["rate"] = IMAGES * N * tokens / s["step"]
                cells = [s.get(k) for k in ("rollout", "judge", "reference", "update", "step")]
                print(f"{what:<8}" + "".join(f"{'-' if c is None else f'{c:.2f}':>11}" for c in cells)
                      + f"{s['rate']:>11.0f}{s['memory']:>11.0f}")
            for what in systems[:-1]:
                print(f"{what} / ours: " + ", ".join(
                    f"{k} {seen[what][k] / seen['ours'][k]:.2f}x" for k in (
                        "rollout", "reference", "update", "step", "memory") if k in seen[what]))
    if args.only in (None, "dropping"):
        for count in (2, 8, 32):
            seen = child("dropping", count)
            print(f"\nrollout of {count} x {N}, lengths over 50..150, {seen['differ']} answers differ: "
                  f"{seen['dropped']:.2f} s; with ended rows kept {seen['kept']:.2f} s, "
                  f"{seen['kept'] / seen['dropped']:.2f}x; and on transformers' own cache "
                  f"{seen['plain']:.2f} s, {seen['plain'] / seen['dropped']:.2f}x")
    if args.only in (None, "growth"):
        for tokens in (64, 150):
            seen = child("growth", tokens)
            s, prompt = seen["seconds"], seen["prompt"]
            print(f"\nreference and update by N at {tokens} tokens: "
                  + ", ".join(f"{n}: {v:.2f} s" for n, v in s.items())
                  + f"; from 4 to 32 {s['32'] / s['4']:.2f}x, the tokens "
                    f"{(prompt + 32 * tokens) / (prompt + 4 * tokens):.2f}x")


if __name__ == "__main__":
    main()
