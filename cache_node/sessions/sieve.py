"""A mapping bounded in bytes, evicting by SIEVE (Zhang et al., NSDI 2024): new values enter at the head, a hand moves
from the tail towards it, spares what was asked for since it last came by, and evicts the rest where it stands.

Values are nodes of the list themselves, and nothing here is tracked by the garbage collector: with a million slotted
objects of the usual kind a full collection stops the node for 0.95 s.  The index is many dictionaries, because one of a
million keys takes 46 to 86 ms to grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

SHARDS = 256
KEY_BYTES = 16
"""So much of a key tells values apart: keys are hashes."""
MOST_SPARED = 512
"""What the hand spares at most on its way to one eviction, so that no insertion takes long."""


class Node(msgspec.Struct, kw_only=True, gc=False):
    """What can be kept.  `key` is empty while it is not; who uses one without asking for it marks it as visited."""

    key: bytes = b""
    visited: bool = False
    newer: Node | None = None
    older: Node | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # neither what it holds nor a million neighbours


N = TypeVar("N", bound=Node)


class Sieve(Generic[N]):
    """No I/O, no clock.  `size_bytes` never exceeds `max_bytes`; `size_of` says what a value takes, always the same."""

    def __init__(self, max_bytes: int, size_of: Callable[[N], int]) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.evictions = 0
        self._size_of = size_of
        self._shards: list[dict[bytes, N]] = [{} for _ in range(SHARDS)]
        self._head: N | None = None
        self._tail: N | None = None
        self._hand: N | None = None

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, key: bytes) -> N | None:
        """The value, marked as used."""
        node = self._shards[key[0]].get(key[:KEY_BYTES])
        if node is not None:
            node.visited = True
        return node

    def put(self, key: bytes, node: N) -> bool:
        """Keep the value in place of an older one under the key; False, and the older one gone, if it can't fit."""
        self.discard(key)
        size = self._size_of(node)
        if size > self.max_bytes:
            return False
        while self.size_bytes + size > self.max_bytes:
            self._evict()
        node.key = key[:KEY_BYTES]
        node.visited = False
        node.older = self._head
        if self._head is None:
            self._tail = node
        else:
            self._head.newer = node
        self._head = node
        self._shards[key[0]][node.key] = node
        self.size_bytes += size
        return True

    def discard(self, key: bytes) -> None:
        """Forget the value, if there is one."""
        node = self._shards[key[0]].pop(key[:KEY_BYTES], None)
        if node is not None:
            self._unlink(node)

    def clear(self) -> None:
        """Forget everything."""
        for shard in self._shards:
            for key in list(shard):
                self.discard(key)

    def _evict(self) -> None:
        node = self._hand or self._tail
        for _ in range(MOST_SPARED):
            if node is None or not node.visited:
                break
            node.visited = False
            node = node.newer or self._tail  # type: ignore[assignment]  # what is linked is what was put
        if node is None:
            return
        self._hand = node
        del self._shards[node.key[0]][node.key]
        self._unlink(node)
        self.evictions += 1

    def _unlink(self, node: N) -> None:
        """Take it out of the list; the hand moves on to the next newer one.  Cuts the cycles: gc=False relies on it."""
        if self._hand is node:
            self._hand = node.newer  # type: ignore[assignment]
        if node.newer is None:
            self._head = node.older  # type: ignore[assignment]
        else:
            node.newer.older = node.older
        if node.older is None:
            self._tail = node.newer  # type: ignore[assignment]
        else:
            node.older.newer = node.newer
        node.newer = node.older = None
        node.key = b""
        self.size_bytes -= self._size_of(node)
