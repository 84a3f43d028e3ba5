"""A run's folder: the state that resume needs, and how a run that is stopped keeps what it has.

What a run has written is vouched for by state.pt, which holds how long each log was when it was saved. After
a kill the logs are cut back to it, and the steps after it are made again: a resumed run equals one that
was left alone. Nothing in the folder is trusted: all that is read is measured against the run that goes on,
and nothing is touched before all of it fits.
"""

import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from lora import lora_state, save_adapter, set_lora_state
from support import report
from support.command_line import first_line
from support.files import TEMPORARY, clear_leftovers, replacing
from support.lock import Lock
from support.opening import QUESTION, JudgeFailed
from support.processes import RANK, gather
from support.stored import COUNT_FROM_0, DICT, NUMBER, refuse_other

LOCK = ".speciarl.lock"  # who works in the folder; it is no content of it
LOGS = ("log.jsonl", "samples.jsonl", "shown.jsonl")
LATER = ("samples.jsonl", "adapter", "eval.json", "report.html")  # written after the first state only

# ------------------------------------------------------------------------------------------------------------
# One run a folder


def lock_run(run: Path, new: bool):
    """The lock on a run's folder, which is made for a new run; to be held in a `with`. The first process
    takes it, the others wait for its word. Raises OSError where another run holds it, ValueError where a new
    run would write over another."""
    lock = nullcontext()
    refusal = None
    if RANK == 0:
        try:
            lock = Lock(run / LOCK, run)
            if new:
                refuse_used_folder(run)
        except (ValueError, OSError) as error:
            refusal = error

    refusals = gather([refusal and first_line(refusal)])

    if refusal is not None:
        with lock:  # lets go of it
            raise refusal
    if any(refusals):
        sys.exit(1)  # the first process says why
    return lock


def refuse_used_folder(run: Path) -> None:
    """Raises ValueError where a new run would write over another."""
    for file in run.iterdir():
        # What a kill at the very start has left is nothing yet.
        if file.name in (LOCK, QUESTION) or file.name.startswith(TEMPORARY):
            continue
        raise ValueError(f"{run} holds a run already: --resume {run} goes on, --out DIR starts another")


def check_folder(run: Path, lock: Lock) -> None:
    """Raises OSError where the folder, or what was in it, was deleted while the run was going on."""
    lock.check()
    if not (run / "config.json").exists():
        raise OSError(f"{run} was emptied meanwhile")


# ------------------------------------------------------------------------------------------------------------
# The state


def save_state(run: Path, policy, optimizer, step: int) -> None:
    """Everything resume needs, whole or not at all. It holds no random state: every draw is seeded by what it
    is for. Raises OSError on a full disk."""
    adapter = {name: value.detach().cpu() for name, value in lora_state(policy.model).items()}
    state = {"step": step, "optimizer": optimizer.state_dict(), "adapter": adapter,
             "offsets": {name: size_of(run / name) for name in LOGS}}
    with replacing(run / "state.pt") as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch hides a full disk behind it
            raise OSError(str(error.__context__ or error)) from None


def size_of(file: Path) -> int:
    """Bytes; 0 where there is no file."""
    return file.stat().st_size if file.exists() else 0


def load_state(run: Path, policy, optimizer, steps: int) -> int:
    """Puts policy, optimizer and logs back to the last saved step and returns it; -1 for a run that has not
    even validated. steps: how many the run has. Raises ValueError, and touches nothing, where the state is
    gone, or is none that this run can have saved."""
    file = run / "state.pt"
    saved = file.is_file()
    if saved:
        state = read_state(file, policy, optimizer, steps)
        refuse_lost_lines(run, state["offsets"])
        set_lora_state(policy.model, state["adapter"], file)
        optimizer.load_state_dict(state["optimizer"])
    else:
        refuse_lost_state(run)

    # All of it fits. What lies behind the state is of a step that is made again, or of a half-done start.
    if RANK == 0:
        for name in LOGS:
            if saved and (run / name).exists():
                os.truncate(run / name, state["offsets"][name])
            if not saved:
                (run / name).unlink(missing_ok=True)
        for folder in (run, run / "adapter"):
            clear_leftovers(folder)
    return state["step"] if saved else -1


