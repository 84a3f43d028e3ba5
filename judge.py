"""The judge: compares an open answer with the fine-grained truth and puts it on reward.py's six-rung ladder.

Copy this file together with reward.py. A judge is any callable `judge(pairs) -> verdicts` over pairs of
(truth, answer), one Category a pair, None where it came to no verdict: a judge error, which is never a score.
- LLMJudge: a Hugging Face chat model in this process, by the likelihood of the six categories or by its
  words.
- TaxonomyJudge: exact, from a tree of names; no second model.

Where this departs from the official release:
1. No service, queue or database: a function call. A failing judge never scores 0; its group leaves the step.
2. The prompt and its examples are ours. Verdicts come from the summed log-probability of each category's
   tokens and the end token (the release constrains decoding to the same six strings: the greedy form of it).
3. Labels are NFC-normalised before everything but letters, numbers and dashes goes; equal labels are Specific
   without asking (small models fail even there).
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from reward import Category

Pair = tuple[str, str]  # (truth, answer)
Judge = Callable[[Sequence[Pair]], list[Category | None]]


def normalize_label(text: str) -> str:
    """NFC, lower case; letters, numbers and dashes are kept, the rest becomes one space. It is also what
    keeps quotes, newlines and control tokens of an answer out of the judge's prompt."""
    text = unicodedata.normalize("NFC", text).lower()
    kinds = map(unicodedata.category, text)
    return " ".join("".join(c if k[0] in "LN" or k == "Pd" else " " for c, k in zip(text, kinds)).split())


# ----------------------------------------------------------------------------------------------------------
# Reading a verdict from a judge model's words

_BY_NAME = {c.label: c for c in Category}
_NAME = "less specific|more specific|specific|generic|abstain|wrong"  # "more specific" before "specific"
_MENTION = re.compile(rf"\b({_NAME})\b(?!\W*\?)")                    # a question is no verdict
_FIELD = re.compile(r"[\"'](?:classification|category|label|verdict|answer)[\"']\s*:\s*[\"']([^\"']*)[\"']")
_ECHO = re.compile(r"\{[^{}]*[\"'][^{}]*:[^{}]*(?:\}|$)"             # JSON without a verdict, cut off or not
                   r"|\b(?:truth|true label|prediction)\s*:[^,;>\n]*")
_MARKER = re.compile(
    r"\b(?:(?:classification|category|verdict)(?:\s+is)?\s*[:=]?|(?:label|answer|judge?ment)\s*[:=])"
    rf"\s*[\"'*`(]*\s*({_NAME})\b")
_NEGATED = re.compile(
    r"(?:\b(?:not|never|neither|nor|non|no|nothing|hardly|without|cannot|far from|rather than|instead of"
    r"|(?:more|less)(?: or)?(?! specific))|n['’]t)\s+"              # "more generic", "more or less specific"
    r"(?:(?:an?|the|be|being|is|seem|appear|look|really|quite|exactly|strictly|simply|just|necessarily"
    rf"|entirely|completely|considered|classified|as|any|even|very|at all|(?:{_NAME})\s+or)\s+)*[\"'*`]*$")
_INVERTED = re.compile(  # "the truth is more specific", also as "the label (a robin) names a more specific"
    r"\b(?:truth|label|reference|target)(?:\s+label)?(?:\s*,[^,.;]*,|\s*\([^)]*\)|\s*[\"'][^\"']*[\"'])?"
    r"\s+(?:is|was|seems|being|names|gives|has)\s+(?:\w+\s+){0,2}$")


