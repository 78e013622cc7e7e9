"""Nodes as processes: frozen, terminated, killed."""

from __future__ import annotations

import asyncio
import os
import signal

import aiohttp
import psutil
import pytest

from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from cache_node.environment import PublisherSettings
from cache_node.sources.publisher import AsyncPublisher
from tests.e2e.processes import ServeProcess
from tests.e2e.region import PASSWORD, Seen, ask
from tests.proxy import Proxy
from tests.waiting import eventually

pytestmark = pytest.mark.process

STALENESS = 1.0


async def _sign_in(origin: DemoOrigin) -> tuple[str, str]:
    await origin.create_identity("ada@example.test", PASSWORD)
    token, session = await origin.login_token("ada@example.test", PASSWORD)
    return token, str(session["id"])


async def _until_healthy(client: aiohttp.ClientSession, node: ServeProcess, what: str) -> None:
    async def is_so() -> bool:
        async with client.get(f"{node.public_url}/health/{what}") as answer:
            return answer.status == 200

    await eventually(is_so, lambda: node.stderr, 10.0)


async def _until_hit(client: aiohttp.ClientSession, node: ServeProcess, token: str) -> None:
    async def is_hit() -> bool:
        return (await ask(client, node.public_url, token)).is_hit

    await eventually(is_hit, lambda: node.stderr, 10.0)


async def test_frozen_node(valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession) -> None:
    """A node frozen longer than max_staleness gives nothing from cache after its wake-up before a new confirm: the
    session was revoked meanwhile, and Redis cannot be reached when it wakes up."""
    async with (
        Proxy(valkey.url) as link,
        ServeProcess(origin.public_url, link.url, max_staleness_seconds=str(STALENESS)) as node,
        AsyncPublisher(settings=PublisherSettings(valkey.url, max_staleness_seconds=STALENESS)) as publisher,
    ):
        token, session_id = await _sign_in(origin)
        await _until_hit(client, node, token)
        node.send(signal.SIGSTOP)
        link.cut()
        await origin.revoke_session(session_id)
        receipt = await publisher.session_revoked(session_id, wait=True)
        assert receipt.dead_everywhere, receipt
        asked = [asyncio.create_task(ask(client, node.public_url, token)) for _ in range(20)]
        node.send(signal.SIGCONT)
        answers: list[Seen] = list(await asyncio.gather(*asked))
        answers += await asyncio.gather(*(ask(client, node.public_url, token) for _ in range(20)))
        assert {seen.status for seen in answers} == {401}, answers
        assert not any(seen.is_hit for seen in answers), "no lease, so nothing is from cache"
        link.mend()
        await _until_healthy(client, node, "fresh")


async def test_sigterm_answers_what_is_under_way(
    valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession
) -> None:
    """SIGTERM: ready goes 503, the request under way is answered, the node leaves the registry, exit status 0."""
    async with Proxy(origin.public_url) as link, ServeProcess(link.url, valkey.url) as node:
        token, _ = await _sign_in(origin)
        await _until_healthy(client, node, "fresh")
        link.hold_replies()
        under_way = asyncio.create_task(ask(client, node.public_url, token))
        async with asyncio.timeout(5):
            await link.held.wait()
        node.send(signal.SIGTERM)

        async def is_draining() -> bool:
            async with client.get(f"{node.public_url}/health/ready") as answer:
                return answer.status == 503

        await eventually(is_draining, lambda: node.stderr, 5.0)
        assert node.process.poll() is None
        link.release_replies()
        assert (await under_way).status == 200
        assert await node.ended(5.0) == 0
        async with AsyncPublisher(settings=PublisherSettings(valkey.url)) as publisher:
            assert (await publisher.region_status())["nodes"] == []


