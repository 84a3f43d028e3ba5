"""A run's folder: kills and full disks wherever a file changes, what resume refuses, who may write there."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

import small_run
import train
from small_run import ARGUMENTS, contents, start_over, stopped_at
from support import lock as locks
from support.lock import Lock


@pytest.fixture
def command(monkeypatch, tmp_path):
    """train.main in miniature: a first start, or going on where there is something to go on with."""
    small_run.install(monkeypatch)
    run = tmp_path / "run"

    def start(*more):
        if (run / "config.json").exists():
            return train.main(["--resume", str(run), *more])
        return train.main([*ARGUMENTS, "--out", str(run), *more])

    start.run = run
    return start


def everything(folder) -> dict:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(command, message: str) -> None:
    """One line with these words, and no file another than before."""
    before = everything(command.run)
    with pytest.raises(SystemExit) as stop:
        command()
    assert message in str(stop.value) and "\n" not in str(stop.value)
    assert everything(command.run) == before


# ---- kills and full disks


@pytest.mark.parametrize("fault", ["kill", "torn", "full", "read-only"])
def test_a_run_that_stops_at_any_change_of_a_file_goes_on_to_the_same_files(command, fault):
    """However it stops, the run that goes on ends with the files of one left alone, and with no others."""
    command()
    whole = contents(command.run)
    moment = 0
    while True:
        start_over(command.run)
        moment += 1
        said = stopped_at(command.run, moment, fault, command)
        if said is None:
            break
        if fault in ("full", "read-only"):
            assert said == "went on" or said.startswith("train.py: "), said
            assert "\n" not in said
        command()
        assert contents(command.run) == whole, (moment, said)
    assert moment > 15


def test_what_other_writers_left_in_the_adapters_folder_goes_too(command):
    command()
    whole = contents(command.run)
    (command.run / "adapter" / ".tmp-adapter_model.safetensors").write_bytes(b"half")
    (command.run / ".tmp-report.html").write_bytes(b"half")
    command()
    assert contents(command.run) == whole


# ---- a folder that goes away


@pytest.mark.parametrize("where", ["update", "evaluate", "before_and_after"])
@pytest.mark.parametrize("how", ["deleted", "moved", "emptied"])
def test_a_folder_that_goes_away_ends_the_run(command, monkeypatch, where, how):
    """In a step, a validation, the last test: never status 0 with half of the run in a new folder."""
    real = getattr(train, where)

    def goes_away(*args, **settings):
        if how == "moved":
            command.run.rename(command.run.with_name("moved"))
        elif how == "deleted":
            shutil.rmtree(command.run)
        else:
            for file in command.run.glob("[!.]*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        monkeypatch.setattr(train, where, real)
        return real(*args, **settings)

    monkeypatch.setattr(train, where, goes_away)
    with pytest.raises(SystemExit, match="^train.py: .*run was (deleted or taken over|emptied) meanwhile; "
                                         "nothing of the run is left in .*run$"):
        command()
    assert not command.run.exists() or not any(command.run.iterdir())


def test_a_disk_that_can_only_be_read_any_more(command, monkeypatch):
    """Ctrl-C, and the adapter of the last step can't be written: one line, and the state is kept."""
    def interrupted(*args, **settings):
        raise KeyboardInterrupt

    def read_only(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(train, "update", interrupted)
    monkeypatch.setattr("support.run_folder.save_adapter", read_only)
    with pytest.raises(SystemExit) as stop:
        command()
    assert str(stop.value) == ("stopped; the last whole step is saved, its adapter or report may be older "
                               "([Errno 30] Read-only file system). "
                               f"Go on with python train.py --resume {command.run}")


# ---- two at one folder


def test_a_second_process_is_told_who_works_in_the_folder(command, monkeypatch, capsys):
    """A second start and a resume, from within a run and from another process."""
    real = train.update
    said = []

    def update(*args, **settings):
        for argv in ([*ARGUMENTS, "--out", str(command.run)], ["--resume", str(command.run)]):
            before = everything(command.run)
            with pytest.raises(SystemExit) as stop:
                train.main(argv)
            said.append(str(stop.value))
            assert everything(command.run) == before
        code = (f"import sys; sys.path[:0] = {sys.path[:2]}; from pathlib import Path\n"
                f"from support.lock import Lock; run = Path({str(command.run)!r})\n"
                "try: Lock(run / '.speciarl.lock', run)\n"
                "except OSError as error: print(error)")
        if len(said) == 2:
            said.append(subprocess.check_output([sys.executable, "-c", code], text=True).strip())
        return real(*args, **settings)

    monkeypatch.setattr(train, "update", update)
    command()
    line = (f"{command.run} is in use by process {os.getpid()} on {os.uname().nodename}: wait until that has "
            "ended, or write elsewhere with --out")
    assert said[:3] == [f"train.py: {line}", f"train.py: {line}", line]
    assert not (command.run / ".speciarl.lock").exists()


def test_a_lock_ends_with_its_process(tmp_path):
    """kill -9 leaves the file, and nothing else."""
    file = tmp_path / "run" / ".lock"
    code = (f"import sys, time; sys.path[:0] = {sys.path[:2]}; from pathlib import Path\n"
            f"from support.lock import Lock; lock = Lock(Path({str(file)!r}), Path('run'))\n"
            "print(1, flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(OSError, match=f"run is in use by process {holder.pid} on "):
        Lock(file, file.parent)
    holder.kill()
    holder.communicate()
    assert file.exists()
    with Lock(file, file.parent) as lock:
        lock.check()
        assert file.read_text().startswith(f"process {os.getpid()} on ")
    assert not file.exists()


def test_a_lock_removes_the_folders_it_made_and_no_others(tmp_path):
    (tmp_path / "there").mkdir()
    with Lock(tmp_path / "there" / "new" / "run" / ".lock", tmp_path):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with Lock(tmp_path / "there" / ".lock", tmp_path):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


@pytest.mark.parametrize("system", ["refuses", "has none"])
def test_where_there_are_no_locks_there_is_a_warning(command, monkeypatch, capsys, system):
    def refuses(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    if system == "refuses":
        monkeypatch.setattr(locks.fcntl, "flock", refuses)
    else:
        monkeypatch.setattr(locks, "fcntl", None)
    command()
    assert f"warning: {command.run} can't be locked here" in capsys.readouterr().err
    assert (command.run / "eval.json").exists()


def test_the_lock_of_a_dead_run_is_no_content(command):
    """What a kill at the very start leaves: the folder is as good as new."""
    command.run.mkdir()
    (command.run / ".speciarl.lock").write_text("process 1 on mars")
    (command.run / ".tmp-config.json").write_text("{")
    command()
    names = {file.name for file in command.run.iterdir()}
    assert not any(name.startswith(".") for name in names) and "eval.json" in names


# ---- what resume refuses


@pytest.mark.parametrize("change, message", [
    ({"loss": "x"}, "--loss must be one of grpo, dr_grpo, dapo, gspo, got 'x'"),
    ({"reward": "x"}, "--reward must be one of"), ({"method": "dpo"}, "--method must be one of"),
    ({"protocol": None}, "--protocol must be str, got None"), ({"n": None}, "--n must be int, got None"),
    ({"n": 2.0}, "--n must be int, got 2.0"), ({"n": True}, "--n must be int, got True"),
    ({"n": "2"}, "--n must be int, got '2'"), ({"n": 1}, "--n must be at least 2"),
    ({"steps": 2.5}, "--steps must be int | None, got 2.5"), ({"steps": 0}, "--steps must be at least 1"),
    ({"lr": "a"}, "--lr must be float"), ({"lr": float("nan")}, "--lr must be above 0"),
    ({"lr": [1]}, "--lr must be float"), ({"checkpointing": 0}, "--checkpointing must be bool, got 0"),
    ({"betas": [0.9]}, "--betas must be 2 numbers"), ({"betas": ["0.9", "0.9"]}, "--betas must be 2 numbers"),
    ({"betas": None}, "'NoneType' object is not iterable"), ({"data": ["toy"]}, "--data must be str"),
    ({"prompt": ""}, "--prompt must not be empty"), ({"out": ""}, "--out must not be empty"),
    ({"beta": None}, "--beta is not decided"), ({"clip_high": None}, "--clip-high is not decided"),
    ({"colour": 1}, "it lacks, or has beside its own, colour"), ({"judge_cache": 3}, "--judge-cache must be"),
])
def test_a_configuration_that_no_run_has_written_is_refused(command, change, message):
    command()
    config = json.loads((command.run / "config.json").read_text())
    (command.run / "config.json").write_text(json.dumps(config | change))
    refused(command, f"config.json is not the configuration of a run of this version: {message}")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "\xff", "[" * 100_000, '{"n": ' * 100_000])
def test_a_configuration_that_is_none_is_refused(command, text):
    command()
    (command.run / "config.json").write_bytes(text.encode("latin-1"))
    refused(command, "config.json is not the configuration of a run of this version")


def test_a_setting_that_is_missing_is_not_made_up(command):
    command()
    config = json.loads((command.run / "config.json").read_text())
    del config["temperature"]
    (command.run / "config.json").write_text(json.dumps(config))
    refused(command, "it lacks, or has beside its own, temperature")


def first(state: dict) -> str:
    return next(iter(state["adapter"]))


def set_offsets(state, offsets):
    state["offsets"] = offsets


STATES = {
    "another file's offset": lambda s: set_offsets(s, s["offsets"] | {"../outside": 1}),
    "only another file's": lambda s: set_offsets(s, {"/etc/hostname": 1}),
    "no offsets": lambda s: set_offsets(s, {}),
    "a negative offset": lambda s: s["offsets"].update({"log.jsonl": -1}),
    "an offset of a half": lambda s: s["offsets"].update({"log.jsonl": 0.5}),
    "a true offset": lambda s: s["offsets"].update({"log.jsonl": True}),
    "offsets in a list": lambda s: set_offsets(s, [1, 2, 3]),
    "a negative step": lambda s: s.update(step=-1),
    "a step beyond the run": lambda s: s.update(step=3),
    "a huge step": lambda s: s.update(step=10**30),
    "half a step": lambda s: s.update(step=0.5),
    "a step that is a tensor": lambda s: s.update(step=torch.tensor(1)),
    "something more": lambda s: s.update(more=1),
    "no adapter": lambda s: s.update(adapter={}),
    "NaN weights": lambda s: s["adapter"][first(s)].fill_(float("nan")),
    "one infinite weight": lambda s: s["adapter"][first(s)].view(-1)[0].fill_(float("inf")),
    "weights of another shape": lambda s: s["adapter"].update({first(s): torch.zeros(1, 1)}),
    "weights in half": lambda s: s["adapter"].update({first(s): s["adapter"][first(s)].half()}),
    "weights that are a list": lambda s: s["adapter"].update({first(s): [0.0]}),
    "weights of more layers": lambda s: s["adapter"].update(more=torch.zeros(1)),
    "sparse weights": lambda s: s["adapter"].update({first(s): s["adapter"][first(s)].to_sparse()}),
    "moments of another shape": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
    "moments of NaN": lambda s: s["optimizer"]["state"][0]["exp_avg"].fill_(float("nan")),
    "negative squares": lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].fill_(-1),
    "moments of more parameters": lambda s: s["optimizer"]["state"].update({99: {}}),
    "moments of other names": lambda s: s["optimizer"]["state"].update({0: {"momentum": 1}}),
    "a negative update": lambda s: s["optimizer"]["state"][0]["step"].fill_(-3),
    "half an update": lambda s: s["optimizer"]["state"][0]["step"].fill_(0.5),
    "moments that are a list": lambda s: s["optimizer"].update(state=[1]),
    "other betas": lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.0, 0.0)),
    "another weight decay": lambda s: s["optimizer"]["param_groups"][0].update(weight_decay=9.0),
    "two groups": lambda s: s["optimizer"].update(param_groups=s["optimizer"]["param_groups"] * 2),
    "other parameters": lambda s: s["optimizer"]["param_groups"][0].update(params=[0]),
    "an infinite rate": lambda s: s["optimizer"]["param_groups"][0].update(lr=float("inf")),
}


