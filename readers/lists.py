"""CSV and JSON lists; a file that is neither ends in one line that names it."""

import csv
import io
import json
from pathlib import Path

from data import file_bytes


def read_csv(file: Path, *columns: str) -> list[list[str]]:
    """These columns of each row. Raises ValueError for another format, KeyError for a missing column."""
    content = file_bytes(file)
    try:
        text = io.StringIO(content.decode("utf-8-sig"), newline="")
        rows = []
        for row in csv.DictReader(text):
            rows.append([row[column] for column in columns])
        return rows
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} is no CSV file in UTF-8: {error}") from None


def read_json(file: Path) -> dict:
    """A JSON object. Raises ValueError for anything else."""
    content = file_bytes(file)
    try:
        return dict(json.loads(content.decode("utf-8-sig")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON object, delete it and fetch it again: {error}") from None
