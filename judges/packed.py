"""The in-process judge made fast: several pairs side by side in one forward.

    judge = PackedJudge.load("Qwen/Qwen3-4B-Instruct-2507", "cuda")

Almost all of a judge's prompt is the same for every pair. Here that part is encoded once, and its keys and
values are kept. What each pair adds, some twenty tokens, stands side by side in one row behind it; a mask
lets each pair see the shared prompt and itself only. The scores are LLMJudge's, but for rounding.
`python benchmarks/judge.py` measures the gain.
"""

import copy
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from judge import LLMJudge, Pair

CPU_ROW = 1024          # tokens
GPU_ROW = 4096          # fastest on an H100 (docs/speed.md)
MASK_BYTES = 256 << 20  # a bound on the mask of a row


def can_pack(model) -> bool:
    """Whether pairs can stand side by side in a row: not where attention slides, which would lose the shared
    prompt, and not where a state runs through the row, from one pair into the next."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def tokens_a_row(device: torch.device, past: int, itemsize: int) -> int:
    """How many tokens a row should have: enough to keep the device busy. Its mask, Q x (past + Q) numbers of
    itemsize bytes, takes at most MASK_BYTES. past: length of the shared prompt."""
    wanted = CPU_ROW if device.type == "cpu" else GPU_ROW
    # The largest whole Q for which Q * (past + Q) is no more than these numbers.
    numbers = MASK_BYTES // itemsize
    largest = (math.isqrt(past * past + 4 * numbers) - past) // 2
    return min(wanted, largest)


def row_mask(lengths: Tensor, past: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the tokens of a packed row see, and where each stands in its own pair.

    lengths: (pairs,) tokens of each pair, Q in all; past: length of the shared prompt before the row. Returns
    the mask (Q, past + Q), 0 where a token sees and the dtype's lowest number where not (eager attention adds
    it to its scores), and places (Q,), from 0 on."""
    pair = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # (Q,)
    starts = lengths.cumsum(0) - lengths  # (pairs,)
    place = torch.arange(len(pair), device=lengths.device) - starts[pair]  # (Q,)

    # All of the shared prompt is seen; of the row, a token sees its own pair up to itself.
    same_pair = pair[:, None] == pair  # (Q, Q)
    not_later = place[:, None] >= place  # (Q, Q)
    hidden = ~(same_pair & not_later)
    mask = torch.zeros(len(pair), past + len(pair), dtype=dtype, device=lengths.device)
    mask[:, past:].masked_fill_(hidden, torch.finfo(dtype).min)
    return mask, place


class PackedJudge(LLMJudge):
    """LLMJudge with pairs side by side, in rows of at most row_tokens (None: as many as tokens_a_row says; a
    pair that is longer has a row of its own). A model that can't be packed is asked about one pair at a time,
    as by LLMJudge itself.

    prefix: the tokens of the prompt that all pairs share, encoded at the first call and kept."""

    def __init__(self, model, tokenizer, prompt: str | None = None, name: str = "",
                 row_tokens: int | None = None):
        super().__init__(model, tokenizer, prompt, name)
        self.row_tokens = row_tokens
        self.packs = can_pack(model)
        self.prefix: list[int] = []
        self.cache: DynamicCache | None = None  # the prefix's keys and values

    def logprobs(self, pairs: Sequence[Pair]) -> Tensor:
        """(len(pairs), 6) float32, a column a label: log-probability of its first token; pairs normalised."""
        if not self.packs:
            return super().logprobs(pairs)
        suffixes = self.own_tokens(pairs)
        row_tokens = self.row_tokens
        if row_tokens is None:
            row_tokens = tokens_a_row(self.model.device, len(self.prefix), self.model.dtype.itemsize)
        longest = max(map(len, suffixes))
        pairs_per_row = max(1, row_tokens // longest)
        scores = []
        for start in range(0, len(suffixes), pairs_per_row):
            row = suffixes[start:start + pairs_per_row]
            scores.append(self.score_row(row))
        return torch.cat(scores)

    def own_tokens(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """What each pair adds to the prompt that all share, which is encoded again only if it has changed."""
        # A pair like no other stands in for all that may come: the shared part ends where it differs.
        prompts = [self.prompt_tokens(pair) for pair in [*pairs, ("?", "?")]]
        shared = os.path.commonprefix(prompts)
        # One token at least must be left to predict from.
        shortest = min(map(len, prompts))
        shared = shared[:shortest - 1]

        # A template may write the date: a prefix that no longer begins every prompt is encoded anew.
        still_holds = shared[:len(self.prefix)] == self.prefix
        if self.cache is None or not still_holds:
            self.encode_prefix(shared)
        return [tokens[len(self.prefix):] for tokens in prompts[:-1]]

    @torch.no_grad()
    def encode_prefix(self, shared: list[int]) -> None:
        cache = DynamicCache(config=self.model.config)
        if shared:
            tokens = torch.tensor([shared], device=self.model.device)  # (1, P)
            self.model(input_ids=tokens, use_cache=True, past_key_values=cache, logits_to_keep=1)
        # Kept only now: a forward that failed leaves no half-written cache.
        self.prefix = shared
        self.cache = cache

    @torch.no_grad()
    def score_row(self, suffixes: list[list[int]]) -> Tensor:
        """(len(suffixes), 6): one forward of these pairs' own tokens, side by side behind the prefix."""
        device = self.model.device
        past = len(self.prefix)
        row = []
        for suffix in suffixes:
            row += suffix
        lengths = torch.tensor([len(suffix) for suffix in suffixes], device=device)  # (pairs,)
        mask, place = row_mask(lengths, past, self.model.dtype)
        last_tokens = lengths.cumsum(0) - 1  # (pairs,)

        output = self.model(
            input_ids=torch.tensor([row], device=device),  # (1, Q)
            attention_mask=mask[None, None],  # (1, 1, Q, past + Q)
            position_ids=place[None] + past,  # each pair goes on where the prefix ends
            past_key_values=copy.deepcopy(self.cache),  # a forward writes into its cache
            use_cache=True,
            logits_to_keep=last_tokens,
        )
        logits = output.logits[0]  # (pairs, V)
        return logits.float().log_softmax(-1)[:, self.first_tokens].cpu()
