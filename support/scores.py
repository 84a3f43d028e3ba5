"""Scores of answers that no judge gives: those of lmms-owc, the open-world benchmark, and one of ours.

    scorers = load_scorers(args, "cuda")                        # of --embedder and --language-inclusion
    scores = model_scores(scorers, examples, groups)            # a dict an image
    scores[0] |= plain_scores(examples[0], groups[0])           # those that take no model

| score | of an answer |
|---|---|
| text_inclusion | 1 where it holds the truth's name, letter by letter |
| thought_not_said | 1 where the reasoning names the truth and the answer does not (ours) |
| semantic_similarity | cosine of the embedded answer and truth |
| concept_similarity | the same of the answer's most similar concept |
| language_inclusion | 1 where a language model says that it describes or holds the truth |

A car's truth has its year first here, as lmms-owc's has: "2012 Acura TL Sedan".
"""

from collections.abc import Callable, Sequence
from functools import partial

from judge import normalize_label, parts_outside
from metrics import concept_similarity, similarity, text_inclusion
from readers.cars import year_first
from support.embedder import load_embedder
from support.language_inclusion import load_inclusion

# Truths and answers of some images -> N numbers for each image.
Scorer = Callable[[list[str], list[list[str | None]]], list[list]]

# What a score may be, as support.stored says it.
FLAG = (lambda value: type(value) is int and value in (0, 1), "0 or 1")
COSINE = (lambda value: type(value) in (int, float) and abs(value) < 1.001, "in [-1, 1]")

# The scores that take a model, with what a value may be; and by evaluate.py's option that names the model.
MODEL_SCORES = {"semantic_similarity": COSINE, "concept_similarity": COSINE, "language_inclusion": FLAG}
BY_OPTION = {
    "embedder": ("semantic_similarity", "concept_similarity"),
    "language_inclusion": ("language_inclusion",),
}


def reference_name(example) -> str:
    """The truth, as what is compared letter by letter calls it. example: has domain and label."""
    return year_first(example.label) if example.domain == "cars" else example.label


def plain_scores(example, group) -> dict[str, list[int]]:
    """The scores that take no model, N numbers each. group: has N answers and their texts (None where these
    are not known: then nobody knows what the reasoning names)."""
    truth = reference_name(example)
    scores = {"text_inclusion": [int(text_inclusion(truth, answer)) for answer in group.answers]}
    if group.texts is not None:
        scores["thought_not_said"] = []
        for text, answer in zip(group.texts, group.answers):
            scores["thought_not_said"].append(int(thought_not_said(truth, text, answer)))
    return scores


def thought_not_said(truth: str, text: str, answer: str | None) -> bool:
    """Whether the reasoning, all that stands outside the answer's tags, names the truth and the answer does
    not: normalised, as whole words."""
    if answer is None:
        return False
    # Answers are cut out, but not those inside a closed <think> block: parse_answer reads none there.
    reasoning = " ".join(parts_outside(text, "answer"))

    # Spaces around them make whole words of what is compared.
    name = f" {normalize_label(truth)} "
    thought = f" {normalize_label(reasoning)} "
    said = f" {normalize_label(answer)} "
    return name in thought and name not in said


def load_scorers(args, device) -> dict[str, Scorer]:
    """The scores that take a model, by their names, as far as evaluate.py's options name one. Raises
    OSError."""
    scorers = {}
    if args.embedder:
        embed = load_embedder(args.embedder, device)
        scorers["semantic_similarity"] = partial(image_by_image, partial(similarity, embed))
        scorers["concept_similarity"] = partial(image_by_image, partial(concept_similarity, embed))
    if args.language_inclusion:
        scorers["language_inclusion"] = load_inclusion(args.language_inclusion, device)
    return scorers


def image_by_image(score: Callable, truths: list[str], answers: list[list[str | None]]) -> list[list]:
    return [score(truth, own) for truth, own in zip(truths, answers)]


def model_scores(scorers: dict[str, Scorer], examples: Sequence, groups: Sequence) -> list[dict[str, list]]:
    """Of each image its scores by name, N numbers each. groups: the examples' own, with their N answers."""
    truths = [reference_name(example) for example in examples]
    answers = [group.answers for group in groups]
    images = [{} for _ in examples]
    for name, scorer in scorers.items():
        for image, numbers in zip(images, scorer(truths, answers), strict=True):
            image[name] = numbers
    return images


def asked_scores(arguments: dict) -> dict[str, tuple]:
    """The scores that the arguments of a command name a model for, and what a value of each may be."""
    asked = {}
    for option, names in BY_OPTION.items():
        if arguments[option]:
            asked |= {name: MODEL_SCORES[name] for name in names}
    return asked
