"""Command lines: options from a dataclass, what they may be, and mistakes that end in one line."""

import argparse
import math
from dataclasses import field, fields

import torch

# What an option may be: a test, and its words.
COUNT = (lambda v: v >= 1, "at least 1")
GROUP = (lambda v: v >= 2, "at least 2: a group of one has nothing to compare itself with")
SHARE = (lambda v: 0 <= v <= 1, "in [0, 1]")
FROM_0 = (lambda v: 0 <= v < math.inf, "0 or more")
ABOVE_0 = (lambda v: 0 < v < math.inf, "above 0")
FINITE = (math.isfinite, "a finite number")


def option(default, help, source="", must=None, **argument):
    return field(default=default,
                 metadata={"help": help, "source": source, "must": must, "argument": argument})


def parser(config_class, presets: dict, description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=description,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    for f in fields(config_class):
        argument = dict(f.metadata["argument"])
        if f.type is bool:
            argument["action"] = argparse.BooleanOptionalAction
        elif "type" not in argument:
            argument["type"] = next(t for t in (int, float, str) if t.__name__ in str(f.type))
        toy_value = f"toy {presets['toy'][f.name]}" if f.name in presets["toy"] else ""
        notes = "; ".join(filter(None, [f"default {f.default}", toy_value, f.metadata["source"]]))
        text = f"{f.metadata['help']} ({notes})".replace("%", "%%")
        p.add_argument(flag(f.name), default=argparse.SUPPRESS, help=text, **argument)
    return p


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(config) -> None:
    for f in fields(config):
        value, must = getattr(config, f.name), f.metadata["must"]
        if must and value is not None and not must[0](value):
            raise ValueError(f"{flag(f.name)} must be {must[1]}, got {value}")


def first_line(e: BaseException) -> str:
    """What an error says, as the one line that a user's mistake ends in."""
    if isinstance(e, torch.cuda.OutOfMemoryError):
        return "out of GPU memory: lower --rows, --max-pixels, --max-new-tokens or --n"
    return (str(e).splitlines() or [type(e).__name__])[0]
