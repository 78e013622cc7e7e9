"""The scripted server of tests/fakes.py keeps the rules of the Lua scripts: asked the same, both say the same."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from typing import Any

import pytest

from cache_node.embedded import EmbeddedValkey
from cache_node.feed import log as log_module
from cache_node.feed.events import Event, FeedEntry
from cache_node.feed.log import RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from tests.fakes import LogServer, ScriptedLog, changed, flush, revoked
from tests.feed.conftest import commanding, connected


class Side:
    """One of the two servers; its generations are told by the order in which they were seen first."""

    def __init__(self, log: ScriptedLog | RedisLog, server: LogServer | None, redis: Any, names: RedisNames) -> None:
        self._log, self._server, self._redis, self._names = log, server, redis, names
        self.generations: list[int] = []

    def _named(self, generation: int) -> int:
        if generation not in self.generations:
            self.generations.append(generation)
        return self.generations.index(generation)

    def _position(self, index: int, number: int) -> Position:
        return Position(self.generations[index] if index < len(self.generations) else 1, number)

    async def append(self, size: int, shown: int) -> object:
        events = [*revoked(), *changed("a"), *flush()][:size]
        if self._server is not None:
            position = self._server.append(events, self._position(shown, 0).generation)
        else:
            assert isinstance(self._log, RedisLog)
            generation = self._position(shown, 0).generation
            position = await self._log.append(events, source="test", shown_generation=generation, retain=1_000_000)
        return self._named(position.generation), position.number

    async def confirm(self, index: int, number: int, shown: int, followed_us: int, field: str, record: str) -> object:
        applied = None if number < 0 else self._position(index, number)
        generation = self._position(shown, 0).generation
        reply = await self._log.confirm(applied, generation, field, record, followed_us)
        return self._named(reply.end.generation), reply.end.number, shown_by(reply.entries), reply.nodes

    async def wake_up(self, index: int, number: int) -> object:
        heard = await self._log.wake_up(self._position(index, number), 0.001)
        return [(self._named(at.generation), at.number) for at, _ in heard], shown_by(entry for _, entry in heard)

    async def read_back(self, index: int, number: int, count: int) -> object:
        return shown_by(await self._log.read_back(self._position(index, number), count))

    async def ask_registry(self, shown: int) -> object:
        reading = await self._log.ask_registry(self._position(shown, 0).generation)
        records = {(record.field_name, record.raw) for record in reading.records}
        return self._named(reading.generation), reading.number, reading.followed_seconds, records

    async def forget(self, field: str, record: str | None) -> None:
        await self._log.forget(field.encode(), None if record is None else record.encode())

    async def flushall(self) -> None:
        if self._server is not None:
            self._server.flushall()
        else:
            await self._redis.flushall()

    async def trim_before(self, number: int) -> None:
        if self._server is not None:
            self._server.trim_before(number)
        else:
            await self._redis.xtrim(self._names.feed, minid=f"{self.generations[-1]}-{number}", approximate=False)


def shown_by(entries: Iterable[FeedEntry]) -> list[tuple[int, tuple[Event, ...] | None]]:
    """All but the time of writing, which is each server's own."""
    return [(entry.number, entry.events) for entry in entries]


@pytest.mark.parametrize("seed", range(4))
async def test_both_say_the_same(
    own_valkey: EmbeddedValkey, names: RedisNames, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions, pages, registry and generations, through appends, confirms, trimming and FLUSHALL in any order."""
    dice = random.Random(seed)
    server = LogServer(salt_bits=0)
    monkeypatch.setattr(log_module, "_SALT_BITS", 0)  # so that generations are born in one order on both
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        sides = Side(ScriptedLog(server), server, None, names), Side(log, None, redis, names)
        for step in range(150):
            server.time_us = round(time.time() * 1e6)
            index, number, shown = dice.randrange(3), dice.randrange(-1, 12), dice.randrange(3)
            field, record = f"node-{dice.randrange(3)} a", f"{dice.randrange(3)} 1 2000000 {dice.randrange(3)} default"
            calls: list[tuple[str, tuple[Any, ...]]] = [
                ("append", (dice.randrange(1, 4), shown)),
                ("confirm", (index, number, shown, dice.randrange(5) * 1_000_000, field, record)),
                ("wake_up", (index, max(0, number))),
                ("read_back", (index, max(0, number), dice.choice([1, 100]))),
                ("ask_registry", (shown,)),
                ("forget", (field, dice.choice([None, record]))),
                ("trim_before", (max(0, number),)) if sides[0].generations else ("append", (1, shown)),
                ("flushall", ()),
            ]
            ((name, arguments),) = dice.choices(calls, [8, 8, 3, 3, 4, 2, 1, 1])
            scripted, real = [await getattr(side, name)(*arguments) for side in sides]
            assert scripted == real, f"step {step}: {name}{arguments}"
    assert len(sides[1].generations) > 2
