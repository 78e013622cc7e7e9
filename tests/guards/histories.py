"""Which removed guards random histories notice as well, without knowing where to look.

All of those do, within two minutes, that belong to what the histories' world is made of, but for the ones that
`UNNOTICED` names.  That nobody notices them there is looked at, too: a guard that is found is struck off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.guards.patch import Patch
from tests.guards.run import Outcome, run_without

WORLD = (
    "cache_node/feed/",
    "cache_node/http/fast_lane.py",
    "cache_node/http/protocol.py",
    "cache_node/http/template.py",
    "cache_node/sessions/entry.py",
    "cache_node/sessions/flight.py",
    "cache_node/sessions/memory_tier.py",
    "cache_node/sessions/reader.py",
    "cache_node/sources/",
)
"""What the world of the histories is made of: guards of other files are not asked about here."""
FOUND_WITHIN_SECONDS = 120
UNNOTICED_FOR_SECONDS = 20

UNNOTICED: Mapping[str, Sequence[str]] = {
    "costs hits: the node resets, or rejects what it might keep": (
        "feed-heard-of-another-generation",
        "feed-number-of-events",
        "feed-overtaken-confirm",
        "feed-trim",
    ),
    "costs time or requests, and nobody promises how much": (
        "feed-confirm-after-page",
        "feed-reset-upon-reset",
        "feed-short-page",  # no lease until the next event, which shows the gap
        "reader-as-of-before-the-last-read",
        "reader-latecomers-starve",
    ),
    "costs memory below the cap, or is measured elsewhere: bodies here are small": (
        "fast-used",
        "feed-window",
        "reader-body-size",
        "reader-memory-overhead",
    ),
    "the next guard on the way does the same": (
        "feed-ahead",  # a page that is short: a gap
        "feed-event-names-nothing",  # the fence raises its floor
        "feed-event-upper-case",  # they are lower-cased again where they are read
        "feed-fence-version-floor",  # an entry that was admitted since the last event is named by none
        "feed-lease-with-generation",  # the fence is void; what is read from then on is proven
        "feed-replay-flush",  # the flush raises the floor, below which no replay goes
        "feed-replay-unreadable",  # it has no count that leads to the entry before
        "fast-lookup-fence",  # these four are asked about again when they are given
        "reader-redis-kept-without-lease",
        "reader-store-unasked",
        "reader-store-without-lease",
    ),
    "whoever holds a lease by the reply confirmed after the question, and has heard of the event": (
        "feed-receipt-sent",
        "feed-watch-until",
    ),
    "needs two servers that write at once, which README.md excludes, or one chance in a million": (
        "feed-generation-publisher-shows",  # TIME would have to show a microsecond twice
        "feed-generation-shown",  # the same
        "feed-receipt-ignores-generation",  # leases of an older generation end before a younger one is old enough
        "feed-receipt-node-in-another-generation",
        "feed-replay-below-forgotten",  # a follower that failed would have to run again while ids are removed
        "feed-replay-generation",  # two histories would have to meet in one number, on a replica that missed a flush
    ),
    "says how a receipt is worded, not whether there is one": ("feed-receipt-pending-over",),
    "who spoils the feed here takes nothing back, so that its end can be seen": ("feed-publish-after-a-foreign-id",),
    "the clients here wait for their answers, read them, and send nothing that is odd; no server ends": (
        "fast-expected",
        "fast-fixed",
        "fast-harmless",
        "fast-lookup-shutdown",
        "fast-lookup-turn",
        "fast-paused",
        "fast-read-cut-off",
        "fast-read-request-id",
        "fast-read-rests",
        "fast-read-shutdown",
        "fast-read-shutdown-behind",
    ),
    "of what is nothing to keep the origin here says refusals only, which stay in its place": (
        "reader-forgotten-mark",
    ),
    "everybody here presents a credential": ("reader-anonymous-flush", "reader-anonymous-joined"),
    "a settle time asks for more than a floor can give, too": ("feed-event-settle",),
    "a server in process keeps nobody waiting, and its connections never end": (
        "feed-no-retries",
        "feed-publish-deadline",
        "feed-publish-in-turn",
        "feed-reset-at-rest",
    ),
    "the nodes here have one secret, and tokens: no cookie has an age, no 401 of the origin is false": (
        "reader-401-expected-by-any-event",
        "reader-401-revived-by-identity",
        "reader-401-under-an-older-secret",
        "reader-cookie-age",
        "reader-cookie-without-date",
    ),
}
"""Reason → patches, without `.patch`."""

_TEST = "tests/histories/endless.py::test_no_history_breaks_a_promise"
_STARTING_SECONDS = 30.0


def is_of_the_world(patch: Patch) -> bool:
    return any(target.startswith(WORLD) for target in patch.targets)


def why_unnoticed(patch: Patch) -> str | None:
    return next((why for why, names in UNNOTICED.items() if patch.path.stem in names), None)


def play_without(patch: Patch, checkout: Path) -> Outcome:
    """Histories with this guard taken away, until one breaks a promise; `caught` is what was to be noticed, or not."""
    seconds = FOUND_WITHIN_SECONDS if why_unnoticed(patch) is None else UNNOTICED_FOR_SECONDS
    return run_without(patch, checkout, test=f"{_TEST}[{seconds}]", seconds=seconds + _STARTING_SECONDS)
