"""The memory tier (L1): entries in this process, bounded in bytes.  No I/O, no clock, and no opinion on freshness.

Refused credentials (401) have a small share of the bound of their own, so that made-up tokens cannot push sessions out.
"""

from __future__ import annotations

import msgspec

from cache_node.feed.position import Position
from cache_node.sessions.entry import Entry, Headers
from cache_node.sessions.sieve import Sieve

ENTRY_OVERHEAD_BYTES = 540
"""What an entry costs beyond what it holds: slot, dict, key, heads of objects (tests/sessions/ measures it)."""
HEADER_OVERHEAD_BYTES = 145
"""What each header line costs beyond its bytes: a tuple and two objects."""
SUBJECT_OVERHEAD_BYTES = 400
"""What it costs to know whose a credential was: slot, dict, key, tuple and heads of two texts."""
REFUSAL_SHARE = 1 / 32
SUBJECT_SHARE = 1 / 64
BODY_SHARE = 1 / 16
"""A body above this part of the bound is kept in neither tier."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A 401 for a presented credential, believed.  `until` is a reading of the steady clock."""

    body: bytes
    headers: Headers
    fetched_at: float
    until: float
    as_of: Position | None
    """Position applied before it was read; None for the anonymous answer, which no event changes."""


class MemoryTier:
    """`get`/`put` as in every tier, but synchronous; `put` returns whether it was kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_body_bytes = int(max_bytes * BODY_SHARE)
        refusal_bytes = int(max_bytes * REFUSAL_SHARE)
        subject_bytes = int(max_bytes * SUBJECT_SHARE)
        self._entries: Sieve[Entry] = Sieve(max_bytes - refusal_bytes - subject_bytes)
        self._refusals: Sieve[Refusal] = Sieve(refusal_bytes)
        self._subjects: Sieve[tuple[str, str]] = Sieve(subject_bytes)
        self.max_bytes = max_bytes

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bodies, headers and measured overhead of all that is kept; at most `max_bytes`."""
        return self._entries.size_bytes + self._refusals.size_bytes + self._subjects.size_bytes

    @property
    def evictions(self) -> int:
        """Entries and refusals that had to make room."""
        return self._entries.evictions + self._refusals.evictions

    def get(self, name: bytes) -> Entry | None:
        """The entry kept under the key's name."""
        return self._entries.get(name)

    def put(self, name: bytes, entry: Entry) -> bool:
        """Keep the entry, in place of what was known of the key."""
        self._refusals.discard(name)
        if len(entry.body) > self.max_body_bytes:
            self._entries.discard(name)
            return False
        ids = len(entry.session_id) + len(entry.identity_id)
        return self._entries.put(name, entry, ids + _size_of(entry.body, entry.headers))

    def get_refusal(self, name: bytes) -> Refusal | None:
        """The refusal kept under the key's name."""
        return self._refusals.get(name)

    def put_refusal(self, name: bytes, refusal: Refusal) -> bool:
        """Keep the refusal, in place of what was known of the key."""
        self._discard_entry(name)
        return self._refusals.put(name, refusal, _size_of(refusal.body, refusal.headers))

    def discard(self, name: bytes) -> None:
        """Forget what is known of the key, but not whose it was."""
        self._discard_entry(name)
        self._refusals.discard(name)

    def subject_of(self, name: bytes) -> tuple[str, str] | None:
        """Session and identity id that the credential stood for while an entry of it, which is gone, was good."""
        return self._subjects.get(name)

    def put_subject(self, name: bytes, session_id: str, identity_id: str) -> None:
        """Keep whose the credential is, without an answer."""
        size = SUBJECT_OVERHEAD_BYTES + len(session_id) + len(identity_id)
        self._subjects.put(name, (session_id, identity_id), size)

    def _discard_entry(self, name: bytes) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            self.put_subject(name, entry.session_id, entry.identity_id)
            self._entries.discard(name)

    def clear(self) -> None:
        """Forget everything.  Its owner must, at the end: the collector does not see what is kept here."""
        for kept in (self._entries, self._refusals, self._subjects):
            kept.clear()


def _size_of(body: bytes, headers: Headers) -> int:
    lines = sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in headers)
    return len(body) + lines + ENTRY_OVERHEAD_BYTES
