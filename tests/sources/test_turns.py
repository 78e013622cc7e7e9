"""Turns of appends, without a server: who is served when, and that nobody waits for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from cache_node.errors import FeedUnavailableError
from cache_node.feed.position import Position
from cache_node.sources.turns import Turns
from tests.fakes import Gate
from tests.waiting import eventually


class Writing:
    """An append that counts, and can be held up."""

    def __init__(self) -> None:
        self.number = 0
        self.gate: Gate | None = None

    async def __call__(self, rows: Sequence[bytes]) -> Position:
        if self.gate is not None:
            await self.gate.passed()
        await asyncio.sleep(0)
        self.number += len(rows)
        return Position(1, self.number)


def soon() -> float:
    return time.monotonic() + 1.0


@pytest.mark.parametrize("at_once", [1, 3])
async def test_who_appends_again_at_once_is_not_forgotten(at_once: int) -> None:
    """Its answer and the end of the task that brought it are one step: nobody may count on that task any more."""
    turns = Turns(Writing(), at_once=at_once)

    async def caller() -> None:
        for _ in range(50):
            await turns.append([b"row"], soon())

    await asyncio.gather(*(caller() for _ in range(at_once)))
    assert (await turns.append([b"row"], soon())).number == 50 * at_once + 1


async def test_whoever_waits_hears_of_an_end() -> None:
    """Of the task that had taken its rows, as when the loop is about to close."""
    writing = Writing()
    writing.gate = Gate()
    turns = Turns(writing, at_once=1)
    waiting = asyncio.ensure_future(turns.append([b"row"], soon()))
    await writing.gate.arrived()
    for task in turns._under_way:
        task.cancel()
    with pytest.raises(FeedUnavailableError, match="broken off"):
        await waiting


async def test_who_settles_waits_for_all_that_was_begun() -> None:
    """What is under way, and what waits for its turn behind it."""
    writing = Writing()
    gate = writing.gate = Gate()
    turns = Turns(writing, at_once=1)
    appends = [asyncio.ensure_future(turns.append([b"row"], soon()))]
    await gate.arrived()
    appends.append(asyncio.ensure_future(turns.append([b"row"], soon())))
    settling = asyncio.ensure_future(turns.settle())
    await asyncio.sleep(0)
    assert not settling.done()
    gate.open()
    await settling
    assert writing.number == 2
    assert [position.number for position in await asyncio.gather(*appends)] == [1, 2]


async def test_who_publishes_as_all_turns_end_begins_one() -> None:
    """Several replies come in one turn of the loop, as after a stall, and who has one goes on at once."""
    under_way: list[asyncio.Future[None]] = []
    written = 0

    async def append(rows: Sequence[bytes]) -> Position:
        nonlocal written
        written += len(rows)
        last = Position(1, written)
        under_way.append(asyncio.get_running_loop().create_future())
        await under_way[-1]
        return last

    turns = Turns(append, at_once=3)

    async def publish(times: int) -> list[int]:
        return [(await turns.append([b"row"], time.monotonic() + 1)).number for _ in range(times)]

    async def appends(begun: int) -> None:
        await eventually(lambda: len(under_way) == begun, lambda: f"{len(under_way)} appends", timeout_seconds=0.5)

    publishing = []
    for number in range(3):
        publishing.append(asyncio.create_task(publish(2 if number == 0 else 1)))
        await appends(number + 1)
    for reply in under_way:
        reply.set_result(None)
    await appends(4)
    under_way[3].set_result(None)

    assert await asyncio.gather(*publishing) == [[1, 4], [2], [3]]
