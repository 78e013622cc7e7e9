"""What the reader hands to the HTTP edge, which alone turns it into bytes on a connection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cache_node.feed.position import Position
from cache_node.sessions.entry import Headers

Tier = Literal["memory", "redis", "negative", "stale", "origin", "bypass"]


@dataclass(frozen=True, slots=True)
class Wants:
    """What the client demands beyond a plain answer."""

    no_cache: bool = False
    """Only what the origin says from now on."""
    max_age_seconds: float | None = None
    """Only what the origin was asked at most so long ago."""
    min_position: Position | None = None
    """Only what reflects this position; one that cannot be compared asks the origin."""

    @property
    def more_than_plain(self) -> str | None:
        """The word for the first demand; None if any answer that may be given from a tier will do."""
        if self.no_cache:
            return "no-cache"
        if self.max_age_seconds is not None:
            return "max-age"
        return None if self.min_position is None else "min-position"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to give, with the origin's own status, headers (names in lower case) and body.

    `detail` says why it came from `tier`: the words of the README's table.  `age_seconds` counts from when the origin
    was asked.
    """

    status: int
    headers: Headers
    body: bytes
    tier: Tier
    detail: str
    age_seconds: float = 0.0
