"""Answers on disk, from which the same command goes on after a kill."""

import json
from contextlib import nullcontext
from pathlib import Path


def answers_file(out: str) -> Path:
    return Path(out.removesuffix(".json") + ".jsonl")


def written(file: Path, arguments: dict):
    """Yields the records that the same command wrote before, one at a time; a last line that a kill left
    half-written is cut off. Raises ValueError naming what differs, or the line that is no record."""
    end = 0
    with file.open("r+b") if file.exists() else nullcontext([]) as f:
        for number, line in enumerate(f, 1):
            if not line.endswith(b"\n"):
                f.truncate(end)
                return
            end += len(line)
            try:
                value = json.loads(line)
                before = value["id"] if number > 1 else dict(value["arguments"])
            except (ValueError, TypeError, KeyError):
                raise ValueError(f"{file}, line {number} is no record of an evaluation") from None
            if number > 1:
                yield value
                continue
            changed = "; ".join(f"{name} was {str(before.get(name)):.60}, now {str(now):.60}"
                                for name, now in arguments.items() if before.get(name) != now)
            if changed:
                raise ValueError(f"{file} holds the answers to another command: {changed}")
