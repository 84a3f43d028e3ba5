"""The embedded world's base policy and a sheet of its pictures.

    python -m toy                      train the base policy, or find it in the cache
    python -m toy --sheet world.png    and draw a contact sheet of the world

Run it in the repository's folder: "-m toy" finds the folder toy/ from there only.
"""

import argparse
import sys

from toy.base_policy import base_policy
from toy.sheet import contact_sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the base policy (default 0)")
    parser.add_argument("--sheet", metavar="PNG", help="also draw a contact sheet of the world")
    args = parser.parse_args()
    try:
        if args.sheet:
            contact_sheet(args.sheet)
        print(base_policy(args.seed))
    except (ValueError, OSError) as error:  # no such folder, a kind of picture that is none, a full disk
        sys.exit(f"toy: {error}")


if __name__ == "__main__":
    main()
