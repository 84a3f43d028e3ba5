"""Verdicts remembered in a SQLite file."""

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from judge import _BY_NAME, Judge, Pair, _Settled
from reward import Category


class CachedJudge(_Settled):
    """A judge behind a SQLite file of verdicts by (judge.key, truth, answer), normalised; no errors.

    Safe for several processes and kill -9: each call's verdicts are one transaction. A file that is no sound
    database is set aside with a warning. hits, misses: distinct pairs so far."""
    def __init__(self, judge: Judge, path):
        self.judge, self.path, self.hits, self.misses = judge, Path(path), 0, 0
        self.key = hashlib.sha256(judge.key.encode()).hexdigest()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._run("", [])  # a path that can't be is met now

    def _ask(self, clean: Sequence[Pair]) -> list[Category | None]:
        found = self._run("SELECT category FROM verdicts WHERE judge = ? AND truth = ? AND answer = ?", clean)
        known = {p: _BY_NAME[row[0]] for p, row in zip(clean, found) if row and row[0] in _BY_NAME}
        missing = [pair for pair in clean if pair not in known]
        self.hits, self.misses = self.hits + len(known), self.misses + len(missing)
        ask = getattr(self.judge, "_ask", self.judge)  # prechecked and normalised already, once is enough
        told = dict(zip(missing, ask(missing), strict=True)) if missing else {}
        self.last_error = getattr(self.judge, "last_error", "")
        new = [(*pair, c.label) for pair, c in told.items() if c is not None]
        self._run("REPLACE INTO verdicts VALUES (?, ?, ?, ?)", new)
        return [known.get(pair, told.get(pair)) for pair in clean]

    def _inode(self) -> int | None:
        with suppress(OSError):
            return self.path.stat().st_ino

    def _run(self, statement: str, rows: Sequence[tuple]) -> list:
        """The statement's first result for each row of values, in one transaction."""
        for last_try in (False, False, True):
            before = self._inode()
            try:
                with closing(sqlite3.connect(self.path, timeout=60)) as db, db:
                    db.execute("CREATE TABLE IF NOT EXISTS verdicts (judge TEXT, truth TEXT, answer TEXT, "
                               "category TEXT, PRIMARY KEY (judge, truth, answer)) WITHOUT ROWID")
                    return [db.execute(statement, (self.key, *row)).fetchone() for row in rows]
            except sqlite3.DatabaseError as e:
                moved = self._inode() != before  # another process set it aside just now: this is its new file
                if last_try or not moved and isinstance(e, sqlite3.OperationalError):  # locked, or disk full
                    raise OSError(f"the verdict cache {self.path}: {e}") from None
                if not moved:
                    aside = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
                    with suppress(FileNotFoundError):
                        os.replace(self.path, aside)
                        print(f"warning: the verdict cache was broken ({e}), is now {aside}", file=sys.stderr)
