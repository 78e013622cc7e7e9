"""The demo origin: Kratos' session API from memory, for `cache-node demo` and for tests without a toolchain.

It promises the answers of Kratos v1.3.1 on `/sessions/whoami`, byte for byte but for what is new at every login, and
the shapes of login, logout and the admin API.  It is no identity provider: passwords are kept as given, everything is
gone when the object is, and only the `default` schema exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from cache_node.demo._admin import AdminEndpoints
from cache_node.demo._ports import Port
from cache_node.demo._public import PublicEndpoints
from cache_node.demo.accounts import Accounts
from cache_node.demo.api import SessionApi

OnChange = Callable[[str, str | None, str | None], Awaitable[None]]

CORS_ORIGIN = "http://app.example.test"


class DemoOrigin(SessionApi):
    """An origin on two loopback ports, in the current event loop; several may live in one process.

    `on_change(event_type, session_id, identity_id)` is awaited after each commit and before the answer, with the event
    types of the feed: `session.revoked`, `session.changed` (both ids), `identity.changed`, `identity.deleted` (identity
    id only).  When it raises, the change stays and the caller gets a 500.  Port 0 picks a free one, and `start` after
    `stop` takes the same again, with all identities and sessions.
    """

    def __init__(
        self,
        *,
        public_port: int = 0,
        admin_port: int = 0,
        lifespan_seconds: int = 86400,
        cors_origins: Sequence[str] = (CORS_ORIGIN,),
        on_change: OnChange | None = None,
    ) -> None:
        self.on_change = on_change
        self._accounts = Accounts(lifespan_seconds)
        self._public = Port(is_public=True, cors_origins=cors_origins)
        self._admin = Port(is_public=False)
        self._admin.requests = self._public.requests
        PublicEndpoints(self._public, self._accounts, lifespan_seconds, self._changed)
        self._admin_endpoints = AdminEndpoints(self._admin, self._accounts, self._changed)
        self._servers = [_Server(self._public.app, public_port), _Server(self._admin.app, admin_port)]

    @property
    def public_url(self) -> str:
        """Base URL of the public port."""
        return self._servers[0].url

    @property
    def admin_url(self) -> str:
        """Base URL of the admin port."""
        return self._servers[1].url

    @property
    def requests(self) -> Counter[str]:
        """How many requests came, by path (both ports together); may be cleared."""
        return self._public.requests

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; OSError when a port that was asked for is taken."""
        try:
            for server in self._servers:
                await server.start()
        except BaseException:
            await self.stop()
            raise
        self._accounts.public_url = self.public_url
        self._admin_endpoints.admin_url = self.admin_url

    async def stop(self) -> None:
        """Answer what is under way, for a second at most, and stop listening.  Harmless when not started."""
        await asyncio.gather(*(server.stop() for server in self._servers))

    def set_ready(self, is_ready: bool) -> None:
        """False: as if the database were away.  whoami answers 401, `/health/ready` 503, everything else 500."""
        self._public.is_ready = self._admin.is_ready = is_ready

    async def add_second_factor(self, token: str) -> None:
        """Make the session of `token` aal2, as setting up TOTP does; the identity's other sessions then answer 403."""
        session = self._accounts.add_second_factor(token)
        await self._changed("identity.changed", None, session.identity.id)

    async def _changed(self, event_type: str, session_id: str | None, identity_id: str | None) -> None:
        if self.on_change is not None:
            await self.on_change(event_type, session_id, identity_id)


class _Server(uvicorn.Server):
    """uvicorn as a task of the current event loop, on a socket of its own, leaving signals alone."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        # Kratos keeps idle connections for 120 s.  The date is among the headers that the app writes.
        config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=120,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.url = ""
        self._port = port
        self._task: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        # uvicorn's own renews a date that is not sent here, and looks ten times a second for the end.
        await self._stopped.wait()

    async def start(self) -> None:
        # The protocol is named because asyncio sets TCP_NODELAY only then [a keep-alive answer took 44 ms without].
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
        except OSError:
            listener.close()
            raise
        self._port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self.started = self.should_exit = self.force_exit = False
        self._stopped.clear()
        self._task = asyncio.create_task(self.serve([listener]))
        while not self.started and not self._task.done():  # noqa: ASYNC110  # uvicorn offers a flag, no event
            await asyncio.sleep(0.001)
        if self._task.done():
            await self._task  # raises what kept it from starting

    async def stop(self) -> None:
        if self._task is not None:
            self._stopped.set()
            await self._task
            self._task = None
