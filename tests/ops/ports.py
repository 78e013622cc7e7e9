"""Real ports for these tests: a client of an admin port, and waiting with a deadline."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from cache_node.app import Node
from tests.waiting import POLL_SECONDS, NotInTimeError

T = TypeVar("T")

REVOKED = {"type": "session.revoked", "session_id": "s-1"}
FLUSH = {"type": "flush"}


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(method: str, url: str, body: object = None, *, headers: Mapping[str, str] | None = None) -> Reply:
    """One request on a connection of its own; `body` is bytes, an async iterator of them (sent in chunks), or JSON."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    data = io.BytesIO(data) if isinstance(data, bytes) else data  # aiohttp warns of large bytes
    begun = time.monotonic()
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
        client.request(
            method, URL(url, encoded=True), data=data, headers=headers, skip_auto_headers=("Content-Type",)
        ) as answer,
    ):
        content = await answer.read()
        return Reply(answer.status, answer.headers, content, time.monotonic() - begun)


async def eventually(look: Callable[[], Awaitable[T]], is_right: Callable[[T], bool], seconds: float = 5.0) -> T:
    """What `look` says as soon as it is right; fails with what it said last."""
    deadline = time.monotonic() + seconds
    while True:
        seen = await look()
        if is_right(seen):
            return seen
        if time.monotonic() > deadline:
            raise NotInTimeError(f"not within {seconds:g} s, last seen: {seen!r}")
        await asyncio.sleep(POLL_SECONDS)


async def status_of(node: Node) -> dict[str, Any]:
    reply = await ask("GET", f"{node.admin_url}/status")
    assert reply.status == 200, reply
    content: dict[str, Any] = reply.json
    return content


async def following(node: Node) -> dict[str, Any]:
    """The node's status once it follows the feed and has read what was retained."""
    return await eventually(lambda: status_of(node), lambda seen: seen["state"] == "FOLLOWING" and seen["replay_done"])


async def metrics_of(node: Node) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples by name and labels."""
    reply = await ask("GET", f"{node.admin_url}/metrics")
    assert reply.status == 200, reply
    families = text_string_to_metric_families(reply.body.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def sample(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"cache_node_{name}", frozenset(labels.items())
