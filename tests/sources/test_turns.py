"""Turns of publishes, with appends that end when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from cache_node.feed.position import Position
from cache_node.sources.turns import Turns
from tests.waiting import eventually


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
