"""Places where whatever waits stops, and goes on when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from cache_node.errors import FeedUnavailableError
from cache_node.feed.events import FeedEntry
from cache_node.feed.log import Confirmation, Log
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryReading
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from tests.fakes import SharedMemory


@dataclass
class Stops:
    """Places where somebody waits to be let go."""

    waiting: list[tuple[str, asyncio.Future[None]]] = field(default_factory=list)
    are_away: int = 0
    """How many wait for a server's answer, and stand nowhere yet."""
    nobody_away: asyncio.Event = field(default_factory=asyncio.Event)
    counts: Counter[str] = field(default_factory=Counter)
    """How many have stopped, by place."""

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        self.are_away += 1
        self.nobody_away.clear()
        try:
            yield
        finally:
            self.are_away -= 1
            if self.are_away == 0:
                self.nobody_away.set()

    async def stop(self, place: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((place, future))
        self.counts[place] += 1
        await future

    def release(self, index: int, *, is_lost: bool) -> None:
        place, future = self.waiting.pop(index)
        if future.cancelled():
            return
        if is_lost and place == "confirm":
            future.set_exception(FeedUnavailableError("the reply was lost"))
        else:
            future.set_result(None)


class StoppingLog:
    """A `Log` whose confirms, pages and readings of the registry stop between the server and the node; a confirm's
    reply may be lost there.  Questions about the registry stop before the server, too."""

    def __init__(self, log: Log, stops: Stops) -> None:
        self.log = log
        self._stops = stops

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        with self._stops.away():
            reply = await self.log.confirm(applied, shown_generation, field, record, followed_us)
        await self._stops.stop("confirm")
        return reply

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        with self._stops.away():
            page = await self.log.read_back(before, count)
        await self._stops.stop("replay")
        return page

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        return await self.log.wake_up(after, block_seconds)

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        await self._stops.stop("question")
        with self._stops.away():
            reading = await self.log.ask_registry(shown_generation)
        await self._stops.stop("registry")
        return reading

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        with self._stops.away():
            await self.log.forget(field, record)


class StoppingMemory(SharedMemory):
    """A redis tier whose reads stop behind the server, and which may be away.

    Who waits for another node stops before it looks again, too.
    """

    def __init__(self, stored: dict[bytes, bytes], stops: Stops, is_away: Callable[[], bool]) -> None:
        super().__init__(stored)
        self._stops = stops
        self._is_away = is_away

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        found = None if self._is_away() else await super().get(keys)
        await self._stops.stop("redis")
        return found

    async def get_or_lock(self, keys: Sequence[Key], attempt: int) -> tuple[Entry | None, bool]:
        if attempt:
            await self._stops.stop("lock")
        is_elsewhere = not self._is_away() and self.is_locked(keys[0])
        return await self.get(keys), is_elsewhere

    def put(self, key: Key, entry: Entry) -> None:
        if not self._is_away():
            super().put(key, entry)

    def release(self, key: Key, *, is_kept: bool) -> None:
        if not self._is_away():
            super().release(key, is_kept=is_kept)

    def discard(self, key: Key) -> None:
        if not self._is_away():
            super().discard(key)
