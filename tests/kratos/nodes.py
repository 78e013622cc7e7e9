"""Two nodes of one region in front of a real Kratos, and what both and Kratos itself say to the same request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import secrets
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from cache_node.app import Node
from cache_node.demo.api import COOKIE_NAME
from cache_node.demo.kratos_server import KratosServer
from tests.demo.exchanges import Exchange, Headers, exchange
from tests.two_nodes import start_two_nodes

PASSWORD = "correct horse battery"
WHOAMI = "/sessions/whoami"
MEMORY, REDIS, NEGATIVE = (f"cache-node; hit; detail={tier}" for tier in ("memory", "redis", "negative"))
SOON_SECONDS = 1.0
"""Within this a good token must be answered once Kratos is ready."""
TTL_SECONDS = 0.5

_people = itertools.count()

# How long a connection lives and how a body is framed is between two ends of a connection; `Date` is now.
_FRAMING = {"date", "connection", "keep-alive", "content-length", "transfer-encoding"}
_OURS = {"cache-status", "age"}
# Kratos signs a JSON Web Token and seals a cookie anew at every request.
_ANEW = [
    (re.compile(r'("tokenized":")[\w-]+\.[\w-]+\.[\w-]+"'), r'\1<jwt>"'),
    (re.compile(rf"^{COOKIE_NAME}=[\w-]+={{0,2}}; (.*)Expires=[^;]+; Max-Age=\d+"), rf"{COOKIE_NAME}=<cookie>; \1"),
]


@dataclass(frozen=True, slots=True)
class Person:
    """An identity with one session by token and one by cookie; `cookie` is the cookie's value."""

    email: str
    identity: str
    token: str
    session: str
    cookie: str
    cookie_session: str

    @property
    def by_token(self) -> Headers:
        return by_token(self.token)

    @property
    def by_bearer(self) -> Headers:
        return [("Authorization", f"Bearer {self.token}")]

    @property
    def by_cookie(self) -> Headers:
        return by_cookie(self.cookie)


def by_token(token: str) -> Headers:
    return [("X-Session-Token", token)]


def by_cookie(value: str) -> Headers:
    return [("Cookie", f"{COOKIE_NAME}={value}")]


def bad_token() -> str:
    """One that looks like a token and was never given out."""
    return "ory_st_" + secrets.token_hex(16)


async def sign_in(kratos: KratosServer) -> Person:
    """Somebody new, signed in twice."""
    email = f"node-person{next(_people)}@example.test"
    identity = await kratos.create_identity(email, PASSWORD)
    token, session = await kratos.login_token(email, PASSWORD)
    cookie = await kratos.login_cookie(email, PASSWORD)
    seen = await exchange(kratos.public_url, "GET", WHOAMI, by_cookie(cookie))
    return Person(email, identity, token, session["id"], cookie, session_id(seen))


def session_id(answer: Exchange) -> str:
    found = re.match(r'{"id":"([^"]+)"', answer.body)
    assert found, answer
    return found[1]


def cache_status(answer: Exchange) -> str:
    return header(answer, "cache-status")


def header(answer: Exchange, name: str) -> str:
    """The value of a header that occurs once, else an empty text."""
    values = [value for key, value in answer.response_headers if key.lower() == name]
    return values[0] if len(values) == 1 else ""


def told(answer: Exchange) -> dict[str, Any]:
    """What the client is told: status, body and headers, without framing and without what the node adds."""
    pairs = [(name.lower(), value) for name, value in answer.response_headers]
    kept = [(name, _known(value)) for name, value in pairs if name not in _FRAMING | _OURS]
    return {"status": answer.status, "headers": kept, "body": _known(answer.body)}


def _known(text: str) -> str:
    for pattern, replacement in _ANEW:
        text = pattern.sub(replacement, text)
    return text


@dataclass(slots=True)
class Nodes:
    """Nodes `a` and `b` over one Redis, and Kratos; `settings` are the nodes'."""

    kratos: KratosServer
    redis_url: str
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.nodes = await start_two_nodes(self._stack, self.redis_url, [self.kratos.public_url] * 2, **self.settings)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    @property
    def a(self) -> Node:
        return self.nodes[0]

    @property
    def b(self) -> Node:
        return self.nodes[1]

    async def ask_kratos(self, headers: Headers, method: str = "GET", path: str = WHOAMI) -> Exchange:
        return await exchange(self.kratos.public_url, method, path, headers)

    async def ask(self, node: Node, headers: Headers, method: str = "GET", path: str = WHOAMI) -> Exchange:
        """On a connection of its own, with exactly these headers; what the node adds to every answer is checked."""
        answer = await exchange(node.public_url, method, path, headers)
        assert header(answer, "cache-status").startswith("cache-node; "), answer
        assert header(answer, "age").isdigit(), answer
        return answer

    async def ask_both(self, headers: Headers, method: str = "GET", path: str = WHOAMI) -> list[Exchange]:
        """At the same time."""
        return await asyncio.gather(*(self.ask(node, headers, method, path) for node in self.nodes))

    async def agree(self, node: Node, headers: Headers, method: str = "GET", path: str = WHOAMI) -> str:
        """The node's `Cache-Status`, once its answer proved to be Kratos' own answer to the same request."""
        own = await self.ask_kratos(headers, method, path)
        answer = await self.ask(node, headers, method, path)
        assert told(answer) == told(own), f"{method} {path} {headers}: {told(answer)} is not Kratos' {told(own)}"
        return cache_status(answer)

    async def both_agree(self, headers: Headers, method: str = "GET", path: str = WHOAMI) -> list[str]:
        """`agree` of both nodes."""
        return [await self.agree(node, headers, method, path) for node in self.nodes]

    async def cache(self, *credentials: Headers) -> None:
        """Until both nodes answer these from memory."""
        for credential in credentials:
            await self.ask(self.a, credential)
            await self.a.parts.redis_tier.settle()
            await self.ask(self.b, credential)
            assert await self.both_agree(credential) == [MEMORY, MEMORY]

    async def publish(self, event: str, **ids: str) -> None:
        """`POST /invalidations` to a node, with a receipt that says dead everywhere."""
        url = f"{self.a.admin_url}/invalidations?wait=true"
        answer = await self.kratos.request("POST", url, json={"type": event, **ids})
        assert answer.status == 200, answer
        assert json.loads(answer.body)["receipt"]["dead_everywhere"], answer


def client_session() -> aiohttp.ClientSession:
    """For many requests: connections are kept."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=30), trust_env=False
    )


async def together(checks: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run checks that do not depend on each other, some at a time, and fail with the first that fails."""
    places = asyncio.Semaphore(32)

    async def one(check: Coroutine[Any, Any, object]) -> None:
        async with places:
            await check

    async with asyncio.TaskGroup() as group:
        for check in checks:
            group.create_task(one(check))


def is_try_again(answer: Exchange) -> bool:
    """503 in Kratos' error shape, with `Retry-After`."""
    message = "The session could not be checked just now. Please try again."
    error = f'{{"error":{{"code":503,"status":"Service Unavailable","message":"{message}"}}}}\n'
    return (
        answer.status == 503
        and header(answer, "retry-after").isdigit()
        and header(answer, "content-type") == "application/json"
        and answer.body == ("" if answer.method == "HEAD" else error)
    )


def distinct(answers: Sequence[Exchange]) -> set[tuple[int, str]]:
    """Statuses and bodies."""
    return {(answer.status, answer.body) for answer in answers}
