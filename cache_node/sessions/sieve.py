"""A mapping bounded in bytes, evicting by SIEVE (Zhang et al., NSDI 2024): new values enter at the head, a hand moves
from the tail towards it, spares what was asked for since it last came by, and evicts the rest where it stands.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

V = TypeVar("V")


class _Slot(msgspec.Struct, gc=False):
    key: bytes
    value: object
    size: int
    visited: bool = False
    newer: _Slot | None = None
    older: _Slot | None = None


class Sieve(Generic[V]):
    """No I/O, no clock.  `size_bytes` never exceeds `max_bytes`; sizes are what the caller says they are."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.evictions = 0
        self._slots: dict[bytes, _Slot] = {}
        self._head: _Slot | None = None
        self._tail: _Slot | None = None
        self._hand: _Slot | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, key: bytes) -> V | None:
        """The value, marked as used."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        slot.visited = True
        return slot.value  # type: ignore[return-value]  # put() took a V

    def put(self, key: bytes, value: V, size: int) -> bool:
        """Keep the value in place of an older one under the key; False, and the older one gone, if it can't fit."""
        self.discard(key)
        if size > self.max_bytes:
            return False
        while self.size_bytes + size > self.max_bytes:
            self._evict()
        slot = _Slot(key, value, size, older=self._head)
        if self._head is None:
            self._tail = slot
        else:
            self._head.newer = slot
        self._head = slot
        self._slots[key] = slot
        self.size_bytes += size
        return True

    def discard(self, key: bytes) -> None:
        """Forget the value, if there is one."""
        slot = self._slots.pop(key, None)
        if slot is not None:
            self._unlink(slot)

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._slots):
            self.discard(key)

    def _evict(self) -> None:
        slot = self._hand or self._tail
        while slot is not None and slot.visited:
            slot.visited = False
            slot = slot.newer or self._tail
        if slot is None:
            return
        self._hand = slot
        del self._slots[slot.key]
        self._unlink(slot)
        self.evictions += 1

    def _unlink(self, slot: _Slot) -> None:
        """Take it out of the list; the hand moves on to the next newer one.  Cuts the cycles: gc=False relies on it."""
        if self._hand is slot:
            self._hand = slot.newer
        if slot.newer is None:
            self._head = slot.older
        else:
            slot.newer.older = slot.older
        if slot.older is None:
            self._tail = slot.newer
        else:
            slot.older.newer = slot.newer
        slot.newer = slot.older = None
        self.size_bytes -= slot.size
