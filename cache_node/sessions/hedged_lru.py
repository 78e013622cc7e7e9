"""A mapping bounded in bytes.  It evicts what was used least recently, and hedges: a part is kept by another rule, as
large as that has paid off.

LRU gives new values the longest stay, though most are never asked for again.  So what was never used since it came may
go earlier than LRU would have it (a *ghost* is left behind: LRU would still keep it), and in its place stays what was
used, beyond the time that LRU gives (*overtime*).  Both are equally many.  A use in overtime is a hit that LRU would
have missed; the return of a ghost, one that LRU would have had: each is an observed difference to LRU, and moves the
stake, the share of the values that may be in overtime, up or down.  Where recency is all that counts (sessions whose
favourites change) the stake is at nothing and this is LRU; with lasting favourites or scans it wins as much as ARC
(Megiddo and Modha, FAST 2003), whose ghosts and two lists these are, but which compares its lists with each other
instead of with LRU, and loses to LRU where favourites change.

A hit writes one number, the turn it happens in; values move when an eviction comes to them, as in CLOCK.  A turn is
the time in which a 32nd of what fits is put.

Values are nodes of the lists themselves, and nothing here is tracked by the garbage collector: with a million slotted
objects of the usual kind a full collection stops the node for 0.95 s.  The index is many dictionaries, because one of a
million keys takes 46 to 86 ms to grow.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

SHARDS = 256
KEY_BYTES = 15
"""So much of a key tells values apart: keys are hashes.  One byte more would take 16 in memory."""
TURNS = 32
"""In the time in which as much is put as fits.  Finer turns are no better, coarser ones are worse where LRU is best."""
MOST_MOVED = 512
"""What one insertion may move, or forget of ghosts, before it takes what comes, in use or not: so none takes long."""
MOST_STAKE = 0.9
TRIAL_STAKE = 0.02
"""What a trial begins with."""
GAIN = 16
"""What one observed hit moves the stake, in values."""
PAUSE = 4
"""After a lost trial, so many times as many values as are kept must be put before the next one begins."""
GHOST_BYTES = 12


class Node(msgspec.Struct, kw_only=True, gc=False):
    """What can be kept.  `key` is empty while it is not; who uses one without asking for it sets `used_in`."""

    key: bytes = b""
    used_in: int = 0
    """The turn of the last use since it was put where it is; 0 for none."""
    queue: _Queue[Any] | None = None
    newer: Node | None = None
    older: Node | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # neither what it holds nor a million neighbours


N = TypeVar("N", bound=Node)


class Turn:
    """Which turn it is, shared with whoever marks nodes as used."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 1


