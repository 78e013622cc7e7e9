"""The machine's clocks."""

from __future__ import annotations

import time

import pytest

from cache_node.feed.clock import SystemClock


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="CLOCK_MONOTONIC counts suspended time here")
def test_steady_is_the_clock_that_counts_suspended_time() -> None:
    """A node that was suspended must wake up without a lease."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    now = SystemClock().steady()
    assert before <= now <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_wall_is_unix_time() -> None:
    """Dates of sessions and answers are compared with it."""
    before = time.time()
    assert before <= SystemClock().wall() <= time.time()
