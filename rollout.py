"""Rollouts: the question, N sampled answers for each image, and the parser that reads an answer out of them.

    groups = sample(policy, images, ids, PROMPTS["base"], n=8, seed=0, stream="train/1")

B images, N completions each, R = B * N rows, P prompt tokens (image tokens included), T completion tokens
(right-padded), V vocabulary.

Image and prompt are encoded once, and `model.generate` continues all rows of many images together, whose
prompts may have any length; rows that have ended are dropped on the way. Training samples by temperature
alone. The random numbers are drawn ahead for each (seed, stream, image, n): no random state needs saving, and
an answer does not depend on what else is in the batch (but where rounding decides: one in some hundreds in
float32, more of them in bfloat16).

Where this departs from the official release:
1. Hugging Face `generate` in this process instead of a vLLM server; the questions are in our own words.
2. Control and image tokens are never sampled (there, one sampled image token ends the run) and have no share
   in the scored distribution either: what is scored is what was sampled.
3. An answer is searched outside closed <think> blocks: a name that is only thought is not given. lmms-owc's
   question asks for no tags: its answer is the rest of the reply.
"""

import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from judge import parse_answer, parts_outside
from lora import cast_adapters
from policy import Policy, Prompt, decoder_inputs, encode, split_where
from support.attention import attention_by
from support.shared_prompt_cache import SHARED_PROMPT, EndedRows, SharedPromptCache

# Bounds on the memory of the prompts' forward: how many, and their tokens when they are padded.
PROMPTS_AT_ONCE = 32
PROMPT_TOKENS_AT_ONCE = 32 * 640
SAMPLER_BYTES = 256 << 20  # a bound on the sampler's temporaries

# ------------------------------------------------------------------------------------------------------------
# The question

ANY_TAG = re.compile("</?(?:think|answer)>", re.IGNORECASE)
QUESTION = "Classify the main subject of this picture: what is it?"
THINK = "Think about it first, between <think> and </think>."
ANSWER = "Then give nothing but its name between <answer> and </answer>"
FORMAT = f"{THINK} {ANSWER}, or None if you cannot name it at all."
DIRECT = ("Do not explain: give nothing but its name between <answer> and </answer>, or None if you cannot "
          "name it at all.")

PROMPTS = {
    "base": f"{QUESTION} {FORMAT}",
    "specific": f"{QUESTION} Be as specific as you can. {FORMAT}",
    "calibrated": f"{QUESTION} Above all be right: name the exact kind only if you are confident of it, and "
                  f"a broader one if you are not. {FORMAT}",
    "elimination": f"{QUESTION} While you think, write down at most three names that could fit, and strike "
                   "out each one that something in the picture speaks against. Settle on the one left over; "
                   f"if no single one is, on the broad kind that you are certain of. {FORMAT}",
    "high_precision": f"{QUESTION} Go exactly as far into detail as what you see bears out, and rather "
                      f"decline than say what you are unsure of. {FORMAT}",
    "max_correctness": f"{QUESTION} A vague answer costs nothing, a mistake everything: choose the most "
                       f"cautious name that is certain to be true. {FORMAT}",
    "max_specificity": f"{QUESTION} Always commit to the finest kind there is a name for, even where you "
                       f"have to guess. {THINK} {ANSWER}. None is no answer.",
    "direct": f"{QUESTION} {DIRECT}",
    "owc": "What type of object is in this photo?",  # lmms-owc's, word for word: it asks for no tags
}


def read_answer(text: str, question: str) -> str | None:
    """The answer in a completion: what its answer tags hold, by `parse_answer`. To lmms-owc's question, which
    asks for no tags, also the whole reply without its closed thoughts; none where a tag is left in it."""
    answer = parse_answer(text)
    if answer is not None or question != PROMPTS["owc"]:
        return answer
    reply = "".join(parts_outside(text, "think")).strip()
    is_cut = ANY_TAG.search(reply) is not None
    says_something = any(character.isalnum() for character in reply)
    return reply if says_something and not is_cut else None


# ------------------------------------------------------------------------------------------------------------
# N answers to each image


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


