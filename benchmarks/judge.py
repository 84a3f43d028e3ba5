"""Seconds per 100 distinct pairs: a plain judge, LLMJudge, and a warm CachedJudge.

    python benchmarks/judge.py                            about two minutes on one CPU thread
    python benchmarks/judge.py --pairs 8 --hidden 96      a quick look

One process, one thread, one model: a Llama of about 100M parameters with random weights (speed does not ask
for sense), float32, under the prompt "short". The plain path is one full forward per pair, which LLMJudge's
scores must equal; it runs on fewer pairs and is scaled to 100.
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

from judge import EXAMPLES, INSTRUCTIONS, LLMJudge
from judges.cache import CachedJudge
from reward import Category
from words import SPECIALS, TEMPLATE

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
    them the pair's own; this one about 515 and 25."""
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
def plain_logprobs(judge: LLMJudge, pairs) -> torch.Tensor:
    """One full forward per pair, over the whole prompt: (len(pairs), 6)."""
    first = [judge.tokenizer(c.label, add_special_tokens=False)["input_ids"][0] for c in Category]
    rows = []
    for pair in pairs:
        ids = torch.tensor([judge._encode(judge._prompt(pair))])
        logits = judge.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        rows.append(logits.log_softmax(-1)[first])
    return torch.stack(rows)


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
    few, again = pairs[:16], 20
    judge.logprobs(pairs[:2])                        # warm up: the first forward of a process is slow
    judge._prefix, judge._cache = [], None           # and forget the shared prompt again

    full, *plain = clock(plain_logprobs, judge, few)
    ours, *cold = clock(judge.logprobs, pairs)
    _, *kept = clock(judge.logprobs, pairs)
    with tempfile.TemporaryDirectory() as folder:
        cached = CachedJudge(judge, Path(folder) / "verdicts.sqlite")
        filled = cached(pairs)
        read, *warm = clock(lambda: [cached(pairs) for _ in range(again)])
        assert cached.misses == len(pairs) and cached.hits == again * len(pairs), "the cache was not warm"

    rows = [("plain: one full forward per pair", plain, len(few)),
            ("LLMJudge, its first call (shared prompt encoded)", cold, len(pairs)),
            ("LLMJudge, later calls", kept, len(pairs)),
            ("CachedJudge, warm", warm, again * len(pairs))]
    millions = sum(w.numel() for w in model.parameters()) / 1e6
    print(f"{millions:.0f}M parameters, float32, one thread of {platform.processor() or platform.machine()}; "
          f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    print(f"prompt of {sum(lengths) / len(lengths):.0f} tokens, {len(judge._prefix)} of them shared\n")
    print("| | pairs timed | CPU s per 100 | wall s per 100 | plain / this | this / warm cache |")
    print("|---|---|---|---|---|---|")
    for name, (cpu, wall), n in rows:
        each = cpu / n
        print(f"| {name} | {n} | {each * 100:.3f} | {wall / n * 100:.3f} "
              f"| {times(plain[0] / len(few) / each)} | {times(each * rows[-1][2] / warm[0])} |")

    verdicts = [Category(k) for k in ours.argmax(1).tolist()]
    off = (full - ours[:len(full)]).abs().max().item()
    same, kept_same = full.argmax(1).tolist() == verdicts[:len(full)], filled == read[0] == verdicts
    print(f"\nLLMJudge's verdicts, of {len(set(verdicts))} kinds, and the plain path's "
          f"{'equal' if same else 'DIFFER'} on {len(full)} pairs, max |d log-prob| {off:.1e}; the cache's "
          f"{'equal' if kept_same else 'DIFFER'} on {len(pairs)}")
    if not same or not kept_same or off > 1e-4:
        sys.exit("benchmarks/judge.py: the paths disagree")


if __name__ == "__main__":
    main()
