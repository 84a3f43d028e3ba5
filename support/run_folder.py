"""A run's folder: what is saved, and how a run goes on after a kill."""

import os
from pathlib import Path

import torch

from lora import lora_state, set_lora_state
from support.processes import RANK


def save_state(run: Path, policy, optimizer, step: int) -> None:
    """Everything resume needs, whole or not at all. No random state: every draw is seeded by what it is
    for."""
    state = {"step": step, "optimizer": optimizer.state_dict(),
             "adapter": {k: v.detach().cpu() for k, v in lora_state(policy.model).items()},
             "offsets": {name: (run / name).stat().st_size if (run / name).exists() else 0
                         for name in ("log.jsonl", "samples.jsonl", "shown.jsonl")}}
    temporary = run / "state.tmp"
    try:
        with temporary.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
    except (OSError, RuntimeError) as e:  # torch hides a full disk behind a RuntimeError
        temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {temporary}: {e.__context__ or e}") from None
    os.replace(temporary, run / "state.pt")


def load_state(run: Path, policy, optimizer) -> int:
    """Back to the last saved step, -1 for not even validated; what was logged after it is cut off and will be
    written again. Raises ValueError, and touches nothing, where the state is gone or broken."""
    file, log = run / "state.pt", run / "log.jsonl"
    if not file.exists():
        if log.exists() and len(log.read_text().splitlines()) > 1:
            raise ValueError(f"cannot resume: {file} is gone; --out DIR starts another run")
        if RANK == 0:
            for half_done in (log, run / "shown.jsonl"):
                half_done.unlink(missing_ok=True)
        return -1
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # whatever torch says to a broken file
        raise ValueError(f"cannot resume: {file} is broken; --out DIR starts another run") from None
    if not isinstance(state, dict) or not {"step", "adapter", "optimizer", "offsets"} <= state.keys():
        raise ValueError(f"cannot resume: {file} is not a run's; --out DIR starts another run")
    set_lora_state(policy.model, state["adapter"], file)
    optimizer.load_state_dict(state["optimizer"])
    for name, size in state["offsets"].items():
        if size > ((run / name).stat().st_size if (run / name).exists() else 0):
            raise ValueError(f"cannot resume: {run / name} has lost lines; --out DIR starts another run")
    for name, size in state["offsets"].items():
        if RANK == 0 and (run / name).exists():
            os.truncate(run / name, size)
    return state["step"]
