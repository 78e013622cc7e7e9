"""What the command lines of tests and benchmarks have in common: types of options, and how they end when interrupted.

argparse shows the text of an ArgumentTypeError, and of a ValueError the name of the function alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

from cache_node.cli import INTERRUPTED


def at_least(least: int, step: int = 1) -> Callable[[str], int]:
    """The type of an option that counts something, singly or in whole hundreds, thousands …"""
    kind = "a whole number" if step == 1 else f"a multiple of {step}"

    def number_of(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or number % step:
            raise argparse.ArgumentTypeError(f"must be {kind}, at least {least}, not {text!r}")
        return number

    return number_of


at_least_one = at_least(1)


def above_zero(text: str) -> float:
    """The type of an option that measures something."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return number


def exit_status(main: Callable[[], int]) -> int:
    """Of what `main` does: its own, or 130 and one line if somebody interrupts it."""
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted: no verdict", file=sys.stderr)
        return INTERRUPTED