def parse_category(text: str) -> Category | None:
    """A judge model's raw words to a category; None where they hold no verdict, or more than one.

    In this order: what follows the last </think>; a first line that is a category (but not a list of
    categories, a line each); the verdict field of a JSON object (an echoed prediction never counts); a text
    that opens with a category and a stop; the one category that is mentioned and neither negated nor asked
    about; the last "Category: X". "The truth is more specific" speaks of the wrong side.
    """
    text = text.rsplit("</think>", 1)[-1]
    if "<think>" in text:
        return None
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # zero-width characters
    text = re.sub(r"<\|.*?\|>|</?\w+>", " ", text)                     # control tokens, <answer> tags
    text = re.sub(r"(?<=\s)[-‐-―](?=\s)", ":", text)                   # "wrong - because": "wrong: because"
    text = re.sub(r"[-_‐-―]", " ", text).strip()
    lines = [re.sub(r"^\W+|\W+$", "", line) for line in text.split("\n")]
    if lines[0] in _BY_NAME:
        options = set(filter(None, lines))
        return None if len(options) > 1 and options <= _BY_NAME.keys() else _BY_NAME[lines[0]]

    fields = {value.strip() for value in _FIELD.findall(text)}
    if fields:
        return _BY_NAME.get(fields.pop()) if len(fields) == 1 else None
    text = " ".join(_ECHO.sub(" ", text).split())

    opening = re.match(rf"\W*({_NAME})\W{{0,3}}?\s*[.:;(]", text)
    if opening:
        return _BY_NAME[opening[1]]
    before = [(m[1], text[:m.start()]) for m in _MENTION.finditer(text)]
    mentioned = {name for name, words in before if not (_NEGATED.search(words) or _INVERTED.search(words))}
    if len(mentioned) > 1:
        mentioned = set(_MARKER.findall(text)[-1:])
    return _BY_NAME[mentioned.pop()] if mentioned else None


# ----------------------------------------------------------------------------------------------------------
# From judges to groups

JUDGE_ERROR = "judge error"  # stands in a judged group where there is no verdict; reward.py refuses it


def judge_groups(judge: Judge, truths: Sequence[str], groups: Sequence[Sequence[str | None]]) -> list[list]:
    """Judges B groups of parsed answers in one call: the one place where a judge's None and a malformed None
    meet.

    truths: B labels; groups: B lists of answers, None = malformed (never shown to the judge). Returns B lists
    of Category, None = malformed, or JUDGE_ERROR where the judge had no verdict. Raises ValueError when the
    judge breaks its contract (another number of verdicts than pairs).
    """
    pairs = [(t, a) for t, group in zip(truths, groups, strict=True) for a in group if a is not None]
    verdicts = judge(pairs) if pairs else []
    if len(verdicts) != len(pairs):
        raise ValueError(f"the judge returned {len(verdicts)} verdicts for {len(pairs)} pairs")
    each = iter(verdicts)
    return [[None if a is None else _or_error(next(each)) for a in group] for group in groups]


def _or_error(verdict):
    return JUDGE_ERROR if verdict is None else Category(verdict)


# ----------------------------------------------------------------------------------------------------------
# A tree of names

_REFUSAL = re.compile(
    r"(?:.*\b(?:i|am|m|is|s|have|ve) )?"
    r"(?:none(?: of (?:these|those|the above))?|nothing|n a|null|idk|abstain|not applicable"
    r"|no (?:idea|clue|answer|label|object)"
    r"|(?:un(?:known|clear|sure|certain|identified|identifiable|recogni[sz]able|specified|determined)"
    r"|indeterminate)(?: (?:object|image|species|type|kind|class|category))?)"
    r"|.*\b(?:not|don t|dont|cannot|can t|cant|couldn t"
    r"|(?:unable|impossible|difficult|hard|refuse|decline) to)(?: \w+)?"
    r" (?:know|tell|say|sure|certain|identif(?:y|ied|iable)|determined?|recogni[sz](?:ed?|able)|answer|help"
    r"|classif(?:y|ied)|name|decide|clear|able|possible|enough|visible|see|specified|make out)\b.*"
    r"|insufficient (?:information|detail|evidence)")


def is_refusal(answer: str) -> bool:
    """Whether a normalised answer declines to name anything ("none", "i don t know", "unable to identify the
    bird")."""
    return _REFUSAL.fullmatch(answer) is not None


