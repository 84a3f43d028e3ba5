"""The answers of evaluate.py on disk, from which the same command goes on after a kill.

The file's first line is {"arguments": all that the answers depend on}. Then comes a line for each image, in
the order in which the command makes them, adapter by adapter, dataset by dataset:

    {"adapter": "none", "data": "cub", "id": "cub/...", "truth": ..., "answers": [...], "categories": [...]}
    {"adapter": "none", "data": "cub", "id": "cub/...", "unreadable": "cannot read the image ..."}

So what was written is always a beginning of what will be written, and going on means to count it and to make
the rest. Whatever does not fit (another command's arguments, a line that is no record of it, an image out of
its place, one record too many) is refused with a line that says so, and the file is left as it was.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from judge import JUDGE_ERROR, category_name, normalize_label
from lora import adapter_weights
from metrics import majority
from reward import Category
from support.files import append, json_line
from support.lock import Lock
from support.scores import FLAG, asked_scores, plain_scores
from support.stored import TEXT, refuse_other

WORDS = [category_name(category) for category in (None, *Category)] + [JUDGE_ERROR]

# ------------------------------------------------------------------------------------------------------------
# A record

# What may stand in it, as support.stored says it.
ANSWER = (lambda value: value is None or type(value) is str, "a text or null")
CATEGORY = (lambda value: type(value) is str and value in WORDS, f"one of {', '.join(WORDS)}")


def answer_record(example, group, categories: list, scores: dict[str, list]) -> dict:
    """What is kept of an image's answers: the words, and scores that need no judge, a number an answer.

    example: has an image's id, domain and label; group: its answers and their texts (None where these are not
    known); scores: those that take a model, by name.
    """
    normalised = [None if answer is None else normalize_label(answer) for answer in group.answers]
    return {
        "id": example.id,
        "domain": example.domain,
        "truth": example.label,
        "texts": group.texts,
        "answers": group.answers,
        "categories": [category_name(category) for category in categories],
        "majority": majority(normalised),
        "scores": plain_scores(example, group) | scores,
    }


# ------------------------------------------------------------------------------------------------------------
# The file


def answers_file(out: str) -> Path:
    """The answers' file beside the figures': x.json -> x.jsonl."""
    return Path(out.removesuffix(".json") + ".jsonl")


def weights_hash(adapter: str) -> str:
    """Names an adapter's weights: answers of another training, in the same folder, are others."""
    weights = adapter_weights(adapter).read_bytes()
    return hashlib.sha256(weights).hexdigest()[:16]


def lock_answers(file: Path | None):
    """The lock on an evaluation's files, to be held in a `with`. Raises OSError where another holds it."""
    if file is None:
        return nullcontext()
    return Lock(file.with_name(f".{file.name}.lock"), file)


def append_answers(file: Path, arguments: dict, adapter: str, name: str, records: list[dict],
                   begun: bool, lock: Lock) -> None:
    """Appends the records of one adapter's answers to the dataset `name`. begun: whether the file should hold
    others already. Raises OSError, also where the file was deleted meanwhile."""
    lock.check()
    empty = not file.exists() or file.stat().st_size == 0
    if begun and empty:
        raise OSError(f"{file} was deleted meanwhile")
    lines = []
    if empty:
        lines.append({"arguments": arguments})
    for record in records:
        lines.append({"adapter": adapter, "data": name} | record)
    append(file, lines)


def stored_answers(file: Path, arguments: dict, adapters: list[str],
                   datasets: dict[str, list]) -> Iterator[tuple[str, str, dict]]:
    """Yields (adapter, dataset's name, record) for each record that the same command wrote before.

    arguments: of the command that runs now. datasets: name -> its Examples; the records must be of these
    images in this order. As stored_records.
    """
    for record in stored_records(file, arguments, expected_records(arguments, adapters, datasets)):
        yield record["adapter"], record["data"], record


def expected_records(arguments: dict, adapters: list[str],
                     datasets: dict[str, list]) -> Iterator[tuple[dict, dict]]:
    """For each record, in the order in which the command comes to them: how it begins, and the pattern of the
    rest where the image could be read."""
    for adapter in adapters:
        for name, examples in datasets.items():
            for example in examples:
                beginning = {"adapter": adapter, "data": name, "id": example.id}
                yield beginning, answered_pattern(example, arguments)


