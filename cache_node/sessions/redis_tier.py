"""The redis tier (L2): sealed entries that the nodes of a region share, and who of them asks the origin for one.

A tier that does not answer is a miss, never an error.  Nothing is ever deleted to invalidate it: each reader judges an
entry by its own fence.  All reads of one event-loop turn are one round trip, of several turns under load, and so are
all writes.

A fill lock is a key beside the entry's: `1` while a node asks the origin, `0` for a while after an answer that nobody
may keep, so that others ask for themselves at once.  Its loss costs a second request, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from cache_node.feed.names import RedisNames
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.ports import Tell
from cache_node.sessions.round_trips import TIMEOUT_SECONDS, Command, Hear, RoundTrips
from cache_node.sessions.sealing import seal, unseal

MAX_KEYS_A_READ = 128
"""10,000 keys in one command would hold the server for 9 ms."""
FEW_READS = 3
"""While more than these are under way, others wait for their replies, and go together."""
GATHER_SECONDS = 0.001
"""But no longer than this.  [32 readers: 22 reads a round trip instead of 15 take 4 of 38 µs from each hit.]"""
MAX_PENDING_WRITES = 1024
MAX_KEYS_A_WRITE = 128
WRITE_PAUSE_SECONDS = 0.001
"""What is written waits so long: the answer that brought it goes out first, and others come with it."""
MAX_BYTES_A_WRITE = 4 * 1024 * 1024
FIRST_PAUSE_SECONDS = 0.002
"""Before a lock that is another node's is asked for again; twice as long each time."""
LONGEST_PAUSE_SECONDS = 0.025

_HELD, _NOT_KEPT = b"1", b"0"


class _Read(msgspec.Struct, frozen=True):
    """One question for an entry; where there is a lock, for that too, and `tell` hears also whose it is."""

    keys: Sequence[Key]
    tell: Callable[..., None]
    lock: bytes | None = None


class _Write(msgspec.Struct, frozen=True):
    """The command is made when it is sent: what waits is no second copy of the memory tier's."""

    command: Callable[[], Command]
    size: int = 0


