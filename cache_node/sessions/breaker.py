"""Who may ask the origin now: as many at once as it is thought to bear.

Closed, the breaker hands out so many turns at a time.  Open, it lets a read through now and then to see whether the
origin answers again, and tells the others at once, or soon, that it does not.  The first answer closes it for one read
at a time, and for one more with each answer: all who have waited or try again would otherwise reach an origin with cold
caches at the same moment.  [Slow start, RFC 5681 section 3.1.]

Trials are reads of clients, not probes: nothing else shows that reads are answered, and an origin nobody asks has no
need of any.  A credential that has failed makes way for all that have not, so that a few which the origin cannot bear
do not take every trial; and nobody waits for a read that hangs, neither for the next trial nor in the slow start.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

from cache_node.errors import OriginUnavailableError

FAILURES = 5
"""So many in a row are suspicious."""
TRIAL_SECONDS = 0.25
TRIALS_AT_ONCE = 20
"""Where reads have a long deadline, trials are rarer, or too many would hang at once."""
OPEN_WAIT_SECONDS = 0.5
"""How long a read that nothing else can answer waits for an open breaker: a trial and its answer fit in."""
FAILED_REMEMBERED = 1000


class Turn:
    """Permission for one read, for whom; it must be given back."""

    __slots__ = ("counts", "era", "who")

    def __init__(self, era: int, who: Hashable) -> None:
        self.era = era
        self.who = who
        self.counts = True
        """Whether it is one of those that run at once."""


class _Waiter:
    __slots__ = ("patient", "turn", "who")

    def __init__(self, who: Hashable, patient: bool) -> None:
        self.who = who
        self.patient = patient
        self.turn: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()


class Breaker:
    """Turns to ask one origin, first come, first served.  Belongs to one event loop.

    `most` reads run at once; each may take `read_seconds`.
    """

    def __init__(self, most: int, read_seconds: float) -> None:
        self._most = most
        self._trial_seconds = max(TRIAL_SECONDS, read_seconds / TRIALS_AT_ONCE)
        self._allowed = most
        self._running = 0
        self._failures = 0
        self._failed: dict[Hashable, None] = {}
        """Whose reads have failed since the last answer to anybody."""
        self._era = 0
        """Counts openings and closings.  What was sent in an earlier one takes no turn and is no news of a failure."""
        self._next_trial_at = 0.0
        self._queue: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = False

    async def take(self, wait_seconds: float, who: Hashable, *, patient: bool) -> Turn:
        """A turn, which must be given back; raises OriginUnavailableError `busy` or `open` when there is none in time.

        Who is not `patient` waits for other reads, but not for an open breaker.
        """
        if not self._queue and self._is_free():
            return self._begin(who)
        if self.is_open and not patient:
            raise _open()
        waiter = _Waiter(who, patient)
        self._queue.append(waiter)
        self._hand_out()
        try:
            return await self._wait(waiter, wait_seconds)
        except BaseException:
            self._give_up(waiter)
            raise

    async def _wait(self, waiter: _Waiter, wait_seconds: float) -> Turn:
        now = asyncio.get_running_loop().time
        begun = now()
        while True:
            # A waiter whom the breaker's closing finds still there waits as long as any other.
            limit = min(wait_seconds, OPEN_WAIT_SECONDS) if self.is_open else wait_seconds
            left = begun + limit - now()
            if waiter.turn.done():
                return waiter.turn.result()
            if left <= 0:
                raise _open() if self.is_open else OriginUnavailableError("busy", "too many reads wait already")
            await asyncio.wait([waiter.turn], timeout=left)

    def give_back(self, turn: Turn) -> None:
        """The read is over, whatever came of it."""
        self._stop_counting(turn)
        self._hand_out()

    def answered(self) -> None:
        """The origin does its work."""
        self._failures = 0
        self._failed.clear()
        if self.is_open:
            self._begin_era(is_open=False)
        self.widen()

    def widen(self) -> None:
        """It did something, which says little of the rest of its work: once closed, one more runs at once."""
        if not self.is_open and self._allowed < self._most:
            self._allowed += 1
        self._hand_out()

    def failed(self, turn: Turn) -> None:
        """A read had no answer."""
        if turn.era != self._era:
            return
        self._failures += 1
        if len(self._failed) < FAILED_REMEMBERED:
            self._failed[turn.who] = None

    @property
    def is_suspicious(self) -> bool:
        """Whether it is closed, and too many reads in a row had no answer."""
        return not self.is_open and self._failures >= FAILURES

    @property
    def have_many_failed(self) -> bool:
        """Whether they were of so many credentials that it can be no single one's fault."""
        return len(self._failed) >= FAILURES

    def forgive(self) -> None:
        """The failures had another cause than the origin's state."""
        self._failures = 0

    def open(self) -> None:
        """Let nobody through but trials."""
        if self.is_open:
            return
        self._begin_era(is_open=True)
        for waiter in self._queue:
            if not waiter.patient and not waiter.turn.done():
                waiter.turn.set_exception(_open())
        self._hand_out()

    def close(self) -> None:
        """Nobody will ask any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _begin_era(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self._era += 1
        self._running, self._allowed, self._failures = 0, 0, 0
        self._next_trial_at = asyncio.get_running_loop().time()

    def _is_free(self) -> bool:
        if self.is_open:
            return asyncio.get_running_loop().time() >= self._next_trial_at
        return self._running < self._allowed

    def _begin(self, who: Hashable) -> Turn:
        loop = asyncio.get_running_loop()
        turn = Turn(self._era, who)
        self._running += 1
        if self.is_open:
            self._next_trial_at = loop.time() + self._trial_seconds
        elif self._allowed < self._most:
            loop.call_later(TRIAL_SECONDS, self.give_back, turn)
        return turn

    def _stop_counting(self, turn: Turn) -> None:
        if turn.counts and turn.era == self._era:
            self._running -= 1
        turn.counts = False

    def _hand_out(self) -> None:
        while self._queue and self._is_free():
            waiter = self._next()
            if waiter is None:
                break
            waiter.turn.set_result(self._begin(waiter.who))
        if self._queue and self.is_open and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(self._next_trial_at, self._try_again)

    def _next(self) -> _Waiter | None:
        """Who has waited longest; for a trial, one that has not failed before all others."""
        while self._queue and self._queue[0].turn.done():
            self._queue.popleft()
        if not self._queue:
            return None
        if self.is_open and self._failed:
            for waiter in self._queue:
                if waiter.who not in self._failed and not waiter.turn.done():
                    self._queue.remove(waiter)
                    return waiter
        return self._queue.popleft()

    def _try_again(self) -> None:
        self._timer = None
        self._hand_out()

    def _give_up(self, waiter: _Waiter) -> None:
        if not waiter.turn.done():
            waiter.turn.cancel()
            if waiter in self._queue:
                self._queue.remove(waiter)
        elif not waiter.turn.cancelled() and waiter.turn.exception() is None:
            self.give_back(waiter.turn.result())


def _open() -> OriginUnavailableError:
    return OriginUnavailableError("open", "the origin has failed again and again, and is asked now and then only")
