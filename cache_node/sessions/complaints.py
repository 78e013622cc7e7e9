"""Lines about the origin in the log: at most one a minute of each kind, however many requests meet the same trouble."""

from __future__ import annotations

import logging

from cache_node.feed.clock import Clock

INTERVAL_SECONDS = 60.0


class Complaints:
    """What one logger says of trouble that comes with every request."""

    def __init__(self, logger: logging.Logger, clock: Clock) -> None:
        self._logger = logger
        self._clock = clock
        self._said_at: dict[str, float] = {}
        self._unsettled: set[str] = set()

    def say(self, kind: str, text: str) -> None:
        """A warning, unless this kind was said less than a minute ago."""
        now = self._clock.steady()
        if now - self._said_at.get(kind, float("-inf")) >= INTERVAL_SECONDS:
            self._said_at[kind] = now
            self._logger.warning("%s", text)
            self._unsettled.add(kind)

    def over(self, kind: str, text: str) -> None:
        """That the trouble is over, once for each time that it was said."""
        if kind in self._unsettled:
            self._unsettled.remove(kind)
            self._logger.info("%s", text)
