"""The answers of evaluate.py on disk, from which the same command goes on after a kill.

The file's first line is {"arguments": all that the answers depend on}. Then comes a line for each image, in
the order in which the command makes them, adapter by adapter, dataset by dataset:

    {"adapter": "none", "data": "cub", "id": "cub/...", "truth": ..., "answers": [...], "categories": [...]}
    {"adapter": "none", "data": "cub", "id": "cub/...", "unreadable": "cannot read the image ..."}

So what was written is always a beginning of what will be written, and going on means to count it and to make
the rest. Whatever does not fit (another command's arguments, a line that is no record, an image out of its
place, one record too many) is refused with a line that says so, and the file is left as it was.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from lora import adapter_weights
from support.files import append


def answers_file(out: str) -> Path:
    """The answers' file beside the figures': x.json -> x.jsonl."""
    return Path(out.removesuffix(".json") + ".jsonl")


def weights_hash(adapter: str) -> str:
    """Names an adapter's weights: answers of another training, in the same folder, are others."""
    weights = adapter_weights(adapter).read_bytes()
    return hashlib.sha256(weights).hexdigest()[:16]


def append_answers(file: Path, arguments: dict, adapter: str, name: str, records: list[dict]) -> None:
    """Appends the records of one adapter's answers to the dataset `name`. Raises OSError."""
    lines = []
    if not file.exists() or file.stat().st_size == 0:
        lines.append({"arguments": arguments})
    for record in records:
        lines.append({"adapter": adapter, "data": name} | record)
    append(file, lines)


def stored_answers(file: Path, arguments: dict, adapters: list[str],
                   datasets: dict[str, list]) -> Iterator[tuple[str, str, dict]]:
    """Yields (adapter, dataset's name, record) for each record that the same command wrote before.

    arguments: of the command that runs now. datasets: name -> its Examples; the records must be of these
    images in this order. One record is in memory at a time. Raises ValueError where something does not fit.
    """
    # Each place that the command will come to takes the next record, as long as there are any.
    records = read_records(file, arguments)
    for adapter in adapters:
        for name, examples in datasets.items():
            # The examples come first in zip: where they end, the next record is still in the file.
            for example, record in zip(examples, records):
                expected = {"adapter": adapter, "data": name, "id": example.id}
                if any(record.get(key) != value for key, value in expected.items()):
                    raise ValueError(f"{file} goes on with {record['id']}, the data with {example.id}: "
                                     "they have changed, give another --out")
                yield adapter, name, record
    if next(records, None) is not None:
        raise ValueError(f"{file} holds more answers than there are images: give another --out")


def read_records(file: Path, arguments: dict) -> Iterator[dict]:
    """Yields the file's records, none where there is no file. A last line that a kill left half-written is
    cut off. Raises ValueError naming the arguments that differ, or the line that is no record."""
    if not file.exists():
        return
    whole = 0  # bytes up to the end of the last whole line
    with file.open("r+b") as lines:
        for number, line in enumerate(lines, 1):
            # Lines are appended whole: only a kill, or a full disk, leaves a last one without its end.
            if not line.endswith(b"\n"):
                lines.truncate(whole)
                return
            whole += len(line)
            value = parse_line(file, number, line)
            if number == 1:
                check_arguments(file, value, arguments)
            else:
                yield value


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


def check_arguments(file: Path, stored: dict, now: dict) -> None:
    """Raises ValueError that names each argument on which the stored answers depend and which has changed."""
    changes = []
    for name, value in now.items():
        if stored.get(name) != value:
            changes.append(f"{name} was {str(stored.get(name)):.60}, now {str(value):.60}")
    if changes:
        raise ValueError(f"{file} holds the answers to another command: {'; '.join(changes)}")
