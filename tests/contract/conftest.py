"""The tiers under contract: memory, and Redis with a real Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import pytest

from cache_node.embedded import EmbeddedValkey
from cache_node.feed.names import RedisNames
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.redis_tier import RedisTier

MEMORY_BYTES = 64 << 20
LARGEST_BODY_BYTES = MEMORY_BYTES // 16
"""What the memory tier keeps of that bound; nothing larger is put into either tier."""


class Tier(Protocol):
    """What both tiers promise, each in its own way."""

    async def get(self, key: Key) -> Entry | None:
        """The entry under the key."""

    async def put(self, key: Key, entry: Entry) -> None:
        """Returns when the entry is there."""

    async def discard(self, key: Key) -> None:
        """Returns when it is gone."""


class Memory:
    """The memory tier is synchronous, and its keys are names alone."""

    def __init__(self) -> None:
        self._tier = MemoryTier(MEMORY_BYTES)

    async def get(self, key: Key) -> Entry | None:
        return self._tier.get(key.name)

    async def put(self, key: Key, entry: Entry) -> None:
        assert self._tier.put(key.name, entry)

    async def discard(self, key: Key) -> None:
        self._tier.discard(key.name)


class Redis:
    """The redis tier writes behind."""

    def __init__(self, tier: RedisTier) -> None:
        self._tier = tier

    async def get(self, key: Key) -> Entry | None:
        return await self._tier.get([key])

    async def put(self, key: Key, entry: Entry) -> None:
        self._tier.put(key, entry)
        await self._tier.settle()

    async def discard(self, key: Key) -> None:
        self._tier.discard(key)
        await self._tier.settle()


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.process)])
async def tier(request: pytest.FixtureRequest) -> AsyncIterator[Tier]:
    if request.param == "memory":
        yield Memory()
        return
    valkey: EmbeddedValkey = request.getfixturevalue("valkey")
    names = RedisNames(request.node.name)
    redis = RedisTier(valkey.url, names, lifetime_seconds=60.0, max_pending_bytes=1 << 20, lock_seconds=1.0)
    yield Redis(redis)
    await redis.aclose()
