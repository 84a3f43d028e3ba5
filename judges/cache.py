"""Verdicts remembered in a SQLite file.

    judge = CachedJudge(judge, "verdicts.sqlite")

The file holds one table, verdicts(judge, truth, answer, category): `judge` is a hash of the judge's key (all
that its verdicts depend on) and of how labels are normalised, truth and answer are normalised, category is
the label. A verdict on labels that were normalised in an earlier way is not read.
"""

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from judge import BY_LABEL, LABELS, BaseJudge, Judge, Pair
from reward import Category

TABLE = """CREATE TABLE IF NOT EXISTS verdicts (judge TEXT, truth TEXT, answer TEXT, category TEXT,
           PRIMARY KEY (judge, truth, answer)) WITHOUT ROWID"""
HEADER = b"SQLite format 3\0"  # the first bytes of every database
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
FIND = "SELECT category FROM verdicts WHERE judge = ? AND truth = ? AND answer = ?"
KEEP = "REPLACE INTO verdicts VALUES (?, ?, ?, ?)"


class CachedJudge(BaseJudge):
    """A judge behind a file of verdicts by (judge.key, truth, answer). Errors are not kept.

    Safe for several processes and kill -9: each call's verdicts are one transaction. A database that is
    broken is set aside with a warning; a file that is none, or one of other tables, is somebody else's and
    refused. hits, misses: distinct pairs so far. Raises OSError for such a file, a path that can't be
    written, or a file that stays locked."""

    def __init__(self, judge: Judge, path):
        self.judge = judge
        self.path = Path(path)
        self.hits = 0
        self.misses = 0
        key = f"labels {LABELS}: {judge.key}"
        self.key = hashlib.sha256(key.encode()).hexdigest()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.run(FIND, [])  # a path that can't be is met now

    def ask(self, pairs: Sequence[Pair]) -> list[Category | None]:
        known = self.remembered(pairs)
        missing = [pair for pair in pairs if pair not in known]
        self.hits += len(known)
        self.misses += len(missing)

        told = {}
        if missing:
            # A judge of ours need not settle and normalise again; any other callable is simply called.
            ask = getattr(self.judge, "ask", self.judge)
            told = dict(zip(missing, ask(missing), strict=True))
        self.last_error = getattr(self.judge, "last_error", "")

        new = [(*pair, category.label) for pair, category in told.items() if category is not None]
        self.run(KEEP, new)
        return [known.get(pair, told.get(pair)) for pair in pairs]

    def remembered(self, pairs: Sequence[Pair]) -> dict[Pair, Category]:
        """The verdicts on file; what is stored and no category is as good as nothing."""
        known = {}
        for pair, row in zip(pairs, self.run(FIND, pairs)):
            if row is not None and row[0] in BY_LABEL:
                known[pair] = BY_LABEL[row[0]]
        return known

    def run(self, statement: str, rows: Sequence[tuple]) -> list:
        """The statement's first result for each row of values, in one transaction; three tries."""
        for tries_left in (2, 1, 0):
            file_before = self.inode()
            self.refuse_foreign_file()
            try:
                return self.run_once(statement, rows)
            except sqlite3.DatabaseError as e:
                # Another process has set the file aside just now: the next try meets its new one.
                was_replaced = self.inode() != file_before
                is_locked_or_full = isinstance(e, sqlite3.OperationalError)
                if tries_left == 0 or (is_locked_or_full and not was_replaced):
                    raise OSError(f"the verdict cache {self.path}: {e}") from None
                if not was_replaced:
                    self.set_aside(e)

    def run_once(self, statement: str, rows: Sequence[tuple]) -> list:
        with closing(sqlite3.connect(self.path, timeout=60)) as db:
            with db:  # one transaction
                tables = [name for name, in db.execute(TABLES)]
                if tables and "verdicts" not in tables:
                    raise self.foreign_file()
                db.execute(TABLE)
                return [db.execute(statement, (self.key, *row)).fetchone() for row in rows]

    def refuse_foreign_file(self) -> None:
        """Raises OSError for a pipe or a device, and a file with something in it that does not begin as
        SQLite's do."""
        if self.path.exists() and not self.path.is_file() and not self.path.is_dir():
            raise self.foreign_file()
        start = b""
        with suppress(FileNotFoundError, IsADirectoryError), self.path.open("rb") as file:
            start = file.read(len(HEADER))
        if start not in (b"", HEADER):
            raise self.foreign_file()

    def foreign_file(self) -> OSError:
        return OSError(f"{self.path} is no verdict cache, and is left as it is: give another --judge-cache")

    def inode(self) -> int | None:
        """Tells the file from another of its name; None where there is none."""
        with suppress(OSError):
            return self.path.stat().st_ino

    def set_aside(self, why: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(self.path, aside)
            print(f"warning: the verdict cache was broken ({why}), is now {aside}", file=sys.stderr)
