"""The same world over a real Valkey: its scripts, its streams, its emptiness."""

from __future__ import annotations

import itertools
from typing import Any

from redis.asyncio import Redis

from cache_node.embedded import EmbeddedValkey
from cache_node.errors import FeedUnavailableError
from cache_node.feed.events import FeedEntry
from cache_node.feed.log import Confirmation, Log, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.registry import RegistryReading
from tests.fakes import ScriptedNode
from tests.histories.scenes import Histories
from tests.histories.truth import Fault
from tests.histories.world import World

_numbers = itertools.count()


class CutLog:
    """A node's connection, which may be cut for a while."""

    def __init__(self, world: RealWorld) -> None:
        self._world = world

    @property
    def _log(self) -> RedisLog:
        if self._world.is_cut:
            raise FeedUnavailableError("the link is cut")
        return self._world.log

    async def confirm(
        self, applied: Position | None, shown_generation: int, field: str, record: str, followed_us: int
    ) -> Confirmation:
        return await self._log.confirm(applied, shown_generation, field, record, followed_us)

    async def wake_up(self, after: Position, block_seconds: float) -> list[tuple[Position, FeedEntry]]:
        return await self._log.wake_up(after, block_seconds)

    async def read_back(self, before: Position, count: int) -> tuple[FeedEntry, ...]:
        return await self._log.read_back(before, count)

    async def ask_registry(self, shown_generation: int) -> RegistryReading:
        return await self._log.ask_registry(shown_generation)

    async def forget(self, field: bytes, record: bytes | None = None) -> None:
        await self._log.forget(field, record)


class RealWorld(World):
    """One server, which all reach.  What it cannot do (a failover) does not happen here."""

    def __init__(self, valkey: EmbeddedValkey) -> None:
        self.names = RedisNames(f"history-{next(_numbers)}")
        self.log = RedisLog(valkey.url, self.names, timeout_seconds=5.0)
        self.is_cut = False
        self._redis: Any = Redis(port=valkey.port)
        super().__init__()

    def log_of(self, node: ScriptedNode) -> Log:
        return CutLog(self)

    def log_to(self, server: int) -> RedisLog:
        return CutLog(self)._log

    def takes_events(self, server: int) -> bool:
        return not self.is_cut

    @property
    def may_lose_end(self) -> bool:
        return False

    async def command(self, *parts: bytes | str | int) -> Any:
        return await self._redis.execute_command(*parts)

    async def fault_of_servers(self, fault: Fault) -> bool:
        match fault:
            case Fault.RESTART_EMPTY:
                await self._redis.flushall()
                await self._redis.script_flush()
            case Fault.CUT:
                self.is_cut = not self.is_cut
            case _:
                return False
        return True

    async def end(self) -> None:
        await super().end()
        await self._redis.flushall()
        await self._redis.aclose()
        await self.log.aclose()


class RealHistories(Histories):
    """Histories over the server that `valkey` is set to."""

    valkey: EmbeddedValkey

    def _begin(self) -> None:
        self.world = RealWorld(self.valkey)
        self.faults = ()
