"""Seconds per 100 distinct pairs: a plain judge, LLMJudge, and a warm CachedJudge.

    python benchmarks/judge.py                            about two minutes on one CPU thread
    python benchmarks/judge.py --pairs 8 --hidden 96      a quick look

One process, one thread, one model: a Llama of about 100M parameters with random weights (speed does not ask
for sense), float32, under the prompt "short". The plain paths are one full forward per pair, decided by the
categories' first tokens, and one per pair and category, which is what LLMJudge's scores must equal; they run
on fewer pairs and are scaled to 100.
"""

import argparse
import math
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # before this folder, whose judge.py is this file

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from words import SPECIALS, TEMPLATE

from judge import EXAMPLES, INSTRUCTIONS, CachedJudge, LLMJudge
from reward import Category

KINDS = ("warbler", "gull", "poppy", "orchid", "curry", "noodle soup", "terrier", "spaniel", "coupe", "van",
         "biplane", "glider", "finch", "owl", "lily", "stew")
MARKS = ("golden-winged", "black-throated", "northern", "common", "red", "spotted", "great", "little",
         "mountain", "Scottish", "long-tailed", "white", "painted", "crested", "wild", "old English")


def some_pairs(n: int) -> list[tuple[str, str]]:
    """n distinct pairs of a truth and a different answer."""
    rng, pairs = random.Random(0), {}
    while len(pairs) < n:
        truth = f"{rng.choice(MARKS)} {rng.choice(KINDS)}"
        answer = rng.choice((f"{rng.choice(MARKS)} {rng.choice(KINDS)}", f"a {rng.choice(KINDS)}"))
        if truth != answer:
            pairs[truth.lower(), answer.lower()] = None
    return list(pairs)


def build_tokenizer():
    """Trained here, and no kinder to LLMJudge than a real one. SmolLM2's makes 517 tokens of a prompt, 15 of
    them the pair's own, and 16 of the categories and their end tokens; this one about 515, 25 and 14."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    shots = [f"user\nTrue label: {t.lower()}\nAnswer: {a}\nassistant\n{v}" for t, a, v in EXAMPLES]
    tok.train_from_iterator([INSTRUCTIONS, *shots] * 3, trainers.BpeTrainer(
        vocab_size=570, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    return PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                   chat_template=TEMPLATE)


def build_model(tokenizer, hidden: int, layers: int):
    """Std .06 and a wide head: scores that differ enough between pairs for equality to mean something."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16384, hidden_size=hidden, intermediate_size=hidden * 8 // 3,
                         num_hidden_layers=layers, num_attention_heads=12, num_key_value_heads=4,
                         max_position_embeddings=2048, initializer_range=0.06, attn_implementation="sdpa",
                         bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=5.5 / math.sqrt(hidden))
    return model


@torch.inference_mode()
def plain_first(judge: LLMJudge, pairs) -> list[Category]:
    """One full forward per pair, over the whole prompt; the category whose first token is likeliest."""
    first = [option[0] for option in judge.options]
    verdicts = []
    for pair in pairs:
        ids = torch.tensor([judge._encode(judge._prompt(pair))])
        logits = judge.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        verdicts.append(Category(logits[first].argmax().item()))
    return verdicts


@torch.inference_mode()
def plain_full(judge: LLMJudge, pairs) -> torch.Tensor:
    """One full forward per pair and category: (len(pairs), 6) log-probabilities, end token included."""
    scores = []
    for pair in pairs:
        prompt = judge._encode(judge._prompt(pair))
        for option in judge.options:
            ids = torch.tensor([prompt + option[:-1]])
            logits = judge.model(input_ids=ids, use_cache=False, logits_to_keep=len(option)).logits[0]
            scores.append(logits.log_softmax(-1).gather(-1, torch.tensor(option)[:, None]).sum())
    return torch.stack(scores).view(len(pairs), len(judge.options))


