"""The one function that builds every Redis client, and a way past it for the calls that a node makes all the time.

Explicit timeouts and protocol, and no retries by the library: redis-py repeats ten times by default, which turned one
publish across a stall of 1.2 s into two events.  Who may repeat a call does so itself, inside its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from cache_node.errors import FeedUnavailableError
from cache_node.feed.scripts import Script

REDIS_ERRORS = (RedisError, OSError, TimeoutError)
"""What a call can raise when the server is away, slow, refuses, or answers nonsense."""


def build_client(url: str, *, timeout_seconds: float, max_connections: int = 1) -> Redis:
    """A client that connects on first use; the owner closes it with `aclose()`.

    `timeout_seconds` bounds the connect and the wait for one of `max_connections` to be free: a plain pool refuses
    instead of waiting.  Commands are bounded by their callers with `asyncio.timeout`: for a socket timeout redis-py
    sends through `asyncio.wait_for`, which in Python 3.11 swallows a cancellation that comes as the sending ends.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        timeout=timeout_seconds,
        socket_timeout=None,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        retry_on_error=[],
        max_connections=max_connections,
        protocol=2,
        decode_responses=False,
        health_check_interval=0,
        driver_info=None,
    )
    return Redis.from_pool(pool)


def pool_to(url: str, *, timeout_seconds: float) -> Any:
    """What makes redis-py's connections, for `exchange`; the timeout is that of the connect.

    The pool alone knows what kind of connection the URL means, and how to sign in there.
    """
    return build_client(url, timeout_seconds=timeout_seconds).connection_pool


class Line:
    """One connection, made when it is needed, for calls one after the other; `aclose()` ends it.

    On redis-py's connections and past its client and pool: a confirm costs a node 70 µs of CPU instead of 121.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._pool: Any = pool_to(url, timeout_seconds=timeout_seconds)
        self._connection: Any = None
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.disconnect()

    async def call(self, *command: Any) -> Any:
        """The reply."""
        return _checked((await self._exchange([command]))[0])

    async def transaction(self, *commands: Sequence[Any]) -> list[Any]:
        """The replies of commands that nothing comes between; raises the first error of any."""
        *queued, done = await self._exchange([("MULTI",), *commands, ("EXEC",)])
        for reply in queued:
            _checked(reply)
        return [_checked(reply) for reply in _checked(done)]

    async def _exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        async with self._turn:
            if self._connection is None:
                self._connection = self._pool.make_connection()
            # Which also looks whether the server has hung up, or has said what nobody asked for.
            await self._pool.ensure_connection(self._connection)
            return await exchange(self._connection, commands)


async def exchange(connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """The replies in order, an error of a command in place of its reply, on a connection of redis-py's.

    It ends when anything goes wrong: a late reply must not become another command's.
    """
    try:
        await connection.connect()
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        return [await _reply(connection) for _ in commands]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _checked(reply: Any) -> Any:
    if isinstance(reply, ResponseError):
        raise reply
    return reply


async def run_script(client: Redis, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """EVALSHA, sending the text when the server does not know the script (after a restart or a failover)."""
    try:
        return await client.evalsha(script.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.eval(script.text, len(keys), *keys, *args)


def feed_unavailable(doing: str, exc: BaseException) -> FeedUnavailableError:
    """Translate a library error: its class and first words, never an argument of the command."""
    words = str(exc)
    # A server that does not know a command, as AUTH where it was renamed, quotes what came with it.
    text = words.splitlines()[0].partition(", with args ")[0][:200] if words else ""
    return FeedUnavailableError(f"{doing} failed: {type(exc).__name__}" + (f" ({text})" if text else ""))
