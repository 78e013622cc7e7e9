"""A real Valkey, an origin, and nodes that run in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from tests.e2e.region import Region


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def origin() -> AsyncIterator[DemoOrigin]:
    async with DemoOrigin() as server:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


@pytest.fixture
async def region(valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession) -> AsyncIterator[Region]:
    async with Region(valkey.url, origin, client) as built:
        yield built
