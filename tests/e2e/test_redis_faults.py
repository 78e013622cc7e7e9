"""Each fault of Redis: no request is refused for it, nothing is answered that is not proven, and when it ends the nodes
resume by themselves; in the log it is one line.

The nodes use the user that README.md describes.  A server's clock cannot be stepped here: `grep -r "clock" tests/feed`
shows the tests of that, against the scripted server, and against a real one that was shown the future.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from cache_node.app import Node
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from tests.e2e.region import Region, Seen
from tests.feed.conftest import commanding, frozen
from tests.proxy import Proxy
from tests.readme_acl import USER, acl_of_the_readme, url_of_the_user
from tests.waiting import eventually

BOUND = 1.0
NAMES = RedisNames()


@dataclass(frozen=True)
class Site:
    """The server, a client of its administrator, and the link over which the nodes reach it."""

    server: EmbeddedValkey
    redis: Any
    link: Proxy
    stack: AsyncExitStack


Fault = Callable[[Site], AbstractAsyncContextManager[None]]


# Faults that last as long as their block ------------------------------------------------------------------------------


@asynccontextmanager
async def refused(site: Site) -> AsyncIterator[None]:
    site.link.refuse()
    yield
    await site.link.listen()


@asynccontextmanager
async def cut_off(site: Site) -> AsyncIterator[None]:
    site.link.cut()
    yield
    site.link.mend()


@asynccontextmanager
async def reset_in_each_reply(site: Site) -> AsyncIterator[None]:
    site.link.resets_replies = True
    yield
    site.link.resets_replies = False


@asynccontextmanager
async def slow(site: Site) -> AsyncIterator[None]:
    site.link.delay_seconds = BOUND
    yield
    site.link.delay_seconds = 0.0


@asynccontextmanager
async def trickling(site: Site) -> AsyncIterator[None]:
    site.link.piece_bytes, site.link.delay_seconds = 1, 0.01
    yield
    site.link.piece_bytes, site.link.delay_seconds = 65536, 0.0


@asynccontextmanager
async def stopped(site: Site) -> AsyncIterator[None]:
    with frozen(site.server):
        yield


@asynccontextmanager
async def replaced(site: Site) -> AsyncIterator[None]:
    """Killed, and an empty one comes in its place."""
    port = site.server.port
    os.kill(site.server.pid, signal.SIGKILL)
    site.server.stop()
    yield
    site.stack.enter_context(EmbeddedValkey(port=port))
    await site.redis.execute_command(*acl_of_the_readme())


@asynccontextmanager
async def out_of_memory(site: Site) -> AsyncIterator[None]:
    await site.redis.config_set("maxmemory", 1)
    yield
    await site.redis.config_set("maxmemory", 0)


@asynccontextmanager
async def a_replica(site: Site) -> AsyncIterator[None]:
    await site.redis.replicaof("127.0.0.1", 1)
    yield
    await site.redis.replicaof("NO", "ONE")


def without_right(right: str) -> Fault:
    @asynccontextmanager
    async def fault(site: Site) -> AsyncIterator[None]:
        await site.redis.execute_command("ACL", "SETUSER", USER, f"-{right}")
        yield
        await site.redis.execute_command("ACL", "SETUSER", USER, f"+{right}")

    return fault


@asynccontextmanager
async def user_switched_off(site: Site) -> AsyncIterator[None]:
    await site.redis.execute_command("ACL", "SETUSER", USER, "off")
    await site.redis.client_kill_filter(user=USER)
    yield
    await site.redis.execute_command("ACL", "SETUSER", USER, "on")


def another_type(name: str) -> Fault:
    @asynccontextmanager
    async def fault(site: Site) -> AsyncIterator[None]:
        async with site.redis.pipeline() as pipe:
            await pipe.rename(name, "kept").set(name, "x").execute()
        yield
        await site.redis.rename("kept", name)

    return fault


# Faults that nobody mends ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def emptied(site: Site) -> AsyncIterator[None]:
    await site.redis.flushall()
    yield


def garbage_in_the_generation(field: str) -> Fault:
    @asynccontextmanager
    async def fault(site: Site) -> AsyncIterator[None]:
        await site.redis.hset(NAMES.generation, field, "garbage")
        yield

    return fault


@asynccontextmanager
async def garbage_in_the_feed(site: Site) -> AsyncIterator[None]:
    await site.redis.xadd(NAMES.feed, {"e": b"garbage"})
    yield


@asynccontextmanager
async def garbage_in_the_registry(site: Site) -> AsyncIterator[None]:
    await site.redis.hset(NAMES.nodes, "somebody", "garbage")
    yield


@asynccontextmanager
async def garbage_in_all_entries(site: Site) -> AsyncIterator[None]:
    entries = [name async for name in site.redis.scan_iter("cache-node:e:*")]
    assert len(entries) > 1
    for number, name in enumerate(entries):
        await site.redis.unlink(name)
        await (site.redis.set(name, b"garbage") if number % 2 else site.redis.rpush(name, b"garbage"))
    yield


# What each costs ------------------------------------------------------------------------------------------------------

VOID = "feed: the server began another generation; all that was cached is void, floor is .*"


def failing(words: str) -> str:
    return rf"feed: confirming failed: {words}; answering from the origin once the lease has run out"


REFUSALS: dict[str, tuple[Fault, Sequence[str]]] = {
    "connection refused": (refused, [failing(r"Connection\w*Error.*")]),
    "cut off": (cut_off, [failing("ConnectionError.*")]),
    "reset in each reply": (reset_in_each_reply, [failing("ConnectionError.*")]),
    "slow": (slow, [failing("TimeoutError")]),
    "trickling": (trickling, [failing("TimeoutError")]),
    "stopped": (stopped, [failing("TimeoutError")]),
    "replaced by an empty one": (replaced, [failing("ConnectionError.*"), VOID]),
    "out of memory": (out_of_memory, [failing("OutOfMemoryError.*")]),
    "a replica": (a_replica, [failing("ReadOnlyError.*"), VOID]),
    "without EVALSHA": (without_right("evalsha"), [failing("NoPermissionError .*evalsha.*")]),
    "user switched off": (user_switched_off, [failing("AuthenticationError.*")]),
    "another type: feed": (another_type(NAMES.feed), [failing(r"ResponseError \(WRONGTYPE.*")]),
    "another type: generation": (another_type(NAMES.generation), [failing(r"ResponseError \(WRONGTYPE.*")]),
    "another type: nodes": (another_type(NAMES.nodes), [failing(r"ResponseError \(WRONGTYPE.*")]),
}
"""Faults in which nothing can be confirmed, and what each node warns of."""

SPOILS: dict[str, tuple[Fault, Sequence[str]]] = {
    "FLUSHALL": (emptied, [VOID]),
    "garbage: feed": (garbage_in_the_feed, [VOID]),
    "garbage: generation": (garbage_in_the_generation("generation"), [VOID]),
    "garbage: replid": (garbage_in_the_generation("replid"), [VOID]),
    "garbage: number": (garbage_in_the_generation("number"), [VOID]),
    "garbage: followed": (garbage_in_the_generation("followed"), []),
    "garbage: nodes": (garbage_in_the_registry, []),
    "garbage: entries": (garbage_in_all_entries, []),
    "without MGET": (without_right("mget"), []),
}
"""Faults that the nodes go on with, in another generation if they say so."""


class Log:
    """What the nodes have said from now on."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "cache_node")
        caplog.clear()
        self._caplog = caplog

    def __str__(self) -> str:
        return self._caplog.text

    def lines(self, level: int) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.levelno == level]

    def check(self, region: Region, warnings: Sequence[str]) -> None:
        """Each of the warnings once from each node, nothing else above INFO, and no flood below."""
        for warning in warnings:
            said = [line for line in self.lines(logging.WARNING) if re.fullmatch(warning, line)]
            assert len(said) == len(region.nodes), (warning, str(self))
        loud = [record for record in self._caplog.records if record.levelno > logging.INFO]
        assert len(loud) == len(warnings) * len(region.nodes), str(self)
        assert not any(record.exc_info for record in self._caplog.records), str(self)
        assert len(self.lines(logging.INFO)) <= 4 * len(region.nodes), str(self)


