"""Random histories of two nodes, each from its seed: no answer is older than what was promised."""

from __future__ import annotations

import pytest

from tests.histories.__main__ import run
from tests.histories.machine import TOTALS

STEPS = 12_000


@pytest.mark.timeout(300)
def test_no_history_breaks_a_promise() -> None:
    """Whatever the order of things, and whichever of the faults; and what the promises are about did happen."""
    TOTALS.clear()
    run(STEPS, 0)

    assert TOTALS["steps"] >= STEPS
    for what, at_least in {
        "memory": 200,
        "redis": 50,
        "negative": 10,
        "stale": 3,
        "quick receipts": 50,
        "resets_generation": 20,
        "PROMOTE": 10,
    }.items():
        assert TOTALS[what] >= at_least, dict(TOTALS)
