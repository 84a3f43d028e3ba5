"""CachedJudge: what is remembered, and what two processes, kill -9 and a broken file do to it."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import judge as judging
import tiny
from judge import BaseJudge
from judges import cache
from judges.cache import CachedJudge
from judges.server import ServerJudge
from reward import Category

ROOT = Path(judging.__file__).parent
W, A, G, L, S, M = Category


class Inner(BaseJudge):
    """Says the given category, and remembers what it was asked."""
    last_error = "not today"

    def __init__(self, verdict=G, key="inner"):
        self.verdict, self.key, self.asked = verdict, key, []

    def ask(self, pairs):
        self.asked += pairs
        if callable(self.verdict):
            return [self.verdict(pair) for pair in pairs]
        return [self.verdict] * len(pairs)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "verdicts.sqlite"


def sql(path, *query):
    with closing(sqlite3.connect(path)) as db, db:
        return db.execute(*query).fetchall()


def sound(path):
    return sql(path, "PRAGMA integrity_check") == [("ok",)]


def test_hits_and_misses_in_order_over_reopening(path):
    inner = Inner(lambda pair: {"bird": G, "gull": L, "rose": W}[pair[1]])
    judge = CachedJudge(inner, path)
    pairs = [("Herring Gull", "bird"), ("herring_gull", "A, b"), ("herring gull!", "Gull"),
             ("herring gull", "BIRD")]
    assert judge(pairs) == [G, W, L, G] and (judge.hits, judge.misses) == (0, 2)
    assert inner.asked == [("herring gull", "bird"), ("herring gull", "gull")]  # each once, cheats never
    assert judge([("Herring  Gull", "rose"), *pairs, ("x", "X!")]) == [W, G, W, L, G, S]
    assert (judge.hits, judge.misses, len(inner.asked)) == (2, 3, 3)
    again = CachedJudge(Inner(lambda pair: 1 / 0), path)  # a warm cache asks nobody
    assert again(pairs[::-1]) == [G, L, W, G] and (again.hits, again.misses) == (2, 0)
    assert sql(path, "SELECT count(*) FROM verdicts") == [(3,)] and sound(path)
    assert judge([]) == []


def test_no_verdict_is_not_remembered_and_says_why(path):
    inner = Inner(None)
    judge = CachedJudge(inner, path)
    assert judge([("a", "b")]) == [None] and judge.last_error == "not today"
    inner.verdict = M
    assert judge([("a", "b")]) == [M] and len(inner.asked) == 2
    inner.verdict = W
    assert judge([("a", "b")]) == [M] and len(inner.asked) == 2


def test_any_callable_with_a_key_can_be_cached(path):
    def judge(pairs):
        return [G if answer == "bird" else None for _, answer in pairs]

    judge.key = "mine"
    cached = CachedJudge(judge, path)
    for _ in range(2):
        assert cached([("robin", "Bird!"), ("robin", "x"), ("robin", "robin")]) == [G, None, S]
    assert (cached.hits, cached.misses) == (1, 3)  # errors are not kept


def test_another_judge_model_or_prompt_misses(path, tmp_path, judge_folder):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Be kind.")
    url = "http://127.0.0.1:9"
    made = [ServerJudge(url, "m"), ServerJudge(url, "n"), ServerJudge(url, "m", prompt="short"),
            ServerJudge(url, "m", prompt=str(prompt)),
            *(judging.LLMJudge.load(str(judge_folder), prompt=p) for p in ("short", "detailed"))]
    assert len({judge.key for judge in made}) == len(made) == 6
    prompt.write_text("Be strict.")  # the same file, other words
    assert ServerJudge(url, "m", prompt=str(prompt)).key != made[3].key
    assert ServerJudge("http://127.0.0.1:10/v1", "m").key == made[0].key  # a server that moved
    first, second = CachedJudge(Inner(G, made[0].key), path), CachedJudge(Inner(W, made[2].key), path)
    assert first([("a", "b")]) == [G] and second([("a", "b")]) == [W]
    assert first([("a", "b")]) == [G] and (second.hits, second.misses) == (0, 1)


def test_a_verdict_on_labels_of_an_earlier_normalisation_is_not_read(path, monkeypatch):
    """Thai rice and news were one label then."""
    earlier = hashlib.sha256(b"inner").hexdigest()
    judge = CachedJudge(Inner(W), path)
    sql(path, "INSERT INTO verdicts VALUES (?, ?, ?, ?)", (earlier, "robin", "bird", "specific"))
    assert judge([("robin", "bird")]) == [W] and judge.misses == 1
    # Nor will this one be, once labels are normalised in another way again.
    monkeypatch.setattr(cache, "LABELS", cache.LABELS + 1)
    assert CachedJudge(Inner(G), path)([("robin", "bird")]) == [G]


@pytest.mark.parametrize("stored", [2, -1, None, "generi", "Generic", 1.5, b"generic", 10**15])
def test_what_is_stored_and_no_category_is_a_miss(path, stored):
    judge = CachedJudge(Inner(G), path)
    judge([("a", "b")])
    sql(path, "UPDATE verdicts SET category = ?", (stored,))
    judge.judge.verdict = L
    assert judge([("a", "b")]) == [L] and judge.misses == 2
    assert CachedJudge(Inner(W), path)([("a", "b")]) == [L]  # and mended


def test_a_folders_weights_are_part_of_the_key(path, tmp_path, monkeypatch):
    """Two folders of one name, and one folder trained again, share no verdict."""
    folders = [tiny.save_judge(tmp_path / where / "judge", seed) for seed, where in enumerate(("one", "two"))]
    keys = []
    for folder in folders:
        monkeypatch.chdir(folder.parent)
        keys.append(judging.LLMJudge.load("judge").key)
    assert judging.LLMJudge.load("judge").key == judging.LLMJudge.load(str(folders[1])).key == keys[1]
    time.sleep(0.01)
    tiny.save_judge(folders[1], seed=2)
    keys.append(judging.LLMJudge.load("judge").key)
    assert len(set(keys)) == 3


# ---- broken files


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_file_cut_short_in_its_last_page_invents_no_verdict(path, cut):
    """SQLite reads what is missing as zeros, without a word."""
    pairs = [(f"truth {i}", "answer") for i in range(2000)]
    CachedJudge(Inner(Category.SPECIFIC), path)(pairs)
    path.write_bytes(path.read_bytes()[:-cut])
    assert set(CachedJudge(Inner(Category.SPECIFIC), path)(pairs)) == {Category.SPECIFIC}


def broken(path, how):
    CachedJudge(Inner(), path)([(f"truth {i}", "answer") for i in range(2000)])
    data = path.read_bytes()
    assert len(data) > 50_000
    path.write_bytes({"garbage": data[:16] + b"no database " * 999, "truncated": data[:len(data) // 2 + 100],
                      "scrambled": data[:4096] + bytes(len(data) - 4096),
                      "head": data[:16] + b"\0" * 100 + data[116:]}[how])


@pytest.mark.parametrize("how", ["garbage", "truncated", "scrambled", "head"])
def test_a_broken_file_is_set_aside_with_a_warning(path, capsys, how):
    broken(path, how)
    before, inner = path.read_bytes(), Inner(M)
    judge = CachedJudge(inner, path)
    pairs = [(f"truth {i}", "answer") for i in range(0, 2000, 40)]
    assert judge(pairs) == [M] * 50 == judge(pairs) and len(inner.asked) == 50
    warning = capsys.readouterr().err
    aside, = path.parent.glob("*.broken-*")
    assert warning.count("warning") == 1 and warning.count("\n") == 1 and str(aside) in warning
    assert sound(path) and aside.read_bytes() == before


def foreign_database(path):
    sql(path, "CREATE TABLE bookmarks (url TEXT)")
    return path.read_bytes()


@pytest.mark.parametrize("content", [
    b"\xff\xd8\xff\xe0 a photo" * 99, b"{}", b"\n", bytes(8192), b"SQLite format 3",
    b"SQLite format 2\0" * 99, foreign_database],
    ids=["photo", "json", "newline", "zeros", "cut", "version 2", "bookmarks"])
def test_somebody_elses_file_is_refused_and_stays_where_it_is(path, content):
    path.parent.mkdir()
    content = content(path) if callable(content) else content
    path.write_bytes(content)
    with pytest.raises(OSError, match="verdicts.sqlite is no verdict cache, and is left as it is") as e:
        CachedJudge(Inner(), path)
    assert "\n" not in str(e.value)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == content


def test_a_cache_that_is_replaced_by_another_file_meanwhile_is_refused_too(path):
    judge = CachedJudge(Inner(), path)
    path.write_bytes(b"notes")
    with pytest.raises(OSError, match="no verdict cache"):
        judge([("a", "b")])
    assert path.read_bytes() == b"notes"


def test_an_empty_file_is_fine_and_a_path_that_cannot_be_ends_in_one_line(path, tmp_path, capsys):
    path.parent.mkdir()
    path.touch()
    assert CachedJudge(Inner(), path)([("a", "b")]) == [G]
    for wrong in (tmp_path, path / "below.sqlite"):
        with pytest.raises(OSError) as e:
            CachedJudge(Inner(), wrong)([("a", "b")])
        assert "\n" not in str(e.value)
    assert capsys.readouterr().err == ""


# ---- several processes

WORKER = """
import sys
import time
from judges.cache import CachedJudge
from reward import Category
path, first, last, step, say = sys.argv[1], *map(int, sys.argv[2:])
def judge(pairs):
    return [Category(int(truth.split()[1]) % 6) for truth, _ in pairs]