class TaxonomyJudge:
    """Exact verdicts from a tree of names.

    parents: name -> parent name, None (or no entry) for a root. synonyms: other name -> name in the tree. The
    answer equals the truth or is its synonym: Specific; a refusal that is no name in the tree: Abstain; a
    root above the truth: Generic; its parent: Less Specific; higher: Generic; below the truth: More Specific;
    the rest: Wrong. A truth that the tree does not hold can only be matched or refused; any other answer gets
    no verdict. Raises ValueError for a tree with a circle.
    """

    def __init__(self, parents: Mapping[str, str | None], synonyms: Mapping[str, str] | None = None):
        self.parents = {normalize_label(n): p and normalize_label(p) for n, p in parents.items()}
        self.synonyms = {normalize_label(n): normalize_label(s) for n, s in (synonyms or {}).items()}
        self.names = set(self.parents) | {p for p in self.parents.values() if p}
        for name in self.names:
            self._ancestors(name)

    @classmethod
    def from_json(cls, path) -> "TaxonomyJudge":
        """A file {"parents": {name: parent or null}, "synonyms": {other name: name}}; no synonyms is fine."""
        with open(path, encoding="utf-8") as f:
            try:
                tree = json.load(f)
            except ValueError as e:
                raise ValueError(f"{path} is not JSON: {e}") from None
        if not isinstance(tree, dict) or not isinstance(tree.get("parents"), dict):
            raise ValueError(f'{path}: expected {{"parents": {{name: parent or null}}, "synonyms": {{...}}}}')
        return cls(tree["parents"], tree.get("synonyms"))

    def _ancestors(self, name: str) -> list[str]:
        path = []
        while name := self.parents.get(name):
            if name in path:
                raise ValueError(f"the taxonomy has a circle through {name!r}")
            path.append(name)
        return path

    def judge_one(self, truth: str, answer: str) -> Category | None:
        truth, answer = normalize_label(truth), normalize_label(answer)
        truth, answer = self.synonyms.get(truth, truth), self.synonyms.get(answer, answer)
        if answer == truth:
            return Category.SPECIFIC
        if answer not in self.names and is_refusal(answer):
            return Category.ABSTAIN
        if truth not in self.names:
            return None
        above = self._ancestors(truth)
        if answer in above:
            is_parent, is_root = answer == above[0], answer == above[-1]
            return Category.LESS_SPECIFIC if is_parent and not is_root else Category.GENERIC
        return Category.MORE_SPECIFIC if truth in self._ancestors(answer) else Category.WRONG

    def __call__(self, pairs: Sequence[Pair]) -> list[Category | None]:
        return [self.judge_one(*pair) for pair in pairs]


# ----------------------------------------------------------------------------------------------------------
# A language model in this process

INSTRUCTIONS = """You grade answers to the question "what is in this picture?". You see only the true label \
and the answer, never the picture. Compare what they mean, not how they are spelt, and reply with exactly \
one of these six categories and nothing else:
- specific: the answer means the same thing as the true label, under any of its names.
- more specific: the answer is a particular kind of the true label, so it says more than the label does.
- less specific: the answer is the closest wider group that the true label belongs to, such as its genus or \
its maker.
- generic: the answer is right but far wider than the true label.
- abstain: the answer declines to say what it is.
- wrong: the answer is something else, contradicts the true label, lists several things, or is no name at \
all."""

EXAMPLES = [  # two of each category, no class of any evaluation set
    ("Granny Smith", "apple", "less specific"), ("Stradivarius violin", "piano", "wrong"),
    ("emperor penguin", "aptenodytes forsteri", "specific"),
    ("sofa", "leather chesterfield sofa", "more specific"),
    ("Bengal tiger", "animal", "generic"), ("espresso machine", "i am not sure", "abstain"),
    ("mushroom", "fly agaric", "more specific"), ("grand piano", "musical instrument", "generic"),
    ("monarch butterfly", "none", "abstain"), ("Eiffel Tower", "la tour eiffel", "specific"),
    ("Scots pine", "oak or maple", "wrong"), ("humpback whale", "whale", "less specific"),
]


