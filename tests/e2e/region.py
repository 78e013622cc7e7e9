"""Two nodes of one region and somebody who asks them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from cache_node.app import Node
from cache_node.demo.origin import DemoOrigin
from cache_node.environment import PublisherSettings
from cache_node.sources.publisher import AsyncPublisher
from tests.two_nodes import start_two_nodes, until_fresh
from tests.waiting import eventually

PASSWORD = "correct horse battery staple"


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer as a client saw it."""

    status: int
    cache_status: str
    body: bytes
    headers: dict[str, str]

    @property
    def is_hit(self) -> bool:
        return "; hit;" in self.cache_status

    @property
    def detail(self) -> str:
        return self.cache_status.rpartition("detail=")[2]


class Region:
    """Nodes `a` and `b`; `origin_urls` may put a proxy before the origin of each, `settings` overrides both."""

    def __init__(
        self,
        redis_url: str,
        origin: DemoOrigin,
        client: aiohttp.ClientSession,
        *,
        origin_urls: tuple[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.origin = origin
        self.client = client
        self._redis_url = redis_url
        self._settings = settings
        self._origin_urls = origin_urls or (origin.public_url, origin.public_url)
        self._stack = contextlib.AsyncExitStack()
        self._users = 0
        self.nodes: list[Node] = []

    async def __aenter__(self) -> Self:
        self.nodes = await start_two_nodes(self._stack, self._redis_url, self._origin_urls, **self._settings)
        self.publisher = await self._stack.enter_async_context(
            AsyncPublisher(settings=PublisherSettings(self._redis_url))
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    @property
    def a(self) -> Node:
        return self.nodes[0]

    @property
    def b(self) -> Node:
        return self.nodes[1]

    async def until_fresh(self, timeout_seconds: float = 10.0) -> None:
        await until_fresh(self.nodes, timeout_seconds)

    async def until_receipts_are_quick(self) -> None:
        """Some node has followed the generation for longer than a lease."""
        seen = 0.0

        async def is_old() -> bool:
            nonlocal seen
            seen = await self.publisher.followed_seconds()
            return seen >= self.a.parts.settings.max_staleness_seconds

        await eventually(is_old, lambda: f"followed for {seen} s", 15.0)

    async def sign_in(self) -> tuple[str, dict[str, Any]]:
        """A token and the session that it stands for, of a new user."""
        self._users += 1
        email = f"user{self._users}@example.test"
        await self.origin.create_identity(email, PASSWORD)
        return await self.origin.login_token(email, PASSWORD)

    async def ask(self, node: Node, token: str, **headers: str) -> Seen:
        """GET whoami with the token."""
        return await ask(self.client, node.public_url, token, **headers)

    async def health(self, node: Node, name: str) -> int:
        async with self.client.get(f"{node.public_url}/health/{name}") as answer:
            return answer.status

    async def publish(self, node: Node, event: dict[str, Any], *, wait: bool) -> tuple[int, dict[str, Any]]:
        """POST /invalidations; status and body."""
        url = f"{node.admin_url}/invalidations" + ("?wait=true" if wait else "")
        async with self.client.post(url, json=event) as answer:
            return answer.status, await answer.json()


async def ask(client: aiohttp.ClientSession, public_url: str, token: str, **headers: str) -> Seen:
    """GET whoami of the node at `public_url` with the token; underscores in header names become hyphens."""
    given = {"X-Session-Token": token} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.get(f"{public_url}/sessions/whoami", headers=given) as answer:
        body = await answer.read()
        return Seen(answer.status, answer.headers.get("Cache-Status", ""), body, dict(answer.headers))
