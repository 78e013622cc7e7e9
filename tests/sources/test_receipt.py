"""Receipts: when the old answer is dead everywhere, by what the registry shows and by nothing else."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import pytest

from cache_node.errors import FeedUnavailableError
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryReading, RegistryWatch
from cache_node.sources.receipt import Receipt, ReceiptNode, ReceiptWait, RegistryPoll, wait_for_receipt
from tests.fakes import Gate

GENERATION = 7
PUBLISHED = Position(GENERATION, 5)
MAX_STALENESS = 2.0
OLD_US = 60_000_000
"""Followed for a minute, so that all leases of the generation before are long over."""


def row(number: int, *, generation: int = GENERATION, count: int = 1, staleness: float = MAX_STALENESS) -> bytes:
    return f"{generation} {number} {round(staleness * 1e6)} {count} default".encode()


def reading(
    rows: dict[str, bytes], *, generation: int = GENERATION, number: int = 5, followed_us: int = OLD_US
) -> RegistryReading:
    fields = {f"{name} a1".encode(): raw for name, raw in rows.items()}
    return RegistryReading.parse(str(generation).encode(), str(number).encode(), str(followed_us).encode(), fields)


@dataclass
class Waiter:
    """A waiter whose publish was acknowledged at 0."""

    waiting: ReceiptWait

    def sees(self, found: RegistryReading, at: float, received: float | None = None) -> bool:
        return self.waiting.is_complete(found, at, at if received is None else received)

    @property
    def states(self) -> dict[str, str]:
        return {node.node_id: node.state for node in self.waiting.nodes}


def waiter(watch: RegistryWatch | None = None, max_staleness: float = MAX_STALENESS) -> Waiter:
    return Waiter(ReceiptWait(PUBLISHED, 0.0, max_staleness, watch or RegistryWatch()))


# The quick way: the registry ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [5, 6, 99])
def test_all_nodes_have_applied_it(number: int) -> None:
    """Every process in the registry shows the position or a later one of the very generation: dead at once."""
    w = waiter()
    assert w.sees(reading({"one": row(5), "two": row(number)}), 0.001)
    assert w.states == {"one": "applied", "two": "applied"}


def test_one_node_has_not_applied_it() -> None:
    """One that lags keeps the receipt open until it has."""
    w = waiter()
    assert not w.sees(reading({"one": row(5), "two": row(4)}), 0.001)
    assert w.states == {"one": "applied", "two": "pending"}
    assert w.sees(reading({"one": row(5), "two": row(5, count=2)}), 0.002)


def test_a_node_that_left_is_not_waited_for() -> None:
    """It deregistered after its last answer."""
    w = waiter()
    assert not w.sees(reading({"one": row(5), "two": row(4)}), 0.001)
    assert w.sees(reading({"one": row(5)}), 0.002)


def test_an_empty_registry_says_nothing() -> None:
    """A server that knows nobody may have forgotten everybody."""
    assert not waiter().sees(reading({}), 0.001)


def test_a_young_generation_knows_nobody() -> None:
    """A promoted, flushed or empty server has seen only those who came back: leases of before may still hold."""
    for followed_us in (0, 1_000_000, 1_999_999):
        w = waiter()
        assert not w.sees(reading({"one": row(5)}, followed_us=followed_us), 0.001)
        assert w.states == {"one": "applied"}
    assert waiter().sees(reading({"one": row(5)}, followed_us=2_000_000), 0.001)


@pytest.mark.parametrize("generation", [GENERATION - 1, GENERATION + 1])
def test_the_registry_of_another_generation_proves_nothing(generation: int) -> None:
    """Positions of different generations are never compared, neither the server's nor the nodes'."""
    w = waiter()
    assert not w.sees(reading({"one": row(99, generation=generation)}, generation=generation), 0.001)
    assert w.states == {"one": "pending"}


@pytest.mark.parametrize("generation", [0, GENERATION - 1, GENERATION + 1])
def test_a_node_in_another_generation_has_applied_nothing_of_this_one(generation: int) -> None:
    """However high its number is; generation 0 is a node that has just started."""
    w = waiter()
    assert not w.sees(reading({"one": row(5), "two": row(99, generation=generation)}), 0.001)
    assert w.states == {"one": "applied", "two": "pending"}


def test_the_same_generation_with_all_nodes_in_a_higher_one() -> None:
    """The server that took the event says it is the same; nodes that have moved on are on another server."""
    w = waiter()
    assert not w.sees(reading({"one": row(5, generation=GENERATION + 1)}), 0.001)


def test_an_unreadable_record_may_be_anybody() -> None:
    """A process of another version may be answering, and nobody can tell what it has applied."""
    w = waiter()
    assert not w.sees(reading({"one": row(5), "two": b"a record of another version"}), 0.001)
    assert w.sees(reading({"one": row(5, count=9), "two": b"a record of another version"}), MAX_STALENESS)


# Nodes that are silent ------------------------------------------------------------------------------------------------


def test_a_dead_node_is_waited_for_until_its_lease_is_over() -> None:
    """A record that stands still for the node's own bound, by the waiter's clock, has no lease behind it."""
    w = waiter(max_staleness=60.0)
    rows = {"dead": row(4), "one": row(5)}
    assert not w.sees(reading(rows), 0.1)
    assert not w.sees(reading(rows | {"one": row(5, count=2)}), 2.0999)
    assert w.states == {"dead": "pending", "one": "applied"}
    assert w.sees(reading(rows | {"one": row(5, count=3)}), 2.1)
    assert w.states == {"dead": "lease_expired", "one": "applied"}


def test_a_stalled_node_that_moves_again_is_waited_for_anew() -> None:
    """A record with another count was confirmed since: its lease is new, and without the event it may not end soon."""
    w = waiter(max_staleness=60.0)
    assert not w.sees(reading({"one": row(4, count=1)}), 0.1)
    assert not w.sees(reading({"one": row(4, count=2)}), 1.9)
    assert not w.sees(reading({"one": row(4, count=2)}), 2.5)
    assert w.sees(reading({"one": row(4, count=2)}), 3.9)
    assert w.states == {"one": "lease_expired"}


def test_silence_is_counted_between_replies_and_requests() -> None:
    """A record seen in a slow reply may have been confirmed just before that reply left."""
    w = waiter(max_staleness=60.0)
    assert not w.sees(reading({"one": row(4)}), 0.1, received=1.1)
    assert not w.sees(reading({"one": row(4)}), 3.0, received=9.0)
    assert w.sees(reading({"one": row(4)}), 3.1, received=9.0)


def test_a_node_that_died_long_ago_is_waited_for_once() -> None:
    """The watch is kept from receipt to receipt: what has stood still since the last one is known to be dead."""
    watch = RegistryWatch()
    first = waiter(watch, max_staleness=60.0)
    assert not first.sees(reading({"dead": row(1), "one": row(5)}), 0.1)
    second = waiter(watch, max_staleness=60.0)
    assert second.sees(reading({"dead": row(1), "one": row(5, count=2)}), 30.0)


def test_the_nodes_bound_counts_not_the_waiters() -> None:
    """A node with a longer max_staleness than the publisher's may answer for longer, and is waited for as long."""
    w = waiter(max_staleness=1.0)
    rows = {"one": row(4, staleness=10.0)}
    assert not w.sees(reading(rows), 0.1)
    assert not w.sees(reading(rows), 5.0)
    assert w.states == {"one": "pending"}
    assert w.sees(reading(rows), 10.1)


