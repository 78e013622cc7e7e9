"""Random histories of two nodes, each from its seed: no answer is older than what was promised."""

from __future__ import annotations

import pytest

from cache_node.embedded import EmbeddedValkey
from tests.histories.__main__ import main, run
from tests.histories.machine import INTERRUPTED, TOTALS
from tests.histories.real import RealHistories

STEPS_ON_A_VALKEY = 500


@pytest.mark.parametrize(("first_seed", "steps"), [(0, 2_000), pytest.param(1_000, 6_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_no_history_breaks_a_promise(first_seed: int, steps: int) -> None:
    """Whatever the order of things, and whichever of the faults; and what the promises are about did happen."""
    TOTALS.clear()
    run(first_seed, steps=steps)

    assert TOTALS["steps"] >= steps
    for what in ("memory", "redis", "published", "quick receipts", "resets_generation", "waits for a lock"):
        assert TOTALS[what] > 10, dict(TOTALS)
    assert TOTALS["memory, by the fast lane"] > 0.6 * TOTALS["memory"], dict(TOTALS)
    assert TOTALS["redis, by the fast lane"] > 3, dict(TOTALS)


@pytest.mark.timeout(300)
@pytest.mark.process
def test_no_history_on_a_real_server_breaks_a_promise() -> None:
    """The scripts and streams of a real one."""
    TOTALS.clear()
    with EmbeddedValkey() as RealHistories.valkey:
        run(0, RealHistories, steps=STEPS_ON_A_VALKEY)

    assert TOTALS["steps"] >= STEPS_ON_A_VALKEY
    for what in ("memory", "redis", "published"):
        assert TOTALS[what] > 10, dict(TOTALS)


def test_no_steps_are_no_history(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--steps", "0"])
    assert ended.value.code == 2
    assert "--steps: must be a whole number, at least 1, not '0'" in capsys.readouterr().err


def test_an_interrupt_is_no_failure_that_is_played_again() -> None:
    """It comes out as it is."""
    INTERRUPTED.set()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(0, steps=1)
    finally:
        INTERRUPTED.clear()
