"""The redis tier (L2): sealed entries that the nodes of a region share.

A tier that does not answer is a miss, never an error.  Nothing is ever deleted to invalidate it: each reader judges an
entry by its own fence.  All reads of one event-loop turn are one round trip, and so are all writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache_node.feed.names import RedisNames
from cache_node.feed.redis_client import REDIS_ERRORS, build_client
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.sealing import seal, unseal

TIMEOUT_SECONDS = 0.25
"""A tier slower than this is not worth waiting for: the origin is asked."""
MAX_KEYS_A_READ = 128
"""10,000 keys in one command would hold the server for 9 ms."""
MAX_CONNECTIONS = 8
MAX_PENDING_WRITES = 1024
MAX_KEYS_A_WRITE = 128
MAX_BYTES_A_WRITE = 4 * 1024 * 1024


class RedisTier:
    """`get`/`put` of one key prefix; `lifetime_seconds` is min(TTL, fence window): what is older is below the floor.

    Entries of at most `max_pending_bytes` together, or a single one, wait to be written.
    """

    def __init__(self, url: str, names: RedisNames, *, lifetime_seconds: float, max_pending_bytes: int) -> None:
        self._client = build_client(url, timeout_seconds=TIMEOUT_SECONDS, max_connections=MAX_CONNECTIONS)
        self._names = names
        self._lifetime_ms = max(1, round(lifetime_seconds * 1000))
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._reads: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._writes: dict[Key, Entry | None] = {}
        self._max_pending_bytes = max_pending_bytes
        self._pending_bytes = 0
        self._is_writing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()
        """`reads`, `round_trips`, `failures`, `unreadable`, `writes`, `dropped_writes`."""

    async def aclose(self) -> None:
        """Finish the writes under way, then close the connections."""
        await self.settle()
        await self._client.aclose()

    async def settle(self) -> None:
        """Wait until what was put before is written, or given up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * TIMEOUT_SECONDS)

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        """The entry under the first of the keys that has one; None if there is none or Redis does not answer."""
        futures = [self._read(self._names.entry(key.name)) for key in keys]
        # Readers of one key share a future, and one that goes away must not take it with it.
        values = await asyncio.gather(*map(asyncio.shield, futures))
        for key, value in zip(keys, values, strict=True):
            if value is None:
                continue
            entry = unseal(key, value)
            if entry is not None:
                return entry
            self.counts["unreadable"] += 1
        return None

    def put(self, key: Key, entry: Entry) -> None:
        """Keep the entry; written behind, from the end of this turn of the loop on, or dropped if Redis is away."""
        self._write(key, entry)

    def discard(self, key: Key) -> None:
        """Take away what the origin has contradicted, some time soon or, if Redis is away, not at all."""
        self._write(key, None)

    def _read(self, name: bytes) -> asyncio.Future[bytes | None]:
        future = self._reads.get(name)
        if future is None:
            loop = asyncio.get_running_loop()
            if not self._reads:
                loop.call_soon(self._send_reads)
            future = self._reads[name] = loop.create_future()
        return future

    def _send_reads(self) -> None:
        reads, self._reads = list(self._reads.items()), {}
        for start in range(0, len(reads), MAX_KEYS_A_READ):
            self._spawn(self._read_batch(dict(reads[start : start + MAX_KEYS_A_READ])))

    async def _read_batch(self, reads: dict[bytes, asyncio.Future[bytes | None]]) -> None:
        self.counts["reads"] += len(reads)
        try:
            values = await self._call(lambda: self._client.mget(list(reads)))
            for future, value in zip(reads.values(), values or [None] * len(reads), strict=True):
                future.set_result(value)
        finally:
            # Whatever else goes wrong is a miss too: a reader that waited for ever would hold its key for ever.
            for future in reads.values():
                if not future.done():
                    future.set_result(None)

    def _write(self, key: Key, entry: Entry | None) -> None:
        size = _size_of(entry) - _size_of(self._writes.get(key))
        is_too_much = size > 0 and self._pending_bytes > 0 and self._pending_bytes + size > self._max_pending_bytes
        if is_too_much or (len(self._writes) >= MAX_PENDING_WRITES and key not in self._writes):
            self.counts["dropped_writes"] += 1
            return
        self._pending_bytes += size
        self._writes[key] = entry
        if not self._is_writing:
            self._is_writing = True
            self._spawn(self._write_all())

    async def _write_all(self) -> None:
        """One batch after the other, so that what was put first never comes last; until one fails, and all with it."""
        try:
            while self._writes:
                batch = self._next_batch()
                is_written = False
                try:
                    is_written = await self._call(partial(self._send, batch)) is not None
                finally:
                    self._forget(batch, "writes" if is_written else "dropped_writes")
                    if not is_written:
                        self._forget(self._writes, "dropped_writes")
                        self._writes = {}
        finally:
            self._is_writing = False

    def _next_batch(self) -> dict[Key, Entry | None]:
        batch: dict[Key, Entry | None] = {}
        size = 0
        for key, entry in self._writes.items():
            size += _size_of(entry)
            if batch and (len(batch) == MAX_KEYS_A_WRITE or size > MAX_BYTES_A_WRITE):
                break
            batch[key] = entry
        for key in batch:
            del self._writes[key]
        return batch

    def _forget(self, writes: dict[Key, Entry | None], count: str) -> None:
        self.counts[count] += len(writes)
        self._pending_bytes -= sum(map(_size_of, writes.values()))

    async def _send(self, batch: dict[Key, Entry | None]) -> list[Any]:
        async with self._client.pipeline(transaction=False) as pipe:
            for key, entry in batch.items():
                name = self._names.entry(key.name)
                # Sealed here, when it has a connection: what waits is no second copy of the memory tier's.
                _ = pipe.unlink(name) if entry is None else pipe.set(name, seal(key, entry), px=self._lifetime_ms)
            replies: list[Any] = await pipe.execute()
            return replies

    async def _call(self, send: Callable[[], Awaitable[Any]]) -> Any:
        """The reply, or None.  Repeated once, on a new connection, if the old one turned out to be broken.

        The deadline includes the wait for a connection: else the calls of a stall would queue for many times as long.
        """
        self.counts["round_trips"] += 1
        with contextlib.suppress(*REDIS_ERRORS):
            async with asyncio.timeout(TIMEOUT_SECONDS), self._connections:
                try:
                    return await send()
                except RedisTimeoutError:
                    raise
                except RedisConnectionError:
                    return await send()
        self.counts["failures"] += 1
        return None

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _size_of(entry: Entry | None) -> int:
    return 0 if entry is None else len(entry.body)
