"""The one function that builds every Redis client.

Explicit timeouts and protocol, and no retries by the library: redis-py repeats ten times by default, which turned one
publish across a stall of 1.2 s into two events.  Who may repeat a call does so itself, inside its own deadline.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from cache_node.errors import FeedUnavailableError
from cache_node.feed.scripts import Script

_TUPLE_OF_ONE = re.compile(r"""\((['"])(.*)\1,\)""", re.DOTALL)
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


async def run_script(client: Redis, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """EVALSHA, sending the text when the server does not know the script (after a restart or a failover)."""
    try:
        return await client.evalsha(script.sha, len(keys), *keys, *args)
    except NoScriptError:
        return await client.eval(script.text, len(keys), *keys, *args)


def feed_unavailable(doing: str, exc: BaseException) -> FeedUnavailableError:
    """Translate a library error: its class and first words, never an argument of the command."""
    # Of an error in a transaction redis-py says first which command it was, arguments included, and then a tuple.
    words = str(exc).rpartition(" of pipeline caused error: ")[2]
    tuple_of_one = _TUPLE_OF_ONE.fullmatch(words)
    words = tuple_of_one[2] if tuple_of_one else words
    text = words.splitlines()[0][:200] if words else ""
    return FeedUnavailableError(f"{doing} failed: {type(exc).__name__}" + (f" ({text})" if text else ""))
