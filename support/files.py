"""JSON files, whole or not at all; and JSON lines."""

import json
import os
from pathlib import Path


def write_json(path, value) -> None:
    """Whole or not at all: a killed run leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def append(path: Path, lines: list[dict]) -> None:
    """A JSON object a line, on disk when it returns."""
    try:
        with path.open("a", encoding="utf-8") as f:
            f.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as e:
        raise OSError(f"cannot write {path}: {e.strerror}") from None
