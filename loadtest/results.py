"""What a run has seen: one record of every answer, and what was done to the nodes meanwhile.

All times are readings of the monotonic clock.  No credential is kept here: this is what the report shows.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from loadtest.truth import Wrong

UNAVAILABLE = "unavailable"
REFUSAL = "origin's 401"  # a node that did not expect it asks a second time, a second later


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a node; `tier` is what `tier_of` says."""

    at: float
    seconds: float
    tier: str


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """An answer that contradicts the truth; the session is named by its id."""

    at: float
    how: Wrong
    node: str
    session_id: str
    status: int
    cache_status: str


@dataclass(frozen=True, slots=True)
class Denial:
    """`seconds` after the origin had revoked a session every node that was up denied it; None if not in time."""

    at: float
    seconds: float | None


@dataclass(slots=True)
class Fault:
    """Something that was broken on purpose, and `ended_at` mended again."""

    name: str
    begun_at: float
    ended_at: float = math.inf


@dataclass(slots=True)
class Results:
    """Filled by the users and by whoever breaks things; `begun_at` is when the users began."""

    begun_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    wrong: list[WrongAnswer] = field(default_factory=list)
    denials: list[Denial] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """What else happened, by name."""
    late: int = 0
    """Who asked, went from node to node and had no answer in time."""

    @contextlib.contextmanager
    def fault(self, name: str) -> Iterator[None]:
        """The body breaks something and mends it."""
        fault = Fault(name, time.monotonic())
        self.faults.append(fault)
        try:
            yield
        finally:
            fault.ended_at = time.monotonic()

    @property
    def tiers(self) -> Counter[str]:
        """How many answers came from where."""
        return Counter(answer.tier for answer in self.answers)

    def seconds_of(self, tier: str) -> list[float]:
        """How long the answers of a tier took, ascending."""
        return sorted(answer.seconds for answer in self.answers if answer.tier == tier)


def says_something(status: int) -> bool:
    """Whether an answer is about the session, and not about a node or an origin in trouble; 0: there was none."""
    return status not in (0, 429) and status < 500


def tier_of(status: int, cache_status: str) -> str:
    """Where an answer came from: `memory`, `redis`, `negative`, `stale` (the origin is down), `origin`, REFUSAL or
    UNAVAILABLE."""
    if not says_something(status):
        return UNAVAILABLE
    words = cache_status.replace(";", " ").split()
    detail = words[-1].removeprefix("detail=") if words else ""
    if "hit" in words:
        return detail
    if detail == "stale-if-error":
        return "stale"
    return "origin" if status == 200 else REFUSAL


def percentile(ascending: Iterable[float], share: float) -> float:
    """The smallest of the values that at least `share` of them do not exceed; 0 of none."""
    values = list(ascending)
    return values[max(0, -int(-share * len(values) // 1) - 1)] if values else 0.0
