"""Lines about the origin in the log: at most one a minute of each kind, however many requests meet the same trouble."""

from __future__ import annotations

import logging

from cache_node.feed.clock import Clock

INTERVAL_SECONDS = 60.0
QUIET_SECONDS = 10.0


class Complaints:
    """What one logger says of trouble that comes with every request."""

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._said_at: dict[str, float] = {}
        self._met_at: dict[str, float] = {}
        """When the trouble of a kind was met last, until it is said to be over."""

    def say(self, kind: str, text: str) -> None:
        """A warning, unless this kind was said less than a minute ago."""
        now = self._met_at[kind] = self._clock.steady()
        if now - self._said_at.get(kind, float("-inf")) >= INTERVAL_SECONDS:
            self._said_at[kind] = now
            self._logger.warning("%s", text)

    def over(self, kind: str, text: str) -> None:
        """All is well; that is said once for each time of trouble, when it was not met for a while.

        After that new trouble is said at once: the last line about it must be true.
        """
        if self._clock.steady() - self._met_at.get(kind, float("inf")) >= QUIET_SECONDS:
            del self._met_at[kind]
            del self._said_at[kind]
            self._logger.info("%s", text)
