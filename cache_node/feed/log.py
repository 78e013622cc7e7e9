"""The feed on a Redis server: every command that a node or a publisher sends about it, and nothing it concludes.

All calls raise FeedUnavailableError when the server is away, late, or refuses.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from redis.exceptions import NoScriptError

from cache_node.feed import events, scripts
from cache_node.feed.events import FeedEntry
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.redis_client import REDIS_ERRORS, Line, build_client, feed_unavailable, run_script
from cache_node.feed.registry import RegistryReading

PAGE_EVENTS = 1000
"""Events that a page spans, unless a single entry has more: what is applied in one step, which holds the loop of a node
[3 ms in entries of 100; 10,000 at once, some heard and others applied in one turn: 5 ms, and 34 in pages of 256]."""
PAGE_ENTRIES = 256
"""Feed entries of one page at most [2 ms, an event in each]."""
WAKE_ENTRIES = 32
"""Feed entries that one wake-up reads at most, of which it brings a page: XREAD takes no last id [at 9,000 events/s 20
come during the pause after a wake-up]."""
CONNECTIONS = 4
"""Calls at once; more wait for a connection, and their time runs meanwhile."""
_MAX_NUMBER = 2**64 - 1
_SALT_BITS = 20
"""As µs about a second, so that TIME is ahead again soon after."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What one confirm returned: the feed's end, and a page of the entries behind the position that was shown."""

    end: Position
    entries: tuple[FeedEntry, ...]
    nodes: int
    time_us: int | None = None
    """The server's TIME, µs."""
    registry_was_lost: bool = False
    """Records are gone that were there: the registry does not know everybody."""


class Log(Protocol):
    """What the follower needs of a feed; `RedisLog` is the real one, tests script another."""

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        """One transaction: write the record, return the feed's end and the page after `applied`.

        The page is empty only if the feed ends there, or the events that follow are missing.
        `followed_us`: for how long the generation of `applied` has been followed, µs by the caller's own clock.
        """

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        """Wait for entries behind `after`, at most `block_seconds`; they may come from another server.

        At most a page, of one generation.
        """

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        """The last `count` events up to `before`, newest entry first, or as many as a page has; of one generation."""

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        """The registry, by a script that writes."""

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        """Remove a record from the registry; with `record` given only if it still is that."""


