"""`python -m benchmarks.apps NAME`: the Python servers that are measured, and the origin behind all; ended by a signal.

`origin` gives every credential of sessions.py its session, with Kratos' headers.  What stands before it answers from a
copy: `raw` is an ASGI function with a dictionary, `starlette` a route with the same dictionary, and `redis` what is
usually written today, a route that asks a Redis key of 60 s (of a Valkey of its own).  None of them can tell a revoked
session from a live one.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie

import aiohttp
import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.sessions import COOKIE_NAME, body_of, ids_of, token_in_cookie
from cache_node.embedded import EmbeddedValkey
from cache_node.sessions.origin import WHOAMI_PATH

COUNT_PATH = "/count"
READY_PATH = "/health/ready"
KEY_SECONDS = 60
REDIS_CONNECTIONS = 32
Find = Callable[[str], Awaitable[bytes | None]]
Keep = Callable[[str, bytes], Awaitable[None]]

JSON_TYPE = b"application/json; charset=utf-8"

body_once = functools.lru_cache(100_000)(body_of)
identity_once = functools.lru_cache(100_000)(lambda token: ids_of(token)[1].encode())


async def send_bytes(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """One whole answer."""
    headers = [(b"content-type", JSON_TYPE), *headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def origin_app(delay_seconds: float) -> ASGIApp:
    """Kratos as far as whoami goes; answers after so long, and counts."""
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        if scope["path"] == COUNT_PATH:
            await send_bytes(send, 200, b"%d" % asked, [])
        elif scope["path"] == READY_PATH:
            await send_bytes(send, 200, b'{"status":"ok"}\n', [])
        else:
            asked += 1
            if delay_seconds:
                await asyncio.sleep(delay_seconds)
            token = token_in(scope["headers"])
            body = body_once(token)
            common = [(b"cache-control", b"private, no-cache, no-store, must-revalidate"), (b"vary", b"Cookie")]
            if body is None:
                await send_bytes(send, 401, b'{"error":{"code":401}}\n', common)
            else:
                common.append((b"x-kratos-authenticated-identity-id", identity_once(token)))
                await send_bytes(send, 200, body, common)

    return app


def token_in(headers: list[tuple[bytes, bytes]]) -> str:
    """The token that a request presents, as such or in a cookie."""
    for name, value in headers:
        if name == b"x-session-token":
            return value.decode("latin-1")
        if name == b"cookie":
            morsel = SimpleCookie(value.decode("latin-1")).get(COOKIE_NAME)
            return "" if morsel is None else token_in_cookie(morsel.value)
    return ""


class Behind:
    """The origin as a route's author asks it."""

    def __init__(self, origin_url: str) -> None:
        self._url = origin_url + WHOAMI_PATH
        self._client: aiohttp.ClientSession | None = None

    async def ask(self, headers: dict[str, str]) -> bytes:
        """What it says to a credential; raises for all but 200."""
        if self._client is None:
            self._client = aiohttp.ClientSession(raise_for_status=True)
        async with self._client.get(self._url, headers=headers) as answer:
            return await answer.read()


def raw_app(origin_url: str) -> ASGIApp:
    """The least that an ASGI application can do for a session."""
    behind, copies = Behind(origin_url), dict[bytes, bytes]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope["headers"]:
            if name in (b"x-session-token", b"cookie"):
                body = copies.get(value)
                if body is None:
                    body = copies[value] = await behind.ask({name.decode(): value.decode("latin-1")})
                return await send_bytes(send, 200, body, [])
        return await send_bytes(send, 401, b"", [])

    return app


def credential_of(request: Request) -> tuple[str, dict[str, str]]:
    """The credential, and the header in which it goes to the origin."""
    token = request.headers.get("x-session-token")
    if token:
        return token, {"X-Session-Token": token}
    cookie = request.cookies.get(COOKIE_NAME, "")
    return cookie, {"Cookie": f"{COOKIE_NAME}={cookie}"}


def route_app(find: Find, keep: Keep, origin_url: str) -> ASGIApp:
    """A Starlette route before the origin, with whatever it keeps copies in."""
    behind = Behind(origin_url)

    async def whoami(request: Request) -> Response:
        credential, header = credential_of(request)
        body = await find(credential)
        if body is None:
            body = await behind.ask(header)
            await keep(credential, body)
        return Response(body, media_type="application/json")

    return Starlette(routes=[Route(WHOAMI_PATH, whoami)])


def starlette_app(origin_url: str) -> ASGIApp:
    """Copies in a dictionary."""
    copies: dict[str, bytes] = {}

    async def find(credential: str) -> bytes | None:
        return copies.get(credential)

    async def keep(credential: str, body: bytes) -> None:
        copies[credential] = body

    return route_app(find, keep, origin_url)


def redis_app(origin_url: str) -> ASGIApp:
    """Copies in Redis."""
    valkey = EmbeddedValkey().start()
    pool = redis.asyncio.BlockingConnectionPool.from_url(valkey.url, max_connections=REDIS_CONNECTIONS)
    client = redis.asyncio.Redis(connection_pool=pool)

    async def find(credential: str) -> bytes | None:
        found = await client.get(f"whoami:{credential}")
        return found if isinstance(found, bytes) else None

    async def keep(credential: str, body: bytes) -> None:
        await client.set(f"whoami:{credential}", body, ex=KEY_SECONDS)

    return route_app(find, keep, origin_url)


BEFORE_THE_ORIGIN = {"raw": raw_app, "starlette": starlette_app, "redis": redis_app}


def main() -> None:
    """Serve one of them and say where."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apps", description=__doc__)
    parser.add_argument("name", choices=["origin", *BEFORE_THE_ORIGIN])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--origin", default="", metavar="URL")
    parser.add_argument("--delay-seconds", type=float, default=0.0, help="of the origin's answers")
    options = parser.parse_args()
    if options.name == "origin":
        app = origin_app(options.delay_seconds)
    else:
        app = BEFORE_THE_ORIGIN[options.name](options.origin)
    listening = socket.create_server(("127.0.0.1", options.port), backlog=2048)
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()
