"""Who may ask the origin now: as many at once as it is thought to bear.

Closed, the breaker hands out so many turns at a time.  After FAILURES in a row it opens: one read each TRIAL_SECONDS is
let through to see whether the origin answers again, and the others are told at once, or soon, that it does not.  The
first answer closes it for one read at a time, and for one more with each answer: all who have waited or try again would
otherwise reach an origin with cold caches at the same moment.  [Slow start, RFC 5681 section 3.1.]

Trials are reads of clients, not probes: nothing else shows that reads are answered, and an origin nobody asks has no
need of any.  They do not wait for each other, so that one that hangs until its deadline does not delay the news.
"""

from __future__ import annotations

import asyncio
from collections import deque

from cache_node.errors import OriginUnavailableError

FAILURES = 5
TRIAL_SECONDS = 0.25
OPEN_WAIT_SECONDS = 0.5
"""How long a read that nothing else can answer waits for an open breaker: a trial and its answer fit in."""


class Breaker:
    """Turns to ask one origin, first come, first served.  Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._allowed = most
        self._running = 0
        self._failures = 0
        self._era = 0
        """Counts openings and closings.  What was sent in an earlier one takes no turn and is no news of a failure."""
        self._next_trial_at = 0.0
        self._queue: deque[tuple[asyncio.Future[int], bool]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = False

    async def take(self, wait_seconds: float, *, patient: bool) -> int:
        """A turn, which must be given back; raises OriginUnavailableError `busy` or `open` when there is none in time.

        Who is not `patient` waits for other reads, but not for an open breaker.
        """
        if not self._queue and self._is_free():
            return self._begin()
        if self.is_open and not patient:
            raise _open()
        if self.is_open:
            wait_seconds = min(wait_seconds, OPEN_WAIT_SECONDS)
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiter = (turn, patient)
        self._queue.append(waiter)
        self._hand_out()
        try:
            async with asyncio.timeout(wait_seconds):
                return await turn
        except TimeoutError:
            self._give_up(waiter)
            raise _open() if self.is_open else OriginUnavailableError("busy", "too many reads wait already") from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def give_back(self, turn: int) -> None:
        """The read is over, whatever came of it."""
        if turn == self._era:
            self._running -= 1
        self._hand_out()

    def answered(self) -> None:
        """The origin does its work."""
        self._failures = 0
        if self.is_open:
            self._begin_era(is_open=False)
        elif self._allowed < self._most:
            self._allowed += 1
        self._hand_out()

    def failed(self, turn: int) -> None:
        """A read had no answer."""
        self._failures += turn == self._era and not self.is_open

    @property
    def is_suspicious(self) -> bool:
        """Whether it should be opened: closed, and too many failures in a row."""
        return self._failures >= FAILURES

    def forgive(self) -> None:
        """The failures had another cause than the origin's state."""
        self._failures = 0

    def open(self) -> None:
        """Let nobody through but trials."""
        if self.is_open:
            return
        self._begin_era(is_open=True)
        for turn, patient in list(self._queue):
            if not patient and not turn.done():
                turn.set_exception(_open())
        self._hand_out()

    def close(self) -> None:
        """Nobody will ask any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _begin_era(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._era += 1
        self._running, self._allowed, self._failures = 0, 1, 0
        self._next_trial_at = asyncio.get_running_loop().time()

    def _is_free(self) -> bool:
        if self.is_open:
            return asyncio.get_running_loop().time() >= self._next_trial_at
        return self._running < self._allowed

    def _begin(self) -> int:
        self._next_trial_at = asyncio.get_running_loop().time() + TRIAL_SECONDS
        self._running += 1
        return self._era

    def _hand_out(self) -> None:
        while self._queue and (self._queue[0][0].done() or self._is_free()):
            turn, _patient = self._queue.popleft()
            if not turn.done():
                turn.set_result(self._begin())
        if self._queue and self.is_open and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._next_trial_at, self._try_again)

    def _try_again(self) -> None:
        self._timer = None
        self._hand_out()

    def _give_up(self, waiter: tuple[asyncio.Future[int], bool]) -> None:
        turn, _patient = waiter
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            self.give_back(turn.result())
        elif waiter in self._queue:
            self._queue.remove(waiter)


def _open() -> OriginUnavailableError:
    return OriginUnavailableError("open", "the origin has failed again and again, and is asked now and then only")
