"""Rollouts: the question, N sampled answers for each image, and the parser that reads an answer out of them.

As a library: `groups = sample(policy, images, ids, PROMPTS["base"], n=8, seed=0, stream="train/1")`.

Image and prompt are encoded once; the prompt's cache is forked N times and `model.generate` continues all
rows together, those that have ended being dropped on the way. Sampling is by temperature alone, with random
numbers drawn ahead for each (seed, stream, image, n): no random state needs saving, and an answer does not
depend on what else is in the batch (but where rounding decides: one in some hundreds in float32, more of them
in bfloat16).

Where this departs from the official release:
1. Hugging Face `generate` in this process instead of a vLLM server; the questions are in our own words.
2. Control and image tokens are never sampled (there, one sampled image token ends the run) and have no share
   in the scored distribution either: what is scored is what was sampled.
3. An answer is searched outside closed <think> blocks: a name that is only thought is not given.
"""

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from judge import parse_answer
from policy import Policy, Prompt, decoder_inputs, encode
from support.decoding_cache import _Layer, _Thinned

_FORMAT = ("Think about it first, between <think> and </think>. Then give nothing but its name between "
           "<answer> and </answer>, or None if you cannot name it at all.")
_QUESTION = "Classify the main subject of this picture: what is it?"
PROMPTS = {
    "base": f"{_QUESTION} {_FORMAT}",
    "specific": f"{_QUESTION} Be as specific as you can. {_FORMAT}",
    "calibrated": f"{_QUESTION} Above all be right: name the exact kind only if you are confident of it, and "
                  f"a broader one if you are not. {_FORMAT}",
    "elimination": f"{_QUESTION} While you think, write down at most three names that could fit, and strike "
                   "out each one that something in the picture speaks against. Settle on the one left over; "
                   f"if no single one is, on the broad kind that you are certain of. {_FORMAT}",
    "high_precision": f"{_QUESTION} Go exactly as far into detail as what you see bears out, and rather "
                      f"decline than say what you are unsure of. {_FORMAT}",
    "max_correctness": f"{_QUESTION} A vague answer costs nothing, a mistake everything: choose the most "
                       f"cautious name that is certain to be true. {_FORMAT}",
    "max_specificity": f"{_QUESTION} Always commit to the finest kind there is a name for, even where you "
                       f"have to guess. {_FORMAT.partition(', or None')[0]}. None is no answer.",
}


