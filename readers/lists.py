"""CSV and JSON lists; a file that is neither ends in one line that names it."""

import csv
import json
from pathlib import Path


def read_csv(file: Path, *columns: str) -> list[list[str]]:
    """These columns of each row. Raises ValueError for another format, KeyError for a missing column."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as f:
            rows = []
            for row in csv.DictReader(f):
                rows.append([row[column] for column in columns])
            return rows
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} is no CSV file in UTF-8: {error}") from None


def read_json(file: Path) -> dict:
    """A JSON object. Raises ValueError for anything else."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON object, delete it and fetch it again: {error}") from None
