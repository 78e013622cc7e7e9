"""Commands to Redis in pipelined round trips over few connections, for a tier that would rather be without a reply.

Past redis-py's clients: 32 keys that are not there cost the redis tier 50 µs of CPU, one key 22.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache_node.feed.redis_client import REDIS_ERRORS, Wire

TIMEOUT_SECONDS = 0.25
"""A tier slower than this is not worth waiting for: the origin is asked."""
MAX_CONNECTIONS = 8

Command = Sequence[bytes | int]
Hear = Callable[[list[Any] | None], None]


class RoundTrips:
    """Owns its connections, which are made when they are needed; `aclose()` ends them."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._wires: asyncio.LifoQueue[Wire] = asyncio.LifoQueue()
        for _ in range(MAX_CONNECTIONS):
            self._wires.put_nowait(Wire(url, timeout_seconds=TIMEOUT_SECONDS))
        self._is_closed = False
        self._waiting = 0
        """Trips without a wire, which those that come later must not overtake for ever."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Close the connections, those under way with their replies; whoever sends something now hears of none."""
        self._is_closed = True
        while not self._wires.empty():
            self._wires.get_nowait().close()

    def send(self, commands: Sequence[Command], hear: Hear) -> None:
        """`hear` is told once, and not before this has returned: the replies in order, an error of a command in place
        of its reply; None if they did not come in time.

        Repeated on a new connection, twice at most, if one turned out to be broken.  The deadline includes the wait for
        a connection: else the calls of a stall would queue for many times as long.
        """
        if self._is_closed:
            self._loop.call_soon(hear, None)
            return
        if not self._waiting and not self._wires.empty():
            wire = self._wires.get_nowait()
            if wire.is_open:
                self._send_at_once(wire, commands, hear)
                return
            self._wires.put_nowait(wire)
        self._spawn(self._send_in_turn(commands, hear, self._loop.time() + TIMEOUT_SECONDS))

    def _send_at_once(self, wire: Wire, commands: Sequence[Command], hear: Hear) -> None:
        """Without a task, which takes as long as the rest."""
        deadline = self._loop.call_later(TIMEOUT_SECONDS, wire.fail, RedisTimeoutError())

        def heard(replies: list[Any] | Exception) -> None:
            deadline.cancel()
            self._give_back(wire)
            if isinstance(replies, RedisConnectionError):
                self._spawn(self._send_in_turn(commands, hear, deadline.when()))
            else:
                hear(None if isinstance(replies, Exception) else replies)

        try:
            wire.ask(commands, heard)
        except REDIS_ERRORS as error:
            self._loop.call_soon(heard, error)

    async def _send_in_turn(self, commands: Sequence[Command], hear: Hear, until: float) -> None:
        replies = None
        try:
            with contextlib.suppress(*REDIS_ERRORS):
                async with asyncio.timeout_at(until):
                    wire = await self._free_wire()
                    try:
                        replies = await self._exchanged(wire, commands)
                    finally:
                        self._give_back(wire)
        finally:
            hear(replies)

    async def _free_wire(self) -> Wire:
        self._waiting += 1
        try:
            return await self._wires.get()
        finally:
            self._waiting -= 1

    def _give_back(self, wire: Wire) -> None:
        if self._is_closed:
            wire.close()
        self._wires.put_nowait(wire)

    async def _exchanged(self, wire: Wire, commands: Sequence[Command]) -> list[Any]:
        try:
            return await wire.exchange(commands)
        except RedisConnectionError:
            return await wire.exchange(commands)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