def seed_for(*parts) -> int:
    """A 64-bit seed from whatever names a draw. sha256: Python's hash() of a string differs in every
    process."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:8], "big")


@dataclass
class Group:
    """One image with its N completions. completions, mask, logprobs: (N, T), right-padded; mask is 1 up to
    and including the first EOS; logprobs are the sampler's own. texts, answers: N decoded completions and
    what parse_answer reads in them."""
    id: str
    prompt: Prompt
    completions: Tensor
    mask: Tensor
    logprobs: Tensor
    texts: list[str]
    answers: list[str | None]
    truncated: int  # completions that had not ended after max_new_tokens

    # What a training step adds: the image's label, and N of each (None: a step has not come so far).
    truth: str = ""
    categories: list | None = None
    rewards: list[float] | None = None
    advantages: list[float] | None = None


class Sampler(LogitsProcessor):
    """Chooses each row's next token and leaves `generate` no other: by inverse transform of a given uniform
    number, or greedily at temperature 0. Keeps the log-probability of what it chose.

    uniforms: (R, T) float64 in [0, 1), one for each row and position.
    """

    def __init__(self, uniforms: Tensor | None, temperature: float, banned: Tensor):
        self.uniforms, self.temperature, self.banned = uniforms, temperature, banned
        self.last = int((~banned).nonzero().max())     # rounding must not land on a banned token past the end
        self.logprobs = []                             # T tensors (R,)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.float().masked_fill(self.banned, -torch.inf)
        logprobs = (scores / (self.temperature or 1.0)).log_softmax(-1)
        if self.temperature == 0:
            token = scores.argmax(-1, keepdim=True)
        else:
            cdf = logprobs.exp().double().cumsum(-1)
            u = self.uniforms[:, len(self.logprobs), None] * cdf[:, -1:]
            token = torch.searchsorted(cdf, u, right=True).clamp(max=self.last)  # right: u = 0 skips p = 0
        self.logprobs.append(logprobs.gather(-1, token)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def first_eos_mask(completions: Tensor, eos_ids: list[int]) -> Tensor:
    """(R, T) bool, true up to and including each row's first EOS: stopping is part of the answer and is
    trained. By position, not by token id: the padding token often is an EOS itself."""
    is_eos = torch.isin(completions, torch.tensor(eos_ids, device=completions.device))
    return is_eos.cumsum(1) - is_eos.long() == 0


def sample(policy: Policy, images: list, ids: list[str], question: str, n: int, seed: int = 0,
           stream: str = "", temperature: float = 1.0, max_new_tokens: int = 512,
           max_rows: int = 256) -> list[Group]:
    """N completions for each of B images, in the order of the images.

    images: B PIL images; ids: their B names, which with (seed, stream, n) fix the random numbers. temperature
    0 is greedy. At most max_rows rows are decoded at a time, half as many from then on where memory runs
    out, prompts of one length together, so that no prompt is padded.
    """
    if not images:
        return []
    prompts = encode(policy, images, question)
    made: list[list] = [[None] * n for _ in prompts]   # (completion, mask, log-probs) of each row, (T,) each
    todo = [(i, k) for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])) for k in range(n)]
    retried, max_rows = False, min(max_rows, policy.rows or max_rows)
    while todo:
        length = len(prompts[todo[0][0]])
        batch = [(i, k) for i, k in todo[:max_rows] if len(prompts[i]) == length]
        uniforms = None
        if temperature > 0:
            rows = [np.random.default_rng(seed_for(seed, stream, ids[i], k)).random(max_new_tokens)
                    for i, k in batch]
            uniforms = torch.from_numpy(np.stack(rows)).to(policy.device)
        try:
            parts = _decode(policy, [prompts[i] for i, _ in batch], uniforms, temperature, max_new_tokens)
        except torch.cuda.OutOfMemoryError:
            if retried or len(batch) == 1:
                raise
            parts, retried = None, True
            policy.rows = max_rows = (len(batch) + 1) // 2
        if parts is None:  # outside the except clause, whose traceback holds the memory
            torch.cuda.empty_cache()
            warnings.warn(f"out of memory with {len(batch)} rows decoded at a time: going on with {max_rows}")
            continue
        for (i, k), row in zip(batch, zip(*parts)):
            made[i][k] = row
        todo = todo[len(batch):]
    eos = torch.tensor(policy.eos_ids, device=policy.device)
    groups = []
    for name, prompt, rows in zip(ids, prompts, made):
        completions, mask, logprobs = (
            torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value)
            for column, value in zip(zip(*rows), (policy.pad_id, False, 0.0)))
        texts = policy.tokenizer.batch_decode(completions, skip_special_tokens=True)
        truncated = int((~torch.isin(completions, eos).any(1)).sum())
        groups.append(Group(name, prompt, completions, mask, logprobs, texts,
                            [parse_answer(text) for text in texts], truncated))
    return groups


def stack(groups: list, pad_id: int) -> list[Tensor]:
    """Completions, mask and sampling log-probs of B groups, each (B, N, T) with T the longest of them."""
    width = max(g.completions.shape[1] for g in groups)
    return [torch.stack([F.pad(x, (0, width - x.shape[1]), value=value) for x in rows]) for rows, value in (
        ([g.completions for g in groups], pad_id), ([g.mask for g in groups], False),
        ([g.logprobs for g in groups], 0.0))]


@torch.inference_mode()
def _decode(policy: Policy, prompts: list[Prompt], uniforms: Tensor | None, temperature: float,
            max_new_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Completions, mask and sampling log-probs, each (R, T), for R prompts of one length; those that stand
    next to each other and are the same object are forwarded once."""
    model = policy.model.eval()  # in train mode, HF's checkpointing would silently drop the cache
    fresh = [r == 0 or prompt is not prompts[r - 1] for r, prompt in enumerate(prompts)]
    once = [prompt for prompt, is_fresh in zip(prompts, fresh) if is_fresh]
    cache = DynamicCache(config=model.config.get_text_config())
    cache.layers = [_Layer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    # All but the last prompt token: generate must be given one to go on from, or it feeds the prompt again.
    model.get_decoder()(**decoder_inputs(once, -1), use_cache=True, past_key_values=cache)
    cache.batch_select_indices(torch.tensor(fresh, device=policy.device).cumsum(0) - 1)
    ids = torch.stack([p.ids for p in prompts])
    # The offset from which the model derives the positions that come after an image.
    offsets = torch.tensor([[p.start - len(p)] for p in prompts], device=policy.device)
    eos = torch.tensor(policy.eos_ids, device=policy.device)
    completions = ids.new_full((len(ids), max_new_tokens), policy.pad_id)
    logprobs = torch.zeros(completions.shape, device=policy.device)
    rows, done = torch.arange(len(ids), device=policy.device), 0  # the rows that go on; tokens made so far
    while done < max_new_tokens and len(rows):
        model.model.rope_deltas = offsets[rows]
        sampler = Sampler(None if uniforms is None else uniforms[rows, done:], temperature, policy.banned)
        thinned = _Thinned(eos, len(rows))
        ids = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
                             use_cache=True, logits_processor=LogitsProcessorList([sampler]),
                             stopping_criteria=StoppingCriteriaList([thinned]), do_sample=False, num_beams=1,
                             max_new_tokens=max_new_tokens - done, eos_token_id=policy.eos_ids,
                             pad_token_id=policy.pad_id)
        new = len(sampler.logprobs)
        completions[rows, done:done + new] = ids[:, -new:]
        logprobs[rows, done:done + new] = torch.stack(sampler.logprobs, dim=1)
        done += new
        on = (~thinned.ended).nonzero()[:, 0]
        # Who goes on stays in place or fills an ended row's: of rows 0 to 3, with 1 and 3 ended, [0, 2].
        keep = torch.arange(len(on), device=on.device)
        keep[thinned.ended[:len(on)]] = on[on >= len(on)]
        rows, ids = rows[keep], ids[keep]
        cache.batch_select_indices(keep)
    model.model.rope_deltas = None
    completions, logprobs = completions[:, :done], logprobs[:, :done]
    mask = first_eos_mask(completions, policy.eos_ids)
    return completions, mask, torch.where(mask, logprobs, 0.0)
