"""Random histories of two nodes, each from its seed: no answer is older than what was promised."""

from __future__ import annotations

import pytest

from tests.histories.__main__ import run
from tests.histories.machine import TOTALS

STEPS = 20_000


@pytest.mark.timeout(300)
def test_no_history_breaks_a_promise() -> None:
    """Whatever the order of things, and whichever of the faults; and what the promises are about did happen."""
    TOTALS.clear()
    run(STEPS, 0)

    assert TOTALS["steps"] >= STEPS
    for what in ("memory", "redis", "published", "quick receipts", "resets_generation"):
        assert TOTALS[what] > 50, dict(TOTALS)