judge.key = "one"
cached = CachedJudge(judge, path)
print("ready", flush=True)
sys.stdin.readline()
for start in range(first, last, step):
    pairs = [(f"truth {i}", "answer") for i in range(start, start + step)]
    assert cached(pairs) == judge(pairs)
    if say:
        print(start + step, flush=True)
"""


def workers(path, *spans, say=0):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    started = [subprocess.Popen([sys.executable, "-c", WORKER, str(path), *map(str, span), str(say)],
                                cwd=ROOT, text=True, **pipes) for span in spans]
    for worker in started:
        assert worker.stdout.readline() == "ready\n", worker.stderr.read()
    for worker in started:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    return started


def numbers(path) -> dict[int, int]:
    rungs = {c.label: int(c) for c in Category}
    return {int(t.split()[1]): rungs[c] for t, c in sql(path, "SELECT truth, category FROM verdicts")}


def test_two_processes_on_one_file(path):
    """2,000 pairs, of which 1,000 are both's: no error, no lost verdict."""
    for worker in workers(path, (0, 1500, 25), (500, 2000, 25)):
        assert (worker.wait(100), worker.stderr.read()) == (0, "")
    assert numbers(path) == {i: i % 6 for i in range(2000)} and sound(path)
    assert list(path.parent.iterdir()) == [path]