def test_a_state_that_this_run_has_not_saved_is_refused(command, tmp_path):
    """Each of these changes alone; no file is touched, in the folder or outside of it."""
    command()
    (tmp_path / "outside").write_text("somebody's own")
    saved = (command.run / "state.pt").read_bytes()
    for name, change in STATES.items():
        (command.run / "state.pt").write_bytes(saved)
        state = torch.load(command.run / "state.pt", weights_only=True)
        change(state)
        torch.save(state, command.run / "state.pt")
        try:
            refused(command, f"cannot resume: {command.run / 'state.pt'} is not this run's (")
        except BaseException as error:
            raise AssertionError(name) from error
    assert (tmp_path / "outside").read_text() == "somebody's own"
    (command.run / "state.pt").write_bytes(saved)
    command()


def test_code_in_a_state_is_not_run(command, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    command()
    torch.save({"step": Evil()}, command.run / "state.pt")
    refused(command, "state.pt is broken")
    assert not (tmp_path / "made").exists()


def test_a_log_that_was_edited_is_refused(command):
    command()
    log = command.run / "samples.jsonl"
    text = log.read_text()
    log.write_text(text.replace("a", "aaa", 9))
    refused(command, "samples.jsonl was changed")
    log.unlink()
    refused(command, "samples.jsonl has lost lines")


@pytest.mark.parametrize("left", ["samples.jsonl", "adapter", "eval.json"])
def test_a_run_that_came_further_than_its_first_state_is_not_begun_anew(command, left):
    command()
    for file in command.run.iterdir():
        if file.name not in ("config.json", left):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    refused(command, "state.pt is gone")


# ---- options


@pytest.mark.parametrize("argv, message", [
    (["--out", ""], "--out must not be empty"), (["--resume", ""], "--resume must be the folder of a run"),
    (["--judge-cache", ""], "--judge-cache must not be empty"), (["--root", ""], "--root must not be empty")])
def test_an_empty_name_is_a_mistake_and_not_this_folder(command, monkeypatch, argv, message):
    command()
    monkeypatch.chdir(command.run)  # which could be resumed
    before = everything(command.run)
    with pytest.raises(SystemExit, match=f"^train.py: {message}"):
        train.main(argv)
    assert everything(command.run) == before
