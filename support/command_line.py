"""Command lines: options made from a dataclass, what their values may be, and mistakes that end in one line.

A field of the dataclass is made by `option(default, help, source, must, ...)`. Its name is the option's, its
type the value's, and `must` a pair of a test and the words for what passes it.
"""

import argparse
import json
import sys
from contextlib import contextmanager
from dataclasses import field, fields
from pathlib import Path

import torch

from data import refuse_odd_words

# What an option may be: a test, and its words. Each has two ends: a number beyond sense is a slip of the
# hand, and would end in NaN or without memory an hour later.


def at_least(low: int, most: int):
    return lambda value: low <= value <= most, f"at least {low}, at most {most:,}"


COUNT = at_least(1, 10 ** 9)
TOKENS = at_least(1, 100_000)
REQUESTS = at_least(1, 1_000)
RANK_OF_LORA = at_least(1, 10_000)
ANSWERS = at_least(1, 10_000)
GROUP = (lambda value: 2 <= value <= 10_000,
         "at least 2 (a group of one has nothing to compare itself with), at most 10,000")
SHARE = (lambda value: 0 <= value <= 1, "in [0, 1]")
RATE = (lambda value: 0 < value <= 1, "above 0, at most 1")
TEMPERATURE = (lambda value: 0.001 <= value <= 1000, "above 0 (from 0.001 on), at most 1,000")
TOP_P = RATE
FROM_0 = (lambda value: 0 <= value <= 1e6, "0 or more, at most 1,000,000")
ABOVE_0 = (lambda value: 0 < value <= 1e6, "above 0, at most 1,000,000")
FINITE = (lambda value: abs(value) <= 1e6, "a finite number, at most 1,000,000 from 0")
SECONDS = (lambda value: 0 < value <= 86_400, "above 0, at most 86,400")
SEED = (lambda value: abs(value) < 2 ** 63, "a number of 64 bits")


def option(default, help, source="", must=None, **argument):
    """A field of a configuration, with what --help says of it. argument: more for argparse's add_argument."""
    metadata = {"help": help, "source": source, "must": must, "argument": argument}
    return field(default=default, metadata=metadata)


def flag(name: str) -> str:
    """images_per_step -> --images-per-step"""
    return "--" + name.replace("_", "-")


def parser(config_class, preset: dict, description: str) -> argparse.ArgumentParser:
    """A command line with an option for each field, and --resume. An option that is not given is not in what
    it parses, so that presets and defaults can be told from the user's own words.

    preset: the embedded world's values, which --help shows beside the defaults.
    """
    made = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--resume", metavar="DIR", help="go on with the run in this folder")
    for option_field in fields(config_class):
        argument = dict(option_field.metadata["argument"])
        if option_field.type is bool:
            argument["action"] = argparse.BooleanOptionalAction
        elif "type" not in argument:
            argument["type"] = type_of(option_field)
        made.add_argument(flag(option_field.name), default=argparse.SUPPRESS,
                          help=help_of(option_field, preset), **argument)
    return made


def type_of(option_field) -> type:
    """The type to read the option's text with: of `int | None`, int."""
    for kind in (int, float, str):
        if kind.__name__ in str(option_field.type):
            return kind
    raise TypeError(f"an option cannot be of the type {option_field.type}")


def help_of(option_field, preset: dict) -> str:
    """What it is, its default, the embedded world's value, and where the default comes from."""
    notes = [f"default {option_field.default}"]
    if option_field.name in preset:
        notes.append(f"toy {preset[option_field.name]}")
    if option_field.metadata["source"]:
        notes.append(option_field.metadata["source"])
    text = f"{option_field.metadata['help']} ({'; '.join(notes)})"
    return text.replace("%", "%%")  # argparse would read a % as a placeholder


def parse(made: argparse.ArgumentParser, argv: list[str] | None) -> tuple[dict, Path | None]:
    """The options that were given, by name, and the folder to resume if any. Raises ValueError."""
    given = vars(made.parse_args(argv))
    folder = given.pop("resume")
    if folder == "":
        raise ValueError("--resume must be the folder of a run, got nothing")
    refuse_odd_words(argv)
    return given, folder and Path(folder)


def check(config) -> None:
    """Raises ValueError for the first value that is not what its option must be: of its type, of its choices,
    and passing its test."""
    for option_field in fields(config):
        value = getattr(config, option_field.name)
        name = flag(option_field.name)
        if not is_of_type(value, option_field):
            raise ValueError(f"{name} must be {words_of_type(option_field)}, got {value!r:.60}")
        if value == "":
            raise ValueError(f"{name} must not be empty")
        choices = option_field.metadata["argument"].get("choices")
        if choices and value is not None and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.60}")
        check_value(option_field.name, value, option_field.metadata["must"])


def check_value(name: str, value, must) -> None:
    """Raises ValueError where an option that has a value is not what it must be."""
    if must is None or value is None:
        return
    passes, words = must
    if not passes(value):
        raise ValueError(f"{flag(name)} must be {words}, got {str(value):.40}")


def is_of_type(value, option_field) -> bool:
    """A whole number may stand where a float belongs, but True and False are no numbers."""
    length = option_field.metadata["argument"].get("nargs")
    if length is not None:
        return type(value) is tuple and len(value) == length and all(type(item) is float for item in value)
    if type(value) is bool:
        return option_field.type is bool
    if type(value) is int and isinstance(0.0, option_field.type):
        return True
    return isinstance(value, option_field.type)


def words_of_type(option_field) -> str:
    length = option_field.metadata["argument"].get("nargs")
    if length is not None:
        return f"{length} numbers"
    return getattr(option_field.type, "__name__", str(option_field.type))


def saved_config(folder: Path, config_class, decided: tuple[str, ...] = ()):
    """The configuration of the run in a folder. decided: the fields that are never None once a run begins.
    Raises ValueError where there is none of this version, or one that no run can have written."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"nothing to resume in {folder}: there is no config.json")
    try:
        saved = dict(json.loads(file.read_text("utf-8")))
        names = {option_field.name for option_field in fields(config_class)}
        differing = sorted(names ^ saved.keys())
        if differing:
            raise ValueError(f"it lacks, or has beside its own, {', '.join(differing):.60}")
        saved["betas"] = tuple(saved["betas"])  # JSON has lists only
        config = config_class(**saved)
        check(config)
        for name in decided:
            if saved[name] is None:
                raise ValueError(f"{flag(name)} is not decided")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is not the configuration of a run of this version: "
                         f"{first_line(error)}") from None
    return config


def resumed_config(folder: Path, config_class, given: dict, may_change: set[str],
                   decided: tuple[str, ...] = ()):
    """The configuration of a run to go on with; decided: as in saved_config. Raises ValueError that names the
    settings that were given and differ, but for those that may change."""
    config = saved_config(folder, config_class, decided)
    for name in may_change & given.keys():
        setattr(config, name, given[name])
    check(config)
    changed = []
    for name, value in given.items():
        if getattr(config, name) != value:
            changed.append(f"{flag(name)} was {getattr(config, name)}, now {value}")
    if changed:
        raise ValueError("a resumed run keeps its settings: " + "; ".join(changed))
    return config


def first_line(error: BaseException) -> str:
    """What an error says, as the one line that a user's mistake ends in."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of GPU memory: lower --rows, --max-pixels, --max-new-tokens or --n"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0]


@contextmanager
def one_line_errors(program: str):
    """What a user can get wrong before the first step ends here, in one line and a status."""
    try:
        yield
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:
        sys.exit(f"{program}: {first_line(error)}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped before the first step")
