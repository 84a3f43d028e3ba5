"""A run's folder: the state that resume needs, and how a run that is stopped keeps what it has.

What a run has written is vouched for by state.pt, which holds how long each log was when it was saved. After
a kill the logs are cut back to it, and the steps after it are made again: a resumed run equals one that
was left alone.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from lora import lora_state, save_adapter, set_lora_state
from support import report
from support.opening import JudgeFailed
from support.processes import RANK

LOGS = ("log.jsonl", "samples.jsonl", "shown.jsonl")


def size_of(file: Path) -> int:
    """Bytes; 0 where there is no file."""
    return file.stat().st_size if file.exists() else 0


def refuse_used_folder(run: Path) -> None:
    """Raises ValueError where a new run would write over another."""
    if not run.exists():
        return
    left_by_a_kill_at_the_start = {"config.json.tmp"}
    held = {file.name for file in run.iterdir()}
    if held - left_by_a_kill_at_the_start:
        raise ValueError(f"{run} holds a run already: --resume {run} goes on, --out DIR starts another")


def save_state(run: Path, policy, optimizer, step: int) -> None:
    """Everything resume needs, whole or not at all. It holds no random state: every draw is seeded by what it
    is for. Raises OSError on a full disk."""
    adapter = {name: value.detach().cpu() for name, value in lora_state(policy.model).items()}
    state = {"step": step, "optimizer": optimizer.state_dict(), "adapter": adapter,
             "offsets": {name: size_of(run / name) for name in LOGS}}

    # Written aside and renamed: a kill in between leaves the state before.
    temporary = run / "state.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {temporary}: {error.__context__ or error}") from None
    os.replace(temporary, run / "state.pt")


def load_state(run: Path, policy, optimizer) -> int:
    """Puts policy, optimizer and logs back to the last saved step and returns it; -1 for a run that has not
    even validated. Raises ValueError, and touches no file, where the state is gone or broken."""
    file = run / "state.pt"
    if not file.exists():
        forget_half_done_start(run)
        return -1
    state = read_state(file)
    set_lora_state(policy.model, state["adapter"], file)
    optimizer.load_state_dict(state["optimizer"])

    # Lines after the state were of a step that is made again.
    for name, size in state["offsets"].items():
        if size > size_of(run / name):
            raise ValueError(f"cannot resume: {run / name} has lost lines; --out DIR starts another run")
    for name, size in state["offsets"].items():
        if RANK == 0 and (run / name).exists():
            os.truncate(run / name, size)
    return state["step"]


def read_state(file: Path) -> dict:
    """What save_state wrote. Raises ValueError for anything else."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch says to a broken file
        raise ValueError(f"cannot resume: {file} is broken; --out DIR starts another run") from None
    parts = {"step", "adapter", "optimizer", "offsets"}
    if not isinstance(state, dict) or not parts <= state.keys():
        raise ValueError(f"cannot resume: {file} is not a run's; --out DIR starts another run")
    return state


def forget_half_done_start(run: Path) -> None:
    """Removes what a run wrote before its first state. Raises ValueError where it came further than that."""
    log = run / "log.jsonl"
    if log.exists() and len(log.read_text().splitlines()) > 1:
        raise ValueError(f"cannot resume: {run / 'state.pt'} is gone; --out DIR starts another run")
    if RANK == 0:
        log.unlink(missing_ok=True)
        (run / "shown.jsonl").unlink(missing_ok=True)


@contextmanager
def stops_in_one_line(job, program: str, command: str):
    """A run that cannot go on, or is told to stop, says in one line why, what is kept and how to go on.

    program, command: what the line opens with, and what `--resume` is said to.
    """
    run = job.run
    go_on = f"Go on with {command} --resume {run}"
    try:
        yield
    except KeyboardInterrupt:
        if RANK == 0 and (run / "state.pt").exists():
            keep_last_step(job)
        sys.exit(f"stopped; {kept(run)}. {go_on}")
    except (JudgeFailed, OSError) as error:  # OSError: a full disk, a cache that stays locked
        sys.exit(f"{program}: {error}; {kept(run)}. {go_on}")
    except torch.cuda.OutOfMemoryError:
        sys.exit(f"{program}: out of GPU memory; {kept(run)}. {go_on} and a lower --micro-batch or --rows, "
                 "or --checkpointing; or start another run with a lower --max-pixels, --max-new-tokens or "
                 "--n")


def kept(run: Path) -> str:
    if (run / "state.pt").exists():
        return "the last whole step is saved"
    return "no step was made"


def keep_last_step(job) -> None:
    """The adapter and the report of the last whole step: a half-done one is not kept."""
    load_state(job.run, job.policy, job.optimizer)
    save_adapter(job.policy.model, job.run / "adapter", job.policy.name)
    report.write(job.run, job.examples + job.shown)
