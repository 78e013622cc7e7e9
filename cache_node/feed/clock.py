"""The two clocks of a node: one for bounds that must hold through a suspension, one for dates."""

from __future__ import annotations

import functools
import time
from typing import Protocol

# CLOCK_BOOTTIME goes on while the machine is suspended, so that a lease ends then too.  Where it does not exist
# (macOS), CLOCK_MONOTONIC counts suspended time by itself.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Where time comes from; tests set it by hand."""

    def steady(self) -> float:
        """Seconds since an arbitrary moment; never steps, counts suspended time."""

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC; may step."""


class SystemClock:
    """The machine's clocks; no Python of ours runs between the caller and the system call."""

    steady = staticmethod(functools.partial(time.clock_gettime, _STEADY))
    wall = staticmethod(time.time)