def _valkey_of(node: ServeProcess) -> psutil.Process:
    children = psutil.Process(node.process.pid).children(recursive=True)
    (server,) = [child for child in children if "valkey" in child.name()]
    return server


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV], ids=lambda s: s.name)
async def test_embedded_valkey_is_gone_with_the_node(
    how: signal.Signals, origin: DemoOrigin, client: aiohttp.ClientSession
) -> None:
    """Without a Redis URL a real Valkey runs as a child, and ends with the node, whatever way that ends."""
    async with ServeProcess(origin.public_url) as node:
        await _until_healthy(client, node, "fresh")
        server = _valkey_of(node)
        os.kill(node.process.pid, how)
        await node.ended(10.0)
        await eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, server.name, 5.0)


async def test_a_node_starts_without_redis(origin: DemoOrigin, client: aiohttp.ClientSession) -> None:
    """It says so in one line, is ready, answers from the origin, and follows the feed when it comes."""
    with EmbeddedValkey() as reserved:
        port = reserved.port
    async with ServeProcess(origin.public_url, f"redis://127.0.0.1:{port}") as node:
        token, _ = await _sign_in(origin)
        await _until_healthy(client, node, "ready")
        first = await ask(client, node.public_url, token)
        assert (first.status, first.is_hit) == (200, False)
        await eventually(lambda: node.stderr.count("WARNING") == 1, lambda: node.stderr, 5.0)
        with EmbeddedValkey(port=port):
            await _until_hit(client, node, token)
        assert "Traceback" not in node.stderr


async def test_a_node_starts_before_what_is_no_redis(origin: DemoOrigin, client: aiohttp.ClientSession) -> None:
    """Whatever answers there: one line, and answers from the origin."""
    async with ServeProcess(origin.public_url, origin.public_url.replace("http", "redis")) as node:
        token, _ = await _sign_in(origin)
        await _until_healthy(client, node, "ready")
        first = await ask(client, node.public_url, token)
        assert (first.status, first.is_hit) == (200, False)
        await eventually(lambda: node.stderr.count("WARNING") == 1, lambda: node.stderr, 5.0)
        assert "feed: confirming failed: InvalidResponse" in node.stderr
        assert "Traceback" not in node.stderr


async def test_a_node_starts_without_its_origin(
    valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession
) -> None:
    """It is ready and fresh, answers 503 and says why in one line, and passes on what the origin says when it comes."""
    token, _ = await _sign_in(origin)
    await origin.stop()
    async with ServeProcess(origin.public_url, valkey.url) as node:
        await _until_healthy(client, node, "ready")
        await _until_healthy(client, node, "fresh")
        for _ in range(3):
            seen = await ask(client, node.public_url, token)
            assert (seen.status, seen.detail) == (503, "unreachable")
        await origin.start()
        await _until_hit(client, node, token)
        assert node.stderr.count("WARNING") == 1, node.stderr
        assert "Traceback" not in node.stderr


async def test_a_node_that_dies_at_the_origin(
    valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession
) -> None:
    """Its region waits for what it would have brought, and reads it from the origin well within the origin's time."""
    async with (
        Proxy(origin.public_url) as link,
        ServeProcess(link.url, valkey.url) as dying,
        ServeProcess(origin.public_url, valkey.url) as other,
    ):
        token, _ = await _sign_in(origin)
        await _until_healthy(client, dying, "fresh")
        await _until_healthy(client, other, "fresh")
        link.hold_replies()
        lost = asyncio.create_task(ask(client, dying.public_url, token))
        async with asyncio.timeout(5):
            await link.held.wait()
        waiting = [asyncio.create_task(ask(client, other.public_url, token)) for _ in range(20)]

        async def is_waiting() -> bool:
            async with client.get(f"{other.admin_url}/metrics") as answer:
                return "cache_node_redis_lock_waits_total 0.0" not in await answer.text()

        await eventually(is_waiting, lambda: other.stderr, 5.0)
        assert not any(task.done() for task in waiting)
        dying.process.kill()
        async with asyncio.timeout(4):  # the origin's timeout is 5 s
            assert {(await task).status for task in waiting} == {200}
        with pytest.raises(aiohttp.ClientError):
            await lost
