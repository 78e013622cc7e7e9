"""`python -m benchmarks [NAME [OPTIONS]]`: one benchmark, or all in turn with their defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from benchmarks.report import progress
from tests.command_lines import exit_status

NAMES = ("hit", "latency", "miss", "invalidate", "feed", "evict", "memory", "slow_clients")


def main(arguments: Sequence[str]) -> int:
    """The exit status: the worst of them."""
    if arguments and arguments[0] not in NAMES:
        print(f"there is no benchmark {arguments[0]!r}, only: {' '.join(NAMES)}", file=sys.stderr)
        return 2
    if arguments:
        return _run(arguments[0], arguments[1:])
    return max([_run(name, ()) for name in NAMES])


def _run(name: str, arguments: Sequence[str]) -> int:
    progress(f"{name} begins")
    return int(import_module(f"benchmarks.{name}").main(arguments))


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
