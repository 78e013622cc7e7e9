"""Until when a node may answer from its tiers.  Unknown is over: a lease that was never granted does not hold."""

from __future__ import annotations

from cache_node.feed.clock import Clock


class Lease:
    """Granted by complete confirms alone; ends by itself, or at once with its generation.

    The clock is the one that counts suspended time, so a frozen node wakes up without a lease.
    """

    __slots__ = ("_clock", "until")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.until = float("-inf")
        """Reading of the steady clock from which on it does not hold."""

    def holds(self) -> bool:
        """Whether answers from memory and Redis may be given now.  Ask it again after every await."""
        return self._clock.steady() < self.until

    def seconds_left(self) -> float | None:
        """For `/status`: None if it does not hold."""
        left = self.until - self._clock.steady()
        return left if left > 0 else None

    def extend_to(self, until: float) -> None:
        """`until` is a reading of the steady clock; a later end that is already known stays."""
        self.until = max(self.until, until)

    def end(self) -> None:
        """Nothing known before may be served any more."""
        self.until = float("-inf")