@asynccontextmanager
async def built(
    valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession
) -> AsyncIterator[tuple[Site, Region]]:
    async with commanding(valkey) as redis, Proxy(valkey.url) as link:
        await redis.execute_command(*acl_of_the_readme())
        async with Region(url_of_the_user(link.port), origin, client, max_staleness_seconds=BOUND) as region:
            await publish(region, "session.changed", "somebody")  # a feed without an event is no key yet
            async with AsyncExitStack() as stack:
                yield Site(valkey, redis, link, stack), region


async def cached_session(region: Region) -> tuple[str, str]:
    """Token and id of a session that both nodes have in memory."""
    token, session = await region.sign_in()
    for node in region.nodes:
        await region.ask(node, token)
        assert (await region.ask(node, token)).detail == "memory"
    return token, session["id"]


async def ask_both(region: Region, token: str) -> list[Seen]:
    return await asyncio.gather(*(region.ask(node, token) for node in region.nodes))


async def assert_kept(region: Region, token: str, *, is_kept: bool) -> None:
    """Both nodes have the session's answer in memory as before, or neither of them, nor Redis."""
    region.origin.requests.clear()
    seen = await ask_both(region, token)
    assert [(each.status, each.detail == "memory") for each in seen] == [(200, is_kept)] * 2, seen
    assert bool(region.origin.requests["/sessions/whoami"]) is not is_kept


