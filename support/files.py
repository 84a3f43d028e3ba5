"""Two ways to write a file: JSON whole or not at all, and JSON lines behind those that are there.

A run's config.json and eval.json, and an evaluation's figures, are written whole: whoever reads them never
meets half a file. log.jsonl, samples.jsonl and an evaluation's answers grow by lines: what a kill leaves is
all whole lines but perhaps the last.
"""

import json
import os
from pathlib import Path


def write_json(path, value) -> None:
    """Writes a JSON file, and the folders above it. Whole or not at all: a killed run leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    # A rename within one folder puts the new file in place of the old one at once.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def append(path: Path, lines: list[dict]) -> None:
    """Appends a JSON object a line; they are on disk when it returns. Raises OSError naming the file."""
    text = ""
    for line in lines:
        text += json.dumps(line, ensure_ascii=False) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from None
