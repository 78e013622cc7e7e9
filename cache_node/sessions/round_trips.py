"""Commands to Redis in pipelined round trips over few connections, for a tier that would rather be without a reply.

Past redis-py's clients: 32 keys that are not there cost the redis tier 50 µs of CPU, one key 22.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cache_node.feed.redis_client import REDIS_ERRORS, Wire

TIMEOUT_SECONDS = 0.25
"""A tier slower than this is not worth waiting for: the origin is asked."""
MAX_CONNECTIONS = 8

Command = Sequence[bytes | int]


class RoundTrips:
    """Owns its connections, which are made when they are needed; `aclose()` ends them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[Wire] = []

    async def aclose(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    async def send(self, commands: Sequence[Command]) -> list[Any] | None:
        """The replies in order, an error of a command in place of its reply; None if they did not come in time.

        Repeated once, on a new connection, if the old one turned out to be broken.  The deadline includes the wait for
        a connection: else the calls of a stall would queue for many times as long.
        """
        with contextlib.suppress(*REDIS_ERRORS):
            async with asyncio.timeout(TIMEOUT_SECONDS), self._turns:
                wire = self._idle.pop() if self._idle else Wire(self._url, timeout_seconds=TIMEOUT_SECONDS)
                try:
                    return await wire.exchange(commands)
                except RedisTimeoutError:
                    raise
                except RedisConnectionError:
                    return await wire.exchange(commands)
                finally:
                    self._idle.append(wire)
        return None
