"""Publishers: tell the feed what changed, after the commit.

`AsyncPublisher` belongs to one event loop; `Publisher` is the same for code without one, usable from any thread and
after a fork.  Neither takes part in the transaction of the caller: publish after the commit, and again on an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Self, TypeVar, overload

from cache_node.environment import PublisherSettings, publisher_settings
from cache_node.errors import FeedUnavailableError, InvalidEventError
from cache_node.feed.events import MAX_EVENTS, Event, EventType, pack
from cache_node.feed.log import CONNECTIONS, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryWatch
from cache_node.sources.receipt import Receipt, RegistryPoll, wait_for_receipt
from cache_node.sources.turns import Turns

PUBLISH_DEADLINE_SECONDS = 4.0
"""A publish that could not be written by then fails; within it the publisher repeats, which is harmless."""
ATTEMPT_SECONDS = 1.0
RECEIPT_TIMEOUT_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.4

_T = TypeVar("_T")


class AsyncPublisher:
    """Publishes into the feed of one region, from one event loop.  Close it with `aclose()` or `async with`.

    `redis_url` and `key_prefix` None mean `CACHE_NODE_REDIS_URL` and `CACHE_NODE_KEY_PREFIX`.  Raises
    ConfigurationError for a missing or unknown setting.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        key_prefix: str | None = None,
        *,
        settings: PublisherSettings | None = None,
        source: str | None = None,
    ) -> None:
        self._settings = settings or publisher_settings(os.environ, redis_url=redis_url, key_prefix=key_prefix)
        self._log = RedisLog(
            self._settings.redis_url, RedisNames(self._settings.key_prefix), timeout_seconds=ATTEMPT_SECONDS
        )
        self._source = source or f"publisher@{socket.gethostname()}"[:64]
        # An attempt's second must not run while it waits: of 20,000 publishes at once 19,949 failed, and none does now.
        # One connection is the registry's, for receipts.
        self._turns = Turns(self._append, at_once=CONNECTIONS - 1)
        self._poll = RegistryPoll(self._log)
        self._watch = RegistryWatch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let publishes that are under way end, which takes 4 s at most, and close the connections."""
        self._poll.close()
        await self._turns.settle()
        await self._log.aclose()

    async def publish(self, events: Sequence[Event]) -> Position:
        """Write the events, 1 to 10,000, all or none; returns the position of the last one.

        Raises FeedUnavailableError when the feed did not acknowledge it within 4 s: the events may be in the feed or
        not, so publish them again.
        """
        if not 1 <= len(events) <= MAX_EVENTS:
            raise InvalidEventError(f"1 to {MAX_EVENTS} events can be published at once, not {len(events)}")
        rows = [pack(event) for event in events]  # what cannot be packed fails alone
        deadline = time.monotonic() + PUBLISH_DEADLINE_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                position = await self._turns.append(rows, deadline - ATTEMPT_SECONDS)
            except FeedUnavailableError:
                # One more attempt must fit, so that the caller has its answer within 5 s.
                if time.monotonic() + pause + ATTEMPT_SECONDS > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
            else:
                self._poll.newest_generation = max(self._poll.newest_generation, position.generation)
                return position

    async def _append(self, rows: Sequence[bytes]) -> Position:
        return await self._log.append(
            rows,
            source=self._source,
            shown_generation=self._poll.newest_generation,
            retain=self._settings.feed_events,
        )

    async def publish_and_wait(
        self, events: Sequence[Event], *, timeout_seconds: float = RECEIPT_TIMEOUT_SECONDS
    ) -> Receipt:
        """`publish`, then wait until the old answers are dead everywhere, or `timeout_seconds` have passed."""
        started = time.monotonic()
        position = await self.publish(events)
        return await wait_for_receipt(
            self._poll,
            position,
            started_at=started,
            acknowledged_at=time.monotonic(),
            max_staleness_seconds=self._settings.max_staleness_seconds,
            timeout_seconds=timeout_seconds,
            watch=self._watch,
        )

    async def _send(self, event: Event, wait: bool) -> Position | Receipt:
        return await self.publish_and_wait([event]) if wait else await self.publish([event])

    @overload
    async def session_revoked(
        self, session_id: str, identity_id: str | None = None, wait: Literal[False] = False
    ) -> Position: ...
    @overload
    async def session_revoked(
        self, session_id: str, identity_id: str | None = None, *, wait: Literal[True]
    ) -> Receipt: ...
    async def session_revoked(
        self, session_id: str, identity_id: str | None = None, wait: bool = False
    ) -> Position | Receipt:
        """The session is no longer valid: logged out, revoked, deleted."""
        return await self._send(Event.checked(EventType.SESSION_REVOKED, session_id, identity_id), wait)

    @overload
    async def session_changed(
        self, session_id: str, identity_id: str | None = None, wait: Literal[False] = False
    ) -> Position: ...
    @overload
    async def session_changed(
        self, session_id: str, identity_id: str | None = None, *, wait: Literal[True]
    ) -> Receipt: ...
    async def session_changed(
        self, session_id: str, identity_id: str | None = None, wait: bool = False
    ) -> Position | Receipt:
        """The session answers differently now: extended, another assurance level."""
        return await self._send(Event.checked(EventType.SESSION_CHANGED, session_id, identity_id), wait)

    @overload
    async def identity_changed(self, identity_id: str, wait: Literal[False] = False) -> Position: ...
    @overload
    async def identity_changed(self, identity_id: str, *, wait: Literal[True]) -> Receipt: ...
    async def identity_changed(self, identity_id: str, wait: bool = False) -> Position | Receipt:
        """All sessions of the identity answer differently: traits, addresses, state, second factors."""
        return await self._send(Event.checked(EventType.IDENTITY_CHANGED, None, identity_id), wait)

    @overload
    async def identity_deleted(self, identity_id: str, wait: Literal[False] = False) -> Position: ...
    @overload
    async def identity_deleted(self, identity_id: str, *, wait: Literal[True]) -> Receipt: ...
    async def identity_deleted(self, identity_id: str, wait: bool = False) -> Position | Receipt:
        """The identity and all its sessions are gone."""
        return await self._send(Event.checked(EventType.IDENTITY_DELETED, None, identity_id), wait)

    @overload
    async def flush(self, wait: Literal[False] = False) -> Position: ...
    @overload
    async def flush(self, *, wait: Literal[True]) -> Receipt: ...
    async def flush(self, wait: bool = False) -> Position | Receipt:
        """Everything cached is void, in every region that follows this feed."""
        return await self._send(Event(EventType.FLUSH), wait)

    async def followed_seconds(self) -> float:
        """For how long some node has followed the current generation: receipts are quick once it outlives a lease."""
        return (await self._log.ask_registry(self._poll.newest_generation)).followed_seconds

    async def region_status(self) -> dict[str, Any]:
        """Feed end and registry: `{"generation", "position", "nodes": [{"node_id", "region", "position", "state"}]}`.

        `state` is `applied` or `pending`, towards the feed's end; a node's `position` is None before its first confirm.
        """
        reading = await self._log.ask_registry(self._poll.newest_generation)
        end = Position(reading.generation, reading.number)
        nodes = [
            {
                "node_id": record.node_id,
                "region": record.region,
                "position": str(record.applied) if record.applied.generation else None,
                "state": "applied" if record.applied == end else "pending",
            }
            for record in reading.records
        ]
        return {"generation": reading.generation, "position": str(end), "nodes": nodes}


class Publisher:
    """The publisher for code without an event loop; safe from any thread, and after a fork.

    Its calls run on one background thread with a loop of its own, started with the first call.  Arguments and errors
    are those of AsyncPublisher; close it with `close()` or `with`.
    """

    def __init__(
        self, redis_url: str | None = None, key_prefix: str | None = None, *, settings: PublisherSettings | None = None
    ) -> None:
        self._settings = settings or publisher_settings(os.environ, redis_url=redis_url, key_prefix=key_prefix)
        self._lock = threading.Lock()
        self._running: _Background | None = None
        _PUBLISHERS.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the calls of other threads end, then close the connections; the next call would start anew."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            running.close()

    def publish(self, events: Sequence[Event]) -> Position:
        """As AsyncPublisher.publish."""
        return self._call(lambda publisher: publisher.publish(events))

    def publish_and_wait(self, events: Sequence[Event], *, timeout_seconds: float = RECEIPT_TIMEOUT_SECONDS) -> Receipt:
        """As AsyncPublisher.publish_and_wait."""
        return self._call(lambda publisher: publisher.publish_and_wait(events, timeout_seconds=timeout_seconds))

    def region_status(self) -> dict[str, Any]:
        """As AsyncPublisher.region_status."""
        return self._call(lambda publisher: publisher.region_status())

    def _send(self, event: Event, wait: bool) -> Position | Receipt:
        return self.publish_and_wait([event]) if wait else self.publish([event])

    def _call(self, ask: Callable[[AsyncPublisher], Coroutine[Any, Any, _T]]) -> _T:
        with self._lock:  # so that nothing is submitted to a loop that is being closed
            if self._running is None:
                self._running = _Background(self._settings)
            future = self._running.submit(ask)
        return future.result()

    def _begin_anew_after_fork(self) -> None:
        """In the child: the parent's thread is not here, and its lock may have been held by one that is not, either."""
        self._lock = threading.Lock()
        if self._running is not None:
            _INHERITED.append(self._running)
            self._running = None

    @overload
    def session_revoked(
        self, session_id: str, identity_id: str | None = None, wait: Literal[False] = False
    ) -> Position: ...
    @overload
    def session_revoked(self, session_id: str, identity_id: str | None = None, *, wait: Literal[True]) -> Receipt: ...
    def session_revoked(
        self, session_id: str, identity_id: str | None = None, wait: bool = False
    ) -> Position | Receipt:
        """The session is no longer valid: logged out, revoked, deleted."""
        return self._send(Event.checked(EventType.SESSION_REVOKED, session_id, identity_id), wait)

    @overload
    def session_changed(
        self, session_id: str, identity_id: str | None = None, wait: Literal[False] = False
    ) -> Position: ...
    @overload
    def session_changed(self, session_id: str, identity_id: str | None = None, *, wait: Literal[True]) -> Receipt: ...
    def session_changed(
        self, session_id: str, identity_id: str | None = None, wait: bool = False
    ) -> Position | Receipt:
        """The session answers differently now: extended, another assurance level."""
        return self._send(Event.checked(EventType.SESSION_CHANGED, session_id, identity_id), wait)

    @overload
    def identity_changed(self, identity_id: str, wait: Literal[False] = False) -> Position: ...
    @overload
    def identity_changed(self, identity_id: str, *, wait: Literal[True]) -> Receipt: ...
    def identity_changed(self, identity_id: str, wait: bool = False) -> Position | Receipt:
        """All sessions of the identity answer differently: traits, addresses, state, second factors."""
        return self._send(Event.checked(EventType.IDENTITY_CHANGED, None, identity_id), wait)

    @overload
    def identity_deleted(self, identity_id: str, wait: Literal[False] = False) -> Position: ...
    @overload
    def identity_deleted(self, identity_id: str, *, wait: Literal[True]) -> Receipt: ...
    def identity_deleted(self, identity_id: str, wait: bool = False) -> Position | Receipt:
        """The identity and all its sessions are gone."""
        return self._send(Event.checked(EventType.IDENTITY_DELETED, None, identity_id), wait)

    @overload
    def flush(self, wait: Literal[False] = False) -> Position: ...
    @overload
    def flush(self, *, wait: Literal[True]) -> Receipt: ...
    def flush(self, wait: bool = False) -> Position | Receipt:
        """Everything cached is void, in every region that follows this feed."""
        return self._send(Event(EventType.FLUSH), wait)


class _Background:
    """A thread with an event loop and the AsyncPublisher that lives there."""

    def __init__(self, settings: PublisherSettings) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cache-node-publisher", daemon=True)
        self._thread.start()
        self._publisher = AsyncPublisher(settings=settings)

    def submit(self, ask: Callable[[AsyncPublisher], Coroutine[Any, Any, _T]]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(ask(self._publisher), self._loop)

    def close(self) -> None:
        self.submit(self._finish).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self, publisher: AsyncPublisher) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        if under_way:
            await asyncio.wait(under_way)  # each has a deadline of its own
        with contextlib.suppress(FeedUnavailableError):
            await publisher.aclose()


_PUBLISHERS: weakref.WeakSet[Publisher] = weakref.WeakSet()
_INHERITED: list[_Background] = []
"""What a forked child must never collect: closing these connections would reach into the parent's epoll."""


def _after_fork_in_child() -> None:
    for publisher in list(_PUBLISHERS):
        publisher._begin_anew_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
