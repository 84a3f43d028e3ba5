"""Several processes (torchrun): images are split over them, everything else each does alike."""

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist

WORLD = int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets it
RANK = int(os.environ["RANK"]) if WORLD > 1 else 0


def start_processes() -> None:
    if WORLD > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        # a judge may be slow to answer one process: the others must not take its silence for death
        dist.init_process_group(backend, timeout=timedelta(hours=12))
        if backend == "gloo":  # a thread of it that frees a tensor while Python ends would abort the process
            atexit.register(dist.destroy_process_group)


def share(items: list) -> list:
    """This process's own of the items: every WORLD-th."""
    return items[RANK::WORLD]


def gather(items: list) -> list:
    """The lists of all processes as one; what every process holds after it is the same."""
    if WORLD == 1:
        return items
    parts: list = [None] * WORLD
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def sum_gradients(parameters: list) -> None:
    """Losses stand under the step's global denominator already, so gradients add up: one call an update."""
    if WORLD > 1:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p)
