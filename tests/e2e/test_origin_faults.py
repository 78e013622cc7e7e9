"""A node before an origin that fails in every way it can: what clients see, and that it is over when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from cache_node.app import Node
from cache_node.config import NodeSettings
from cache_node.embedded import EmbeddedValkey
from cache_node.sessions.breaker import FAILURES
from tests.e2e.region import Seen, ask
from tests.raw_origin import Peer, RawOrigin, Reply, http, silence
from tests.two_nodes import until_fresh
from tests.waiting import eventually

TIMEOUT_SECONDS = 0.5


def session(token: str) -> bytes:
    """The session that the token stands for, as Kratos writes it."""
    body = {
        "id": f"session of {token}",
        "active": True,
        "expires_at": "2099-01-01T00:00:00Z",
        "identity": {"id": f"identity of {token}", "traits": {}},
    }
    return http(200, json.dumps(body).encode(), [b"Content-Type: application/json"])


@dataclass
class Before:
    """One node, and the origin that it asks."""

    node: Node
    origin: RawOrigin
    client: aiohttp.ClientSession

    async def ask(self, token: str, **headers: str) -> Seen:
        return await ask(self.client, self.node.public_url, token, **headers)

    async def status(self) -> dict[str, Any]:
        async with self.client.get(f"{self.node.admin_url}/status") as answer:
            found: dict[str, Any] = await answer.json()
            return found


@pytest.fixture
async def before(valkey: EmbeddedValkey, client: aiohttp.ClientSession) -> AsyncIterator[Before]:
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(RawOrigin().listening())
        settings = NodeSettings.model_validate(
            {
                "origin_url": origin.url,
                "origin_timeout_seconds": TIMEOUT_SECONDS,
                "redis_url": valkey.url,
                "secrets": ("a secret of at least thirty-two characters",),
                "listen": "127.0.0.1:0",
                "admin_listen": "127.0.0.1:0",
            }
        )
        node = await stack.enter_async_context(Node(settings))
        await until_fresh([node])
        yield Before(node, origin, client)


async def truncated(peer: Peer) -> None:
    await peer.send(session("faulty")[:-1])
    peer.close()


async def reset(peer: Peer) -> None:
    peer.reset()


async def endless(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
    while True:
        await peer.send(b" " * 65536)


async def dripping(peer: Peer) -> None:
    for byte in session("faulty"):
        await peer.send(bytes([byte]))
        await asyncio.sleep(0.02)  # the origin's pace, and nothing that is waited for


def _with_length(reply: bytes, difference: int) -> bytes:
    head, _, body = reply.partition(b"\r\n\r\n")
    line = b"Content-Length: %d" % len(body)
    return head.replace(line, b"Content-Length: %d" % (len(body) + difference)) + b"\r\n\r\n" + body


FAULTS: dict[str, tuple[Reply, int, str]] = {
    "429": (http(429, b"{}"), 429, "origin-error"),
    "500": (http(500, b"{}"), 500, "origin-error"),
    "502": (http(502, b"{}"), 502, "origin-error"),
    "503": (http(503, b"{}"), 503, "origin-error"),
    "504": (http(504, b"{}"), 504, "origin-error"),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 503, "garbage"),
    "200 with a page": (http(200, b"<html>"), 503, "garbage"),
    "truncated": (truncated, 503, "garbage"),
    "endless": (endless, 503, "garbage"),
    "a length too long": (_with_length(session("faulty"), 1), 503, "timeout"),
    "a length too short": (_with_length(session("faulty"), -1), 503, "garbage"),
    "two lengths": (session("faulty").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"), 503, "garbage"),
    "slow": (dripping, 503, "timeout"),
    "silent": (silence, 503, "timeout"),
    "reset": (reset, 503, "unreachable"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_the_origin(before: Before, fault: str) -> None:
    """Never a 401, never kept, within the deadline; an entry answers meanwhile, and other credentials are unharmed."""
    reply, status, detail = FAULTS[fault]
    before.origin.by_token = {token.encode(): session(token) for token in ("cached", "other", "faulty")}
    assert (await before.ask("cached")).status == 200

    before.origin.by_token |= {b"faulty": reply, b"cached": reply}
    loop = asyncio.get_running_loop()
    begun = loop.time()
    faulty, cached, *others = await asyncio.gather(
        before.ask("faulty"),
        before.ask("cached", Cache_Control="no-cache"),
        *(before.ask("other", Cache_Control="no-cache") for _ in range(5)),
    )
    assert (faulty.status, faulty.detail) == (status, detail)
    assert ("Retry-After" in faulty.headers) == (detail != "origin-error")
    assert loop.time() - begun < 10 * TIMEOUT_SECONDS, "far from the client's own patience"
    assert (cached.status, cached.detail) == (200, "stale-if-error")
    assert {(seen.status, json.loads(seen.body)["id"]) for seen in others} == {(200, "session of other")}

    before.origin.by_token[b"faulty"] = session("faulty")
    healed = await before.ask("faulty")
    assert (healed.status, healed.detail, healed.is_hit) == (200, "cold", False), "nothing of the fault was kept"
    assert json.loads(healed.body)["id"] == "session of faulty"


async def test_a_connection_that_is_closed_while_idle(before: Before) -> None:
    """Whether before the next read or as it is sent: that read has its answer all the same."""

    async def then_close(peer: Peer) -> None:
        await peer.send(session("closed"))
        peer.close()

    before.origin.replies = [then_close]
    for number in range(20):
        assert (await before.ask(f"closed-{number}")).status == 200


async def test_an_open_breaker(before: Before) -> None:
    """Entries answer without asking, the others get 503; all are answered when the origin is back, and it is told."""
    origin = before.origin
    origin.by_token = {b"cached": session("cached")}
    assert (await before.ask("cached")).status == 200
    origin.by_token, origin.replies, origin.probes = {}, [silence], [silence]

    failed = await asyncio.gather(*(before.ask(f"cold-{number}") for number in range(2 * FAILURES)))
    assert {(seen.status, seen.detail) for seen in failed} == {(503, "timeout")}
    await eventually(lambda: before.node.parts.origin.is_open)
    assert (await before.status())["origin"]["open"] is True

    asked = len(origin.requests)
    answers = await asyncio.gather(*(before.ask("cached", Cache_Control="no-cache") for _ in range(50)))
    assert {(seen.status, seen.detail) for seen in answers} == {(200, "stale-if-error")}
    cold = await asyncio.gather(*(before.ask(f"colder-{number}") for number in range(50)))
    assert {seen.status for seen in cold} == {503}
    assert {"open"} <= {seen.detail for seen in cold} <= {"open", "timeout"}
    assert all(seen.headers["Retry-After"] for seen in cold)
    assert len(origin.requests) - asked < 10, "a hundred requests, and some trials"

    origin.replies, origin.probes = [session("back")], [http(200)]
    back = await asyncio.gather(*(before.ask(f"back-{number}") for number in range(100)))
    assert {(seen.status, seen.detail) for seen in back} == {(200, "cold")}
    assert (await before.status())["origin"]["open"] is False


async def test_one_credential_that_the_origin_cannot_bear(before: Before) -> None:
    """However often it is asked for, the others are answered."""
    before.origin.by_token = {b"poison": http(500, b"{}")}
    before.origin.replies = [session("good")]
    for number in range(5):
        answers = await asyncio.gather(*(before.ask("poison") for _ in range(20)))
        assert {seen.status for seen in answers} == {500}
        assert (await before.ask(f"good-{number}")).status == 200
    await eventually(lambda: not before.node.parts.origin.is_open)
