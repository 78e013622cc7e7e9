"""Turns of the publishes of one process: so many appends at once, and what waits meanwhile goes together in the next.

Publishes that go together each get a position of their own, and share the append's fate: each repeats by itself.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from cache_node.errors import FeedUnavailableError
from cache_node.feed.position import Position

ROWS_TOGETHER = 1000
"""Of several publishes in one append at most: one of 1,000 rows keeps the server for a millisecond."""


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: Sequence[bytes]
    position: asyncio.Future[Position]
    timer: asyncio.TimerHandle


class Turns:
    """Belongs to one event loop.  `append` writes rows, all or none, and returns the position of the last one."""

    def __init__(self, append: Callable[[Sequence[bytes]], Awaitable[Position]], *, at_once: int) -> None:
        self._append = append
        self._at_once = at_once
        self._waiting: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    async def append(self, rows: Sequence[bytes], begin_by: float) -> Position:
        """The position of the last of these rows.  Raises what `append` does, and FeedUnavailableError if the turn has
        not come by `begin_by`, a reading of the monotonic clock."""
        loop = asyncio.get_running_loop()
        position: asyncio.Future[Position] = loop.create_future()
        timer = loop.call_later(begin_by - time.monotonic(), _give_up, position)
        self._waiting.append(_Waiting(rows, position, timer))
        if len(self._under_way) < self._at_once:
            # It takes what waits when it begins, with all that is published before the loop comes to it.
            task = loop.create_task(self._append_all())
            self._under_way.add(task)
        try:
            return await position
        finally:
            timer.cancel()

    async def settle(self) -> None:
        """Wait for the appends that are under way or wait for their turn."""
        if self._under_way:
            await asyncio.wait([*self._under_way])

    async def _append_all(self) -> None:
        together: list[_Waiting] = []
        try:
            while together := self._take():
                await self._append_together(together)
        finally:
            # In the very step that finds nothing waiting: who comes behind it would else count on this task.
            self._under_way.discard(asyncio.current_task())
            for one in together:
                if not one.position.done():  # however this ended, nobody waits for ever
                    one.position.set_exception(FeedUnavailableError("publishing failed: it was broken off"))

    async def _append_together(self, together: Sequence[_Waiting]) -> None:
        try:
            last = await self._append([row for one in together for row in one.rows])
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is theirs
            for one in together:
                if not one.position.done():
                    one.position.set_exception(copy.copy(exc))
            return
        number = last.number
        for one in reversed(together):
            if not one.position.done():
                one.position.set_result(Position(last.generation, number))
            number -= len(one.rows)

    def _take(self) -> list[_Waiting]:
        together: list[_Waiting] = []
        rows = 0
        while self._waiting and (not together or rows + len(self._waiting[0].rows) <= ROWS_TOGETHER):
            one = self._waiting.popleft()
            if not one.position.done():  # else it was cancelled, or has given up
                one.timer.cancel()
                together.append(one)
                rows += len(one.rows)
        return together


def _give_up(position: asyncio.Future[Position]) -> None:
    if not position.done():
        position.set_exception(FeedUnavailableError("publishing failed: too many publishes wait for their turn"))
