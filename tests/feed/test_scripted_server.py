"""The server in process answers as a real one does: asked the same, through the same scripts, both say the same."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cache_node.embedded import EmbeddedValkey
from cache_node.errors import FeedUnavailableError
from cache_node.feed import log as log_module
from cache_node.feed.events import Event, FeedEntry, pack
from cache_node.feed.log import RedisLog
from cache_node.feed.position import Position
from tests.fakes import NAMES, LogServer, ScriptedLog, changed, flush, revoked
from tests.feed.conftest import commanding, connected


class Side:
    """One of the two servers; its generations are told by the order in which they were seen first."""

    def __init__(self, log: RedisLog, command: Callable[..., Awaitable[Any]]) -> None:
        self._log, self._command = log, command
        self.generations: list[int] = []

    def _named(self, generation: int) -> int:
        if generation not in self.generations:
            self.generations.append(generation)
        return self.generations.index(generation)

    def _position(self, index: int, number: int) -> Position:
        return Position(self.generations[index] if index < len(self.generations) else 1, number)

    async def append(self, size: int, shown: int, retain: int) -> object:
        rows = [pack(event) for event in [*revoked(), *changed("a"), *flush()][:size]]
        generation = self._position(shown, 0).generation
        try:
            position = await self._log.append(rows, source="test", shown_generation=generation, retain=retain)
        except FeedUnavailableError as error:
            return str(error).partition(" script: ")[0].rstrip(")")  # a real one says where in the script, too
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

    async def command(self, *command: object) -> object:
        """Positions in it are those of the newest generation."""
        newest = self.generations[-1] if self.generations else 0
        parts = [f"{newest}-{part.number}" if isinstance(part, Position) else part for part in command]
        try:
            reply = await self._command(*parts)
        except ResponseError as error:
            return str(error)
        return reply if type(reply) is int else None


def shown_by(entries: Iterable[FeedEntry]) -> list[tuple[int, tuple[Event, ...] | None]]:
    """All but the time of writing, which is each server's own."""
    return [(entry.number, entry.events) for entry in entries]


@pytest.mark.parametrize("seed", range(4))
async def test_both_say_the_same(own_valkey: EmbeddedValkey, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, pages, registry and generations, through calls, losses and foreign writings in any order."""
    dice = random.Random(seed)
    server = LogServer()
    monkeypatch.setattr(log_module, "_SALT_BITS", 0)  # so that generations are born in one order on both

    async def command(*parts: Any) -> Any:
        return server.execute(*parts)

    async with connected(own_valkey, NAMES) as log, commanding(own_valkey) as redis:
        sides = Side(ScriptedLog(server), command), Side(log, redis.execute_command)
        for step in range(200):
            server.time_us = round(time.time() * 1e6)
            index, number, shown = dice.randrange(3), dice.randrange(-1, 12), dice.randrange(3)
            at = Position(0, max(0, number))
            field, record = f"node-{dice.randrange(3)} a", f"{dice.randrange(3)} 1 2000000 {dice.randrange(3)} default"
            calls: list[tuple[str, tuple[Any, ...]]] = [
                ("append", (dice.randrange(1, 4), shown, 1_000_000)),
                ("confirm", (index, number, shown, dice.randrange(5) * 1_000_000, field, record)),
                ("wake_up", (index, max(0, number))),
                ("read_back", (index, max(0, number), dice.choice([1, 100]))),
                ("ask_registry", (shown,)),
                ("forget", (field, dice.choice([None, record]))),
                ("command", ("XTRIM", NAMES.feed, "MINID", at)),
                ("command", ("XDEL", NAMES.feed, at)),
                ("command", ("XADD", NAMES.feed, at, "e", "foreign")),
                ("command", ("HDEL", NAMES.generation, dice.choice(["replid", "generation", "number"]))),
                ("command", ("DEL", dice.choice([NAMES.generation, NAMES.feed, NAMES.nodes]))),
                ("command", ("FLUSHALL",)),
                ("command", ("SCRIPT", "FLUSH")),
            ]
            ((name, arguments),) = dice.choices(calls, [8, 8, 3, 3, 4, 2, 1, 1, 1, 1, 1, 1, 1])
            scripted, real = [await getattr(side, name)(*arguments) for side in sides]
            assert scripted == real, f"step {step}: {name}{arguments}"
    assert len(sides[1].generations) > 2
