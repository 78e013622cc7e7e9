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
