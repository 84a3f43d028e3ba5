"""Several processes (torchrun): each holds its own share of the images, and all hold the same weights.

Beside the gradients only counts, statistics and log lines cross processes. A collective (gather, total,
sum_gradients) is entered by every process alike, whatever images it holds: one that stayed out would leave
the others waiting. With one process they do nothing.
"""

import atexit
import os
from datetime import timedelta

import torch
import torch.distributed as dist

WORLD = int(os.environ.get("WORLD_SIZE", 1))  # how many processes, as torchrun sets it
RANK = int(os.environ["RANK"]) if WORLD > 1 else 0  # which of them this one is; the first writes the files


def start_processes() -> None:
    """Joins the processes that torchrun started; once."""
    if WORLD == 1 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl"
    else:
        backend = "gloo"

    # A judge may be slow to answer one process: the others must not take its silence for death.
    dist.init_process_group(backend, timeout=timedelta(hours=12))

    # A thread of gloo's that frees a tensor while Python ends would abort the process, so its group is closed
    # before. NCCL has no such thread, and closing it would wait for the others, of which one may have failed.
    if backend == "gloo":
        atexit.register(dist.destroy_process_group)


def share(items: list) -> list:
    """This process's own of the items: every WORLD-th."""
    return items[RANK::WORLD]


def gather(items: list) -> list:
    """The lists of all processes as one list, which is the same in every process."""
    if WORLD == 1:
        return items
    parts: list = [None] * WORLD
    dist.all_gather_object(parts, items)
    everything = []
    for part in parts:
        everything += part
    return everything


def total(number: float) -> float:
    """The sum of every process's number."""
    return sum(gather([number]))


def sum_gradients(parameters: list) -> None:
    """Adds up every process's gradients, in one call. Losses stand under the step's denominator already, so
    the sum is the gradient of the whole step. A parameter without a gradient counts as zero."""
    if WORLD == 1:
        return
    gradients = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append(gradient.flatten())
    flat = torch.cat(gradients)

    dist.all_reduce(flat)

    sizes = [parameter.numel() for parameter in parameters]
    for parameter, gradient in zip(parameters, flat.split(sizes)):
        parameter.grad = gradient.view_as(parameter)
