"""The memory tier (L1): entries in this process, bounded in bytes.  No I/O, no clock, and no opinion on freshness.

Refused credentials (401) have a small share of the bound of their own, so that made-up tokens cannot push sessions out.
"""

from __future__ import annotations

from cache_node.feed.position import Position
from cache_node.sessions.entry import IDENTITY_HEADER, OWN_IDENTITY, Entry, Headers
from cache_node.sessions.hedged_lru import GHOST_BYTES, HedgedLru, Node

ENTRY_OVERHEAD_BYTES = 330
"""What an entry costs beyond what it holds: node, key, a place in the index, heads of objects (tests measure it)."""
REFUSAL_OVERHEAD_BYTES = 440
"""The same for a refusal, which has two numbers of its own."""
SUBJECT_OVERHEAD_BYTES = 230
"""The same for knowing whose a credential was."""
HEADER_OVERHEAD_BYTES = 145
"""What a header line costs beyond its bytes: a tuple and two objects."""
SHARED_LINE_BYTES = 8
"""What a line costs that many entries have in common."""
MOST_SHARED_LINES = 1024
REFUSAL_SHARE = 1 / 32
SUBJECT_SHARE = 1 / 64
GHOSTS_SHARE = 1 / 128
"""For sessions that were let go, which are remembered for a while."""
BODY_SHARE = 1 / 16
"""A body above this part of the bound is kept in neither tier."""


class Refusal(Node, gc=False):
    """A 401 for a presented credential, believed.  `until` is a reading of the steady clock."""

    body: bytes
    headers: Headers
    fetched_at: float
    until: float
    as_of: Position | None
    """Position applied before it was read; None for the anonymous answer, which no event changes."""


class _Lines:
    """Header lines that many entries have in common, kept once, and so are all of an entry's lines if each of them is.

    Never forgets: what a line costs stays what it is.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {OWN_IDENTITY: OWN_IDENTITY}
        self._blocks: dict[Headers, Headers] = {}

    def shared(self, headers: Headers) -> Headers:
        """The same, of shared lines as far as possible."""
        block = self._blocks.get(headers)
        if block is not None:
            return block
        known = self._lines
        lines = tuple([known.get(line) or self._kept(line) for line in headers])
        if len(self._blocks) < MOST_SHARED_LINES and all(line in known for line in lines):
            self._blocks[lines] = lines
        return lines

    def shared_by(self, entry: Entry) -> Headers:
        """The entry's, its own identity's line among those that are shared."""
        own = (IDENTITY_HEADER, entry.identity_id.encode())
        return self.shared(tuple([OWN_IDENTITY if line == own else line for line in entry.lines]))

    def size_of(self, headers: Headers) -> int:
        """Bytes of what `shared` gave."""
        if headers in self._blocks:
            return 0
        lines = self._lines
        return sum(
            SHARED_LINE_BYTES if line in lines else len(line[0]) + len(line[1]) + HEADER_OVERHEAD_BYTES
            for line in headers
        )

    def _kept(self, line: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        if len(self._lines) < MOST_SHARED_LINES and line[0] != IDENTITY_HEADER:
            self._lines[line] = line
        return line


class Subject(Node, gc=False):
    """Whose a credential was; `facts` as in an entry."""

    facts: bytes


class MemoryTier:
    """`get`/`put` as in every tier, but synchronous; `put` returns whether it was kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_body_bytes = int(max_bytes * BODY_SHARE)
        refusal_bytes = int(max_bytes * REFUSAL_SHARE)
        subject_bytes = int(max_bytes * SUBJECT_SHARE)
        self._lines = _Lines()
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

    def get(self, name: bytes) -> Entry | None:
        """The entry kept under the key's name."""
        return self._entries.get(name)

    def put(self, name: bytes, entry: Entry) -> bool:
        """Keep the entry, in place of what was known of the key."""
        self._refusals.discard(name)
        if len(entry.body) > self.max_body_bytes:
            self._entries.discard(name)
            return False
        entry.lines = self._lines.shared_by(entry)
        return self._entries.put(name, entry)

    def get_refusal(self, name: bytes) -> Refusal | None:
        """The refusal kept under the key's name."""
        return self._refusals.get(name)

    def put_refusal(self, name: bytes, refusal: Refusal) -> bool:
        """Keep the refusal, in place of what was known of the key."""
        self._discard_entry(name)
        refusal.headers = self._lines.shared(refusal.headers)
        return self._refusals.put(name, refusal)

    def discard(self, name: bytes) -> None:
        """Forget what is known of the key, but not whose it was."""
        self._discard_entry(name)
        self._refusals.discard(name)

    def facts_of(self, name: bytes) -> bytes | None:
        """Facts of the entry that the credential had while it was good, where only they are left."""
        subject = self._subjects.get(name)
        return None if subject is None else subject.facts

    def put_subject(self, name: bytes, entry: Entry) -> None:
        """Keep whose the credential is, without an answer."""
        self._subjects.put(name, Subject(entry.facts))

    def _discard_entry(self, name: bytes) -> None:
        entry = self._entries.get(name)
        if entry is not None:
            self.put_subject(name, entry)
            self._entries.discard(name)

    def _size_of_entry(self, entry: Entry) -> int:
        return len(entry.body) + len(entry.facts) + self._lines.size_of(entry.lines) + ENTRY_OVERHEAD_BYTES

    def _size_of_refusal(self, refusal: Refusal) -> int:
        return len(refusal.body) + self._lines.size_of(refusal.headers) + REFUSAL_OVERHEAD_BYTES

    def clear(self) -> None:
        """Forget everything.  Its owner must, at the end: the collector does not see what is kept here."""
        for kept in (self._entries, self._refusals, self._subjects):
            kept.clear()


def _size_of_subject(subject: Subject) -> int:
    return len(subject.facts) + SUBJECT_OVERHEAD_BYTES
