"""Votes by hand and against the binomial, dead judges, remembered verdicts; a judge's whole name; runs."""

import itertools
import json
import random
import sqlite3
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest

import evaluate
import judge as judging
import train
import trees
from judge import BaseJudge, JudgeName, load_prompt, open_judge, read_name, read_names
from judges import server as judges_server
from judges.audit import audit_judge
from judges.cache import CachedJudge
from judges.server import ServerJudge
from judges.vote import VotingJudge, median_rung, members
from reward import Category
from server import Server
from support.memory import judge_bytes
from support.opening import load_judge
from support.step_log import cache_figures
from test_judges_server import after_step, verdict
from test_train import arguments, lines

W, A, G, L, S, M = Category
SECRET = "sk-Very.Secret_0123456789"
NOWHERE = "http://127.0.0.1:9"  # nobody listens
PAIRS = [(f"truth {i}", f"answer {i}") for i in range(12)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No key, no proxy, and no pauses before a dead server is asked again."""
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(judges_server, "ServerJudge", partial(ServerJudge, pause=0.001))


class Says(BaseJudge):
    """Says one thing, or what a function says of a pair, and keeps what it was asked."""

    def __init__(self, verdict, key=None, reason="asleep"):
        self.verdict, self.last_error, self.asked = verdict, reason, []
        self.key = key or repr(id(self))

    def ask(self, pairs):
        self.asked += pairs
        if callable(self.verdict):
            return [self.verdict(pair) for pair in pairs]
        return [self.verdict] * len(pairs)


# ---- the median


def test_every_vote_of_up_to_three_judges():
    """By counting: the rung that at least half of the verdicts are at or below, the lowest such."""
    for size in (1, 2, 3):
        for verdicts in itertools.product([*Category, None], repeat=size):
            given = [verdict for verdict in verdicts if verdict is not None]
            voted = median_rung(verdicts)
            if size - len(given) > len(given):  # a majority has none
                assert voted is None
                continue
            wanted = min(rung for rung in given if 2 * sum(other <= rung for other in given) >= len(given))
            assert voted is wanted


@pytest.mark.parametrize("verdicts, voted", [
    ([S], S), ([None], None),
    ([W, M], W), ([M, W], W), ([S, None], S), ([None, None], None),
    ([W, S, M], S), ([M, W, G], G), ([W, W, M], W), ([S, None, G], G), ([None, S, None], None),
    ([W, G, L, M], G), ([W, S, None, None], W), ([S, None, None, None], None),
    ([W, A, S, S, M], S), ([None, None, L, S, M], S)])
def test_votes_by_hand(verdicts, voted):
    assert median_rung(verdicts) is voted


def simulated(rng, truths, wrong):
    """A judge that is right with probability .7, on its own dice; else one of wrong(truth)."""
    said = [truth if rng.random() < 0.7 else rng.choice(wrong(truth)) for truth in truths]
    return Says(lambda pair: said[int(pair[0].split()[1])])


def accuracies(wrong, rungs, pairs=6000):
    """(of each of three simulated judges, of their vote)."""
    rng = random.Random(0)
    truths = [rng.choice(rungs) for _ in range(pairs)]
    judges = [simulated(rng, truths, wrong) for _ in range(3)]
    asked = [(f"truth {i}", f"answer {i}") for i in range(pairs)]
    vote = VotingJudge(dict(zip("ABC", judges)))
    shares = []
    for judge in [*judges, vote]:
        hits = sum(verdict is truth for verdict, truth in zip(judge.ask(asked), truths))
        shares.append(hits / pairs)
    return shares[:3], shares[3]


def test_independent_errors_of_two_kinds_vote_as_the_binomial_says():
    """Wrong or Specific only: the vote is right where two of the three are."""
    alone, voted = accuracies(lambda truth: [Category(W + S - truth)], [W, S])
    binomial = 0.7 ** 3 + 3 * 0.7 ** 2 * 0.3
    assert binomial == pytest.approx(0.784)
    deviation = (binomial * (1 - binomial) / 6000) ** 0.5
    assert abs(voted - binomial) < 3 * deviation
    assert voted > max(alone) and all(abs(share - 0.7) < 3 * (0.21 / 6000) ** 0.5 for share in alone)


def test_independent_errors_over_the_ladder_vote_better_still():
    """One right judge is enough where the other two err on both sides of the truth: of the five wrong rungs
    r lie below a truth on rung r, and 5 - r above."""
    alone, voted = accuracies(lambda truth: [rung for rung in Category if rung != truth], list(Category))
    both_sides = sum(2 * r / 5 * (5 - r) / 5 for r in range(6)) / 6
    wanted = 0.784 + 3 * 0.7 * 0.3 ** 2 * both_sides
    assert wanted == pytest.approx(0.8344)
    assert abs(voted - wanted) < 3 * (wanted * (1 - wanted) / 6000) ** 0.5
    assert voted > max(alone)


# ---- judges that say nothing


def test_a_dead_one_of_three_costs_nothing_but_a_line(capfd):
    vote = VotingJudge({"up": Says(S), "down": Says(None, reason="HTTP 500"), "low": Says(G)})
    assert vote(PAIRS) == [G] * 12 == vote(PAIRS[:12])
    assert vote.last_error == "down: HTTP 500"
    assert capfd.readouterr().err == (
        "judge: down gave no verdict on 12 of 12 pairs (HTTP 500); the others vote without it\n")


def test_two_dead_of_three_leave_no_verdict_and_are_both_named(capfd):
    vote = VotingJudge({"a": Says(None), "b": Says(S), "c": lambda pairs: [None] * len(pairs)})
    assert vote([*PAIRS[:2], ("robin", "Robin!"), ("robin", "robin or wren")]) == [None, None, S, W]
    assert vote.last_error == "a: asleep; c: no reason given"
    assert len(capfd.readouterr().err.splitlines()) == 2
    assert vote([("???", "robin")]) == [None] and "without a letter" in vote.last_error


def test_a_judge_that_says_too_little_is_no_judge():
    with pytest.raises(ValueError):
        VotingJudge({"a": Says(S), "b": lambda pairs: [S]})(PAIRS)
    with pytest.raises(ValueError, match="a vote needs judges"):
        VotingJudge({})


def test_one_judge_under_two_names_is_refused(judge_folder):
    """What is remembered of the first would be the second's verdict."""
    for name in (f"{NOWHERE}#model=m,http://127.0.0.1:10#model=m", f"{judge_folder},{judge_folder}/",
                 f"{judge_folder},{judge_folder}#prompt=short"):
        with pytest.raises(ValueError, match=".* and .* are one judge, by its model's name and prompt"):
            open_judge(name)
    vote = open_judge(f"{NOWHERE}#model=m,http://127.0.0.1:10#model=m&prompt=short,{NOWHERE}#model=n")
    assert len(members(vote)) == 3


# ---- what each is asked, and remembers


def test_each_is_asked_once_about_each_pair_and_remembers_under_its_own_key(tmp_path):
    file = tmp_path / "verdicts.sqlite"
    inner = [Says(W, "a"), Says(S, "b"), Says(G, "c")]
    vote = VotingJudge({judge.key: CachedJudge(judge, file) for judge in inner})
    twice = [("Herring Gull", "bird"), ("herring gull", "BIRD!"), ("herring gull", "gull"), ("x", "y or z")]
    assert vote(twice) == [G, G, G, W] == vote(twice)
    for judge in inner:  # a pair once, however it is written; what a rule settles never
        assert judge.asked == [("herring gull", "bird"), ("herring gull", "gull")]
    with closing(sqlite3.connect(file)) as db:
        kept = db.execute("SELECT judge, category FROM verdicts").fetchall()
    assert len({key for key, _ in kept}) == 3 and sorted(category for _, category in kept) == [
        "generic"] * 2 + ["specific"] * 2 + ["wrong"] * 2
    assert cache_figures(vote) == {"cache/hit_rate": 6 / 12}  # three judges, two pairs, two calls
    assert cache_figures(VotingJudge({"a": inner[0]})) == {}

    # Each verdict is its judge's: another vote of two of them, and one alone, ask nobody.
    alone = CachedJudge(Says(None, "c"), file)
    assert alone(twice[:1]) == [G]
    assert VotingJudge({"c": alone, "b": CachedJudge(Says(None, "b"), file)})(twice[:1]) == [G]
    assert vote.key == VotingJudge(vote.judges).key != VotingJudge({"a": inner[0]}).key


def test_members_and_the_memory_they_hold(judge_folder, tmp_path):
    judge = open_judge(str(judge_folder))
    other = open_judge(str(judge_folder), prompt="detailed", cache=tmp_path / "verdicts.sqlite")
    vote = VotingJudge({"a": judge, "b": other, "c": Says(S)})
    assert members(judge) == [judge] and len(members(vote)) == 3
    assert judge_bytes(vote) == 2 * judge_bytes(judge) > 0


# ---- a judge's whole name


@pytest.mark.parametrize("word, name, label", [
    ("taxonomy", JudgeName("taxonomy"), "taxonomy"),
    ("a/b#prompt=short", JudgeName("a/b", prompt="short"), "a/b#prompt=short"),
    ("http://h:8/v1", JudgeName("http://h:8/v1"), "http://h:8/v1"),
    ("http://h#key=/k.txt&prompt=p=q.txt&model=meta/x:free",
     JudgeName("http://h", "meta/x:free", "p=q.txt", "/k.txt"), "http://h#model=meta/x:free&prompt=p=q.txt"),
    ("http://h#key=k", JudgeName("http://h", key="k"), "http://h")])
def test_names_taken_apart(word, name, label):
    assert read_name(word) == name and name.label == label
    assert read_names(f"{word},tree.json") == [name, JudgeName("tree.json")]


def test_a_name_holds_all_that_belongs_to_a_server(tmp_path):
    """As the options do, which hold for one judge where its name doesn't say it."""
    key = tmp_path / "key.txt"
    key.write_text(SECRET)
    by_name = open_judge(f"{NOWHERE}#model=m&prompt=short&key={key}")
    by_option = open_judge(NOWHERE, "m", "short", str(key))
    mixed = open_judge(f"{NOWHERE}#prompt=short", model="m", key_file=str(key))
    for judge in (by_name, by_option, mixed):
        assert judge.key == by_name.key and SECRET not in judge.key
        assert judge.endpoint.model == "m" and judge.prompt == load_prompt("short")
        assert judge.endpoint.headers["Authorization"] == f"Bearer {SECRET}"


def test_a_chat_model_takes_its_prompt_in_its_name(judge_folder):
    vote = open_judge(f"{judge_folder}#prompt=detailed,{judge_folder}#prompt=short")
    assert [judge.prompt for judge in vote.judges.values()] == [load_prompt("detailed"), load_prompt("short")]
    assert list(vote.judges) == [f"{judge_folder}#prompt={prompt}" for prompt in ("detailed", "short")]


def test_trees_and_servers_vote_and_each_server_has_its_own_key(tree_judge, tmp_path, monkeypatch):
    keys = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for key in keys:
        key.write_text(f"{SECRET}-{key.stem}")
    names = [f"{NOWHERE}#model=a&key={keys[0]}", f"http://127.0.0.1:1#model=b&key={keys[1]}", str(tree_judge)]
    monkeypatch.setenv("JUDGE_API_KEY", "another")
    vote = open_judge(",".join(names), cache=tmp_path / "verdicts.sqlite")
    first, second, tree = vote.judges.values()
    assert first.judge.endpoint.headers["Authorization"].endswith("-one")
    assert second.judge.endpoint.headers["Authorization"].endswith("-two")
    assert vote([("mallard", "bird")]) == [None]  # two of three are dead
    assert list(vote.judges) == [f"{NOWHERE}#model=a", "http://127.0.0.1:1#model=b", str(tree_judge)]
    assert all(name in vote.last_error for name in list(vote.judges)[:2]) and SECRET not in vote.last_error


def options(**changes):
    usual = dict(judge_cache="none", judge_model=None, judge_prompt=None, judge_key_file=None,
                 judge_timeout=1, judge_patience=1, judge_workers=1, judge_tokens=1)
    return SimpleNamespace(**usual | changes)


def test_the_embedded_worlds_tree_votes_and_trees_need_no_cache(tree_judge, tmp_path):
    (tmp_path / "file").write_text("")
    no_place = options(judge_cache=str(tmp_path / "file" / "verdicts.sqlite"))
    vote = load_judge(f"taxonomy,{tree_judge}", no_place, "cpu")
    assert list(vote.judges) == ["taxonomy", str(tree_judge)]
    assert vote([("mallard", "bird")]) == [G]  # the embedded world knows no mallard
    with pytest.raises(OSError, match="cannot remember verdicts"):
        load_judge(f"taxonomy,{NOWHERE}#model=m", no_place, "cpu")
    kept = load_judge(f"taxonomy,{NOWHERE}#model=m", options(judge_cache=str(tmp_path / "v.sqlite")), "cpu")
    assert isinstance(kept.judges[f"{NOWHERE}#model=m"], CachedJudge)


# ---- mistakes


MISTAKES = [
    ("#model=m", {}, "a judge's name is empty"),
    ("a.json,,b.json", {}, "a judge's name is empty"),
    ("a.json,", {}, "a judge's name is empty"),
    (f"{NOWHERE}#", {}, "behind a judge's # stand model=NAME"),
    (f"{NOWHERE}#{SECRET}", {}, "behind a judge's # stand model=NAME"),
    (f"{NOWHERE}#token={SECRET}", {}, "behind a judge's # stand model=NAME"),
    (f"{NOWHERE}#model=", {}, "behind a judge's # stand model=NAME"),
    (f"{NOWHERE}#model=a&", {}, "behind a judge's # stand model=NAME"),
    (f"{NOWHERE}#model=a&model=b", {}, "model= is given twice"),
    (f"{NOWHERE}#key={SECRET}&key=k", {}, "key= is given twice"),
    (f"{NOWHERE}#model=a", {"model": "b"}, "--judge-model and by model= behind its #"),
    (f"{NOWHERE}#model=a&prompt=short", {"prompt": "short"}, "--judge-prompt and by prompt= behind its #"),
    (f"{NOWHERE}#key=a", {"model": "m", "key_file": SECRET}, "--judge-key-file and by key= behind its #"),
    (f"{NOWHERE}#model=m&key={SECRET}", {}, "must name a file that holds the key"),
    (f"{NOWHERE}#model=m&key={SECRET * 20}", {}, "must name a file that holds the key"),
    (NOWHERE, {"model": "m", "key_file": SECRET}, "No such file"),
    (f"{NOWHERE}#key=k", {}, "--judge-model NAME, or http://host#model=NAME"),
    (f"{NOWHERE}#model=m&prompt=rude", {}, "no judge prompt 'rude'"),
    ("http://me:%s@host#model=m" % SECRET, {}, "no password in it"),
    ("tree.json#prompt=short", {}, "a tree of names has no model, prompt or key"),
    ("folder#model=m", {}, "belong to a judge on a server"),
    ("folder#key=k", {}, "belong to a judge on a server"),
    ("no-folder,tree.json", {}, "cannot load the judge 'no-folder'"),
    (f"{NOWHERE}#model=m,{NOWHERE}#key=k&model=m", {}, "a judge is named twice"),
    ("tree.json,tree.json", {}, "a judge is named twice"),
    (f"tree.json,{NOWHERE}", {"model": "m"}, "--judge-model could mean any of 2 judges: say it in its "
                                             "judge's name, 'http://host#model=NAME&prompt=PROMPT&key=FILE'"),
    ("tree.json,folder", {"prompt": "short"}, "--judge-prompt could mean any of 2 judges"),
    (f"tree.json,{NOWHERE}#model=m", {"key_file": SECRET}, "--judge-key-file could mean any of 2 judges"),
]


@pytest.mark.parametrize("name, given, message", MISTAKES)
def test_mistakes_in_a_name_end_in_one_line_that_holds_no_key(name, given, message):
    with pytest.raises((ValueError, OSError)) as e:
        open_judge(name, **given)
    assert message in str(e.value) and "\n" not in str(e.value) and SECRET not in str(e.value)


def test_the_environments_key_goes_to_one_server_only(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    two = f"{NOWHERE}#model=a,http://127.0.0.1:10#model=b"
    with pytest.raises(ValueError, match="JUDGE_API_KEY could be any of 2 servers'") as e:
        open_judge(two)
    assert SECRET not in str(e.value)
    same = open_judge(f"{NOWHERE}#model=a,{NOWHERE}#model=b")  # two models there
    assert all(judge.endpoint.headers["Authorization"] == f"Bearer {SECRET}" for judge in members(same))
    monkeypatch.delenv("JUDGE_API_KEY")
    assert len(members(open_judge(two))) == 2


def test_copied_alone_a_vote_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "JUDGES", tmp_path / "judges")
    with pytest.raises(SystemExit) as e:
        judging.main(["--judge", "a,b", "--ask", "robin", "bird"])
    assert str(e.value) == "judge.py: a vote of several judges needs the folder judges/ beside judge.py"


# ---- the commands


@pytest.fixture
def trees_of_birds(tmp_path):
    """Three trees: the second knows no gulls, the third calls everything by one parent."""
    files = []
    for number, parents in enumerate((
            {"herring gull": "gull", "gull": "bird", "bird": "animal"},
            {"robin": "bird"},
            {"herring gull": "bird", "gull": "bird", "bird": "animal"})):
        files.append(tmp_path / f"tree{number}.json")
        files[-1].write_text(json.dumps({"parents": parents}))
    return files


def test_the_audit_prints_each_alone_and_all_together(trees_of_birds, tmp_path, capsys):
    rows = [{"ground_truth": "herring gull", "prediction": "gull", "category": "less specific"},
            {"ground_truth": "herring gull", "prediction": "bird", "category": "generic"},
            {"ground_truth": "robin", "prediction": "bird", "category": "generic"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = ",".join(map(str, trees_of_birds))
    judging.main(["--judge", name, "--audit", str(file)])
    printed = capsys.readouterr().out
    blocks = printed.split("== ")[1:]
    assert [block.splitlines()[0] for block in blocks] == [
        *[f"{tree} alone ==" for tree in trees_of_birds], "the 3 together =="]

    # They say: less specific, generic, -. Then -, -, generic. Then wrong, less specific, -. The vote: of two
    # on the first two pairs, and none on the last, where two of three have no verdict: wrong, generic, -.
    figures = [(1, "0.667"), (2, "0.333"), (1, "0.000"), (1, "0.333")]
    for block, (missing, accuracy) in zip(blocks, figures):
        assert block.splitlines()[1] == f"3 pairs, {missing} without a verdict"
        assert block.splitlines()[2].startswith(f"accuracy {accuracy}, ")
    assert printed.count("(a truth that the tree does not hold)") == 3  # of each alone

    single = audit_judge(open_judge(str(trees_of_birds[0])), rows)
    assert single.startswith("3 pairs, 1 without") and single.endswith("that the tree does not hold)")
    judging.main(["--judge", name, "--ask", "herring gull", "bird"])
    assert capsys.readouterr().out == "generic\n"
    with pytest.raises(SystemExit, match="no verdict .*tree0.json: a truth .*; .*tree2.json: a truth"):
        judging.main(["--judge", name, "--ask", "robin", "bird"])


def test_the_audit_asks_each_judge_once():
    judges = {name: Says(None) for name in "abc"}
    rows = [{"ground_truth": "robin", "prediction": "bird", "category": "generic"}] * 3
    assert audit_judge(VotingJudge(judges), rows).count("3 pairs, not one verdict") == 4
    assert [judge.asked for judge in judges.values()] == [[("robin", "bird")]] * 3


FEW = ["--n", "4", "--steps", "2", "--eval-every", "0"]


@pytest.fixture(scope="module")
def by_the_tree(tmp_path_factory, checkpoint):
    """A run of two steps that the tree alone has judged."""
    folder = tmp_path_factory.mktemp("tree")
    return train.main(arguments(folder, checkpoint, trees.judge_of_cub(folder), *FEW))


def same(run, other):
    """Whether two runs have come to the same answers, verdicts, figures and test."""
    for name in ("log.jsonl", "samples.jsonl"):
        assert lines(run / name) == lines(other / name)
    assert (run / "eval.json").read_text() == (other / "eval.json").read_text()


def test_a_run_with_a_dead_server_in_the_vote_goes_on(tmp_path, checkpoint, tree_judge, by_the_tree, capfd):
    """Two trees of the same birds and a server that is gone: the run is the tree's own, but for one line."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(tree_judge.read_text()) | {"synonyms": {"anas": "mallard"}}))
    key = tmp_path / "key.txt"
    key.write_text(SECRET)
    name = f"{tree_judge},{NOWHERE}#model=m&key={key},{other}"
    run = train.main(arguments(tmp_path, checkpoint, name, *FEW))
    same(run, by_the_tree)

    said = [line for line in capfd.readouterr().err.splitlines() if "gave no verdict" in line]
    assert len(said) == 1 and said[0].startswith(f"judge: {NOWHERE}#model=m gave no verdict on ")
    assert json.loads((run / "config.json").read_text())["judge"] == name
    written = [file.read_bytes() for file in run.rglob("*") if file.is_file()]
    assert len(written) > 4 and not any(SECRET.encode() in content for content in written)


def test_a_run_whose_majority_dies_stops_names_them_and_is_resumed(
        tmp_path, checkpoint, tree_judge, by_the_tree, monkeypatch):
    key = tmp_path / "key.txt"
    key.write_text(SECRET)
    with Server(verdict, secret=SECRET) as server:
        names = [f"{server.url}#model={model}" for model in "ab"]
        spec = ",".join([str(tree_judge), *[f"{name}&key={key}" for name in names]])
        after_step(monkeypatch, 1, lambda: server.always("500"))
        with pytest.raises(SystemExit) as e:
            train.main(arguments(tmp_path, checkpoint, spec, *FEW))
        line = str(e.value)
        assert "the judge failed on " in line and "groups of step 2" in line and "\n" not in line
        assert all(f"{name}: HTTP 500" in line for name in names) and "tree.json:" not in line
        assert SECRET not in line

        # The judges' names, keys and all, are read from the run's folder.
        server.always("right")
        same(train.main(["--resume", str(tmp_path / "run")]), by_the_tree)


def test_evaluate_takes_a_vote_and_another_key_file_goes_on(tmp_path, checkpoint, tree_judge):
    """Which file a key is in is no part of what the answers depend on."""
    keys = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for key in keys:
        key.write_text(SECRET)
    with Server(lambda truth, answer: "generic", secret=SECRET) as server:
        def command(key):
            return ["--data", "cub", "--root", str(tmp_path), "--model", str(checkpoint), "--limit", "2",
                    "--max-new-tokens", "8", "--judge", f"{tree_judge},{server.url}#model=m&key={key}",
                    "--judge-cache", "none", "--out", str(tmp_path / "eval.json")]
        arguments(tmp_path, checkpoint, tree_judge)  # makes the data set
        evaluate.main(command(keys[0]))
        first = (tmp_path / "eval.json").read_text()
        asked = len(server.requests)
        evaluate.main(command(keys[1]))
        assert len(server.requests) == asked and (tmp_path / "eval.json").read_text() == first
    assert json.loads(first)["arguments"]["judge"] == f"{tree_judge},{server.url}#model=m"
    stored = (tmp_path / "eval.jsonl").read_text()
    assert "one.txt" not in stored and SECRET not in stored + first
