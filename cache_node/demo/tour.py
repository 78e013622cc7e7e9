"""The tour of `cache-node demo`: an embedded Valkey, an origin, two nodes, and what each of them answers and why.

It shows a cold read, a redis hit, a memory hit and a revocation with its receipt, in words or as one JSON object, and
then stays up for whoever wants to try it by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import click
import uvloop

from cache_node.app import Node
from cache_node.config import NodeSettings
from cache_node.demo.api import SessionApi
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from cache_node.environment import PublisherSettings
from cache_node.errors import CacheNodeError
from cache_node.sources.publisher import AsyncPublisher

EMAIL, PASSWORD = "ada@example.test", "correct horse battery staple"
READY_SECONDS = 15.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the tour: `tier` is where the answer came from, by its Cache-Status."""

    name: str
    tier: str
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Tour:
    """What the tour saw; `ok` if every step came from the tier and with the status that it should."""

    ok: bool
    steps: list[Step]
    revocation: dict[str, Any]


EXPECTED = {"cold": ("origin", 200), "redis": ("redis", 200), "memory": ("memory", 200), "revoked": ("origin", 401)}


def run(once: bool, json_output: bool, origin: str) -> int:
    """Give the tour; returns the exit status.  `origin` is `demo` or `kratos`; with `once` it ends after the tour."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("cache_node.audit").setLevel(logging.WARNING)  # the tour says itself what it revokes
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(once, json_output, origin))


async def _run(once: bool, json_output: bool, origin_kind: str) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)

    def say(text: str = "") -> None:
        click.echo(text, err=json_output)

    async with _world(origin_kind, say) as world:
        tour = await _until(stopped, world.tour(say))
        if tour is None:
            return 130
        if json_output:
            click.echo(json.dumps(asdict(tour)))
        if not once:
            await world.invite(say)
            await stopped.wait()
    return 0 if tour.ok else 1


async def _until(stopped: asyncio.Event, tour: Awaitable[Tour]) -> Tour | None:
    """The tour, or None if it was interrupted."""
    task = asyncio.ensure_future(tour)
    stop = asyncio.ensure_future(stopped.wait())
    await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return None


@contextlib.asynccontextmanager
async def _world(origin_kind: str, say: Callable[[str], None]) -> AsyncIterator[World]:
    async with contextlib.AsyncExitStack() as stack:
        valkey = stack.enter_context(EmbeddedValkey())
        say(f"A Valkey is running at {valkey.url}; it ends with this demo.")
        origin = await stack.enter_async_context(_origin(origin_kind))
        kind = "a real Kratos" if origin_kind == "kratos" else "a small origin that speaks Kratos' session API"
        say(f"The origin is {kind}: public {origin.public_url} admin {origin.admin_url}")
        secret = secrets.token_urlsafe(48)
        nodes = [
            await stack.enter_async_context(Node(_settings(name, origin, valkey.url, secret))) for name in ("a", "b")
        ]
        for name, node in zip("ab", nodes, strict=True):
            say(f"Node {name} answers at {node.public_url} admin {node.admin_url}")
        client = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=READY_SECONDS), trust_env=False)
        )
        publisher = await stack.enter_async_context(AsyncPublisher(settings=PublisherSettings(valkey.url)))
        yield World(origin, nodes[0], nodes[1], client, publisher)


def _origin(kind: str) -> contextlib.AbstractAsyncContextManager[SessionApi]:
    if kind == "kratos":
        from cache_node.demo.kratos_server import KratosServer

        return KratosServer()
    return DemoOrigin()


def _settings(name: str, origin: SessionApi, redis_url: str, secret: str) -> NodeSettings:
    return NodeSettings(
        origin_url=origin.public_url,
        redis_url=redis_url,
        secrets=(secret,),
        listen="127.0.0.1:0",
        admin_listen="127.0.0.1:0",
        node_id=f"demo-{name}",
        region="demo",
    )


@dataclass(frozen=True, slots=True)
class World:
    """Origin, two nodes, and somebody who asks them."""

    origin: SessionApi
    node_a: Node
    node_b: Node
    client: aiohttp.ClientSession
    publisher: AsyncPublisher

    async def tour(self, say: Callable[..., None]) -> Tour:
        """Walk through the four answers; what is seen is said as it comes."""
        await self._wait_until_ready(say)
        await self.origin.create_identity(EMAIL, PASSWORD)
        token, session = await self.origin.login_token(EMAIL, PASSWORD)
        say()
        say(f"{EMAIL} signs in and gets a session token. Whose session is it?")
        steps = [
            await self._ask("cold", self.node_a, token, say, "nobody knows it yet, so node a asks the origin"),
            await self._ask_when_written(token, say),
            await self._ask("memory", self.node_b, token, say, "and from now on from its own memory"),
        ]
        say()
        say("The session is revoked at the origin, and the origin publishes that:")
        await self.origin.revoke_session(session["id"])
        revocation = await self._revoke(session["id"], say)
        steps.append(await self._ask("revoked", self.node_b, token, say, "so node b asks the origin again"))
        on_a = await self._ask("revoked", self.node_a, token, say, "and so does node a")
        seen = [(step.tier, step.status) == EXPECTED[step.name] for step in (*steps, on_a)]
        return Tour(all(seen) and revocation["receipt"]["dead_everywhere"], steps, revocation)

    async def invite(self, say: Callable[..., None]) -> None:
        """Say how to go on by hand, with a session of its own."""
        token, session = await self.origin.login_token(EMAIL, PASSWORD)
        event = json.dumps({"type": "session.revoked", "session_id": session["id"]})
        say()
        say("Try it by hand (Ctrl-C ends everything). Whose session is it? Cache-Status says where that was known:")
        say(f"  curl -i -H 'X-Session-Token: {token}' {self.node_a.public_url}/sessions/whoami")
        say(f"  curl -i -H 'X-Session-Token: {token}' {self.node_b.public_url}/sessions/whoami")
        say("Revoke it at the origin, then publish that and wait for the receipt:")
        say(f"  curl -X DELETE {self.origin.admin_url}/admin/sessions/{session['id']}")
        say(f"  curl -d '{event}' '{self.node_a.admin_url}/invalidations?wait=true'")
        say("How are the nodes?")
        say(f"  curl {self.node_b.public_url}/health/fresh")
        say(f"  curl {self.node_b.admin_url}/status")
        say(f"  curl {self.node_b.admin_url}/metrics")

    async def _wait_until_ready(self, say: Callable[..., None]) -> None:
        """Receipts are quick once a node has followed the feed for longer than a lease, which takes about 2 s."""
        say("Waiting until the nodes have followed the feed for longer than a lease (about 2 s) ...")
        deadline = time.monotonic() + READY_SECONDS
        nodes = (self.node_a, self.node_b)
        while True:
            followed = await self.publisher.followed_seconds()
            if all(node.parts.follower.is_fresh for node in nodes) and followed >= 2.0:
                return
            if time.monotonic() > deadline:
                states = ", ".join(node.parts.follower.state.value for node in nodes)
                raise CacheNodeError(f"the nodes did not get ready within {READY_SECONDS:g} s: they are {states}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _ask(self, name: str, node: Node, token: str, say: Callable[..., None], because: str) -> Step:
        step = await self._step(name, node, token)
        say(f"  {name:8} {step.seconds * 1000:7.2f} ms  {step.status}  from {step.tier:7} {because}")
        return step

    async def _ask_when_written(self, token: str, say: Callable[..., None]) -> Step:
        """Node a writes to Redis behind its answer, so node b could be asked a moment too early."""
        await self.node_a.parts.redis_tier.settle()
        return await self._ask("redis", self.node_b, token, say, "node b finds it in Redis")

    async def _step(self, name: str, node: Node, token: str) -> Step:
        begun = time.perf_counter()
        url = f"{node.public_url}/sessions/whoami"
        async with self.client.get(url, headers={"X-Session-Token": token}) as answer:
            await answer.read()
            seconds = time.perf_counter() - begun
            return Step(name, _tier(answer.headers.get("Cache-Status", "")), answer.status, round(seconds, 6))

    async def _revoke(self, session_id: str, say: Callable[..., None]) -> dict[str, Any]:
        event = {"type": "session.revoked", "session_id": session_id}
        begun = time.perf_counter()
        async with self.client.post(f"{self.node_a.admin_url}/invalidations?wait=true", json=event) as answer:
            reply = await answer.json()
            seconds = time.perf_counter() - begun
        if answer.status != 200:
            raise CacheNodeError(f"publishing failed with status {answer.status}: {reply}")
        receipt = reply["receipt"]
        applied = ", ".join(f"{node['node_id']} {node['state']}" for node in receipt["nodes"])
        verdict = "dead everywhere" if receipt["dead_everywhere"] else "NOT dead everywhere"
        say(f"  receipt  {seconds * 1000:7.2f} ms  {verdict}: {applied}")
        return {"seconds": round(seconds, 6), "receipt": receipt}


def _tier(cache_status: str) -> str:
    if "; hit; detail=" in cache_status:
        return cache_status.rpartition("detail=")[2]
    return "origin" if "; fwd=" in cache_status else "unknown"
