"""Round trips to a real Valkey: who gets a connection, and that none is left at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import redis

from cache_node.embedded import EmbeddedValkey
from cache_node.sessions.round_trips import TIMEOUT_SECONDS, Command, RoundTrips
from tests.waiting import eventually

PING: Sequence[Command] = [(b"PING",)]
SLOW: Sequence[Command] = [(b"BLPOP", b"nothing", 1)]


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def trips(valkey: EmbeddedValkey) -> AsyncIterator[RoundTrips]:
    made = RoundTrips(valkey.url)
    yield made
    await made.aclose()


async def sent(trips: RoundTrips, *each: Sequence[Command]) -> list[Any]:
    """The replies of trips that begin at once, in the order in which they came."""
    told: list[Any] = []
    for commands in each:
        trips.send(commands, told.append)
    await eventually(lambda: len(told) == len(each), lambda: told, 2.0)
    return told


async def test_a_trip_that_makes_its_connection_makes_no_other_wait(trips: RoundTrips) -> None:
    """Those that come while its reply is due go over connections that are open, and need no task."""
    slow: list[Any] = []
    trips.send(SLOW, slow.append)
    assert await sent(trips, PING) == [[b"PONG"]]
    before = set(trips._tasks)
    assert len(before) == 1, "the slow one's"
    told: list[Any] = []
    trips.send(PING, told.append)
    assert trips._tasks == before
    await eventually(lambda: told == [[b"PONG"]], lambda: told, TIMEOUT_SECONDS)
    await eventually(lambda: slow == [None], lambda: slow, 2 * TIMEOUT_SECONDS)


async def test_nothing_is_left_of_what_was_under_way_at_the_end(valkey: EmbeddedValkey) -> None:
    """Each is told, no connection stays, and who sends something later hears of no reply at once."""
    with redis.Redis(port=valkey.port, socket_timeout=5) as server:
        before = server.info("clients")["connected_clients"]
        trips = RoundTrips(valkey.url)
        assert len(await sent(trips, *[PING] * 3)) == 3
        told: list[Any] = []
        for _ in range(5):
            trips.send(PING, told.append)
        await trips.aclose()
        await eventually(lambda: len(told) == 5, lambda: told, 2.0)
        assert await sent(trips, PING) == [None]
        await eventually(
            lambda: server.info("clients")["connected_clients"] == before, lambda: server.info("clients"), 2.0
        )
        assert not trips._tasks


async def test_who_waits_for_a_connection_is_not_overtaken_for_ever(trips: RoundTrips) -> None:
    """While somebody does, all who come later stand behind them."""
    told: list[Any] = []
    for _ in range(8):
        trips.send(SLOW, told.append)
    trips.send(PING, told.append)
    await asyncio.sleep(0)
    assert trips._waiting
    await eventually(lambda: len(told) == 9, lambda: told, 3 * TIMEOUT_SECONDS)
