"""The embedded world's base policy and a sheet of its pictures.

    python -m toy                      train the base policy, or find it in the cache
    python -m toy --sheet world.png    and draw a contact sheet of the world

Run it in the repository's folder: "-m toy" finds the folder toy/ from there only.
"""

import argparse
import sys

from data import refuse_odd_words
from toy.base_policy import base_policy
from toy.sheet import contact_sheet


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m toy", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the base policy (default 0)")
    parser.add_argument("--sheet", metavar="PNG", help="also draw a contact sheet of the world")
    args = parser.parse_args(argv)
    if abs(args.seed) >= 2 ** 63:
        parser.error("--seed must be a number of 64 bits")
    try:
        refuse_odd_words(argv)
        if args.sheet is not None:
            draw_sheet(args.sheet)
        print(base_policy(args.seed))
    except (ValueError, OSError) as error:  # no such folder, a full disk
        sys.exit(f"toy: {error}")


def draw_sheet(path: str) -> None:
    """Saves the sheet, or ends with one line that says why it can't be."""
    try:
        contact_sheet(path)
    except (OSError, ValueError) as error:  # ValueError: a suffix that is no picture's
        sys.exit(f"toy: cannot write the sheet {path!r}: {error}")


if __name__ == "__main__":
    main()
