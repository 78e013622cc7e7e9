"""What a node counts about its answers: integers of one event loop, without locks; `exposition.py` writes them down.

Every label has a bounded set of values, whatever clients and origin send.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final

BUCKETS_SECONDS: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
"""Upper bounds, from a memory hit to the origin's deadline; what is slower is in the last, unbounded one."""
OTHER: Final = "other"
"""The label of whatever is not in its set."""

TIERS: Final = frozenset(("memory", "redis", "negative", "stale", "origin", "bypass"))
ORIGIN_FAILURES: Final = frozenset(("timeout", "unreachable", "garbage", "unready", "busy", "open", "failing", "error"))
_NO_ENTRY = ("cold", "anonymous", "expired", "ttl", "fenced", "no-lease", "no-cache", "max-age", "min-position")
_OUTAGE = ("origin-error", "stale-if-error")
_PASSED_ON = ("mixed", "method", "body", "origin-header", "tokenize", "refused")
MISS_REASONS: Final = ORIGIN_FAILURES.union(_NO_ENTRY, _OUTAGE, _PASSED_ON)

_HITS = frozenset(("memory", "redis", "negative"))
_STATUSES = frozenset((200, 400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504))
_OUTCOMES = {status: str(status) if status in _STATUSES else f"{status // 100}xx" for status in range(100, 600)}
_ORIGIN_OUTCOMES = {str(status): outcome for status, outcome in _OUTCOMES.items()} | {c: c for c in ORIGIN_FAILURES}


class Histogram:
    """Durations in seconds.  `counts` has one number a bucket, not cumulated, and one more for what is above all."""

    __slots__ = ("counts", "sum_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_SECONDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds

    @property
    def count(self) -> int:
        """How many durations were counted."""
        return sum(self.counts)


class Metrics:
    """One node's; the HTTP edge, the origin client and the admin port count into it."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        """By tier and outcome: a status, or a class of them such as `4xx`."""
        self.count_hits: Callable[[], int] = lambda: 0
        """How many answers the fast lane has given; they are counted there."""
        self.hit = Histogram()
        """A random sample of their times."""
        self.loop_lag = Histogram()
        """How late the event loop came to what was due: what a request waits for before anybody can time it."""
        self.misses: Counter[str] = Counter()
        """By the word for why no tier answered."""
        self.origin: defaultdict[str, Histogram] = defaultdict(Histogram)
        """By outcome: a status or its class, or the cause of a failure."""
        self.lag = Histogram()
        """From the writing of a feed entry to its confirmation here, by the feed server's clock."""
        self.publishes: Counter[str] = Counter()
        """Calls of the admin port that published: `published`, `unavailable`, `interrupted`."""
        self.published_events: Counter[str] = Counter()
        """Events written to the feed, by type."""
        self.receipts: defaultdict[str, Histogram] = defaultdict(Histogram)
        """How long receipts took: `dead_everywhere` or `incomplete`."""

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        """One answer to whoami: from which tier, with which status, why, and how long it took."""
        known = tier if tier in TIERS else OTHER
        self.requests[known, _OUTCOMES.get(status, OTHER)].observe(seconds)
        if known not in _HITS:
            self.misses[detail if detail in MISS_REASONS else OTHER] += 1

    def observe_origin(self, outcome: str, seconds: float) -> None:
        """One request to the origin: its status as text or the cause of its failure, and how long it took."""
        self.origin[_ORIGIN_OUTCOMES.get(outcome, OTHER)].observe(seconds)

    def requests_of(self, tier: str) -> int:
        """Answers that came from a tier, whatever their status."""
        of_fast_lane = self.count_hits() if tier == "memory" else 0
        return of_fast_lane + sum(histogram.count for (known, _), histogram in self.requests.items() if known == tier)
