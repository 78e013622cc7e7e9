"""`python -m benchmarks [NAME [OPTIONS]]`: one benchmark, or all in turn with their defaults."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

NAMES = ("hit", "latency", "miss", "invalidate", "feed", "evict", "memory", "slow_clients")


def main(arguments: Sequence[str]) -> int:
    """The exit status: the worst of them."""
    if arguments and arguments[0] not in NAMES:
        print(f"there is no benchmark {arguments[0]!r}, only: {' '.join(NAMES)}", file=sys.stderr)
        return 2
    chosen = arguments[:1] or NAMES
    return max(int(import_module(f"benchmarks.{name}").main(arguments[1:])) for name in chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
