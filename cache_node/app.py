"""Composes one node; the only module that knows which tier, log, and server are used.

Several nodes may live in one process and one event loop: what one of them knows is in its own objects.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from typing import Any, Self

import click
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cache_node.config import NodeSettings
from cache_node.embedded import EmbeddedValkey
from cache_node.environment import PublisherSettings
from cache_node.feed.clock import Clock, SystemClock
from cache_node.feed.fence import Fence
from cache_node.feed.follower import Follower
from cache_node.feed.lease import Lease
from cache_node.feed.log import RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.registry import Membership
from cache_node.http.errors import error_body
from cache_node.http.fast_lane import FastLane
from cache_node.http.health import Health
from cache_node.http.server import HttpServer, bind
from cache_node.http.whoami import Whoami
from cache_node.ops.admin import admin_app
from cache_node.ops.components import Components
from cache_node.ops.log_lines import LineHandler
from cache_node.ops.loop_lag import LoopLag
from cache_node.ops.metrics import Metrics
from cache_node.sessions.keys import KeyRing
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.origin import Origin
from cache_node.sessions.reader import Reader
from cache_node.sessions.redis_tier import RedisTier
from cache_node.sources.publisher import AsyncPublisher

logger = logging.getLogger(__name__)

CONFIRM_TIMEOUT_SECONDS = 1.0
DRAIN_SECONDS = 10.0
PENDING_WRITES_SHARE = 8
"""One byte of so many of the memory tier's may wait to be written to the redis tier."""
LOCK_SECONDS = 1.0
"""How long the fill lock of a node that has died keeps others waiting; a quarter of the origin's deadline at most."""
_RESTART_SECONDS = 1.0