def test_kill_9_in_the_middle_loses_nothing_of_the_others(path):
    for kill_after in (100, 300, 700):
        path.unlink(missing_ok=True)
        victim, other = workers(path, (0, 100_000, 5), (100_000, 100_500, 5), say=1)
        told = 0
        while told < kill_after:
            told = int(victim.stdout.readline())
        os.kill(victim.pid, signal.SIGKILL)
        rest = victim.communicate()[0].split()
        told = int(rest[-1]) if rest and rest[-1] in map(str, range(0, 100_001, 5)) else told
        output, errors = other.communicate(timeout=100)
        assert (other.returncode, errors) == (0, "") and output.split()[-1] == "100500"
        kept = numbers(path)  # whole transactions
        assert all(kept[i] == i % 6 for i in [*range(told), *range(100_000, 100_500)])  # its own, too
        assert set(kept.values()) <= set(range(6)) and len(kept) % 5 == 0 and sound(path)


def test_another_process_sets_the_broken_file_aside_first(path, monkeypatch):
    broken(path, "garbage")
    replace = os.replace

    def too_late(old, new):
        replace(old, new)
        raise FileNotFoundError(old)

    monkeypatch.setattr(cache.os, "replace", too_late)
    assert CachedJudge(Inner(M), path)([("a", "b")]) == [M] and sound(path)


def test_two_processes_meet_one_broken_file(path):
    for _ in range(3):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cache.HEADER + b"no database " * 999)
        for worker in workers(path, (0, 200, 10), (200, 400, 10)):
            assert worker.wait(100) == 0, worker.stderr.read()
        assert sound(path) and numbers(path) == {i: i % 6 for i in range(400)}  # the new file is never moved


def test_a_file_locked_by_another_is_waited_for(path):
    judge = CachedJudge(Inner(), path)
    judge([("a", "b")])
    code = ("import sqlite3, sys, time; db = sqlite3.connect(sys.argv[1]); db.execute('BEGIN EXCLUSIVE');"
            "print(1, flush=True); time.sleep(.7)")
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    worker.stdout.readline()
    assert judge([("a", "b"), ("a", "c")]) == [G, G]  # not waiting would be an OSError
    worker.wait()
