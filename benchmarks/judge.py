"""Seconds per 100 distinct pairs: the plain LLMJudge, PackedJudge, and a warm CachedJudge.

    python benchmarks/judge.py                            about two minutes on one CPU thread
    python benchmarks/judge.py --pairs 8 --hidden 96      a quick look

One process, one thread, one model: a Llama of about 100M parameters with random weights (speed does not ask
for sense), float32, under the prompt "short". LLMJudge is the plain path, one full forward per pair, whose
scores PackedJudge's must equal; it runs on fewer pairs and is scaled to 100.
"""

import argparse
import math
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # before this folder, whose judge.py is this file

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judge import EXAMPLES, INSTRUCTIONS, LLMJudge
from judges.cache import CachedJudge
from judges.packed import PackedJudge
from reward import Category
from words import SPECIALS, TEMPLATE

KINDS = ("warbler", "gull", "poppy", "orchid", "curry", "noodle soup", "terrier", "spaniel", "coupe", "van",
         "biplane", "glider", "finch", "owl", "lily", "stew")
MARKS = ("golden-winged", "black-throated", "northern", "common", "red", "spotted", "great", "little",
         "mountain", "Scottish", "long-tailed", "white", "painted", "crested", "wild", "old English")
AGAIN = 20  # times that the warm cache is read


def some_pairs(n: int) -> list[tuple[str, str]]:
    """n distinct pairs of a truth and a different answer."""
    rng = random.Random(0)
    pairs = {}  # a dict keeps their order and no pair twice
    while len(pairs) < n:
        truth = f"{rng.choice(MARKS)} {rng.choice(KINDS)}"
        same_rank = f"{rng.choice(MARKS)} {rng.choice(KINDS)}"
        broader = f"a {rng.choice(KINDS)}"
        answer = rng.choice((same_rank, broader))
        if truth != answer:
            pairs[truth.lower(), answer.lower()] = None
    return list(pairs)


def build_tokenizer():
    """Trained here, and no kinder to PackedJudge than a real one. SmolLM2's makes 517 tokens of a prompt, 15
    of them the pair's own; this one about 515 and 25."""
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


class Timed(NamedTuple):
    """What some work returned, how many pairs it was about, and the seconds it took."""
    result: object
    pairs: int
    cpu: float
    wall: float


def clock(work, pairs: list) -> Timed:
    cpu_start = time.process_time()
    wall_start = time.perf_counter()
    result = work(pairs)
    return Timed(result, len(pairs), time.process_time() - cpu_start, time.perf_counter() - wall_start)


def measure(model, tokenizer, pairs: list) -> dict[str, Timed]:
    """Each way to judge pairs, the slowest first. Results: log-probs, but of the cache a list of verdicts."""
    plain_judge = LLMJudge(model, tokenizer, prompt="short")
    PackedJudge(model, tokenizer, prompt="short").logprobs(pairs[:2])  # a process's first forward is slow
    packed_judge = PackedJudge(model, tokenizer, prompt="short", name="random")  # nothing is encoded yet
    timed = {
        "plain": clock(plain_judge.logprobs, pairs[:16]),
        "first call": clock(packed_judge.logprobs, pairs),
        "later calls": clock(packed_judge.logprobs, pairs),
    }

    # The file is filled once and read over and over, so that there is something to time.
    with tempfile.TemporaryDirectory() as folder:
        cached_judge = CachedJudge(packed_judge, Path(folder) / "verdicts.sqlite")
        filled = cached_judge(pairs)
        warm = clock(lambda many: [cached_judge(pairs) for _ in range(AGAIN)], pairs * AGAIN)
        assert cached_judge.misses == len(pairs), "the cache was not warm"
        assert cached_judge.hits == AGAIN * len(pairs), "the cache was not warm"
    assert all(verdicts == filled for verdicts in warm.result), "the cache forgot"
    timed["warm"] = warm._replace(result=filled)
    return timed


def times(ratio: float) -> str:
    if ratio < 100:
        return f"{ratio:,.1f}×"
    return f"{ratio:,.0f}×"


def show_table(timed: dict[str, Timed]) -> None:
    names = {"plain": "plain: one full forward per pair",
             "first call": "PackedJudge, its first call (shared prompt encoded)",
             "later calls": "PackedJudge, later calls",
             "warm": "CachedJudge, warm"}
    plain_each = timed["plain"].cpu / timed["plain"].pairs
    warm_each = timed["warm"].cpu / timed["warm"].pairs
    print("| | pairs timed | CPU s per 100 | wall s per 100 | plain / this | this / warm cache |")
    print("|---|---|---|---|---|---|")
    for key, (_, pairs, cpu, wall) in timed.items():
        each = cpu / pairs
        print(f"| {names[key]} | {pairs} | {each * 100:.3f} | {wall / pairs * 100:.3f} "
              f"| {times(plain_each / each)} | {times(each / warm_each)} |")


def compare(timed: dict[str, Timed]) -> bool:
    """Prints whether the three ways agree, and says so."""
    plain = timed["plain"].result  # (16, 6)
    packed = timed["first call"].result  # (pairs, 6)
    off = (plain - packed[:len(plain)]).abs().max().item()

    verdicts = [Category(k) for k in packed.argmax(1).tolist()]
    same = plain.argmax(1).tolist() == verdicts[:len(plain)]
    cache_same = timed["warm"].result == verdicts
    words = {True: "equal", False: "DIFFER"}
    print(f"\nPackedJudge's verdicts, of {len(set(verdicts))} kinds, and LLMJudge's {words[same]} on "
          f"{len(plain)} pairs, max |d log-prob| {off:.1e}; the cache's {words[cache_same]} on "
          f"{len(verdicts)}")
    return same and cache_same and off <= 1e-4


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--pairs", type=int, default=100, help="distinct pairs for PackedJudge and CachedJudge")
    p.add_argument("--hidden", type=int, default=768, help="the model's width, a multiple of 24")
    p.add_argument("--layers", type=int, default=12)
    args = p.parse_args()
    if args.pairs < 8 or args.hidden % 24 or args.hidden < 24 or args.layers < 1:
        p.error("at least 8 pairs, a width that is a multiple of 24, and a layer")
    torch.set_num_threads(1)

    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.hidden, args.layers)
    pairs = some_pairs(args.pairs)
    timed = measure(model, tokenizer, pairs)

    judge = PackedJudge(model, tokenizer, prompt="short")
    judge.logprobs(pairs)
    tokens = [len(judge.prompt_tokens(pair)) for pair in pairs]
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(f"{millions:.0f}M parameters, float32, one thread of {platform.processor() or platform.machine()}; "
          f"Python {platform.python_version()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")
    print(f"prompt of {sum(tokens) / len(tokens):.0f} tokens, {len(judge.prefix)} of them shared\n")
    show_table(timed)
    if not compare(timed):
        sys.exit("benchmarks/judge.py: the paths disagree")


if __name__ == "__main__":
    main()
