"""`python -m benchmarks [NAME [OPTIONS]]`: one benchmark, or all in turn with their defaults.

NAME --help tells more of one, and its options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.report import progress
from tests.command_lines import exit_status

NAMES = ("hit", "latency", "miss", "invalidate", "feed", "evict", "memory", "slow_clients")


def main(arguments: Sequence[str]) -> int:
    """The exit status: the worst of them."""
    if not arguments:
        return max([_run(name, ()) for name in NAMES])
    name, *options = arguments
    if name in ("-h", "--help"):
        print(f"{__doc__}\n" + "\n".join(f"  {each:<13} {_measures(each)}" for each in NAMES))
        return 0
    if name in NAMES:
        return _run(name, options)
    if name.startswith("-"):
        print(f"a name must come before {name}, one of: {' '.join(NAMES)}", file=sys.stderr)
    else:
        print(f"there is no benchmark {name!r}, only: {' '.join(NAMES)}", file=sys.stderr)
    return 2


def _measures(name: str) -> str:
    """The first line of its docstring, without the command."""
    return str(import_module(f"benchmarks.{name}").__doc__).partition("\n")[0].partition(": ")[2]


def _run(name: str, arguments: Sequence[str]) -> int:
    progress(f"{name} begins")
    return int(import_module(f"benchmarks.{name}").main(arguments))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
