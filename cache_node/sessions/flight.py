"""One fill per key at a time, and who may have its result.

A run reads what the origin said at some moment after its read began.  Who joined before that may have the result as
their own answer; who joined later may only have it as a cached one, by fence and lease, and otherwise asks again:

    1. reader A joins, the run begins its read    2. the origin reads the old state    3. the session is revoked, the
    event is applied here    4. reader B joins    5. the old answer arrives: right for A, whose request began before
    the revocation, and wrong for B.

The next run does not begin before all who joined the last one late are awake: with many requests for one key it could
otherwise begin without them each time, and they would be late again and again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Hear = Callable[[T | BaseException, bool], None]
"""Is told once: the result of a run, or what its fill raised; and whether its read began after this one had joined."""


class Flight(Generic[T]):
    """One run.  The fill calls `begin_read()` right before it sends its request to the origin."""

    def __init__(self) -> None:
        self.read_begun = False
        self.must_ask_origin = False
        """Set by a joiner who does not want the tiers' answer; heeded until the read has begun."""
        self.latecomers = 0
        """Who joined after the read began, and is not awake yet."""
        self.all_awake = asyncio.Event()
        self.task: asyncio.Task[T]
        self.has_told = False
        """Whether somebody has the result already."""
        self.waiting: list[tuple[Hear[T], bool]] = []
        """Who waits without a task, and whether they joined before the read."""

    def begin_read(self) -> None:
        """Who joins from now on was not there before the read."""
        self.read_begun = True

    async def tell_early(self, result: T) -> None:
        """Let those have it who wait without a task and joined before the read, and their answers go out, before the
        run does what it must do with the result; who joins meanwhile joins this run."""
        early = [hear for hear, joined_before_read in self.waiting if joined_before_read]
        self.waiting = [each for each in self.waiting if not each[1]]
        for hear in early:
            _tell(hear, result, True)
        if early:
            self.has_told = True
            await asyncio.sleep(0)


class Flights(Generic[T]):
    """The runs under way, by key.  A run goes on when a reader goes away; it belongs to all of them."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight[T]] = {}
        self._landed: dict[bytes, Flight[T]] = {}
        """The last run of a key, while latecomers of it are not awake."""

    def __contains__(self, name: bytes) -> bool:
        return name in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    async def join(self, name: bytes, fill: Callable[[Flight[T]], Awaitable[T]], *, ask_origin: bool) -> tuple[T, bool]:
        """The result of the run under way for the key, or of a new one; and whether its read began after this call.

        `ask_origin` asks the run to pass the tiers by.  Raises what the fill raises.
        """
        flight, joined_before_read = self._board(name, fill, ask_origin)
        try:
            return await asyncio.shield(flight.task), joined_before_read
        finally:
            if not joined_before_read:
                self._wake(name, flight)

    def join_later(
        self, name: bytes, fill: Callable[[Flight[T]], Awaitable[T]], hear: Hear[T], *, ask_origin: bool
    ) -> None:
        """The same for who has no task to wait with."""
        flight, joined_before_read = self._board(name, fill, ask_origin)
        if not flight.waiting:
            flight.task.add_done_callback(partial(self._land, name, flight))
        flight.waiting.append((hear, joined_before_read))

    def _land(self, name: bytes, flight: Flight[T], task: asyncio.Task[T]) -> None:
        outcome = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        waiting, flight.waiting = flight.waiting, []
        for hear, joined_before_read in waiting:
            if not joined_before_read:
                self._wake(name, flight)
            _tell(hear, outcome, joined_before_read)

    def _board(
        self, name: bytes, fill: Callable[[Flight[T]], Awaitable[T]], ask_origin: bool
    ) -> tuple[Flight[T], bool]:
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = Flight()
            flight.task = asyncio.create_task(self._run(name, flight, fill))
        joined_before_read = not flight.read_begun
        flight.must_ask_origin |= ask_origin
        flight.latecomers += not joined_before_read
        return flight, joined_before_read

    def _wake(self, name: bytes, flight: Flight[T]) -> None:
        flight.latecomers -= 1
        if flight.latecomers == 0 and self._landed.get(name) is flight:
            del self._landed[name]
            flight.all_awake.set()

    async def _run(self, name: bytes, flight: Flight[T], fill: Callable[[Flight[T]], Awaitable[T]]) -> T:
        try:
            before = self._landed.get(name)
            if before is not None:
                await before.all_awake.wait()
            return await fill(flight)
        except Exception:
            if flight.has_told:  # and so perhaps nobody else hears of this
                logger.exception("a run failed behind its answer")
            raise
        finally:
            # Whoever is woken by the result and must ask again finds no flight, or one whose read has not begun.
            del self._flights[name]
            if flight.latecomers:
                self._landed[name] = flight


def _tell(hear: Hear[T], outcome: T | BaseException, joined_before_read: bool) -> None:
    try:
        hear(outcome, joined_before_read)
    except Exception:  # one reader's trouble, and not that of the others
        logger.exception("a reader could not be told")