def test_the_longest_bound_counts_for_the_age_of_the_generation() -> None:
    """Before it has passed, a node of the generation before with that bound may still be answering."""
    w = waiter(max_staleness=1.0)
    rows = {"one": row(5, staleness=10.0)}
    assert not w.sees(reading(rows, followed_us=9_000_000), 0.1)
    assert w.sees(reading(rows, followed_us=10_000_000), 0.1)


# The slow way: all leases are over ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(reading({}), id="empty registry"),
        pytest.param(reading({"one": row(5)}, followed_us=0), id="young generation"),
        pytest.param(reading({"one": row(1, generation=9)}, generation=9), id="another generation"),
        pytest.param(reading({"one": row(4)}), id="a node that lags"),
    ],
)
def test_whoever_holds_a_lease_then_has_confirmed_the_event(found: RegistryReading) -> None:
    """The longest lease after the publish was acknowledged it is over for everybody, whatever the registry says."""
    w = waiter()
    assert not w.sees(found, MAX_STALENESS - 0.001)
    assert w.sees(found, MAX_STALENESS)
    assert "pending" not in w.states.values()


def test_the_longest_known_lease_is_waited_for() -> None:
    """That of a record which was seen once counts, though the registry is empty by now."""
    w = waiter()
    assert not w.sees(reading({"one": row(4, staleness=10.0)}), 0.1)
    assert not w.sees(reading({}), 5.0)
    assert w.sees(reading({}), 10.0)


