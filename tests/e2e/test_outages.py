"""The feed's server is stopped, cut off, emptied or replaced: nothing is cached past the bound, service resumes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import aiohttp
import pytest
from redis.asyncio import Redis

from cache_node.app import Node
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from tests.e2e.region import Region, Seen
from tests.proxy import Proxy
from tests.waiting import eventually

BOUND = 2.0


async def _watch_the_bound(region: Region, token: str, lost_at: float) -> None:
    """Ask both nodes until neither answers from cache; no request begun past the bound may be a hit."""
    hits_after_bound = []
    last: dict[Node, Seen] = {}

    async def nobody_hits() -> bool:
        for node in region.nodes:
            begun = time.monotonic()
            last[node] = await region.ask(node, token)
            if last[node].is_hit and begun >= lost_at + BOUND:
                hits_after_bound.append((begun - lost_at, last[node]))
        return not any(seen.is_hit for seen in last.values())

    await eventually(nobody_hits, lambda: f"last answers: {last}", BOUND + 5)
    assert not hits_after_bound
    assert all(seen.status == 200 for seen in last.values()), "the origin still answers"


async def _assert_lost(region: Region) -> None:
    for node in region.nodes:
        assert await region.health(node, "fresh") == 503
        assert await region.health(node, "ready") == 200
        assert await region.health(node, "alive") == 200
    begun = time.monotonic()
    status, reply = await region.publish(region.a, {"type": "session.revoked", "session_id": "x"}, wait=True)
    assert status == 503, reply
    assert time.monotonic() - begun < 5.0


async def _stop(valkey: EmbeddedValkey, link: Proxy) -> Callable[[], None]:
    pid = valkey.pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


async def _cut(valkey: EmbeddedValkey, link: Proxy) -> Callable[[], None]:
    link.cut()
    return link.mend


@pytest.mark.parametrize("lose", [_stop, _cut], ids=["stopped", "cut off"])
async def test_valkey_away(
    valkey: EmbeddedValkey,
    origin: DemoOrigin,
    client: aiohttp.ClientSession,
    lose: Callable[[EmbeddedValkey, Proxy], object],
) -> None:
    """Within max_staleness of the last confirmation no tier answers any more; the node goes on from the origin, says
    so, refuses to publish within 5 s, and resumes by itself within 3 s with what is still provably right."""
    async with Proxy(valkey.url) as link, Region(link.url, origin, client) as region:
        token, _ = await region.sign_in()
        for node in region.nodes:
            await region.ask(node, token)
            assert (await region.ask(node, token)).detail == "memory"
        restore = await lose(valkey, link)  # type: ignore[misc]
        lost_at = time.monotonic()
        try:
            await _watch_the_bound(region, token, lost_at)
            await _assert_lost(region)
        finally:
            restore()
        origin.requests.clear()
        await region.until_fresh(3.0)
        for node in region.nodes:
            assert (await region.ask(node, token)).detail == "memory", "what is provably right was not dropped"
        assert origin.requests["/sessions/whoami"] == 0


async def _flushall(valkey: EmbeddedValkey) -> EmbeddedValkey:
    async with Redis.from_url(valkey.url) as redis:
        await redis.flushall()
    return valkey


async def _replace(valkey: EmbeddedValkey) -> EmbeddedValkey:
    port = valkey.port
    os.kill(valkey.pid, signal.SIGKILL)
    valkey.stop()
    return EmbeddedValkey(port=port).start()


@pytest.mark.parametrize("empty", [_flushall, _replace], ids=["FLUSHALL", "replaced by an empty one"])
async def test_valkey_emptied(
    region: Region, valkey: EmbeddedValkey, empty: Callable[[EmbeddedValkey], object]
) -> None:
    """Publishing succeeds in a new generation; nothing cached before is served once a node has confirmed that; fresh
    again within 3 s.  The revocation that was lost with the feed's tail is one of the things that do not come back."""
    token, session = await region.sign_in()
    for node in region.nodes:
        await region.ask(node, token)
        assert (await region.ask(node, token)).detail == "memory"
    before = region.a.parts.fence.position
    assert before is not None
    server = await empty(valkey)  # type: ignore[misc]
    emptied_at = time.monotonic()
    try:
        await region.origin.revoke_session(session["id"])  # and its event is lost with the server
        async with asyncio.timeout(3.0):
            await eventually(
                lambda: all(
                    (node.parts.fence.position or before).generation != before.generation for node in region.nodes
                ),
                lambda: f"positions: {[str(node.parts.fence.position) for node in region.nodes]}",
                3.0,
            )
        assert [(await region.ask(node, token)).status for node in region.nodes] == [401, 401]
        status, reply = await region.publish(region.a, {"type": "flush"}, wait=False)
        assert status == 200, reply
        assert reply["position"].partition("-")[0] != str(before.generation)
        await region.until_fresh(3.0 - (time.monotonic() - emptied_at))
    finally:
        if server is not valkey:
            server.stop()