class RedisLog:
    """The feed of one key prefix on one standalone Redis or Valkey.  Owns its connections; `aclose()` ends them.

    `timeout_seconds` bounds every call; a call that is late is abandoned together with its connection.
    """

    def __init__(self, url: str, names: RedisNames, *, timeout_seconds: float) -> None:
        self._names = names
        self._timeout = timeout_seconds
        self._client = build_client(url, timeout_seconds=timeout_seconds, max_connections=CONNECTIONS)
        # A line for each of the follower's loops, so that none waits for another's page.
        self._confirming = Line(url, timeout_seconds=timeout_seconds)
        self._blocked = Line(url, timeout_seconds=timeout_seconds)
        self._replaying = Line(url, timeout_seconds=timeout_seconds)

    async def aclose(self) -> None:
        """Close the connections."""
        for owned in (self._client, self._confirming, self._blocked, self._replaying):
            await owned.aclose()

    async def append(self, rows: Sequence[bytes], *, source: str, shown_generation: int, retain: int) -> Position:
        """Write packed events, all or none, once; returns the position of the last one.  Repeating is the caller's."""
        args: list[int | bytes] = [*_shown(shown_generation), retain]
        for start in range(0, len(rows), events.ENTRY_EVENTS):
            part = rows[start : start + events.ENTRY_EVENTS]
            args += [len(part), events.frame(source, part)]
        async with self._call("publishing"):
            reply = await run_script(self._client, scripts.APPEND, [self._names.generation, self._names.feed], args)
        return Position.parse(reply)

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        followed = applied.generation if applied is not None else 0
        args = [*_shown(shown_generation), field, record, followed, followed_us]
        async with self._call("confirming"):
            try:
                end, rows = await self._confirm_once(applied, args)
            except NoScriptError:
                await self._client.script_load(scripts.CONFIRM.text)
                end, rows = await self._confirm_once(applied, args)
            at = Position(int(end[0]), int(end[1]))
            if applied is not None and not rows and at != applied:
                # What follows is larger than a page, as another version may write it, or gone: the next entry's number
                # tells, whenever it is read.
                rows = await self._confirming.call(*self._page_after(applied, _MAX_NUMBER, 1))
        return Confirmation(
            end=at,
            entries=_entries(rows),
            nodes=int(end[4]),
            time_us=int(end[2]) * 1_000_000 + int(end[3]),
            registry_was_lost=bool(end[5]),
        )

    async def _confirm_once(self, applied: Position | None, args: list[Any]) -> tuple[list[bytes], list[Any]]:
        keys = [self._names.generation, self._names.feed, self._names.nodes]
        script = ("EVALSHA", scripts.CONFIRM.sha, len(keys), *keys, *args)
        if applied is None:
            (end,) = await self._confirming.transaction(script)
            return end, []
        page = self._page_after(applied, applied.number + PAGE_EVENTS, PAGE_ENTRIES)
        end, rows = await self._confirming.transaction(script, page)
        return end, rows

    def _page_after(self, applied: Position, last: int, entries: int) -> tuple[str | int, ...]:
        return ("XRANGE", self._names.feed, f"({applied}", f"{applied.generation}-{last}", "COUNT", entries)

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        block = max(1, int(block_seconds * 1000))
        async with self._call("waiting for events", block_seconds):
            reply = await self._blocked.call(
                "XREAD", "COUNT", WAKE_ENTRIES, "BLOCK", block, "STREAMS", self._names.feed, str(after)
            )
        if not reply:
            return []
        [(_stream, rows)] = reply
        positions = [Position.parse(id_) for id_, _fields in rows]
        first = positions[0]
        page = [at for at in positions if at.generation == first.generation and at.number <= first.number + PAGE_EVENTS]
        return list(zip(page, _entries(rows[: len(page)]), strict=True))

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        first = f"{before.generation}-{max(0, before.number - count + 1)}"
        async with self._call("replaying the feed"):
            rows = await self._replaying.call("XREVRANGE", self._names.feed, str(before), first, "COUNT", PAGE_ENTRIES)
        return _entries(rows)

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        keys = [self._names.generation, self._names.feed, self._names.nodes]
        async with self._call("asking the registry"):
            generation, number, followed, flat = await run_script(
                self._client, scripts.ASK_REGISTRY, keys, _shown(shown_generation)
            )
        return RegistryReading.parse(generation, number, followed, dict(zip(flat[::2], flat[1::2], strict=True)))

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        async with self._call("leaving the registry"):
            if record is None:
                await self._client.hdel(self._names.nodes, field)
            else:
                await run_script(self._client, scripts.FORGET, [self._names.nodes], [field, record])

    @asynccontextmanager
    async def _call(self, doing: str, block_seconds: float = 0.0) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(block_seconds + self._timeout):
                yield
        except REDIS_ERRORS as exc:
            raise feed_unavailable(doing, exc) from None


def _shown(generation: int) -> list[int]:
    """The first arguments of every script: should a generation be born, nobody else's will be this one."""
    return [generation, secrets.randbits(_SALT_BITS) + 1]


def _entries(rows: Sequence[tuple[bytes, Sequence[bytes]]]) -> tuple[FeedEntry, ...]:
    # An entry that begins with another field is none of ours, and cannot be read.
    return tuple(
        [
            events.read_entry(int(id_.partition(b"-")[2]), fields[1] if fields[0] == events.ENTRY_FIELD else b"")
            for id_, fields in rows
        ]
    )