def clock(work, *args):
    """What work returns, its CPU seconds and its wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work(*args)
    return result, time.process_time() - cpu, time.perf_counter() - wall


def times(ratio: float) -> str:
    return f"{ratio:,.1f}×" if ratio < 100 else f"{ratio:,.0f}×"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=100, help="distinct pairs for LLMJudge and CachedJudge")
    p.add_argument("--hidden", type=int, default=768, help="the model's width, a multiple of 24")
    p.add_argument("--layers", type=int, default=12)
    args = p.parse_args()
    if args.pairs < 8 or args.hidden % 24 or args.hidden < 24 or args.layers < 1:
        p.error("at least 8 pairs, a width that is a multiple of 24, and a layer")
    torch.set_num_threads(1)

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.hidden, args.layers)
    judge, pairs = LLMJudge(model, tokenizer, prompt="short", name="random"), some_pairs(args.pairs)
    lengths = [len(judge._encode(judge._prompt(pair))) for pair in pairs]
    few_first, few_full, again = pairs[:16], pairs[:8], 20
    judge.log_likelihoods(pairs[:2])                 # warm up: the first forward of a process is slow
    judge._prefix, judge._cache = [], None           # and forget the shared prompt again

    first, *plain = clock(plain_first, judge, few_first)
    full, *plain6 = clock(plain_full, judge, few_full)
    ours, *cold = clock(judge.log_likelihoods, pairs)
    _, *kept = clock(judge.log_likelihoods, pairs)
    with tempfile.TemporaryDirectory() as folder:
        cached = CachedJudge(judge, Path(folder) / "verdicts.sqlite")
        filled = cached(pairs)
        read, *warm = clock(lambda: [cached(pairs) for _ in range(again)])
        assert cached.misses == len(pairs) and cached.hits == again * len(pairs), "the cache was not warm"

    rows = [("plain: one full forward per pair, first token", plain, len(few_first)),
            ("plain: one full forward per pair and category", plain6, len(few_full)),
            ("LLMJudge, its first call (shared prompt encoded)", cold, len(pairs)),
            ("LLMJudge, later calls", kept, len(pairs)),
            ("CachedJudge, warm", warm, again * len(pairs))]
    millions = sum(w.numel() for w in model.parameters()) / 1e6
    print(f"{millions:.0f}M parameters, float32, one thread of {platform.processor() or platform.machine()}; "
          f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    print(f"prompt of {sum(lengths) / len(lengths):.0f} tokens, {len(judge._prefix)} of them shared; six "
          f"categories of {sum(map(len, judge.options))} tokens, end tokens included\n")
    print("| | pairs timed | CPU s per 100 | wall s per 100 | plain / this | this / warm cache |")
    print("|---|---|---|---|---|---|")
    for name, (cpu, wall), n in rows:
        each = cpu / n
        print(f"| {name} | {n} | {each * 100:.3f} | {wall / n * 100:.3f} "
              f"| {times(plain[0] / len(few_first) / each)} | {times(each * rows[-1][2] / warm[0])} |")

    verdicts = [Category(k) for k in ours.argmax(1).tolist()]
    off = (full - ours[:len(full)]).abs().max().item()
    same, kept_same = full.argmax(1).tolist() == verdicts[:len(full)], filled == read[0] == verdicts
    print(f"\nLLMJudge's verdicts and the plain full path's {'equal' if same else 'DIFFER'} on {len(full)} "
          f"pairs, max |d log-prob| {off:.1e}; the cache's {'equal' if kept_same else 'DIFFER'} on "
          f"{len(pairs)}")
    print(f"LLMJudge's verdicts are of {len(set(verdicts))} kinds; the first token alone says the same on "
          f"{sum(a == b for a, b in zip(first, verdicts))} of {len(first)}")
    if not same or not kept_same or off > 1e-4:
        sys.exit("benchmarks/judge.py: the paths disagree")


if __name__ == "__main__":
    main()
