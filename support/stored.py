"""What is read back from disk, checked against what could have been written there.

    refuse_other(record, {"id": "cub/1", "answers": [TEXT] * 8}, "line 3")

A pattern has the shape of what is expected:

    a dict          a dict with exactly these keys, each value as its own pattern
    a list          a list with exactly these items
    a tensor        finite numbers of the same shape and dtype
    (test, words)   what passes the test; words say what that is, as in an option's `must`
    anything else   the same again

So a file of the run that goes on is measured against that run: nothing else in it is used, or even looked at.
"""

import torch
from torch import Tensor


def is_count(value) -> bool:
    """A whole number from 0 on. True is none."""
    return type(value) is int and value >= 0


def is_number(value) -> bool:
    """A finite number. True is none."""
    return type(value) in (int, float) and abs(value) < float("inf")


def is_text(value) -> bool:
    return type(value) is str


COUNT_FROM_0 = (is_count, "a whole number, 0 or more")
NUMBER = (is_number, "a finite number")
TEXT = (is_text, "a text")
DICT = (lambda value: type(value) is dict, "a dict")


def refuse_other(value, pattern, place: str) -> None:
    """Raises ValueError where the value is not what its pattern says. place: what the value is called."""
    if isinstance(pattern, dict):
        refuse_other_keys(value, pattern, place)
        for key, inner in pattern.items():
            refuse_other(value[key], inner, f"{place}, {key}")
    elif isinstance(pattern, list):
        if type(value) is not list or len(value) != len(pattern):
            raise ValueError(f"{place} is not a list of {len(pattern)}")
        for item, inner in zip(value, pattern):
            refuse_other(item, inner, place)
    elif isinstance(pattern, Tensor):
        refuse_other_tensor(value, pattern, place)
    elif isinstance(pattern, tuple) and callable(pattern[0]):
        test, words = pattern
        if not test(value):
            raise ValueError(f"{place} is not {words}: {value!r:.60}")
    elif type(value) is not type(pattern) or value != pattern:
        raise ValueError(f"{place} is not {pattern!r:.60}: {value!r:.60}")


def refuse_other_keys(value, pattern: dict, place: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not a dict")
    missing = pattern.keys() - value.keys()
    foreign = value.keys() - pattern.keys()
    if missing:
        raise ValueError(f"{place} lacks {min(missing, key=str)}")
    if foreign:
        raise ValueError(f"{place} holds {min(foreign, key=str)!r:.60}, which is nothing of its own")


def refuse_other_tensor(value, pattern: Tensor, place: str) -> None:
    if not isinstance(value, Tensor) or value.dtype != pattern.dtype or value.layout != pattern.layout:
        raise ValueError(f"{place} is not a tensor of {pattern.dtype}")
    if value.shape != pattern.shape:
        raise ValueError(f"{place} has the shape {tuple(value.shape)}, not {tuple(pattern.shape)}")
    if not torch.isfinite(value).all():
        raise ValueError(f"{place} holds NaN or infinity")