async def watch_the_bound(region: Region, token: str, lost_at: float) -> None:
    """Ask both nodes until neither answers from cache; no request begun past the bound may be a hit."""
    hits_after_bound = []
    last: dict[Node, Seen] = {}

    async def nobody_hits() -> bool:
        for node in region.nodes:
            begun = time.monotonic()
            last[node] = await region.ask(node, token)
            assert last[node].status == 200, "the origin still answers"
            if last[node].is_hit and begun >= lost_at + BOUND:
                hits_after_bound.append((begun - lost_at, last[node]))
        return not any(seen.is_hit for seen in last.values())

    await eventually(nobody_hits, lambda: f"last answers: {last}", BOUND + 5)
    assert not hits_after_bound


async def publish(region: Region, event_type: str, session_id: str) -> None:
    """And wait until both nodes have applied it."""
    status, reply = await region.publish(region.a, {"type": event_type, "session_id": session_id}, wait=False)
    assert status == 200, reply
    position = Position.parse(reply["position"])
    fences = [node.parts.fence for node in region.nodes]
    await eventually(
        lambda: all(fence.has_applied(position) for fence in fences),
        lambda: f"{position} and not {[str(fence.position) for fence in fences]}",
    )


async def until_another_generation(region: Region, before: Position | None) -> None:
    def positions() -> list[Position | None]:
        return [node.parts.fence.position for node in region.nodes]

    assert before is not None
    await eventually(
        lambda: all(at is not None and at.generation > before.generation for at in positions()),
        lambda: f"positions: {[str(at) for at in positions()]}",
        3.0,
    )


@pytest.mark.parametrize(("fault", "warnings"), REFUSALS.values(), ids=REFUSALS)
async def test_redis_refuses(
    valkey: EmbeddedValkey,
    origin: DemoOrigin,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    warnings: Sequence[str],
) -> None:
    """Within max_staleness of the last confirmation no tier answers any more; the nodes go on from the origin and say
    so, and resume within 3 s with what is still provably right, or with nothing in another generation."""
    async with built(valkey, origin, client) as (site, region):
        token, _ = await cached_session(region)
        ended, ended_id = await cached_session(region)
        log = Log(caplog)
        lost_at = time.monotonic()
        async with fault(site):
            await watch_the_bound(region, token, lost_at)
            for node in region.nodes:
                health = [await region.health(node, name) for name in ("fresh", "ready", "alive")]
                assert health == [503, 200, 200]
            await origin.revoke_session(ended_id)
            assert [seen.status for seen in await ask_both(region, ended)] == [401, 401]
        await region.until_fresh(3.0)
        if VOID not in warnings:  # else nothing is left to be revoked
            await publish(region, "session.revoked", ended_id)
        await assert_kept(region, token, is_kept=VOID not in warnings)
        assert [each.status for each in await ask_both(region, ended)] == [401, 401]
        assert log.lines(logging.INFO).count("feed: reachable again") == len(region.nodes)
        log.check(region, warnings)


@pytest.mark.parametrize(("fault", "warnings"), SPOILS.values(), ids=SPOILS)
async def test_redis_is_spoilt(
    valkey: EmbeddedValkey,
    origin: DemoOrigin,
    client: aiohttp.ClientSession,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
    warnings: Sequence[str],
) -> None:
    """The nodes go on: what was not lost is still answered from memory, a revocation is applied everywhere or lost
    with all that it would have revoked, and new sessions are cached."""
    async with built(valkey, origin, client) as (site, region):
        token, _ = await cached_session(region)
        ended, ended_id = await cached_session(region)
        before = region.a.parts.fence.position
        log = Log(caplog)
        await origin.revoke_session(ended_id)
        async with fault(site):
            if VOID in warnings:
                await until_another_generation(region, before)
            else:
                await publish(region, "session.revoked", ended_id)
            await assert_kept(region, token, is_kept=VOID not in warnings)
            assert [each.status for each in await ask_both(region, ended)] == [401, 401]
            await region.until_fresh(3.0)
            await cached_session(region)
            await publish(region, "session.revoked", "somebody")
            for node in region.nodes:
                node.parts.memory.clear()  # so that Redis is asked for what lies there
            assert [each.status for each in await ask_both(region, token)] == [200, 200]
        log.check(region, warnings)