def stored_records(file: Path, arguments: dict, expected: Iterator[tuple[dict, dict]]) -> Iterator[dict]:
    """Yields each record that the same command wrote before, as `expected` says them.

    One record is in memory at a time. A last line that a kill left half-written is cut off, once all before
    it fits. Raises ValueError where something does not fit.
    """
    if not file.exists():
        return
    if not file.is_file():  # a pipe may never end
        raise ValueError(f"{file} is no file: give another --out")
    whole = 0  # bytes up to the end of the last whole line
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            beginning, pattern = {"arguments": arguments}, {}
            if number > 1:
                beginning, pattern = next(expected, (None, None))
            if beginning is None:
                raise ValueError(f"{file} holds more answers than there are images: give another --out")

            # Lines are appended whole: only a kill, or a full disk, leaves a last one without its end.
            if not line.endswith(b"\n"):
                refuse_foreign_end(file, line, beginning)
                break
            whole += len(line)
            value = parse_line(file, number, line)
            if number == 1:
                check_arguments(file, value, arguments)
            else:
                refuse_other_record(f"{file}, line {number}", value, beginning, pattern)
                yield value
    if whole < file.stat().st_size:
        os.truncate(file, whole)


def parse_line(file: Path, number: int, line: bytes) -> dict:
    """The arguments in the first line, the record in any other. Raises ValueError where there are none."""
    try:
        value = json.loads(line)
        if number == 1:
            return dict(value["arguments"])
        value["id"]  # every record has one: a KeyError or a TypeError, where it is none
        return value
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{file}, line {number} is no record of an evaluation") from None


def refuse_other_record(line: str, record: dict, beginning: dict, pattern: dict) -> None:
    """Raises ValueError where a record is of another image, or none that this command can have written."""
    if any(record.get(key) != value for key, value in beginning.items()):
        raise ValueError(f"{line} goes on with {record['id']!r:.60}, the data with {beginning['id']}: they "
                         "have changed, give another --out")
    if "unreadable" in record:
        pattern = {"unreadable": TEXT}
    try:
        refuse_other(record, beginning | pattern, "it")
    except ValueError as error:
        raise ValueError(f"{line} is no record of this evaluation: {error}") from None


def answered_pattern(example, arguments: dict) -> dict:
    """What answer_record makes, as support.stored says it."""
    n = arguments["n"]
    scores = {"text_inclusion": [FLAG] * n, "thought_not_said": [FLAG] * n}
    for name, value in asked_scores(arguments).items():
        scores[name] = [value] * n
    pattern = {"domain": example.domain, "truth": example.label, "texts": [TEXT] * n, "answers": [ANSWER] * n,
               "categories": [CATEGORY] * n, "majority": place_below(n), "scores": scores}
    if arguments["choose"]:
        pattern["choice"] = place_below(n)
    return pattern


def place_below(n: int) -> tuple:
    """Which of the n answers is picked, as support.stored says it."""

    def passes(value) -> bool:
        return value is None or (type(value) is int and 0 <= value < n)

    return passes, f"a number from 0 to {n - 1}, or null"


def refuse_foreign_end(file: Path, end: bytes, beginning: dict) -> None:
    """Raises ValueError where a half-written last line is not the beginning of the one that belongs there:
    somebody else's file may end without a line's end, too."""
    expected = json_line(beginning)
    if "arguments" not in beginning:
        expected = expected[:-2]  # a record goes on
    length = min(len(end), len(expected))
    if end[:length] != expected[:length]:
        raise ValueError(f"{file} ends in what is no record of this evaluation: give another --out")


def check_arguments(file: Path, stored: dict, now: dict) -> None:
    """Raises ValueError that names each argument on which the stored answers depend and which has changed."""
    changes = []
    for name in {**now, **stored}:
        was, is_now = stored.get(name, "not there"), now.get(name, "not there")
        if was != is_now:
            changes.append(f"{name} was {str(was):.60}, now {str(is_now):.60}")
    if changes:
        raise ValueError(f"{file} holds the answers to another command: {'; '.join(changes)}")
