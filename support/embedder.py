"""An encoder of texts, for the semantic similarity of an answer to the truth (evaluate.py --embedder).

As a library: `embed = load_embedder("sentence-transformers/all-MiniLM-L6-v2")`, then `embed(texts)`.
A text's vector is the mean over its tokens, at most 256, scaled to length 1: as sentence-transformers'
all-MiniLM-L6-v2 makes it.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from support.command_line import first_line

BATCH = 256      # texts encoded at a time
MAX_TOKENS = 256


def load_embedder(name: str, device="cpu") -> Callable[[list[str]], Tensor]:
    """A function from M texts to (M, D) float32 vectors of unit length. name: any encoder's folder or hub
    name. Raises OSError."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model, found = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False,
                                                 output_loading_info=True)
        refuse_random_weights(found["missing_keys"])
        model = model.to(device).eval()
        max_tokens = min(MAX_TOKENS, getattr(model.config, "max_position_embeddings", MAX_TOKENS))
        embed = partial(mean_vectors, model, tokenizer, max_tokens)
        embed(["a", "a longer text"])  # a model that is no encoder of texts fails here, not an hour later
    except Exception as error:  # whatever transformers or the model says
        raise OSError(f"cannot load the embedder {name!r}: {first_line(error)}") from None
    return embed


def refuse_random_weights(missing: set[str]) -> None:
    """Raises ValueError for weights that the files lack, which were drawn at random. A pooler may be: what it
    makes of the hidden states is not used."""
    missing = sorted(key for key in missing if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, the first is {missing[0]}")


@torch.inference_mode()
def mean_vectors(model, tokenizer, max_tokens: int, texts: list[str]) -> Tensor:
    """(M, D): each text's mean over its tokens' last hidden states, of length 1."""
    batches = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start:start + BATCH], padding=True, truncation=True, max_length=max_tokens,
                           return_tensors="pt").to(model.device)
        states = model(**inputs).last_hidden_state            # (BATCH, T, D)
        mask = inputs["attention_mask"][..., None]            # (BATCH, T, 1)
        means = (states * mask).sum(1) / mask.sum(1)          # (BATCH, D)
        batches.append(torch.nn.functional.normalize(means, dim=-1))
    return torch.cat(batches)
