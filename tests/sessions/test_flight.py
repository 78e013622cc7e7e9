"""Flights: one run per key, who shares it, and that nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from cache_node.sessions.flight import Flight, Flights
from tests.fakes import get_as_far_as_they_can, turns_until


class Fill:
    """Stands still until its gate opens; says whether it was asked to pass the tiers by."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.may_read = asyncio.Event()
        self.reading = asyncio.Event()
        self.runs = 0

    async def __call__(self, flight: Flight[str]) -> str:
        self.runs += 1
        await self.may_read.wait()
        flight.begin_read()
        self.reading.set()
        await self.opened.wait()
        return f"run {self.runs}{' of the origin' if flight.must_ask_origin else ''}"


@pytest.fixture
def flights() -> Flights[str]:
    return Flights()


async def test_one_run_for_all_and_who_was_there_before_its_read(flights: Flights[str]) -> None:
    """Each joiner learns whether the read began after it had joined."""
    fill = Fill()
    early = [asyncio.create_task(flights.join(b"key", fill, ask_origin=False)) for _ in range(3)]
    await asyncio.sleep(0)
    fill.may_read.set()
    await fill.reading.wait()
    late = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))
    await asyncio.sleep(0)
    assert len(flights) == 1
    fill.opened.set()

    assert await asyncio.gather(*early) == [("run 1", True)] * 3
    assert await late == ("run 1", False)
    assert len(flights) == 0


async def test_keys_have_runs_of_their_own(flights: Flights[str]) -> None:
    """A slow key keeps no other one waiting."""
    slow, fast = Fill(), Fill()
    fast.may_read.set()
    fast.opened.set()
    waiting = asyncio.create_task(flights.join(b"slow", slow, ask_origin=False))
    await asyncio.sleep(0)

    assert await flights.join(b"fast", fast, ask_origin=False) == ("run 1", True)
    assert len(flights) == 1
    slow.may_read.set()
    slow.opened.set()
    await waiting


async def test_a_joiner_can_make_a_run_pass_the_tiers_by(flights: Flights[str]) -> None:
    """As long as its read has not begun; and a later joiner does not take that back."""
    fill = Fill()
    joining = [
        asyncio.create_task(flights.join(b"key", fill, ask_origin=ask_origin)) for ask_origin in (False, True, False)
    ]
    await asyncio.sleep(0)
    fill.may_read.set()
    fill.opened.set()

    assert [result for result, _ in await asyncio.gather(*joining)] == ["run 1 of the origin"] * 3


async def test_a_run_outlives_its_readers(flights: Flights[str]) -> None:
    """It belongs to all of them, those that come later included."""
    fill = Fill()
    first = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))
    await turns_until(lambda: fill.runs == 1)
    first.cancel()
    await asyncio.wait([first])
    assert len(flights) == 1
    second = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))
    await asyncio.sleep(0)
    fill.may_read.set()
    fill.opened.set()

    assert await second == ("run 1", True)
    assert fill.runs == 1


async def test_what_a_fill_raises_reaches_all_and_the_key_is_free(flights: Flights[str]) -> None:
    """The next reader begins a new run."""

    async def fail(_flight: Flight[str]) -> str:
        raise LookupError("no")

    failed = await asyncio.gather(
        *(flights.join(b"key", fail, ask_origin=False) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in failed] == [LookupError] * 3
    assert len(flights) == 0
    fill = Fill()
    fill.may_read.set()
    fill.opened.set()

    assert await flights.join(b"key", fill, ask_origin=False) == ("run 1", True)


async def test_the_next_run_waits_for_the_latecomers_of_the_last_one(flights: Flights[str]) -> None:
    """One who comes in the very turn in which a run ends must not begin the next one's read without them."""
    fill = Fill()
    fill.may_read.set()
    first = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))
    await fill.reading.wait()

    async def latecomer() -> list[bool]:
        return [(await flights.join(b"key", fill, ask_origin=False))[1] for _ in range(2)]

    late = [asyncio.create_task(latecomer()) for _ in range(3)]
    await asyncio.sleep(0)
    late[0].cancel()
    fill.opened.set()
    await turns_until(lambda: len(flights) == 0)
    newcomer = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))

    assert await newcomer == ("run 2", True)
    assert await asyncio.gather(*late[1:]) == [[False, True]] * 2, "late once, and then in time"
    assert await first == ("run 1", True)


async def test_latecomers_that_go_away_hold_nobody_up(flights: Flights[str]) -> None:
    """All of them are cancelled before the run ends, or after it and before they are awake."""
    fill = Fill()
    fill.may_read.set()
    first = asyncio.create_task(flights.join(b"key", fill, ask_origin=False))
    await fill.reading.wait()
    late = [asyncio.create_task(flights.join(b"key", fill, ask_origin=False)) for _ in range(2)]
    await asyncio.sleep(0)
    late[0].cancel()
    await asyncio.wait([late[0]])
    fill.opened.set()
    await turns_until(lambda: len(flights) == 0)
    late[1].cancel()

    assert await flights.join(b"key", fill, ask_origin=False) == ("run 2", True)
    await first


async def test_who_waits_without_a_task_is_told_as_early_as_may_be(flights: Flights[str]) -> None:
    """Before the run ends, if they joined before its read; and what goes wrong with one of them is not the others'."""
    told: list[tuple[str, object, bool]] = []
    read, stored = asyncio.Event(), asyncio.Event()

    async def fill(flight: Flight[str]) -> str:
        flight.begin_read()
        await read.wait()
        await flight.tell_early("read")
        await stored.wait()
        return "stored"

    def join(who: str) -> None:
        def hear(outcome: str | BaseException, joined_before_read: bool) -> None:
            told.append((who, outcome, joined_before_read))
            if who.startswith("bad"):
                raise RuntimeError("of this reader")

        flights.join_later(b"key", fill, hear, ask_origin=False)

    for who in ("bad early", "early"):
        join(who)
    await get_as_far_as_they_can()
    for who in ("bad late", "late"):
        join(who)
    read.set()
    await get_as_far_as_they_can()
    early = [("bad early", "read", True), ("early", "read", True)]
    assert told == early
    stored.set()
    await get_as_far_as_they_can()
    assert told == [*early, ("bad late", "stored", False), ("late", "stored", False)]
    assert not len(flights)
    assert not flights._landed


@pytest.mark.parametrize("ends", [RuntimeError("a bug"), asyncio.CancelledError()])
async def test_who_waits_without_a_task_hears_why_there_is_nothing(flights: Flights[str], ends: BaseException) -> None:
    told: list[str | BaseException] = []

    async def fill(flight: Flight[str]) -> str:
        raise ends

    flights.join_later(b"key", fill, lambda outcome, _: told.append(outcome), ask_origin=False)
    await get_as_far_as_they_can()
    assert [type(outcome) for outcome in told] == [type(ends)]