def test_leases_are_over_by_the_sending_of_the_question() -> None:
    """A reply that took long was true when it left, not when it came."""
    w = waiter()
    assert not w.sees(reading({}), MAX_STALENESS - 0.5, received=MAX_STALENESS + 5.0)


# Waiting for it -------------------------------------------------------------------------------------------------------


class ScriptedRegistry:
    """Answers with one reading after the other, the last one for ever; an exception is raised."""

    def __init__(self, *answers: RegistryReading | FeedUnavailableError) -> None:
        self._answers = list(answers)
        self.asked: list[int] = []
        self.silent_after: int | None = None
        """Answers given before it says nothing any more."""

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        self.asked.append(shown_generation)
        if self.silent_after is not None and len(self.asked) > self.silent_after:
            await asyncio.Event().wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, FeedUnavailableError):
            raise answer
        return answer


async def receipt(
    registry: ScriptedRegistry,
    *,
    staleness: float = MAX_STALENESS,
    seconds: float = 5.0,
    watch: RegistryWatch | None = None,
) -> Receipt:
    now = time.monotonic()
    return await wait_for_receipt(
        RegistryPoll(registry),
        PUBLISHED,
        started_at=now - 1.0,
        acknowledged_at=now,
        max_staleness_seconds=staleness,
        timeout_seconds=seconds,
        watch=watch or RegistryWatch(),
    )


async def test_waiting_asks_until_it_is_so() -> None:
    """It shows the generation of the event, so that no server begins a lower one; and it reports who was asked."""
    registry = ScriptedRegistry(reading({"one": row(4)}), reading({"one": row(4)}), reading({"one": row(5)}))
    got = await receipt(registry)
    assert got.dead_everywhere
    assert got.nodes == (ReceiptNode("one", "default", "applied"),)
    assert registry.asked == [GENERATION] * 3
    assert 1.0 <= got.elapsed_seconds < 2.0, "counted from before the publish"


async def test_waiting_ends_with_its_time() -> None:
    """Not complete in time is an answer, too: not dead everywhere, and who is pending."""
    got = await receipt(ScriptedRegistry(reading({"one": row(4), "two": row(5)})), staleness=60.0, seconds=0.05)
    assert not got.dead_everywhere
    assert {node.node_id: node.state for node in got.nodes} == {"one": "pending", "two": "applied"}


async def test_waiting_outlives_a_server_that_is_away() -> None:
    """The registry cannot be asked, but leases run out all the same."""
    away = FeedUnavailableError("away")
    got = await receipt(ScriptedRegistry(away), staleness=0.05)
    assert got.dead_everywhere
    got = await receipt(ScriptedRegistry(away), staleness=60.0, seconds=0.05)
    assert not got.dead_everywhere


async def test_nobody_is_pending_when_the_leases_have_run_out_without_a_registry_to_say_so() -> None:
    """A receipt that says dead everywhere must not list a node as pending, which readers of logs would believe."""
    short = reading({"one": row(4, staleness=0.2), "two": row(5, staleness=0.2)})
    registry = ScriptedRegistry(short, FeedUnavailableError("away"))
    got = await receipt(registry, staleness=0.2)
    assert got.dead_everywhere
    assert {node.node_id: node.state for node in got.nodes} == {"one": "lease_expired", "two": "applied"}


async def test_the_longest_lease_that_was_seen_last_counts_without_a_reading() -> None:
    """A publisher that was told less than the nodes have, and loses the registry right behind the acknowledgement."""
    watch = RegistryWatch()
    watch.observe(reading({"one": row(4, staleness=60.0)}), 0.0, 0.0)
    got = await receipt(ScriptedRegistry(FeedUnavailableError("away")), staleness=0.05, seconds=0.1, watch=watch)
    assert not got.dead_everywhere