class HedgedLru(Generic[N]):
    """No I/O, no clock.  `size_bytes` never exceeds `max_bytes`; `size_of` says what a value takes, always the same.

    `ghosts` says how many can be remembered, at GHOST_BYTES each, that are not in the bound: best as many as fit.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[N], int], ghosts: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self.evictions = 0
        self.turn = Turn()
        self._size_of = size_of
        self._shards: list[dict[bytes, N]] = [{} for _ in range(SHARDS)]
        self._count = 0
        self._put_bytes = 0  # in this turn
        self._unused = _ByTurn[N]()  # since they came, by when that was
        self._used = _ByTurn[N]()  # by their last use, as far as it is known
        self._overtime: _Queue[N] = _Queue(0)
        self._overtime_looked_at: _Queue[N] = _Queue(0)  # the older part
        self._ghosts = _Ghosts(ghosts)
        self._stake = TRIAL_STAKE
        self._moves_left = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return self._count > 0 and key[:KEY_BYTES] in self._shards[key[0]]

    def get(self, key: bytes) -> N | None:
        """The value, marked as used."""
        node = self._shards[key[0]].get(key[:KEY_BYTES])
        if node is not None:
            node.used_in = self.turn.now
        return node

    def put(self, key: bytes, node: N) -> bool:
        """Keep the value in place of an older one under the key; False, and the older one gone, if it can't fit."""
        is_again = self._remove(key)
        size = self._size_of(node)
        if size > self.max_bytes:
            return False
        if self._ghosts.take(key):
            is_again = True
            self._lose()
        elif self._stake < 0:
            self._stake += 1 / (PAUSE * (self._count or 1))
            if self._stake >= 0:
                self._stake = TRIAL_STAKE
        self._moves_left = MOST_MOVED
        self._look_at_overtime()
        while self.size_bytes + size > self.max_bytes:
            self._evict()
        self._put_bytes += size
        if self._put_bytes * TURNS >= self.max_bytes:
            self._put_bytes = 0
            self.turn.now += 1
        node.key = key[:KEY_BYTES]
        (self._used if is_again else self._unused).queue(self.turn.now).append(node)
        self._shards[key[0]][node.key] = node
        self._count += 1
        self.size_bytes += size
        return True

    def discard(self, key: bytes) -> None:
        """Forget the value, if there is one."""
        if self._count:
            self._remove(key)

    def clear(self) -> None:
        """Forget everything, but not what is at stake."""
        for shard in self._shards:
            for key in list(shard):
                self.discard(key)

    def _remove(self, key: bytes) -> bool:
        node = self._shards[key[0]].pop(key[:KEY_BYTES], None)
        if node is None:
            return False
        _unlink(node)
        node.key = b""
        self._count -= 1
        self.size_bytes -= self._size_of(node)
        return True

    def _evict(self) -> None:
        """Let one value go: LRU's choice, or, where that one goes into overtime, the choice of the stake."""
        in_overtime = self._overtime.count + self._overtime_looked_at.count
        unused = self._oldest(self._unused)
        while self._ghosts.count >= in_overtime and self._moves_left > 0:
            used = self._oldest(self._used)
            came = self._ghosts.oldest_turn() or _turn_of(unused)
            # With nothing at stake recency is all, and ties are for the new: 0.05 points where favourites change.
            if used is not None and (not came or came > _turn_of(used) - (self._stake <= 0)):
                self._move(used, self._overtime)
                in_overtime += 1
            elif self._ghosts.count:
                self._moves_left -= 1
                self._ghosts.forget_oldest()
            else:
                self._let_go(unused)
                return
        if unused is not None and in_overtime <= self._stake * self._count:
            self._ghosts.add(unused.key, _turn_of(unused))
            self._let_go(unused)
        else:
            self._let_go(self._oldest_in_overtime() or unused or self._oldest(self._used))

    def _oldest(self, line: _ByTurn[N]) -> N | None:
        """The first in line that was not used since it came there; those that were go to their places."""
        while (node := line.oldest()) is not None and node.used_in and self._moves_left > 0:
            self._move(node, self._used.queue(node.used_in))
        return node

    def _oldest_in_overtime(self) -> N | None:
        for queue in (self._overtime_looked_at, self._overtime):
            while (node := queue.oldest) is not None and node.used_in and self._moves_left > 0:
                self._win(node)
            if node is not None:
                return node
        return None

    def _look_at_overtime(self) -> None:
        """At one value, in turn: what is won must not be known later than what is lost, or trials end too early."""
        node = self._overtime.oldest
        if node is None:
            self._overtime, self._overtime_looked_at = self._overtime_looked_at, self._overtime
        elif node.used_in:
            self._win(node)
        else:
            self._move(node, self._overtime_looked_at)

    def _win(self, node: N) -> None:
        self._move(node, self._used.queue(node.used_in))
        self._stake = min(self._stake + GAIN / self._count, MOST_STAKE)

    def _lose(self) -> None:
        if self._stake > 0:
            self._stake -= GAIN / (self._count or 1)
            if self._stake <= 0:
                self._stake = -1.0  # a pause

    def _move(self, node: N, queue: _Queue[N]) -> None:
        self._moves_left -= 1
        _unlink(node)
        queue.append(node)

    def _let_go(self, node: N | None) -> None:
        assert node is not None  # noqa: S101  # as long as there are bytes, there is a value
        self._remove(node.key)
        self.evictions += 1


