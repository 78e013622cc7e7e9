"""Follows the feed: confirms, applies, grants the lease, and replays the retained window once at the start.

Only a confirm moves the position: a wake-up may come from another server, so what it brings is added to the fence at
once, which is always safe, and the confirm follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections import Counter
from collections.abc import Callable

from cache_node.errors import FeedUnavailableError
from cache_node.feed.clock import Clock
from cache_node.feed.events import FeedEntry
from cache_node.feed.fence import Fence
from cache_node.feed.lease import Lease
from cache_node.feed.log import PAGE_EVENTS, Confirmation, Log
from cache_node.feed.position import Position
from cache_node.feed.registry import FORGET_AFTER_SECONDS, Membership, RegistryWatch

logger = logging.getLogger(__name__)

CONFIRMS_PER_STALENESS = 4
CONFIRM_COST_SECONDS = 60e-6
"""Server time of one confirm [59 µs, with 1 record as with 300]; the pace keeps the confirms of all nodes under a tenth
of the server."""
DELIVERY_COST_SECONDS = 10e-6
"""Server time of waking one blocked reader."""
SERVER_SHARE = 0.1
DRIFT = 0.01
"""Part of the lease given up, for clocks of node and receipt's waiter that do not run at one speed."""
RETRY_SECONDS = 0.5
"""Between attempts at most while the feed is away or the node has no lease, however large the staleness."""
WAKE_BLOCK_SECONDS = 1.0
WAKE_PAUSE_SECONDS = 0.002
"""After a wake-up: what comes meanwhile is heard together [a node at 1,000 events/s: 0.11 of a core, 0.16 without]."""
OTHER_REASON_SECONDS = 10.0
"""Before the log has another reason why the feed is away: a failing server gives several in turn."""
REPORT_SECONDS = 2.0
"""Between lines about a replay under way."""
SWEEP_SECONDS = 60.0


class FeedState(enum.Enum):
    """Where a node stands towards the feed; upper case in `/status`."""

    BOOTSTRAPPING = "BOOTSTRAPPING"
    FOLLOWING = "FOLLOWING"
    LOST = "LOST"
    RESETTING = "RESETTING"