async def test_a_closed_poll_reads_no_more() -> None:
    """Nobody would close the connection that it would open."""
    registry = ScriptedRegistry(reading({"one": row(4)}))
    poll = RegistryPoll(registry)
    waiting = asyncio.create_task(poll.next())
    await waiting
    poll.close()
    with pytest.raises(FeedUnavailableError, match="closed"):
        await poll.next()


async def test_leases_run_out_while_the_registry_says_nothing() -> None:
    """A server that stands still keeps the question for a second; the lease's end does not wait for it."""
    registry = ScriptedRegistry(reading({"one": row(4, staleness=0.2)}))
    registry.silent_after = 1
    got = await receipt(registry, staleness=0.2, seconds=60.0)
    assert got.dead_everywhere
    assert {node.node_id: node.state for node in got.nodes} == {"one": "lease_expired"}


async def test_waiting_asks_less_and_less_often() -> None:
    """A receipt that takes long must not keep the server busy."""
    registry = ScriptedRegistry(reading({"one": row(4)}))
    await receipt(registry, staleness=60.0, seconds=0.3)
    assert 3 <= len(registry.asked) <= 25


def test_json_is_what_the_interface_promises() -> None:
    """`POST /invalidations?wait=true` answers with this shape."""
    got = Receipt(PUBLISHED, True, 0.0042, (ReceiptNode("one", "eu", "lease_expired"),))
    assert got.to_json() == {
        "position": "7-5",
        "receipt": {
            "dead_everywhere": True,
            "elapsed_seconds": 0.0042,
            "nodes": [{"node_id": "one", "region": "eu", "state": "lease_expired"}],
        },
    }


async def test_cancelling_a_wait_is_possible_at_any_time() -> None:
    """A client that goes away takes its wait with it."""
    waiting = asyncio.create_task(receipt(ScriptedRegistry(reading({"one": row(4)})), staleness=60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_reading_from_before_the_publish_proves_nothing() -> None:
    """It was asked for by an earlier waiter: a node that was silent until then may have confirmed since, without it."""
    silent, renewed = reading({"one": row(4, count=1)}), reading({"one": row(4, count=2)})
    gate = Gate()

    class Stopping(ScriptedRegistry):
        async def ask_registry(self, shown_generation: int) -> RegistryReading:
            found = await super().ask_registry(shown_generation)
            if found is silent:
                await gate.passed()
            return found

    watch = RegistryWatch()
    watch.observe(silent, time.monotonic() - 100.0, time.monotonic() - 100.0)
    poll = RegistryPoll(Stopping(silent, renewed))

    def waiter() -> asyncio.Task[Receipt]:
        now = time.monotonic()
        waiting = wait_for_receipt(
            poll,
            PUBLISHED,
            started_at=now,
            acknowledged_at=now,
            max_staleness_seconds=60.0,
            timeout_seconds=0.2,
            watch=watch,
        )
        return asyncio.create_task(waiting)

    earlier = waiter()
    await gate.arrived()
    later = waiter()
    await asyncio.sleep(0)
    gate.open()
    assert (await earlier).dead_everywhere
    got = await later
    assert (got.dead_everywhere, got.nodes) == (False, (ReceiptNode("one", "default", "pending"),))


async def test_all_who_wait_share_one_reading() -> None:
    """However many wait on one publisher, the server is asked by one of them at a time."""
    registry = ScriptedRegistry(*[reading({"one": row(4)})] * 4, reading({"one": row(5)}))
    poll = RegistryPoll(registry)
    now = time.monotonic()
    waits = [
        wait_for_receipt(
            poll,
            PUBLISHED,
            started_at=now,
            acknowledged_at=now,
            max_staleness_seconds=MAX_STALENESS,
            timeout_seconds=5.0,
            watch=RegistryWatch(),
        )
        for _ in range(100)
    ]
    got = await asyncio.gather(*waits)
    assert all(one.dead_everywhere for one in got)
    assert len(registry.asked) == 5
