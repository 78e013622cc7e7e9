"""What a node remembers of the feed, and the one predicate that admits or rejects cached answers.

The fence holds the newest position per session id and identity id in time buckets, a floor below which nothing is
admitted, and the position that the node has applied.  Applying an event is one dictionary write, whatever the number of
entries that it kills; forgetting ids raises the floor, so that too little memory costs hits and never correctness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from cache_node.feed.clock import Clock
from cache_node.feed.events import Event
from cache_node.feed.ids import pack_id
from cache_node.feed.position import Position

BUCKETS = 16
"""Into how many buckets window and cap are divided: what is forgotten at once."""
SWEPT_IDS = 1000
"""Ids that a confirm removes of those that are forgotten [0.9 ms at most; a replay's 234,000 at once took 68]."""


class Named(Protocol):
    """What events may name."""

    @property
    def session(self) -> bytes:
        """Its session's id, as `pack_id` writes it."""

    @property
    def identity(self) -> bytes:
        """Its identity's."""


class Stamped(Named, Protocol):
    """What the fence judges: an answer, the ids it is about, and the position applied before it was read."""

    generation: int
    """Generation of `as_of`."""
    number: int
    """Number of `as_of`; moved forward by the fence when it admits."""
    admitted_version: int
    """Version of the fence that admitted it last; -1 for never."""


class _Bucket:
    """Ids added within one stretch of time.  `opened_after`: no newer number was known when it was opened."""

    __slots__ = ("identities", "newest", "opened_after", "opened_at", "sessions")

    def __init__(self, opened_at: float, opened_after: int) -> None:
        self.opened_at = opened_at
        self.opened_after = opened_after
        self.newest = 0
        self.sessions: list[bytes] = []
        self.identities: list[bytes] = []

    def __len__(self) -> int:
        return len(self.sessions) + len(self.identities)


class Fence:
    """Owned by the follower, which alone changes it; asked by everybody.  All methods are synchronous.

    `version` rises with every change, so that an entry admitted under it needs no second look while it stands.
    """

    def __init__(self, clock: Clock, *, window_seconds: float, max_ids: int) -> None:
        self._clock = clock
        self._bucket_seconds = window_seconds / BUCKETS
        self._window_seconds = window_seconds
        self._max_ids = max_ids
        self._bucket_ids = max(1, max_ids // BUCKETS)
        self.version = 0
        self.floor_raises = 0
        self.resets = 0
        self._replays = 0
        self._position: Position | None = None
        self._clear(0)

    def _clear(self, floor: int) -> None:
        self.floor = floor
        """Nothing older is admitted, in the generation of `position`."""
        self._bottom = floor
        """No replay lowers the floor below this."""
        self._is_replaying = False
        self._newest_known = floor
        self._newest_not_revoked = 0
        self._sessions: dict[bytes, int] = {}
        self._identities: dict[bytes, int] = {}
        self._gone: set[bytes] = set()
        self._buckets: deque[_Bucket] = deque()
        self._bucketed = 0
        self._forgotten: deque[_Bucket] = deque()
        """Dropped, with ids that are still to be removed: the floor covers them."""

    # Asking ---------------------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position | None:
        """The newest position applied with all before it; None until the first confirm."""
        return self._position

    def __len__(self) -> int:
        """Ids remembered, or not removed yet."""
        return len(self._sessions) + len(self._identities)

    def admits(self, entry: Stamped) -> bool:
        """Whether no event known here is newer than the entry and names it.  Admitting stamps it forward.

        An admitted entry is proven unchanged up to the *applied* position, never up to one that was merely heard of.
        """
        # This is asked again for each entry in use after every event [0.20 µs, with a third store 0.23]: numbers are
        # stored where they change, or where it makes them one object for all entries.
        version = self.version
        if entry.admitted_version == version:
            return True
        position = self._position
        number = entry.number
        if position is None or number < self.floor:
            return False
        if entry.generation is not position.generation:
            if entry.generation != position.generation:
                return False
            entry.generation = position.generation
        session, identity = entry.session, entry.identity
        if session in self._sessions and number < self._sessions[session]:
            return False
        if identity in self._identities and number < self._identities[identity]:
            return False
        entry.admitted_version = version
        if number <= position.number:
            entry.number = position.number
        return True

    def admits_negative(self, as_of: Position) -> bool:
        """Whether a 401 read at `as_of` still stands: only revocations are newer, and those make no session valid."""
        return self.is_above_floor(as_of) and as_of.number >= self._newest_not_revoked

    def is_above_floor(self, as_of: Position) -> bool:
        """Whether no flush is newer than what was read at `as_of`, nor anything that is forgotten."""
        position = self._position
        return position is not None and as_of.generation == position.generation and as_of.number >= self.floor

    def is_gone(self, subject: Named) -> bool:
        """Whether the newest event that names the session or its identity revoked the one, or deleted the other: the
        origin will refuse it.  False once that is forgotten."""
        session, identity = subject.session, subject.identity
        if identity in self._gone:
            return True
        return session in self._gone and self._sessions[session] >= self._identities.get(identity, 0)

    def has_applied(self, wanted: Position) -> bool:
        """Whether everything up to `wanted` is applied; False for another generation, which cannot be compared."""
        position = self._position
        return position is not None and position.generation == wanted.generation and position.number >= wanted.number

    # Changing -------------------------------------------------------------------------------------------------------

    def reset(self, end: Position) -> None:
        """Begin anew at the feed's end: whatever was known, cached or under way before is void."""
        floor = end.number
        if self._position is not None and self._position.generation == end.generation:
            # A history that lost its end will give numbers again that entries here are stamped with.
            floor = max(floor, self._position.number + 1)
        self._clear(floor)
        self._position = end
        self.resets += 1
        self.version += 1

    def apply(self, position: Position, events: Sequence[Event] | None) -> None:
        """A confirmed entry, the next one in order: first its events, then the position."""
        self.add(position.number, events)
        self._position = position

    def add(self, number: int, events: Sequence[Event] | None) -> None:
        """Let the events of an entry reject what is older, without calling the entry applied: safe at any time.

        `events` None is an entry that cannot be read: it might name anything, so it raises the floor.
        """
        self.version += 1
        if events is None:
            self._raise_floor(number)
        else:
            bucket = self._open_bucket()
            for event in events:
                self._add_event(bucket, number, event)
            self._forget_over_cap()
            if self._forgotten:
                self._sweep(2 * len(events))  # as many as came would keep it below the cap
        self._newest_known = max(self._newest_known, number)

    def forget_old(self) -> None:
        """Drop buckets that are older than the window.  Called with every confirm."""
        oldest_kept = self._clock.steady() - self._window_seconds
        # A bucket ends where the next one begins, so that the last one is never dropped before its time.
        while len(self._buckets) > 1 and self._buckets[1].opened_at < oldest_kept:
            self._drop_oldest()
        if self._buckets and self._buckets[0].opened_at < oldest_kept - self._bucket_seconds:
            self._drop_oldest()
        self._sweep(SWEPT_IDS)

    def begin_replay(self) -> int:
        """Start lowering the floor from where it is; returns a token for `replay`.

        In a node's first life only, but there more than once: a follower that failed and runs again replays again, and
        what its first replay still brings counts no more.
        """
        self._replays += 1
        self._is_replaying = True
        # What raised the floor above the position is not among what will be read back from there; and ids that are
        # forgotten must stay below the floor until they are removed.
        if self._position is not None and self.floor <= self._position.number and not self._forgotten:
            self._bottom = 0
        return self._replays

    @property
    def replay_share(self) -> float:
        """How much of what a replay may remember is remembered: at 1 it ends."""
        return min(1.0, self._bucketed / max(1, self._max_ids - self._bucket_ids))

    def replay(self, token: int, number: int, events: Sequence[Event] | None) -> bool:
        """One retained entry, the next older one.  False when replaying must end: the floor stays where it is then."""
        if token != self._replays or not self._is_replaying:
            return False
        if events is None or number < self._bottom or any(kind.names_nothing for kind, _, _ in events):
            return False
        bucket = self._buckets[0] if self._buckets else self._open_bucket()
        if self._bucketed + len(events) > self._max_ids - self._bucket_ids:
            return False
        self.version += 1
        for event in events:
            self._add_event(bucket, number, event)
        self.floor = max(self._bottom, min(self.floor, number))
        return True

    # Inside ---------------------------------------------------------------------------------------------------------

    def _add_event(self, bucket: _Bucket, number: int, event: Event) -> None:
        # Members of an Enum are looked up in 0.1 µs, and max() takes as long: an event is added in 1.0 µs, not in 1.5.
        kind, session_id, identity_id = event
        if number > self._newest_not_revoked and not kind.ends_session:
            self._newest_not_revoked = number
        is_end = kind.ends_what_it_names
        if kind.names_session and session_id is not None:
            self._remember(self._sessions, bucket, bucket.sessions, pack_id(session_id), number, is_end)
        elif kind.names_identity and identity_id is not None:
            self._remember(self._identities, bucket, bucket.identities, pack_id(identity_id), number, is_end)
        else:
            self._raise_floor(number)  # a flush, or an event that fails to name anything

    def _remember(
        self, newest: dict[bytes, int], bucket: _Bucket, ids: list[bytes], id_: bytes, number: int, is_end: bool
    ) -> None:
        known = newest.get(id_)
        if known is not None and known >= number:
            return
        if known is None or known <= bucket.opened_after:
            ids.append(id_)
            self._bucketed += 1
        if is_end:
            self._gone.add(id_)
        else:
            self._gone.discard(id_)
        if number > bucket.newest:
            bucket.newest = number
        newest[id_] = number

    def _open_bucket(self) -> _Bucket:
        now = self._clock.steady()
        if not self._buckets or (
            now - self._buckets[-1].opened_at >= self._bucket_seconds or len(self._buckets[-1]) >= self._bucket_ids
        ):
            self._buckets.append(_Bucket(now, self._newest_known))
        return self._buckets[-1]

    def _forget_over_cap(self) -> None:
        while self._bucketed > self._max_ids:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        bucket = self._buckets.popleft()
        self._bucketed -= len(bucket)
        self._raise_floor(bucket.newest)
        self._forgotten.append(bucket)

    def _sweep(self, at_most: int) -> None:
        """Remove so many ids that are forgotten; all at once would hold the loop of a node."""
        while self._forgotten and at_most > 0:
            bucket = self._forgotten[0]
            newest = self._sessions if bucket.sessions else self._identities
            ids = bucket.sessions or bucket.identities
            part = min(at_most, len(ids))
            at_most -= part
            for _ in range(part):
                id_ = ids.pop()
                # An id that a younger bucket holds too stays; the floor covers whatever goes.
                if newest.get(id_, bucket.newest + 1) <= bucket.newest:
                    del newest[id_]
                    self._gone.discard(id_)
            if not len(bucket):
                self._forgotten.popleft()

    def _raise_floor(self, number: int) -> None:
        self.version += 1
        if number > self._bottom:
            self._bottom = number
            self.floor_raises += 1
        self.floor = max(self.floor, number)