def sample(policy: Policy, images: list, ids: list[str], question: str, n: int, seed: int = 0,
           stream: str = "", temperature: float = 1.0, max_new_tokens: int = 512,
           max_rows: int = 256, top_p: float = 1.0) -> list[Group]:
    """N completions for each of B images, in the order of the images.

    images: B PIL images; ids: their B names, which with (seed, stream, n) fix the random numbers. temperature
    0 is greedy. top_p below 1 leaves the least likely tokens out: for evaluations, since training scores the
    whole distribution. At most max_rows rows are decoded at a time, half as many from then on where memory
    runs out (once: OutOfMemoryError if it runs out again), images with prompts of about one length together.
    """
    # Each image and the question go through the frozen parts once.
    prompts = encode(policy, images, question)

    # A row for each completion: (image number, which of its N).
    queue = rows_by_prompt_length(prompts, n)
    completions = [[] for _ in prompts]  # of each image, N of completion, mask, log-probs, each (T,)

    if policy.rows is not None:
        max_rows = min(max_rows, policy.rows)
    rows_that_fit = 0
    has_halved = False
    while queue:
        # A round: as many rows as may be decoded at a time.
        rows = next_round(queue, prompts, n, max_rows, max_new_tokens, policy)
        row_prompts = [prompts[i] for i, _ in rows]

        # Random numbers: every row's own.
        uniforms = None
        if temperature > 0:
            names = [(seed, stream, ids[i], k) for i, k in rows]
            uniforms = draw_uniforms(names, max_new_tokens).to(policy.device)  # (R, T)

        # Decode. If memory runs out, with half as many rows from here on, and in later calls too.
        tensors = decode_if_it_fits(policy, row_prompts, uniforms, temperature, max_new_tokens, top_p)
        if tensors is None:
            if has_halved or len(rows) == 1:
                raise torch.cuda.OutOfMemoryError(f"out of memory with {len(rows)} rows decoded at a time")
            has_halved = True
            max_rows = max(rows_that_fit, (len(rows) + 1) // 2)
            policy.rows = max_rows
            warnings.warn(f"out of memory with {len(rows)} rows decoded at a time: going on with {max_rows}")
            continue
        rows_that_fit = max(rows_that_fit, len(rows))

        # Keep each row with its image.
        for (i, _), completion in zip(rows, zip(*tensors)):
            completions[i].append(completion)
        queue = queue[len(rows):]

    # An image with its N completions is a group.
    groups = []
    for name, prompt, own in zip(ids, prompts, completions):
        groups.append(make_group(policy, name, prompt, own, question))
    return groups


def rows_by_prompt_length(prompts: list[Prompt], n: int) -> list[tuple[int, int]]:
    """(image number, k) for k in 0 .. N-1 of each image, the images with the shortest prompts first."""
    images = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rows = []
    for i in images:
        rows += [(i, k) for k in range(n)]
    return rows


def next_round(queue: list[tuple[int, int]], prompts: list[Prompt], n: int, max_rows: int,
               max_new_tokens: int, policy: Policy) -> list[tuple[int, int]]:
    """The queue's first rows, at most max_rows. Where prompts can't be shared: of the first image alone."""
    rows = queue[:max_rows]
    if not policy.shared:
        first, _ = queue[0]
        return [(i, k) for i, k in rows if i == first]
    if policy.planned_prompt is None:
        return rows

    # max_rows was reckoned for prompts of a certain length. Where images are larger, fewer rows come to as
    # many tokens: their own, and each image's prompt, padded to the round's longest, which is the last.
    room = max_rows * max_new_tokens + max(1, max_rows // n) * policy.planned_prompt
    images = 0  # of the round so far
    last = None
    for place, (i, _) in enumerate(rows):
        if i != last:
            images += 1
            last = i
        tokens = (place + 1) * max_new_tokens + images * len(prompts[i])
        if images > 1 and tokens > room:
            return rows[:place]
    return rows


def seed_for(*parts) -> int:
    """A 64-bit seed from whatever names a draw. sha256: Python's hash() of a string differs in every
    process."""
    name = "|".join(map(str, parts))
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big")


def draw_uniforms(names: list[tuple], length: int) -> Tensor:
    """(R, length) float64 in [0, 1): for each row the numbers that its name, and nothing else, gives."""
    rows = []
    for name in names:
        generator = np.random.default_rng(seed_for(*name))
        rows.append(generator.random(length))
    return torch.from_numpy(np.stack(rows))


def make_group(policy: Policy, name: str, prompt: Prompt, rows: list[tuple], question: str) -> Group:
    """rows: N of completion, mask and log-probs, each (T,) with T the longest of their round."""
    completions, mask, logprobs = zip(*rows)
    completions = pad_sequence(completions, batch_first=True, padding_value=policy.pad_id)  # (N, T)
    mask = pad_sequence(mask, batch_first=True, padding_value=False)                        # (N, T)
    logprobs = pad_sequence(logprobs, batch_first=True, padding_value=0.0)                  # (N, T)

    texts = policy.tokenizer.batch_decode(completions, skip_special_tokens=True)
    answers = [read_answer(text, question) for text in texts]

    eos = torch.tensor(policy.eos_ids, device=policy.device)
    has_ended = torch.isin(completions, eos).any(1)                                         # (N,)
    truncated = int((~has_ended).sum())
    return Group(name, prompt, completions, mask, logprobs, texts, answers, truncated)


def stack(groups: list[Group], pad_id: int) -> list[Tensor]:
    """Completions, mask and sampling log-probs of B groups, each (B, N, T) with T the longest of them."""
    width = max(group.completions.shape[1] for group in groups)
    completions = []
    masks = []
    logprobs = []
    for group in groups:
        missing = (0, width - group.completions.shape[1])
        completions.append(F.pad(group.completions, missing, value=pad_id))
        masks.append(F.pad(group.mask, missing, value=False))
        logprobs.append(F.pad(group.logprobs, missing, value=0.0))
    return [torch.stack(completions), torch.stack(masks), torch.stack(logprobs)]


# ------------------------------------------------------------------------------------------------------------
# Decoding


class Sampler(LogitsProcessor):
    """Chooses each row's next token and leaves `generate` no other: by inverse transform of a given uniform
    number, or greedily at temperature 0. Keeps the log-probability of what it chose.

    uniforms: (R, T) float64 in [0, 1), one for each row and position. logprobs: a tensor (R,) for each token
    chosen so far.
    """

    def __init__(self, uniforms: Tensor | None, temperature: float, banned: Tensor, top_p: float = 1.0):
        self.uniforms = uniforms
        self.temperature = temperature
        self.top_p = top_p
        self.banned = banned                        # (V,)
        self.last = int((~banned).nonzero().max())  # the last token that may be sampled
        self.logprobs = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (R, V) float32, a copy that `generate` made for this, overwritten here."""
        # Some rows at a time: a row's temporaries take up to 24 bytes a token, 48 where they are sorted.
        rows, vocabulary = scores.shape
        bytes_a_token = 24 if self.top_p == 1 else 48
        rows_at_once = max(1, SAMPLER_BYTES // (bytes_a_token * vocabulary))
        position = len(self.logprobs)               # counted within this `generate`
        tokens = []
        logprobs = []
        for start in range(0, rows, rows_at_once):
            some = slice(start, start + rows_at_once)
            uniforms = None if self.uniforms is None else self.uniforms[some, position]
            token, logprob = self.choose(scores[some], uniforms)
            tokens.append(token)
            logprobs.append(logprob)
        self.logprobs.append(torch.cat(logprobs)[:, 0])                   # (R,)

        # Whatever `generate` does with the scores, one token is left.
        return scores.fill_(-torch.inf).scatter_(-1, torch.cat(tokens), 0.0)

    def choose(self, scores: Tensor, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
        """(r, 1) each: the tokens of r rows with scores (r, V) and uniforms (r,), and their
        log-probabilities."""
        scores = scores.masked_fill_(self.banned, -torch.inf)             # (r, V)
        if self.temperature == 0:
            logprobs = scores.log_softmax(-1)
            token = scores.argmax(-1, keepdim=True)                       # (r, 1)
        else:
            logprobs = (scores / self.temperature).log_softmax(-1)
            if self.top_p < 1:
                logprobs = nucleus(logprobs, self.top_p)
            token = self.inverse_transform(logprobs, uniforms)
        return token, logprobs.gather(-1, token)

    def inverse_transform(self, logprobs: Tensor, uniforms: Tensor) -> Tensor:
        """(r, 1): the token at which the cumulative probability passes the row's uniform number."""
        cdf = logprobs.exp().cumsum(-1, dtype=torch.float64)              # (r, V)
        u = uniforms[:, None] * cdf[:, -1:]                               # (r, 1); the last is not exactly 1
        token = torch.searchsorted(cdf, u, right=True)                    # right: u = 0 skips p = 0
        return token.clamp(max=self.last)  # rounding must not land on a banned token past the end


def nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """(r, V): log-probabilities of the likeliest tokens alone, as few as come to top_p together (Holtzman et
    al., arXiv 1904.09751)."""
    ordered, tokens = logprobs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()                     # of the likelier ones together
    is_left_out = torch.empty_like(before, dtype=torch.bool)
    is_left_out.scatter_(-1, tokens, before >= top_p)
    return logprobs.masked_fill(is_left_out, -torch.inf).log_softmax(-1)


def first_eos_mask(completions: Tensor, eos_ids: list[int]) -> Tensor:
    """(R, T) bool, true up to and including each row's first EOS: stopping is part of the answer and is
    trained. By position, not by token id: the padding token often is an EOS itself."""
    is_eos = torch.isin(completions, torch.tensor(eos_ids, device=completions.device))
    eos_before = is_eos.cumsum(1) - is_eos.long()                         # (R, T)
    return eos_before == 0


def decode_if_it_fits(policy: Policy, prompts: list[Prompt], uniforms: Tensor | None, temperature: float,
                      max_new_tokens: int, top_p: float = 1.0) -> tuple[Tensor, Tensor, Tensor] | None:
    """decode(...), plainly where prompts can't be shared; None where GPU memory runs out."""
    try:
        if not policy.shared:
            return decode_plainly(policy, prompts, uniforms, temperature, max_new_tokens, top_p)
        return decode(policy, prompts, uniforms, temperature, max_new_tokens, top_p)
    except torch.cuda.OutOfMemoryError:
        pass
    # Outside the except clause, whose traceback holds the memory.
    torch.cuda.empty_cache()
    return None


def generate(policy: Policy, ids: Tensor, first_position: Tensor, cache: Cache, sampler: Sampler,
             max_new_tokens: int, criteria: list) -> Tensor:
    """`model.generate`: (R, L + new) from ids (R, L), feeding those that the cache does not hold yet.
    first_position: (R, 1), of the first token that is fed."""
    return policy.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=first_position,
        past_key_values=cache, use_cache=True, logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList(criteria), do_sample=False, num_beams=1,
        max_new_tokens=max_new_tokens, eos_token_id=policy.eos_ids, pad_token_id=policy.pad_id)


@torch.inference_mode()
def decode_plainly(policy: Policy, prompts: list[Prompt], uniforms: Tensor | None, temperature: float,
                   max_new_tokens: int, top_p: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Completions, mask and sampling log-probs, each (R, T), of R rows that go on from one prompt: on
    transformers' own cache, a copy of the prompt's keys and values for each row."""
    model = policy.model.eval()  # in train mode, HF's checkpointing would silently drop the cache
    rows = len(prompts)
    prompt = prompts[0]

    # All but the last token: `generate` must be given one to go on from, or it feeds the prompt again.
    cache = DynamicCache(config=model.config.get_text_config())
    model.get_decoder()(**decoder_inputs([prompt], end=-1), use_cache=True, past_key_values=cache)
    cache.batch_repeat_interleave(rows)

    ids = prompt.ids.repeat(rows, 1)                                      # (R, P)
    last_position = prompt.ids.new_full((rows, 1), prompt.start - 1)      # (R, 1)
    sampler = Sampler(uniforms, temperature, policy.banned, top_p)
    ids = generate(policy, ids, last_position, cache, sampler, max_new_tokens, criteria=[])
    return with_mask(policy, ids[:, len(prompt):], torch.stack(sampler.logprobs, dim=1))


@torch.inference_mode()
def decode(policy: Policy, prompts: list[Prompt], uniforms: Tensor | None, temperature: float,
           max_new_tokens: int, top_p: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """decode_plainly for R prompts of any length, all rows together. Prompts that stand next to each other
    and are the same object are forwarded and kept once; rows that have ended are dropped on the way.
    uniforms: (R, max_new_tokens)."""
    model = policy.model.eval()

    distinct, image_of_row = distinct_prompts(prompts)
    lengths = torch.tensor([len(prompt) - 1 for prompt in distinct], device=policy.device)  # (B,)

    # A row begins with its prompt's last token, at its own prompt's position.
    ids = torch.stack([prompt.ids[-1:] for prompt in prompts])            # (R, 1)
    positions = torch.tensor([[prompt.start - 1] for prompt in prompts], device=policy.device)  # (R, 1)

    eos = torch.tensor(policy.eos_ids, device=policy.device)
    completions = ids.new_full((len(ids), max_new_tokens), policy.pad_id)  # (R, T)
    logprobs = torch.zeros(completions.shape, device=policy.device)       # (R, T)
    rows = torch.arange(len(ids), device=policy.device)  # the numbers of the rows that go on
    length = 0                                           # tokens that those rows have so far
    with cast_adapters(model):
        # Forward the prompts, all but their last tokens. Their keys and values are kept once.
        cache = SharedPromptCache(prefill(policy, distinct), lengths, image_of_row, room=max_new_tokens)

        while length < max_new_tokens and len(rows) > 0:
            # Go on with these rows until a share of them has ended.
            remaining = None
            if uniforms is not None:
                remaining = uniforms[rows, length:]
            sampler = Sampler(remaining, temperature, policy.banned, top_p)
            ended_rows = EndedRows(eos, len(rows))
            with attention_by(model, SHARED_PROMPT):
                ids = generate(policy, ids, positions + length, cache, sampler, max_new_tokens - length,
                               criteria=[ended_rows])

            # Write down what they said.
            new = len(sampler.logprobs)
            completions[rows, length:length + new] = ids[:, -new:]
            logprobs[rows, length:length + new] = torch.stack(sampler.logprobs, dim=1)
            length += new

            # Drop the rows that have ended.
            go_on = (~ended_rows.ended).nonzero()[:, 0]
            rows = rows[go_on]
            ids = ids[go_on]
            positions = positions[go_on]
            cache.keep(go_on)

    # Cut to the longest completion.
    return with_mask(policy, completions[:, :length], logprobs[:, :length])


def with_mask(policy: Policy, completions: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R, T) each: the completions, their mask, and the log-probs within it."""
    mask = first_eos_mask(completions, policy.eos_ids)
    return completions, mask, torch.where(mask, logprobs, 0.0)


def distinct_prompts(prompts: list[Prompt]) -> tuple[list[Prompt], Tensor]:
    """The prompts, those that stand next to each other and are the same object once; and (R,) for each row
    the number of its own."""
    distinct = []
    image_of_row = []
    for prompt in prompts:
        if not distinct or prompt is not distinct[-1]:
            distinct.append(prompt)
        image_of_row.append(len(distinct) - 1)
    return distinct, torch.tensor(image_of_row, device=prompts[0].ids.device)


def prefill(policy: Policy, prompts: list[Prompt]) -> list[DynamicCache]:
    """The keys and values of B prompts without their last tokens, a few prompts in each cache. Shorter ones
    are padded on the right, where no real token looks."""
    decoder = policy.model.get_decoder()
    caches = []
    for some in split_prompts(prompts):
        cache = DynamicCache(config=decoder.config)
        decoder(**decoder_inputs(some, end=-1), use_cache=True, past_key_values=cache)
        caches.append(cache)
    return caches


def split_prompts(prompts: list[Prompt]) -> Iterator[list[Prompt]]:
    """The prompts in lists, in order, each as long as the bounds on the memory of their forward allow."""

    def fit(some: list[Prompt]) -> bool:
        padded_tokens = len(some) * max(map(len, some))
        return len(some) <= PROMPTS_AT_ONCE and padded_tokens <= PROMPT_TOKENS_AT_ONCE

    return split_where(prompts, fit)