class Follower:
    """Owner of the fence and the lease of one node.  `run()` is its life; `leave()` deregisters it.

    `confirm()` is one step, with all decisions in `_take`, which never awaits.
    """

    def __init__(self, log: Log, fence: Fence, lease: Lease, clock: Clock, membership: Membership) -> None:
        self._log = log
        self._fence = fence
        self._lease = lease
        self._clock = clock
        self._membership = membership
        self._max_staleness = membership.max_staleness_seconds
        self._phase = FeedState.BOOTSTRAPPING
        self._newest_generation = 0
        self._followed_since = 0.0
        self._confirmed_at: float | None = None
        self._nodes = 1
        self._woken = asyncio.Event()
        self._begun = asyncio.Event()
        self._left = False
        self.attempted = asyncio.Event()
        """Set once the first confirm has succeeded or failed."""
        self._replay_from: int | None = None
        self.replay_done = False
        self.behind = 0
        """Events that the newest confirm knew of and did not bring: more than a page can hold."""
        self._is_lagging = False
        self._why_away: str | None = None  # as the log has it; None while the feed is there
        self._said_why_at = 0.0
        self.observe_lag: Callable[[float], None] = lambda seconds: None
        """Called with the seconds from the writing of a feed entry to its confirmation here, by the server's clock."""
        self.counts: Counter[str] = Counter()
        """`confirms`, `failures`, `events`, `early_entries`, `replayed` (events, by the last replay), `resets_gap`,
        `resets_ahead`, `resets_generation`."""

    # What others ask ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> FeedState:
        """LOST is following without a lease."""
        if self._phase is FeedState.FOLLOWING and not self._lease.holds():
            return FeedState.LOST
        return self._phase

    @property
    def is_fresh(self) -> bool:
        """Whether answers from the tiers may be given now."""
        return self.state is FeedState.FOLLOWING

    @property
    def nodes_known(self) -> int | None:
        """Records in the registry when this node confirmed last; None before it ever did."""
        return self._nodes if self.counts["confirms"] else None

    @property
    def seconds_since_confirmed(self) -> float | None:
        """Age of the newest feed state that was confirmed complete; None if none was in this generation."""
        return None if self._confirmed_at is None else max(0.0, self._clock.steady() - self._confirmed_at)

    @property
    def replay_share(self) -> float | None:
        """So much of the replay is done, at least: where the retained window begins is not known before it is reached.

        None if it has not begun.
        """
        if self._replay_from is None:
            return None
        if self.replay_done or not self._replay_from:
            return 1.0
        return max(self.counts["replayed"] / self._replay_from, self._fence.replay_share)

    # The steps ------------------------------------------------------------------------------------------------------

    async def confirm(self) -> bool:
        """One confirm; True if another should follow at once.  Raises FeedUnavailableError."""
        applied = self._fence.position
        followed_us = round((self._clock.steady() - self._followed_since) * 1e6) if applied is not None else 0
        record = self._membership.next_record(applied)
        sent = self._clock.steady()
        try:
            reply = await self._log.confirm(
                applied, self._newest_generation, self._membership.field_name, record, followed_us
            )
        except FeedUnavailableError:
            # That the registry was lost is said once, and it may have been in the reply that did not come.
            self._followed_since = self._clock.steady()
            self.counts["failures"] += 1
            raise
        finally:
            self.attempted.set()
        return self._take(reply, applied, sent)

    def _take(self, reply: Confirmation, asked_after: Position | None, sent: float) -> bool:
        self.counts["confirms"] += 1
        self._nodes = reply.nodes
        self._newest_generation = max(self._newest_generation, reply.end.generation)
        if reply.registry_was_lost:
            self._followed_since = self._clock.steady()
        if self._left:
            return False  # receipts do not wait for this node any more, so it must not serve again
        applied = self._fence.position
        if applied != asked_after:
            return True  # a confirm that overlapped another one proves nothing
        if applied is None:
            return self._begin_at(reply.end, FeedState.BOOTSTRAPPING)
        if reply.end.generation != applied.generation:
            return self._reset(reply.end, "generation")
        if reply.end.number < applied.number:
            return self._reset(reply.end, "ahead")
        number = applied.number
        for entry in reply.entries:
            # An unreadable entry raises the floor to itself, so what may be missing before it does not matter.
            if entry.events is not None and entry.number - len(entry.events) != number:
                return self._reset(reply.end, "gap")
            self._fence.apply(Position(applied.generation, entry.number), entry.events)
            number = entry.number
            self.counts["events"] += len(entry.events or ())
            if reply.time_us is not None and entry.published_us is not None and reply.time_us >= entry.published_us:
                self.observe_lag((reply.time_us - entry.published_us) / 1e6)
        self._fence.forget_old()
        self.behind = reply.end.number - number
        if not self.behind:
            self._grant(sent)
        elif not reply.entries:
            return self._reset(reply.end, "gap")
        elif self.state is FeedState.LOST and not self._is_lagging:
            self._is_lagging = True
            logger.warning("feed: %d events behind; answering from the origin until they are applied", self.behind)
        # Receipts see what was applied only with the next confirm.
        return bool(reply.entries)

    def _begin_at(self, end: Position, phase: FeedState) -> bool:
        is_first = self._phase is not phase or phase is FeedState.BOOTSTRAPPING
        self._lease.end()
        self._confirmed_at = None
        self.behind = 0
        self._fence.reset(end)
        self._phase = phase
        self._begun.set()
        self._followed_since = self._clock.steady()
        return is_first

    def _reset(self, end: Position, why: str) -> bool:
        """True if another confirm should follow at once: a reset upon a reset waits, and is not worth another line."""
        self.counts[f"resets_{why}"] += 1
        if self._phase is not FeedState.RESETTING:
            logger.warning("feed: %s; all that was cached is void, floor is %s", _RESET_REASONS[why], end)
        return self._begin_at(end, FeedState.RESETTING)

    def _grant(self, sent: float) -> None:
        if self._phase is not FeedState.FOLLOWING:
            logger.info("feed: following from %s", self._fence.position)
        if self._is_lagging:
            self._is_lagging = False
            logger.info("feed: all events are applied again")
        self._phase = FeedState.FOLLOWING
        self._confirmed_at = sent
        self._lease.extend_to(sent + self._max_staleness * (1 - DRIFT))

    def hear(self, heard: list[tuple[Position, FeedEntry]]) -> None:
        """Entries that a wake-up brought: into the fence at once, whatever server they came from; then confirm."""
        applied = self._fence.position
        for position, entry in heard:
            if applied is not None and position.generation == applied.generation and entry.number > applied.number:
                self._fence.add(entry.number, entry.events)
                self.counts["early_entries"] += 1
        self._woken.set()

    async def replay(self) -> None:
        """Read the retained window backwards, lowering the floor as far as it has been read.  Not after a reset."""
        position = self._fence.position
        if position is None or self._fence.resets > 1:
            return
        token = self._fence.begin_replay()
        number = self._replay_from = position.number
        self.counts["replayed"] = 0
        reported_at = self._clock.steady()
        while number > 0 and not self._left:
            if self._clock.steady() - reported_at >= REPORT_SECONDS:
                reported_at = self._clock.steady()
                self._report_replay()
            try:
                page = await self._log.read_back(Position(position.generation, number), PAGE_EVENTS)
            except FeedUnavailableError:
                await asyncio.sleep(self._retry_pace)
                continue
            for entry in page:
                # Another server than the position's may lack its last events: they must follow without a hole.
                if entry.number != number or not self._fence.replay(token, entry.number, entry.events):
                    return
                number -= len(entry.events or ())
                self.counts["replayed"] = position.number - number
            if not page:
                return

    def _report_replay(self) -> None:
        logger.info(
            "feed: reading the retained window, %d events so far, at least %d %%; floor is %d of %s",
            self.counts["replayed"],
            100 * (self.replay_share or 0),
            self._fence.floor,
            self._fence.position,
        )

    # The loops ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._confirm_forever())
            group.create_task(self._wake_forever())
            group.create_task(self._replay_once())
            group.create_task(self._sweep_forever())

    def stop(self) -> None:
        """End the lease and, soon, the loops: a library that swallows a cancellation must not keep them running."""
        self._left = True
        self._lease.end()

    async def leave(self) -> None:
        """Stop, and deregister: no receipt needs to wait for this node any more.  Never raises."""
        self.stop()
        with contextlib.suppress(FeedUnavailableError):
            await self._log.forget(self._membership.field_name.encode())

    async def _confirm_forever(self) -> None:
        while not self._left:
            self._woken.clear()
            try:
                again = await self.confirm()
            except FeedUnavailableError as exc:
                self._say_why_away(str(exc))
                again = False
            else:
                if self._why_away is not None:
                    logger.info("feed: reachable again")
                self._why_away = None
            if again:
                await asyncio.sleep(self._pause_between_pages)
            else:
                is_well = self._why_away is None and self.is_fresh
                await self._wait_for_wake_up(self._pace if is_well else self._retry_pace)

    def _say_why_away(self, why: str) -> None:
        """Once, and again when it is another reason by then: a server that comes back may have forgotten its users."""
        now = self._clock.steady()
        if self._why_away is None:
            logger.warning("feed: %s; answering from the origin once the lease has run out", why)
        elif why != self._why_away and now >= self._said_why_at + OTHER_REASON_SECONDS:
            logger.warning("feed: by now %s; still answering from the origin", why)
        else:
            return
        self._why_away, self._said_why_at = why, now

    async def _wait_for_wake_up(self, at_most_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(at_most_seconds):
                await self._woken.wait()
                await asyncio.sleep(self._spacing)

    @property
    def _fair_spacing(self) -> float:
        """Between confirms of one node, so that those of all nodes together stay below their share of the server."""
        return self._nodes * CONFIRM_COST_SECONDS / SERVER_SHARE

    @property
    def _spacing(self) -> float:
        """Between confirms that events cause: coalesces, but never makes them rarer than those of a quiet feed."""
        return min(self._fair_spacing, self._max_staleness / CONFIRMS_PER_STALENESS)

    @property
    def _pause_between_pages(self) -> float:
        """None for what is behind: with many nodes, a page in each spacing is less than one publisher writes."""
        return self._spacing if self.is_fresh and not self.behind else 0.0

    @property
    def _pace(self) -> float:
        """Between confirms of a quiet feed: slower with many nodes, but two must fit into a lease."""
        usual = self._max_staleness / CONFIRMS_PER_STALENESS
        return min(max(usual, self._fair_spacing), 2 * usual)

    @property
    def _retry_pace(self) -> float:
        return min(self._pace, RETRY_SECONDS)

    async def _wake_forever(self) -> None:
        heard_to = Position(0, 0)
        life = 0
        rate = _EventRate(self._clock)
        while not self._left:
            applied = self._fence.position
            if applied is None:
                await self._begun.wait()
                continue
            behind = heard_to.generation == applied.generation and heard_to.number < applied.number
            if behind or life != self._fence.resets:
                life, heard_to = self._fence.resets, applied
            if rate.per_second(applied) * self._nodes * DELIVERY_COST_SECONDS > SERVER_SHARE:
                # With many nodes or events blocked reads are the dearest part: the confirm's pace has to do.
                await asyncio.sleep(self._pace)
                continue
            try:
                heard = await self._log.wake_up(heard_to, WAKE_BLOCK_SECONDS)
            except FeedUnavailableError:
                await asyncio.sleep(self._retry_pace)
                continue
            if heard:
                heard_to = heard[-1][0]
                self.hear(heard)
                await asyncio.sleep(WAKE_PAUSE_SECONDS)

    async def _replay_once(self) -> None:
        await self._begun.wait()
        await self.replay()
        self.replay_done = True
        logger.info("feed: retained window read, floor is %d of %s", self._fence.floor, self._fence.position)

    async def _sweep_forever(self) -> None:
        """Remove records that have stood still for an hour beyond their lease by this node's clock."""
        watch = RegistryWatch()
        while not self._left:
            await asyncio.sleep(SWEEP_SECONDS)
            with contextlib.suppress(FeedUnavailableError):
                await self._sweep(watch)

    async def _sweep(self, watch: RegistryWatch) -> None:
        sent = self._clock.steady()
        reading = await self._log.ask_registry(self._newest_generation)
        still = watch.observe(reading, sent, self._clock.steady())
        leases = {record.field_name: record.max_staleness_seconds for record in reading.records}
        for name, raw in reading.rows.items():
            # One that cannot be read goes, too: receipts would take it for a node for ever.
            if still[name] > leases.get(name, 0.0) + FORGET_AFTER_SECONDS:
                await self._log.forget(name, raw)


class _EventRate:
    """Events a second, from how far the position moves; measured over at least a second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._from: tuple[Position, float] | None = None
        self._rate = 0.0

    def per_second(self, applied: Position) -> float:
        now = self._clock.steady()
        if self._from is None or self._from[0].generation != applied.generation:
            self._from, self._rate = (applied, now), 0.0
        elif now - self._from[1] >= 1.0:
            self._rate = (applied.number - self._from[0].number) / (now - self._from[1])
            self._from = (applied, now)
        return self._rate


_RESET_REASONS = {
    "generation": "the server began another generation",
    "ahead": "the feed is behind what this node has applied",
    "gap": "events are missing from the feed",
}