class Node:
    """One node: two ports, a follower, two tiers, a client of the origin.  `async with` starts and stops it.

    Must be started in the main thread if it has no Redis URL (see embedded.py).
    """

    def __init__(self, settings: NodeSettings, clock: Clock | None = None) -> None:
        self._given = settings
        self._clock = clock or SystemClock()
        self._draining = False
        self._servers: list[HttpServer] = []
        self._stack = contextlib.AsyncExitStack()
        self.public_url = ""
        self.admin_url = ""
        self.redis_url = ""
        self.parts: Components
        """What the node is made of; set by `start`."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Returns when both ports listen; the feed may still be unreachable.  Raises CacheNodeError with one line."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        public = self._stack.enter_context(contextlib.closing(bind(*self._given.listen_address)))
        admin = self._stack.enter_context(contextlib.closing(bind(*self._given.admin_address)))
        settings = self._with_redis(self._given)
        self.redis_url = settings.redis_url or ""
        parts = self.parts = self._build(settings)
        self._stack.callback(LoopLag(parts.stats.loop_lag.observe).stop)
        self._stack.push_async_callback(parts.follower.leave)
        following = asyncio.create_task(self._follow(parts.follower))
        self._stack.push_async_callback(_cancel, following)
        self._stack.callback(parts.follower.stop)
        health = Health(parts.follower, lambda: self._draining)
        whoami = Whoami(parts.reader, parts.stats, settings.session_cookie, _router(health))
        self._stack.push_async_callback(self._drain)
        self.public_url = await self._listen(whoami, public, self._lane(parts, settings))
        self.admin_url = await self._listen(admin_app(parts), admin)

    async def stop(self) -> None:
        """Answer what is under way (10 s at most), leave the registry, close everything."""
        await self._stack.aclose()

    async def _drain(self) -> None:
        self._draining = True
        ends_at = asyncio.get_running_loop().time() + DRAIN_SECONDS
        # The public port stays open for these, so that a balancer can see that this node is not ready any more.
        under_way = [task for server in self._servers[:1] for task in server.under_way]
        if under_way:
            await asyncio.wait(under_way, timeout=DRAIN_SECONDS)
        left = max(0.0, ends_at - asyncio.get_running_loop().time())
        await asyncio.gather(*(server.drain(left) for server in self._servers))

    def _with_redis(self, settings: NodeSettings) -> NodeSettings:
        if settings.redis_url is not None:
            return settings
        valkey = EmbeddedValkey()
        self._stack.callback(valkey.stop)
        valkey.start()
        logger.info("no CACHE_NODE_REDIS_URL: started an embedded Valkey at %s, which ends with this node", valkey.url)
        return settings.model_copy(update={"redis_url": valkey.url})

    def _build(self, settings: NodeSettings) -> Components:
        url = settings.redis_url or ""
        names = RedisNames(settings.key_prefix)
        clock = self._clock
        fence = Fence(clock, window_seconds=settings.fence_window_seconds, max_ids=settings.fence_ids)
        lease = Lease(clock)
        log = RedisLog(url, names, timeout_seconds=min(CONFIRM_TIMEOUT_SECONDS, settings.max_staleness_seconds / 2))
        membership = Membership(settings.node_id, settings.region, settings.max_staleness_seconds)
        follower = Follower(log, fence, lease, clock, membership)
        memory = MemoryTier(settings.memory_bytes)
        self._stack.callback(memory.clear)
        lifetime = min(settings.entry_ttl_seconds, settings.fence_window_seconds)
        redis_tier = RedisTier(
            url,
            names,
            lifetime_seconds=lifetime,
            max_pending_bytes=settings.memory_bytes // PENDING_WRITES_SHARE,
            lock_seconds=min(LOCK_SECONDS, settings.origin_timeout_seconds / 4),
        )
        origin = Origin(
            settings.origin_url,
            clock,
            timeout_seconds=settings.origin_timeout_seconds,
            concurrency=settings.origin_concurrency,
            ready_path=settings.origin_ready_path,
        )
        reader = Reader(
            keys=KeyRing(settings.secrets),
            memory=memory,
            redis=redis_tier,
            origin=origin,
            fence=fence,
            lease=lease,
            clock=clock,
            ttl_seconds=settings.entry_ttl_seconds,
            stale_if_error_seconds=settings.stale_if_error_seconds,
            cookie_max_age_seconds=settings.cookie_max_age_seconds,
            neighbour_seconds=settings.origin_timeout_seconds / 2,
        )
        publisher = AsyncPublisher(
            settings=PublisherSettings(
                redis_url=url,
                key_prefix=settings.key_prefix,
                max_staleness_seconds=settings.max_staleness_seconds,
                feed_events=settings.feed_events,
            ),
            source=f"node {settings.node_id}",
        )
        for owned in (log, redis_tier, origin, publisher):
            self._stack.push_async_callback(owned.aclose)
        stats = Metrics()
        parts = Components(
            settings=settings,
            fence=fence,
            lease=lease,
            follower=follower,
            memory=memory,
            redis_tier=redis_tier,
            origin=origin,
            reader=reader,
            publisher=publisher,
            clock=clock,
            stats=stats,
            is_draining=lambda: self._draining,
        )
        origin.observe = stats.observe_origin
        follower.observe_lag = stats.lag.observe
        return parts

    async def _follow(self, follower: Follower) -> None:
        while True:
            try:
                return await follower.run()
            except Exception:  # a bug here must cost hits, not the node: the lease runs out by itself
                logger.exception("feed: the follower failed and starts again")
            await asyncio.sleep(_RESTART_SECONDS)

    def _lane(self, parts: Components, settings: NodeSettings) -> FastLane:
        lane = FastLane(
            reader=parts.reader,
            keys=KeyRing(settings.secrets),
            fence=parts.fence,
            lease=parts.lease,
            clock=parts.clock,
            turn=parts.memory.turn,
            observe=parts.stats.hit.observe,
            observer=parts.stats,
            session_cookie=settings.session_cookie,
        )
        parts.stats.count_hits = lambda: lane.hits
        return lane

    async def _listen(self, app: Any, sock: Any, lane: FastLane | None = None) -> str:
        server = HttpServer(app, sock, lane=lane)
        await server.start()
        self._servers.append(server)
        return f"http://{server.address}"


def _router(health: Health) -> Starlette:
    """What the public port answers besides whoami."""
    endpoints = {"alive": health.alive, "ready": health.ready, "fresh": health.fresh}
    return Starlette(
        routes=[Route(f"/health/{name}", ask, methods=["GET", "HEAD"]) for name, ask in endpoints.items()],
        exception_handlers={404: _http_error, 405: _http_error},
    )


def _http_error(_request: Request, exc: Exception) -> Response:
    status = getattr(exc, "status_code", 500)
    message = "This node answers /sessions/whoami and /health/alive, /health/ready, /health/fresh."
    return Response(error_body(status, message), status, getattr(exc, "headers", None), "application/json")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def serve(settings: NodeSettings) -> int:
    """Run one node until SIGTERM or SIGINT; returns the exit status.  Raises CacheNodeError if it cannot start."""
    lines = LineHandler(sys.stderr.fileno())
    logging.basicConfig(
        level=settings.log_level.upper(), handlers=[lines], format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _allow_all_files()
    with contextlib.closing(lines), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


def _announce(line: str) -> None:
    """On stdout; a disk that is full behind it keeps no node from serving."""
    try:
        click.echo(line)
        sys.stdout.flush()
    except OSError as error:
        logger.warning("%s; stdout cannot take it: %s", line, os.strerror(error.errno or 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _allow_all_files() -> None:
    """Each client is a file: the usual soft limit of 1024 is not a node's, which has no use for select()."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(settings: NodeSettings) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Node(settings) as node:
        gc.collect()
        gc.freeze()  # what serves until the end need not be looked at again [18 ms a full collection]
        _announce(f"listening on {node.public_url} admin {node.admin_url}")
        await stopped.wait()
        logger.info("stopping: answering what is under way")
    return 0
