"""Proof that every live node has applied a position, or has stopped serving from cache.

The registry counts only in exactly the generation that the event was published in, and only once a node has followed
that generation for longer than the longest lease (a promoted, flushed or empty server knows nobody).  Otherwise the
receipt completes when the longest lease has passed since the publish was acknowledged: whoever holds a lease then has
confirmed a feed state that contains the event.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from cache_node.errors import FeedUnavailableError
from cache_node.feed.position import Position
from cache_node.feed.registry import Record, RegistryReading, RegistryWatch

NodeState = Literal["applied", "lease_expired", "pending"]

FIRST_POLL_SECONDS = 0.001
LAST_POLL_SECONDS = 0.025


@dataclass(frozen=True, slots=True)
class ReceiptNode:
    """One process that may answer from a cache, and whether it still may give the old answer."""

    node_id: str
    region: str
    state: NodeState


@dataclass(frozen=True, slots=True)
class Receipt:
    """`dead_everywhere`: no request begun after this receipt gets the old answer on any node of the region."""

    position: Position
    dead_everywhere: bool
    elapsed_seconds: float
    nodes: tuple[ReceiptNode, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """The shape that `POST /invalidations?wait=true` answers."""
        nodes = [{"node_id": n.node_id, "region": n.region, "state": n.state} for n in self.nodes]
        return {
            "position": str(self.position),
            "receipt": {
                "dead_everywhere": self.dead_everywhere,
                "elapsed_seconds": round(self.elapsed_seconds, 6),
                "nodes": nodes,
            },
        }


class RegistryLog(Protocol):
    """What waiting for a receipt needs of the feed."""

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        """The registry, by a script that writes; raises FeedUnavailableError."""


class ReceiptWait:
    """Judges readings of the registry for one published position; decides, and does no I/O.

    `acknowledged_at` is when the publish was acknowledged, on the waiter's monotonic clock as all times here.
    `watch` is kept from receipt to receipt, so that a node that died long ago is waited for once.
    """

    def __init__(self, position: Position, acknowledged_at: float, max_staleness_seconds: float, watch: RegistryWatch):
        self._position = position
        self._acknowledged_at = acknowledged_at
        self._longest_lease = max(max_staleness_seconds, watch.longest_lease_seconds)
        self._watch = watch
        self.nodes: tuple[ReceiptNode, ...] = ()

    def is_complete(self, reading: RegistryReading, sent: float, received: float) -> bool:
        """Take a reading that was asked for at `sent`; True once the old answer is dead everywhere."""
        if sent < self._acknowledged_at:
            return False  # it may be of before the event
        still = self._watch.observe(reading, sent, received)
        for record in reading.records:
            self._longest_lease = max(self._longest_lease, record.max_staleness_seconds)
        countable = (
            reading.generation == self._position.generation
            and reading.followed_seconds >= self._longest_lease
            and bool(reading.records)
            and not reading.unreadable
        )
        self.nodes = tuple(
            ReceiptNode(r.node_id, r.region, self._state(r, still[r.field_name])) for r in reading.records
        )
        return self.has_outlived_leases(sent) or (countable and all(node.state != "pending" for node in self.nodes))

    @property
    def outlived_at(self) -> float:
        """When the longest lease that was granted before the publish was acknowledged runs out, as far as is known."""
        return self._acknowledged_at + self._longest_lease

    def has_outlived_leases(self, now: float) -> bool:
        """Whether every lease that was granted before the publish was acknowledged has run out: nobody is pending."""
        if now < self.outlived_at:
            return False
        self.nodes = tuple(
            replace(node, state="lease_expired") if node.state == "pending" else node for node in self.nodes
        )
        return True

    def _state(self, record: Record, still_seconds: float) -> NodeState:
        applied = record.applied
        if applied.generation == self._position.generation and applied.number >= self._position.number:
            return "applied"
        if still_seconds >= record.max_staleness_seconds:
            return "lease_expired"
        return "pending"


class RegistryPoll:
    """Reads the registry for all who wait on one publisher: one reading at a time, however many wait.

    Belongs to one event loop.  The pause between readings grows while nobody new comes.
    """

    def __init__(self, log: RegistryLog) -> None:
        self._log = log
        self._waiting = 0
        self._hurry = asyncio.Event()
        self._is_closed = False
        self._next: asyncio.Future[tuple[RegistryReading | None, float, float]] | None = None
        self._task: asyncio.Task[None] | None = None
        self.newest_generation = 0
        """Shown to the server, so that it begins no lower one."""

    def close(self) -> None:
        """Give up the reading under way; there will be none any more."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()

    def hurry(self) -> None:
        """Somebody new waits: read soon."""
        self._hurry.set()

    async def next(self) -> tuple[RegistryReading | None, float, float]:
        """The next reading with the monotonic times of its sending and its coming; None if it could not be had."""
        if self._is_closed:
            raise FeedUnavailableError("the publisher was closed while a receipt was waited for")
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        self._waiting += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())
            return await asyncio.shield(self._next)
        finally:
            self._waiting -= 1

    async def _run(self) -> None:
        pause = FIRST_POLL_SECONDS
        while self._waiting:
            reading, sent, received = await self._read()
            following, self._next = self._next, None
            if following is not None:
                following.set_result((reading, sent, received))
            pause = FIRST_POLL_SECONDS if self._hurry.is_set() else min(pause * 2, LAST_POLL_SECONDS)
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._hurry.wait()

    async def _read(self) -> tuple[RegistryReading | None, float, float]:
        sent = time.monotonic()
        try:
            reading = await self._log.ask_registry(self.newest_generation)
        except FeedUnavailableError:
            return None, sent, time.monotonic()
        return reading, sent, time.monotonic()


async def wait_for_receipt(
    poll: RegistryPoll,
    position: Position,
    *,
    started_at: float,
    acknowledged_at: float,
    max_staleness_seconds: float,
    timeout_seconds: float,
    watch: RegistryWatch,
) -> Receipt:
    """Judge readings of the registry until the receipt is complete or `timeout_seconds` have passed since
    `acknowledged_at`; both times are readings of the monotonic clock.  Leases run out by that clock, with or without a
    feed to ask."""
    waiting = ReceiptWait(position, acknowledged_at, max_staleness_seconds, watch)
    deadline = acknowledged_at + timeout_seconds
    complete = False
    poll.newest_generation = max(poll.newest_generation, position.generation)
    poll.hurry()
    while not complete and time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(deadline, waiting.outlived_at) - time.monotonic()):
                reading, sent, received = await poll.next()
                if reading is not None:
                    complete = waiting.is_complete(reading, sent, received)
        complete = complete or waiting.has_outlived_leases(time.monotonic())
    return Receipt(position, complete, time.monotonic() - started_at, waiting.nodes)