class RedisTier:
    """`get`/`put` of one key prefix; `lifetime_seconds` is min(TTL, fence window): what is older is below the floor.

    Entries of at most `max_pending_bytes` together, or a single one, wait to be written.  A lock whose holder has died
    ends after `lock_seconds`.
    """

    def __init__(
        self, url: str, names: RedisNames, *, lifetime_seconds: float, max_pending_bytes: int, lock_seconds: float
    ) -> None:
        self._round_trips = RoundTrips(url)
        self._names = names
        self._lifetime_ms = max(1, round(lifetime_seconds * 1000))
        self._lock_seconds = lock_seconds
        self._lock_ms = max(1, round(lock_seconds * 1000))
        self._loop = asyncio.get_running_loop()
        """Asked for once: Python 3.11 asks the kernel each time [one read in eight was spent in getpid]."""
        self._held: set[bytes] = set()
        self._renewal: asyncio.TimerHandle | None = None
        self._reads: list[_Read] = []
        self._under_way = 0  # reads whose reply has not come yet
        self._gathering: asyncio.TimerHandle | None = None
        self._writes: dict[bytes, _Write] = {}
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._is_writing = False
        self._write_timer: asyncio.TimerHandle | None = None
        self._trips = 0
        """Under way; `_at_rest` when there are none."""
        self._at_rest = asyncio.Event()
        self.counts: Counter[str] = Counter()
        """`reads`, `round_trips`, `failures`, `unreadable`, `writes`, `dropped_writes`, `lock_waits`."""

    async def aclose(self) -> None:
        """Finish what is under way, then close the connections."""
        self._gather_no_more()
        await asyncio.sleep(0)
        await self.settle()
        if self._renewal is not None:  # a read that ended meanwhile may have begun it
            self._renewal.cancel()
        await self._round_trips.aclose()

    async def settle(self) -> None:
        """Wait until what was put before is written, or given up."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._begin_writing()
        if self._trips:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_rest.wait(), 2 * TIMEOUT_SECONDS)

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        """The entry under the first of the keys that has one; None if there is none or Redis does not answer."""
        found: asyncio.Future[Entry | None] = self._loop.create_future()
        self.look_up(keys, lambda entry: None if found.done() else found.set_result(entry))
        return await found

    def look_up(self, keys: Sequence[Key], tell: Tell) -> None:
        """The same, told to a callback, without a task and a future of each."""
        self._ask(_Read(keys, tell))

    async def get_or_lock(self, keys: Sequence[Key], attempt: int) -> tuple[Entry | None, bool]:
        """The same, and whether another node is about to bring it; else the lock is the caller's, who must `release`.

        From the second attempt on (1, 2, …) it waits a moment first.  Without an answer of Redis nobody is.
        """
        if attempt:
            self.counts["lock_waits"] += 1
            await asyncio.sleep(min(FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 10), LONGEST_PAUSE_SECONDS))
        found: asyncio.Future[tuple[Entry | None, bool]] = self._loop.create_future()

        def hear(entry: Entry | None, is_elsewhere: bool) -> None:
            if found.done():  # its reader went away
                self.release(keys[0], is_kept=entry is not None)
            else:
                found.set_result((entry, is_elsewhere))

        self._ask(_Read(keys, hear, self._names.lock(keys[0].name)))
        return await found

    def release(self, key: Key, *, is_kept: bool) -> None:
        """Give the lock back, behind what was put before; `is_kept` says whether others find an entry now."""
        name = self._names.lock(key.name)
        if name in self._held:
            self._held.discard(name)
            self._writes.pop(name, None)  # a renewal that waits has its place in front of the entry
            self._write(name, lambda: (b"UNLINK", name) if is_kept else self._lock_command(name, _NOT_KEPT))

    def put(self, key: Key, entry: Entry) -> None:
        """Keep the entry; written behind, from the end of this turn of the loop on, or dropped if Redis is away."""
        name = self._names.entry(key.name)
        self._write(name, lambda: (b"SET", name, seal(key, entry), b"PX", self._lifetime_ms), len(entry.body))

    def discard(self, key: Key) -> None:
        """Take away what the origin has contradicted, some time soon or, if Redis is away, not at all."""
        name = self._names.entry(key.name)
        self._write(name, lambda: (b"UNLINK", name))

    # Reads ----------------------------------------------------------------------------------------------------------

    def _ask(self, read: _Read) -> None:
        if not self._reads:
            if self._under_way <= FEW_READS:
                self._loop.call_soon(self._send_reads)
            else:
                self._gathering = self._loop.call_later(GATHER_SECONDS, self._send_reads)
        self._reads.append(read)

    def _send_reads(self) -> None:
        self._gathering = None
        batch: list[_Read] = []
        size = 0
        for read in self._reads:
            if batch and size + len(read.keys) > MAX_KEYS_A_READ:
                self._read(batch)
                batch, size = [], 0
            batch.append(read)
            size += len(read.keys)
        self._reads = []
        self._read(batch)

    def _gather_no_more(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
            self._loop.call_soon(self._send_reads)  # with those who ask in this turn

    def _read(self, reads: list[_Read]) -> None:
        names = [self._names.entry(key.name) for read in reads for key in read.keys]
        locks = [read.lock for read in reads if read.lock is not None]
        self.counts["reads"] += len(names)
        self._under_way += len(reads)
        commands = [self._lock_command(lock, _HELD, b"NX") for lock in locks]
        self._send([*commands, (b"MGET", *names, *locks)], partial(self._hear_reads, reads, len(names)))

    def _hear_reads(self, reads: list[_Read], count: int, replies: list[Any] | None) -> None:
        waiting = deque(reads)
        try:
            if replies is None or isinstance(replies[-1], ResponseError):
                return
            values = replies.pop()
            states = zip(replies, values[count:], strict=True)
            sealed = iter(values)
            while waiting:
                read = waiting[0]
                entry = None
                for key in read.keys:
                    value = next(sealed)
                    if value is not None and entry is None:
                        entry = unseal(key, value)
                        if entry is None:
                            self.counts["unreadable"] += 1
                waiting.popleft()
                if read.lock is None:
                    self._tell(read, entry)
                else:
                    self._tell(read, entry, self._is_elsewhere(read.lock, *next(states)))
        finally:
            # Whatever goes wrong is a miss: a reader that waited for ever would hold its key for ever.
            for read in waiting:
                self._tell(read, *((None,) if read.lock is None else (None, False)))
            self._under_way -= len(reads)
            if self._under_way <= FEW_READS:
                self._gather_no_more()

    def _tell(self, read: _Read, *answer: Any) -> None:
        try:
            read.tell(*answer)
        except Exception as exc:  # noqa: BLE001  # one reader's trouble, and not that of the others
            self._loop.call_exception_handler({"message": "an answer of the redis tier", "exception": exc})

    # Locks ----------------------------------------------------------------------------------------------------------

    def _lock_command(self, name: bytes, value: bytes, *condition: bytes) -> Command:
        return b"SET", name, value, b"PX", self._lock_ms, *condition

    def _is_elsewhere(self, name: bytes, reply: Any, value: bytes | None) -> bool:
        if reply == b"OK":
            self._held.add(name)
            self._renew_later()
            return False
        return reply is None and value == _HELD and name not in self._held

    def _renew_later(self) -> None:
        """An origin may be slower than a lock lives; a node that has died renews nothing."""
        if self._held and self._renewal is None:
            self._renewal = self._loop.call_later(self._lock_seconds / 3, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        for name in self._held:
            self._write(name, partial(self._lock_command, name, _HELD, b"XX"))
        self._renew_later()

    # Writes ---------------------------------------------------------------------------------------------------------

    def _write(self, name: bytes, command: Callable[[], Command], size: int = 0) -> None:
        before = self._writes.get(name)
        more = size - (before.size if before is not None else 0)
        is_too_much = more > 0 and self._pending_bytes > 0 and self._pending_bytes + more > self._max_pending_bytes
        if is_too_much or (len(self._writes) >= MAX_PENDING_WRITES and before is None):
            self.counts["dropped_writes"] += 1
            return
        self._pending_bytes += more
        self._writes[name] = _Write(command, size)
        if not self._is_writing:
            self._is_writing = True
            self._write_timer = self._loop.call_later(WRITE_PAUSE_SECONDS, self._begin_writing)

    def _begin_writing(self) -> None:
        """One batch after the other, so that what was put first never comes last; until one fails, and all with it."""
        self._write_timer = None
        batch = self._next_batch()
        try:
            commands = [write.command() for write in batch.values()]
        except BaseException:
            self._hear_written(batch, None)
            raise
        self._send(commands, partial(self._hear_written, batch))

    def _hear_written(self, batch: dict[bytes, _Write], replies: list[Any] | None) -> None:
        if _are_good(replies):
            self._forget(batch, "writes")
        else:
            self._forget(batch | self._writes, "dropped_writes")
            self._writes = {}
        if self._writes:
            self._begin_writing()
        else:
            self._is_writing = False

    def _next_batch(self) -> dict[bytes, _Write]:
        batch: dict[bytes, _Write] = {}
        size = 0
        for name, write in self._writes.items():
            size += write.size
            if batch and (len(batch) == MAX_KEYS_A_WRITE or size > MAX_BYTES_A_WRITE):
                break
            batch[name] = write
        for name in batch:
            del self._writes[name]
        return batch

    def _forget(self, writes: dict[bytes, _Write], count: str) -> None:
        self.counts[count] += len(writes)
        self._pending_bytes -= sum(write.size for write in writes.values())

    # Both -----------------------------------------------------------------------------------------------------------

    def _send(self, commands: Sequence[Command], hear: Hear) -> None:
        self.counts["round_trips"] += 1
        self._trips += 1
        self._at_rest.clear()
        self._round_trips.send(commands, partial(self._heard, hear))

    def _heard(self, hear: Hear, replies: list[Any] | None) -> None:
        self.counts["failures"] += not _are_good(replies)
        try:
            hear(replies)
        finally:
            self._trips -= 1
            if not self._trips:
                self._at_rest.set()


def _are_good(replies: list[Any] | None) -> bool:
    return replies is not None and not any(isinstance(reply, ResponseError) for reply in replies)
