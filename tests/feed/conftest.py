"""Real Valkeys: one that a module's tests share, each with a key prefix of its own, and some to be ill-treated."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis as redis_py
from redis.asyncio import Redis

from cache_node.embedded import EmbeddedValkey
from cache_node.feed.log import RedisLog
from cache_node.feed.names import RedisNames
from tests.waiting import eventually, eventually_blocking

TIMEOUT_SECONDS = 2.0
"""Of the logs here: generous, since these tests share two cores with others."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    """A server that the tests of a module share: nothing may be flushed, stopped or configured there."""
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def names() -> RedisNames:
    return RedisNames(f"test-{secrets.token_hex(4)}")


@pytest.fixture
async def log(valkey: EmbeddedValkey, names: RedisNames) -> AsyncIterator[RedisLog]:
    async with connected(valkey, names) as connection:
        yield connection


@pytest.fixture
async def redis(valkey: EmbeddedValkey) -> AsyncIterator[Any]:
    async with commanding(valkey) as client:
        yield client


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server that one test may do anything to."""
    with EmbeddedValkey() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(
    server: EmbeddedValkey | str, names: RedisNames, timeout_seconds: float = TIMEOUT_SECONDS
) -> AsyncIterator[RedisLog]:
    """One node's or publisher's connections to a server, or to a URL."""
    log = RedisLog(server if isinstance(server, str) else server.url, names, timeout_seconds=timeout_seconds)
    try:
        yield log
    finally:
        await log.aclose()


@contextlib.asynccontextmanager
async def commanding(server: EmbeddedValkey) -> AsyncIterator[Any]:
    """A plain client, for what a test does to a server; Any, since redis-py types replies for all protocols at once."""
    client = Redis.from_url(server.url, protocol=2, socket_timeout=5.0)
    try:
        yield client
    finally:
        await client.aclose()


@contextlib.contextmanager
def frozen(server: EmbeddedValkey) -> Iterator[None]:
    """The server is suspended meanwhile: it accepts connections and answers nothing."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def primary_and_replica() -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    """Two servers, the second a replica of the first; one test may do anything to them."""
    with EmbeddedValkey() as primary, EmbeddedValkey() as replica:
        replicate(primary, replica)
        yield primary, replica


@pytest.fixture(scope="module")
def lasting_pair() -> Iterator[tuple[EmbeddedValkey, EmbeddedValkey]]:
    """The same for the tests of a module together, which must leave them as they are."""
    with EmbeddedValkey() as primary, EmbeddedValkey() as replica:
        replicate(primary, replica)
        yield primary, replica


def replicate(primary: EmbeddedValkey, replica: EmbeddedValkey) -> None:
    """Make the second a replica of the first, and wait until it is."""
    with redis_py.Redis(port=primary.port) as first, redis_py.Redis(port=replica.port) as second:
        first.config_set("repl-diskless-sync-delay", 0)
        second.config_set("repl-diskless-load", "swapdb")  # these servers have no folder to write to
        second.replicaof("127.0.0.1", primary.port)
        seen: dict[str, object] = {}

        def is_linked() -> bool:
            seen.update(second.info("replication"))
            return seen["master_link_status"] == "up"

        eventually_blocking(is_linked, lambda: seen, 10.0)


async def in_step(primary: Any, replica: Any) -> None:
    """Wait until the replica has all that the primary has."""

    async def is_so() -> bool:
        seen["primary"] = (await primary.info("replication"))["master_repl_offset"]
        seen["replica"] = (await replica.info("replication"))["slave_repl_offset"]
        return seen["primary"] == seen["replica"]

    seen: dict[str, int] = {}
    await eventually(is_so, lambda: seen, 10.0)