def read_state(file: Path, policy, optimizer, steps: int) -> dict:
    """What save_state wrote. Raises ValueError for anything else."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch says to a broken file
        raise ValueError(f"cannot resume: {file} is broken; --out DIR starts another run") from None
    try:
        refuse_other(state, state_pattern(policy, optimizer, steps), "it")
        refuse_other_moments(state["optimizer"]["state"], optimizer)
    except ValueError as error:
        raise ValueError(f"cannot resume: {file} is not this run's ({error}); --out DIR starts another run"
                         ) from None
    return state


def state_pattern(policy, optimizer, steps: int) -> dict:
    """What a state of this run looks like, as support.stored says it."""
    groups = []
    for group in optimizer.state_dict()["param_groups"]:
        groups.append(group | {"lr": NUMBER})  # which is set anew for each step
    return {
        "step": (lambda value: type(value) is int and 0 <= value <= steps, f"a step from 0 to {steps}"),
        "adapter": lora_state(policy.model),
        "optimizer": {"state": DICT, "param_groups": groups},
        "offsets": {name: COUNT_FROM_0 for name in LOGS},
    }


def refuse_other_moments(stored: dict, optimizer) -> None:
    """Raises ValueError where AdamW's running means are not those of this run's parameters. A parameter has
    none before its first update."""
    parameters = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    pattern = {}
    for number, parameter in enumerate(parameters):
        if number in stored:
            pattern[number] = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
    refuse_other(stored, pattern, "its optimizer's state")

    for number, moments in stored.items():
        updates = float(moments["step"])
        if updates < 1 or updates % 1 > 0:
            raise ValueError(f"its optimizer's state, {number}: {updates} is no count of updates")
        if (moments["exp_avg_sq"] < 0).any():
            raise ValueError(f"its optimizer's state, {number}: a mean of squares is negative")


def refuse_lost_lines(run: Path, offsets: dict[str, int]) -> None:
    """Raises ValueError where a log is no longer what the state vouches for: whole lines, up to its end."""
    for name, size in offsets.items():
        file = run / name
        if file.exists() and not file.is_file():
            raise ValueError(f"cannot resume: {file} is no file; --out DIR starts another run")
        if size > size_of(file):
            raise ValueError(f"cannot resume: {file} has lost lines; --out DIR starts another run")
        if size > 0:
            with file.open("rb") as log:
                begin = log.read(1)
                log.seek(size - 1)
                end = log.read(1)
            if begin != b"{" or end != b"\n":
                raise ValueError(f"cannot resume: {file} was changed; --out DIR starts another run")


def refuse_lost_state(run: Path) -> None:
    """Raises ValueError where a run without a state has come further than to the line before its first."""
    log = run / "log.jsonl"
    lines = log.read_bytes().splitlines() if log.is_file() else []
    later = [name for name in LATER if (run / name).exists()]
    if len(lines) > 1 or later:
        raise ValueError(f"cannot resume: {run / 'state.pt'} is gone; --out DIR starts another run")


# ------------------------------------------------------------------------------------------------------------
# How a run stops


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
        sys.exit(f"stopped; {keep_last_step(job)}. {go_on}")
    except (JudgeFailed, OSError) as error:  # OSError: a full disk, a cache that stays locked
        if not (run / "config.json").exists():
            sys.exit(f"{program}: {error}; nothing of the run is left in {run}")
        sys.exit(f"{program}: {error}; {kept(run)}. {go_on}")
    except torch.cuda.OutOfMemoryError:
        sys.exit(f"{program}: out of GPU memory; {kept(run)}. {go_on} and a lower --micro-batch or --rows, "
                 "with --checkpointing; or start another run with a lower --max-pixels, --max-new-tokens or "
                 "--n")


def kept(run: Path) -> str:
    if (run / "state.pt").exists():
        return "the last whole step is saved"
    return "no step was made"


def keep_last_step(job) -> str:
    """The adapter and the report of the last whole step: a half-done one is not kept. Returns what is."""
    if RANK == 0 and (job.run / "state.pt").exists():
        try:
            load_state(job.run, job.policy, job.optimizer, job.steps)
            save_adapter(job.policy.model, job.run / "adapter", job.policy.name)
            report.write(job.run, job.examples + job.shown)
        except (ValueError, OSError) as error:
            return f"{kept(job.run)}, its adapter or report may be older ({first_line(error)})"
    return kept(job.run)
