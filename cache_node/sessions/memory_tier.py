"""The memory tier (L1): entries in this process, bounded in bytes.  No I/O, no clock, and no opinion on freshness.

Refused credentials (401) have a small share of the bound of their own, so that made-up tokens cannot push sessions out.
"""

from __future__ import annotations

from cache_node.feed.position import Position
from cache_node.sessions.entry import Entry
from cache_node.sessions.hedged_lru import GHOST_BYTES, HedgedLru, Node

ENTRY_OVERHEAD_BYTES = 460
"""What an entry costs beyond what it holds: node, key, a place in the index, heads of objects (tests measure it)."""
REFUSAL_OVERHEAD_BYTES = 440
"""The same for a refusal, which has two numbers of its own."""
SUBJECT_OVERHEAD_BYTES = 280
"""The same for knowing whose a credential was."""
HEAD_OVERHEAD_BYTES = 48
"""What the headers cost beyond their bytes, where they are not shared."""
MOST_HEADS = 1024
"""That are shared, of at most so many bytes each: they are not in the bound."""
MOST_HEAD_BYTES = 1024
REFUSAL_SHARE = 1 / 32
SUBJECT_SHARE = 1 / 64
GHOSTS_SHARE = 1 / 128
"""For sessions that were let go, which are remembered for a while."""
BODY_SHARE = 1 / 16
"""A body above this part of the bound is kept in neither tier."""


class Refusal(Node, gc=False):
    """A 401 for a presented credential, believed; or the mark that the origin's newest word is nothing to keep, whose
    `until` is over.  `until` is a reading of the steady clock."""

    body: bytes
    head: bytes
    """The headers, packed."""
    fetched_at: float
    until: float
    as_of: Position | None
    """Position applied before it was read; None if the feed was unknown."""


class _Heads:
    """Headers that many values have in common, kept once.  Never forgets: what they cost stays what it is."""

    def __init__(self) -> None:
        self._heads: dict[bytes, bytes] = {}

    def shared(self, head: bytes) -> bytes:
        """The same, and if possible the same object."""
        known = self._heads.get(head)
        if known is not None:
            return known
        if len(self._heads) < MOST_HEADS and len(head) <= MOST_HEAD_BYTES:
            self._heads[head] = head
        return head

    def size_of(self, head: bytes) -> int:
        """Bytes of what `shared` gave, for each value that has it."""
        return 0 if head in self._heads else len(head) + HEAD_OVERHEAD_BYTES


class Subject(Node, gc=False):
    """Whose a credential was; the ids as in an entry."""

    session: bytes
    identity: bytes


class MemoryTier:
    """`get`/`put` as in every tier, but synchronous; `put` returns whether it was kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_body_bytes = int(max_bytes * BODY_SHARE)
        refusal_bytes = int(max_bytes * REFUSAL_SHARE)
        subject_bytes = int(max_bytes * SUBJECT_SHARE)
        self._heads = _Heads()
        ghosts = int(max_bytes * GHOSTS_SHARE) // GHOST_BYTES
        entry_bytes = max_bytes - refusal_bytes - subject_bytes - GHOST_BYTES * ghosts
        self._entries: HedgedLru[Entry] = HedgedLru(entry_bytes, self._size_of_entry, ghosts)
        self._refusals: HedgedLru[Refusal] = HedgedLru(refusal_bytes, self._size_of_refusal, 0)
        self._subjects: HedgedLru[Subject] = HedgedLru(subject_bytes, _size_of_subject, 0)
        self.turn = self._entries.turn
        """Whoever gives an entry without `get` puts this one's `now` into its `used_in`."""
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

    def __contains__(self, name: bytes) -> bool:
        """Whether an entry or a refusal is kept under the key's name."""
        return name in self._entries or name in self._refusals

    def get(self, name: bytes) -> Entry | None:
        """The entry kept under the key's name."""
        return self._entries.get(name)

    def put(self, name: bytes, entry: Entry) -> bool:
        """Keep the entry, in place of what was known of the key."""
        self._refusals.discard(name)
        if len(entry.body) > self.max_body_bytes:
            self._entries.discard(name)
            return False
        entry.head = self._heads.shared(entry.head)
        return self._entries.put(name, entry)

    def get_refusal(self, name: bytes) -> Refusal | None:
        """The refusal kept under the key's name."""
        return self._refusals.get(name)

    def put_refusal(self, name: bytes, refusal: Refusal) -> bool:
        """Keep the refusal, in place of what was known of the key."""
        self._discard_entry(name)
        refusal.head = self._heads.shared(refusal.head)
        return self._refusals.put(name, refusal)

    def discard(self, name: bytes) -> None:
        """Forget what is known of the key, but not whose it was."""
        self._discard_entry(name)
        self._refusals.discard(name)

    def get_subject(self, name: bytes) -> Subject | None:
        """Whose the credential was while it was good, where only that is left of its entry."""
        return self._subjects.get(name)

    def put_subject(self, name: bytes, entry: Entry) -> None:
        """Keep whose the credential is, without an answer."""
        self._subjects.put(name, Subject(entry.session, entry.identity))

    def _discard_entry(self, name: bytes) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            self.put_subject(name, entry)
            self._entries.discard(name)

    def _size_of_entry(self, entry: Entry) -> int:
        ids_bytes = len(entry.session) + len(entry.identity)
        return len(entry.body) + ids_bytes + self._heads.size_of(entry.head) + ENTRY_OVERHEAD_BYTES

    def _size_of_refusal(self, refusal: Refusal) -> int:
        return len(refusal.body) + self._heads.size_of(refusal.head) + REFUSAL_OVERHEAD_BYTES

    def clear(self) -> None:
        """Forget everything.  Its owner must, at the end: the collector does not see what is kept here."""
        for kept in (self._entries, self._refusals, self._subjects):
            kept.clear()


def _size_of_subject(subject: Subject) -> int:
    return len(subject.session) + len(subject.identity) + SUBJECT_OVERHEAD_BYTES
