"""The one function that builds every Redis client, and a way past it for the calls that a node makes all the time.

Explicit timeouts and protocol, and no retries by the library: redis-py repeats ten times by default, which turned one
publish across a stall of 1.2 s into two events.  Who may repeat a call does so itself, inside its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis._parsers.base import BaseParser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, RedisError, ResponseError

from cache_node.errors import FeedUnavailableError
from cache_node.feed.scripts import Script

REDIS_ERRORS = (RedisError, OSError, TimeoutError, RuntimeError)
"""What a call can raise when the server is away, slow, refuses, or answers nonsense.  RuntimeError is uvloop's where
redis-py writes into a connection that was reset while it rested."""

Hear = Callable[[list[Any] | Exception], None]
"""Is told once: the replies, or why there are none."""


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


class Wire:
    """A connection that is made and signed in by redis-py when it is needed, and then spoken past it.

    redis-py knows what kind of connection the URL means and how to sign in there; its own way from a command to the
    reply, with streams and tasks in between, takes 18 µs of CPU for eleven keys, and this one 9.

    `timeout_seconds` is that of the connect.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._pool: Any = build_client(url, timeout_seconds=timeout_seconds).connection_pool
        self._connection: _Connection | None = None
        self._is_closed = False

    @property
    def is_open(self) -> bool:
        """Whether the next exchange needs no new connection."""
        return self._connection is not None and self._connection.is_open

    async def exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """The replies in order, an error of a command in place of its reply; one call after the other.

        The connection ends when anything goes wrong: a late reply must not become another command's.
        """
        if self._connection is None or not self._connection.is_open:
            self._connection = _Connection(await self._connected())
            if self._is_closed:
                self._connection.close()
                raise RedisConnectionError("The connection was closed while it was made.")
        return await self._connection.exchange(commands)

    def ask(self, commands: Sequence[Sequence[Any]], hear: Hear) -> None:
        """The same of a wire that is open, told to a callback, without a task and a future."""
        assert self._connection is not None  # noqa: S101
        self._connection.ask(commands, hear)

    def fail(self, error: Exception) -> None:
        """End the connection; whoever waits for a reply hears this error."""
        if self._connection is not None:
            self._connection.end(error)

    def close(self) -> None:
        """For good."""
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()

    async def _connected(self) -> Any:
        if self._is_closed:
            raise RedisConnectionError("The connection was closed before it was made.")
        connection = self._pool.make_connection()
        try:
            await connection.connect()
        except BaseException:
            connection._close()
            raise
        return connection


class _Connection(asyncio.Protocol):
    """One of redis-py's, past it: each has a protocol of its own, so that the last one's end is not this one's."""

    def __init__(self, theirs: Any) -> None:
        self.is_open = True
        self._theirs = theirs
        self._transport: asyncio.Transport = theirs._writer.transport
        self._parser = hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error)
        self._replies: list[Any] = []
        self._missing = 0
        self._hear: Hear | None = None
        self._transport.set_protocol(self)

    def ask(self, commands: Sequence[Sequence[Any]], hear: Hear) -> None:
        self._replies, self._missing, self._hear = [], len(commands), hear
        try:
            self._transport.write(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))
        except BaseException:
            self._hear = None
            self.close()
            raise

    async def exchange(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def hear(replies: list[Any] | Exception) -> None:
            if done.done():  # cancelled
                return
            if isinstance(replies, Exception):
                done.set_exception(replies)
            else:
                done.set_result(replies)

        self.ask(commands, hear)
        try:
            return await done
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._transport.abort()
            self._theirs._close()  # else it complains of being forgotten

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        try:
            while (reply := self._parser.gets()) is not False:
                if isinstance(reply, RedisConnectionError):  # as LOADING
                    raise reply
                self._missing -= 1
                self._replies.append(reply)
        except (InvalidResponse, RedisConnectionError) as error:
            self.end(error)
            return
        except ValueError:  # redis-py's, of a MOVED that does not say where to
            self.end(InvalidResponse("The server's error has a wrong form."))
            return
        if self._missing < 0 or self._hear is None:
            self.end(RedisConnectionError("The server said what nobody had asked for."))
        elif self._missing == 0:
            hear, self._hear = self._hear, None
            hear(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(RedisConnectionError("The server closed the connection."))

    def end(self, error: Exception) -> None:
        self.close()
        if self._hear is not None:
            hear, self._hear = self._hear, None
            hear(error)


class Line:
    """A wire for calls of several tasks, one after the other; `aclose()` ends it."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self._wire = Wire(url, timeout_seconds=timeout_seconds)
        self._turn = asyncio.Lock()

    async def aclose(self) -> None:
        """Close the connection."""
        self._wire.close()

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
            return await self._wire.exchange(commands)


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
