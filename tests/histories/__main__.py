"""`python -m tests.histories [--steps N] [--seed S]`: random histories until so many steps are done, or one fails."""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from cache_node.embedded import EmbeddedValkey
from tests.command_lines import at_least_one, exit_status
from tests.histories.machine import INTERRUPTED, TOTALS
from tests.histories.real import RealHistories
from tests.histories.scenes import Histories

STEPS_A_HISTORY = 80
HISTORIES_A_ROUND = 10
"""With more, hypothesis begins to vary those that it has had: a third as many new ones."""


def run(
    first_seed: int,
    histories: type[Histories] = Histories,
    *,
    steps: float = math.inf,
    seconds: float = math.inf,
    shrinks: bool = True,
    shows_progress: bool = False,
) -> None:
    """Rounds of histories, each from its seed, until so many steps are done or so long it took.

    Raises what the shortest history that breaks a promise raises.
    """
    began, done, round_ = time.monotonic(), TOTALS["steps"], first_seed
    chosen = settings(
        max_examples=max(1, int(min(HISTORIES_A_ROUND, steps / STEPS_A_HISTORY))),
        stateful_step_count=STEPS_A_HISTORY,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrinks else (Phase.generate,),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    while TOTALS["steps"] - done < steps and time.monotonic() - began < seconds:
        run_state_machine_as_test(seed(round_)(histories), settings=chosen)
        if shows_progress:
            so_far = TOTALS["steps"] - done
            print(f"seed {round_}: {so_far} steps in {time.monotonic() - began:.0f} s", flush=True)
        round_ += 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    """At the end of the step; the second time at once."""
    INTERRUPTED.set()
    signal.signal(number, signal.default_int_handler)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.histories", description=__doc__)
    parser.add_argument("--steps", type=at_least_one, default=10_000, help="how many at least (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first round, then the next ones (default: 0)")
    parser.add_argument(
        "--first", action="store_true", help="show the first failing history as it is, not the shortest"
    )
    parser.add_argument("--valkey", action="store_true", help="on a real Valkey: without failovers, a tenth as fast")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # a fault a line, hundreds a second
    signal.signal(signal.SIGINT, _interrupt)
    with EmbeddedValkey() if options.valkey else contextlib.nullcontext() as valkey:
        if valkey is not None:
            RealHistories.valkey = valkey
        histories = Histories if valkey is None else RealHistories
        run(options.seed, histories, steps=options.steps, shrinks=not options.first, shows_progress=True)
    print(f"{TOTALS['steps']} steps, no promise broken; what happened: {dict(TOTALS)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