class _Queue(Generic[N]):
    """Values that were put there, or used last, in one turn."""

    __slots__ = ("count", "newest", "oldest", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.count = 0
        self.oldest: N | None = None
        self.newest: N | None = None

    def append(self, node: N) -> None:
        node.used_in = 0
        node.queue = self
        node.older = self.newest
        if self.newest is None:
            self.oldest = node
        else:
            self.newest.newer = node
        self.newest = node
        self.count += 1


def _unlink(node: Node) -> None:
    """Take it out of its queue.  Cuts the cycles: gc=False relies on it."""
    queue = node.queue
    assert queue is not None  # noqa: S101  # what is kept is in one
    if node.newer is None:
        queue.newest = node.older
    else:
        node.newer.older = node.older
    if node.older is None:
        queue.oldest = node.newer
    else:
        node.older.newer = node.newer
    node.newer = node.older = node.queue = None
    queue.count -= 1


def _turn_of(node: Node | None) -> int:
    """When it came where it is; 0 for no node."""
    return 0 if node is None or node.queue is None else node.queue.turn


class _ByTurn(Generic[N]):
    """Queues in the order of their turns."""

    def __init__(self) -> None:
        self._queues: dict[int, _Queue[N]] = {}
        self._first = 0

    def queue(self, turn: int) -> _Queue[N]:
        """For what came in the turn."""
        queue = self._queues.get(turn)
        if queue is None:
            self._first = min(turn, self._first) if self._queues else turn
            queue = self._queues[turn] = _Queue(turn)
        return queue

    def oldest(self) -> N | None:
        while self._queues:
            queue = self._queues.get(self._first)
            if queue is not None:
                if queue.oldest is not None:
                    return queue.oldest
                del self._queues[self._first]
            self._first += 1
        return None


class _Ghosts:
    """Keys that LRU would still keep, in the order in which they were let go, and when they came.

    A slot has 16 bits of a key's hash and the number of its ghost; each key has one slot, and a later one takes it from
    an earlier one.  A wrong guess (once in 65,536) moves the stake a little.  Told apart one by one: to forget all of a
    turn together overrates what LRU would keep, and ends most trials.
    """

    def __init__(self, slots: int) -> None:
        self._slots = array("Q", bytes(8 * slots))
        self._slot_of = array("I", bytes(4 * slots))  # of the ghost of a number, modulo as many
        self._first = self._next = 1
        self._turns: deque[tuple[int, int]] = deque()  # each with the number of its first ghost
        self.count = 0

    def oldest_turn(self) -> int:
        """When the oldest ghost had come; 0 if there are none."""
        if not self.count:
            return 0
        while len(self._turns) > 1 and self._turns[1][1] <= self._first:
            self._turns.popleft()
        return self._turns[0][0]

    def add(self, key: bytes, turn: int) -> None:
        """Turns never go back."""
        if not self._slots:
            return
        if self._next - self._first == len(self._slots):
            self.forget_oldest()
        slot, mark = self._place(key)
        self.count += self._slots[slot] & _NUMBER < self._first
        self._slots[slot] = mark | self._next
        self._slot_of[self._next % len(self._slots)] = slot
        if not self._turns or self._turns[-1][0] != turn:
            self._turns.append((turn, self._next))
        self._next += 1

    def take(self, key: bytes) -> bool:
        """Whether the key is one; it is none from then on."""
        if not self.count:
            return False
        slot, mark = self._place(key)
        found = self._slots[slot]
        if found & _NUMBER < self._first or found & ~_NUMBER != mark:
            return False
        self._slots[slot] = 0
        self.count -= 1
        return True

    def forget_oldest(self) -> None:
        """One number: it may be of a ghost that has returned."""
        number = self._first
        self._first += 1
        self.count -= self._slots[self._slot_of[number % len(self._slots)]] & _NUMBER == number

    def _place(self, key: bytes) -> tuple[int, int]:
        return int.from_bytes(key[1:9]) % len(self._slots), int.from_bytes(key[9:11]) << 48


_NUMBER = (1 << 48) - 1