class LLMJudge:
    """A Hugging Face causal language model with a chat template, asked about one pair at a time.

    mode "choice": the category whose tokens, end token included, have the largest summed log-probability (no
    length normalisation: that favours many-token names), so there is a verdict unless the model returns NaN.
    The prompt that all pairs share is encoded once; pairs and categories are scored side by side in one row
    on top of it, each seeing only itself.
    mode "generate": the model answers greedily and parse_category reads it; None where it can't.
    row_tokens bounds the length of a packed row (memory). Raises ValueError for a tokenizer without chat
    template.
    """

    def __init__(self, model, tokenizer, mode: str = "choice", row_tokens: int = 1024,
                 max_new_tokens: int = 16):
        if mode not in ("choice", "generate"):
            raise ValueError(f"judge mode must be 'choice' or 'generate', got {mode!r}")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the judge needs a chat model: this tokenizer has no chat template")
        self.model, self.tokenizer, self.mode = model.eval(), tokenizer, mode
        self.row_tokens, self.max_new_tokens = row_tokens, max_new_tokens
        self.end_id = self._end_token()
        self.options = [self._encode(c.label) + [self.end_id] for c in Category]
        self._prefix, self._cache = [], None

    @classmethod
    def load(cls, name: str, device="cpu", dtype=None, **kwargs) -> "LLMJudge":
        """From a hub name or a folder. dtype None: bfloat16 on a GPU, float32 on a CPU (bf16 there is not
        batch-invariant: the same pair could get another verdict in other company)."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="sdpa").to(device)
        return cls(model, AutoTokenizer.from_pretrained(name), **kwargs)

    def __call__(self, pairs: Sequence[Pair]) -> list[Category | None]:
        pairs = [(normalize_label(t), normalize_label(a)) for t, a in pairs]
        verdicts = {p: Category.SPECIFIC for p in pairs if p[0] == p[1]}
        asked = [p for p in dict.fromkeys(pairs) if p not in verdicts]  # every distinct pair once
        if asked and self.mode == "choice":
            scores = self.log_likelihoods(asked)
            best = scores.argmax(dim=1).masked_fill(scores.isnan().any(dim=1), -1).tolist()
            verdicts |= {p: Category(k) if k >= 0 else None for p, k in zip(asked, best)}
        elif asked:
            verdicts |= {p: parse_category(reply) for p, reply in zip(asked, self.replies(asked))}
        return [verdicts[p] for p in pairs]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _messages(self, pair: Pair) -> list[dict]:
        turns = []
        for truth, answer, verdict in [(normalize_label(t), a, v) for t, a, v in EXAMPLES] + [(*pair, None)]:
            turns.append({"role": "user", "content": f"True label: {truth}\nAnswer: {answer}"})
            if verdict:
                turns.append({"role": "assistant", "content": verdict})
        # The instructions open the first user turn: not every chat template knows a system role.
        turns[0]["content"] = f"{INSTRUCTIONS}\n\n{turns[0]['content']}"
        return turns

    def _prompt(self, pair: Pair) -> str:
        return self.tokenizer.apply_chat_template(  # templates that don't think ignore enable_thinking
            self._messages(pair), tokenize=False, add_generation_prompt=True, enable_thinking=False)

    def _end_token(self) -> int:
        """The token that ends an assistant turn: what the template writes there (not always eos_token)."""
        messages = self._messages(("a", "b"))
        opened = self._prompt(("a", "b"))
        closed = self.tokenizer.apply_chat_template(messages + [{"role": "assistant", "content": "wrong"}],
                                                    tokenize=False)
        after = []
        if closed.startswith(opened + "wrong"):
            after = self._encode(closed[len(opened + "wrong"):])
        if not after and self.tokenizer.eos_token_id is None:
            raise ValueError("the judge's tokenizer has no end token")
        return after[0] if after else self.tokenizer.eos_token_id

    def _encode_prefix(self, rows: list[list[int]]):
        """Key-value cache of the tokens that all prompts share (kept from call to call)."""
        import torch
        from transformers import DynamicCache
        shared = min(len(r) for r in rows) - 1     # at least one token of its own remains to predict from
        reference = self._prefix or rows[0]
        for row in rows:
            shared = next((i for i, (a, b) in enumerate(zip(row[:shared], reference)) if a != b),
                          min(shared, len(reference)))
        if self._cache is None or shared != len(self._prefix):
            self._prefix = reference[:shared]
            self._cache, cache = None, DynamicCache(config=self.model.config)
            if shared:
                self.model(input_ids=torch.tensor([self._prefix], device=self.model.device),
                           past_key_values=cache, use_cache=True, logits_to_keep=1)
            self._cache = cache

    def log_likelihoods(self, pairs: Sequence[Pair]):
        """(len(pairs), 6) float32: log-probability of each category, end token included; pairs already
        normalised."""
        import torch
        with torch.inference_mode():
            rows = [self._encode(self._prompt(p)) for p in pairs]
            self._encode_prefix(rows)
            own = [r[len(self._prefix):] for r in rows]
            scores, batch, used = [], [], 0
            extra = sum(len(o) - 1 for o in self.options)
            for suffix in own:
                if batch and used + len(suffix) + extra > self.row_tokens:
                    scores += self._score_row(batch)
                    batch, used = [], 0
                batch.append(suffix)
                used += len(suffix) + extra
            return torch.stack(scores + self._score_row(batch))

    def _score_row(self, suffixes: list[list[int]]) -> list:
        """One forward over [suffix, option, option, ...] of several pairs; a block mask keeps them apart."""
        import torch
        tokens, positions, owner, kept, wanted = [], [], [], [], []
        for p, suffix in enumerate(suffixes):
            tokens += suffix
            positions += range(len(suffix))
            owner += [(p, -1)] * len(suffix)       # -1: the suffix, which all options of the pair see
            last = len(tokens) - 1
            for k, option in enumerate(self.options):
                kept += [last] + list(range(len(tokens), len(tokens) + len(option) - 1))
                wanted += option
                tokens += option[:-1]              # the end token is predicted, never read
                positions += range(len(suffix), len(suffix) + len(option) - 1)
                owner += [(p, k)] * (len(option) - 1)
        device, past, length = self.model.device, len(self._prefix), len(tokens)
        pair, block = torch.tensor(owner, device=device).T
        order = torch.arange(length, device=device)
        sees = (block[:, None] == block) | (block == -1)
        sees = sees & (pair[:, None] == pair) & (order[:, None] >= order)
        sees = torch.cat([sees.new_ones(length, past), sees], dim=1)[None, None]
        dtype = self.model.dtype                   # numbers, not booleans: eager attention adds the mask
        mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
        cache, self._cache = self._cache, None     # a forward that fails half-way leaves no torn cache
        logits = self.model(input_ids=torch.tensor([tokens], device=device), attention_mask=mask,
                            position_ids=torch.tensor([positions], device=device) + past,
                            past_key_values=cache, use_cache=True,
                            logits_to_keep=torch.tensor(kept, device=device)).logits[0]
        cache.crop(-length)                        # the row's own tokens leave the shared cache
        self._cache = cache
        wanted = torch.tensor(wanted, device=device)
        logprobs = logits.float().log_softmax(-1).gather(-1, wanted[:, None])[:, 0]
        each = logprobs.split([len(o) for o in self.options] * len(suffixes))
        return list(torch.stack([part.sum() for part in each]).view(len(suffixes), len(self.options)).cpu())

    def replies(self, pairs: Sequence[Pair], batch_size: int = 16) -> list[str]:
        """The model's greedy words for each pair, at most max_new_tokens long; pairs already normalised."""
        import torch
        out = []
        for i in range(0, len(pairs), batch_size):
            rows = [self._encode(self._prompt(p)) for p in pairs[i:i + batch_size]]
            width = max(map(len, rows))
            pad = [[self.end_id] * (width - len(r)) + r for r in rows]
            mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
            with torch.inference_mode():
                made = self.model.generate(
                    input_ids=torch.tensor(pad, device=self.model.device),
                    attention_mask=torch.tensor(mask, device=self.model.device), do_sample=False, num_beams=1,
                    repetition_penalty=1.0, max_new_tokens=self.max_new_tokens, eos_token_id=self.end_id,
                    pad_token_id=self.end_id, temperature=None, top_p=None, top_k=None)
            out += self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        return out
