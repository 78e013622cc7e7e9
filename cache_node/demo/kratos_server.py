"""A real Kratos on a real Postgres, both throw-away children of this process, on free loopback ports.

For tests and `cache-node demo --origin kratos`.  Nothing here is a way to run Kratos for people.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import socket
import string
import struct
import subprocess
import tempfile
import time
import weakref
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from cache_node.demo._children import end_child, last_line, poll_until, start_child
from cache_node.demo.api import SessionApi
from cache_node.demo.kratos_build import Progress, build_kratos, print_progress
from cache_node.demo.postgres_server import PostgresServer, StopMode, find_installation
from cache_node.errors import CacheNodeError

CORS_ORIGIN = "http://app.example.test"
TOKENIZER_TEMPLATE = "jwt1"

_START_ATTEMPTS = 3
_FILES = ("kratos.yml", "identity.schema.json", "claims.jsonnet")


class KratosServer(SessionApi):
    """Kratos v1.3.1 with password, TOTP and codes, CORS for `CORS_ORIGIN` and the tokenizer template `jwt1`.

    `build_directory` holds the binary between runs (None: see `kratos_build.default_build_directory`);
    `lifespan_seconds` is that of sessions and cookies.  The object belongs to no event loop, but `start` and
    `start_database` must be called in a thread that outlives the server, as the main thread does (see `_children`).
    Its processes end with this one, even by SIGKILL; its directory is removed by `stop` and at every normal exit.
    """

    def __init__(
        self,
        build_directory: Path | None = None,
        *,
        lifespan_seconds: int = 86400,
        progress: Progress = print_progress,
    ) -> None:
        self._build_directory = build_directory
        self._lifespan_seconds = lifespan_seconds
        self._progress = progress
        self._public_port = self._admin_port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._postgres: PostgresServer | None = None
        self._directory: Path | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._abandon: weakref.finalize[..., KratosServer] | None = None

    @property
    def public_url(self) -> str:
        """Base URL of the public port; its value is Kratos' `base_url` too, apart from the trailing slash."""
        return f"http://127.0.0.1:{self._public_port}"

    @property
    def admin_url(self) -> str:
        """Base URL of the admin port."""
        return f"http://127.0.0.1:{self._admin_port}"

    @property
    def dsn(self) -> str:
        """URL of its database, for a superuser."""
        return self._started_postgres().dsn

    @property
    def jwks_path(self) -> Path:
        """The file with the private ES256 key that signs tokens of the template `jwt1`."""
        return self._existing_directory() / "jwks.json"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, timeout_seconds: float = 60.0) -> None:
        """Build Kratos if need be, start both servers and return when `/health/ready` says 200.

        The build has its own deadline.  Raises CacheNodeError with one line saying what is missing or failed.
        """
        find_installation()  # before the minutes that a build takes
        binary = await build_kratos(self._build_directory, progress=self._progress)
        self._directory = Path(tempfile.mkdtemp(prefix="cache-node-kratos-"))
        self._directory.chmod(0o711)  # Postgres runs as another user when this is root
        self._postgres = PostgresServer(self._directory / "postgres")
        self._children = []
        self._abandon = weakref.finalize(self, _abandon, self._postgres, self._children, self._directory)
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._postgres.start()
                await self._migrate(binary)
                await self._serve(binary)
        except TimeoutError:
            reason = last_line(self._log)
            await self.stop()
            raise CacheNodeError(f"Kratos was not ready within {timeout_seconds:.0f} s: {reason}") from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop both servers and remove their directory.  Harmless when they are not running."""
        if self._process is not None:
            await end_child(self._process, signal.SIGTERM, timeout_seconds=5.0)
            self._process = None
        if self._postgres is not None:
            await self._postgres.stop("immediate")  # what it holds is thrown away
            self._postgres = None
        if self._abandon is not None:
            self._abandon()

    async def stop_database(self, mode: StopMode = "fast") -> None:
        """Stop Postgres, so that whoami answers 401 to everybody and `/health/ready` 503."""
        await self._started_postgres().stop(mode)

    async def start_database(self) -> None:
        """Start Postgres unless it runs; return when *it* takes connections.  Kratos' readiness follows by itself."""
        await self._started_postgres().start()

    async def wait_ready(self, timeout_seconds: float = 30.0) -> None:
        """Return when `/health/ready` says 200; CacheNodeError after `timeout_seconds`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not await self.is_ready():  # noqa: ASYNC110  # another process: there is no event to wait for
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise CacheNodeError(f"Kratos not ready after {timeout_seconds:.0f} s: {last_line(self._log)}") from None

    async def add_second_factor(self, token: str) -> None:
        """Add TOTP in the session of `token`, which becomes aal2; the identity's other sessions then answer 403."""
        headers = {"X-Session-Token": token, "Accept": "application/json"}
        started = await self.request("GET", f"{self.public_url}/self-service/settings/api", headers=headers)
        flow: dict[str, Any] = json.loads(started.body)
        secret = next(
            node["attributes"]["text"]["text"]
            for node in flow["ui"]["nodes"]
            if node["attributes"].get("id") == "totp_secret_key"
        )
        form = {"method": "totp", "totp_code": _totp(secret)}
        done = await self.request("POST", flow["ui"]["action"], headers=headers, json=form)
        if done.status != 200:
            raise CacheNodeError(f"adding TOTP answered {done.status}")

    @property
    def _log(self) -> Path:
        return self._existing_directory() / "kratos.log"

    def _existing_directory(self) -> Path:
        if self._directory is None:
            raise CacheNodeError("this KratosServer has not been started")
        return self._directory

    def _started_postgres(self) -> PostgresServer:
        if self._postgres is None:
            raise CacheNodeError("this KratosServer is not running")
        return self._postgres

    async def _migrate(self, binary: Path) -> None:
        process = self._spawn([str(binary), "migrate", "sql", "-e", "--yes"])
        try:
            await poll_until(lambda: process.poll() is not None, 60.0)
        finally:
            await end_child(process, signal.SIGKILL, 5.0)
        if process.returncode != 0:
            raise CacheNodeError(f"kratos migrate failed: {last_line(self._log)}")

    async def _serve(self, binary: Path) -> None:
        """Serve; with other ports when somebody took one between our look and Kratos' bind."""
        for _ in range(_START_ATTEMPTS):
            self._public_port, self._admin_port = _free_ports()
            config = self._write_files()
            process = self._process = self._spawn([str(binary), "serve", "-c", str(config), "--dev"])
            while process.poll() is None:
                if await self.is_ready():
                    return
                await asyncio.sleep(0.02)
        raise CacheNodeError(f"kratos serve does not stay up: {last_line(self._log)}")

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        directory = self._existing_directory()
        environment = {**os.environ, "DSN": self.dsn}
        process = start_child(command, log=self._log, directory=directory, environment=environment)
        self._children.append(process)
        return process

    def _write_files(self) -> Path:
        """Write the configuration and what it names; return its path."""
        directory = self._existing_directory()
        names = {
            "directory": directory,
            "public_port": self._public_port,
            "admin_port": self._admin_port,
            "cookie_secret": secrets.token_hex(16),
            "cipher_secret": secrets.token_hex(16),
            "lifespan_seconds": self._lifespan_seconds,
        }
        for name in _FILES:
            text = (files("cache_node.demo") / "kratos" / name).read_text()
            # Only the configuration has holes: `$` has a meaning of its own in JSON Schema.
            (directory / name).write_text(string.Template(text).substitute(names) if name == "kratos.yml" else text)
        self.jwks_path.write_text(json.dumps(_new_jwks()))
        self.jwks_path.chmod(0o600)
        return directory / "kratos.yml"


def _abandon(postgres: PostgresServer, children: list[subprocess.Popen[bytes]], directory: Path) -> None:
    """What is left to do at exit when nobody called `stop`: end what runs, then remove its files."""
    for process in (*children, *([postgres.process] if postgres.process is not None else [])):
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)  # Postgres: at once, its backends too; Kratos: at once
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)
            process.kill()
            process.wait()
    shutil.rmtree(directory, ignore_errors=True)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _new_jwks() -> dict[str, Any]:
    """A JSON Web Key Set (RFC 7517) of one new private P-256 key for ES256; Kratos requires `alg`."""
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    public = numbers.public_numbers
    members = {"x": public.x, "y": public.y, "d": numbers.private_value}
    encoded = {
        name: base64.urlsafe_b64encode(value.to_bytes(32, "big")).rstrip(b"=").decode()
        for name, value in members.items()
    }
    return {"keys": [{"kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "alg": "ES256", **encoded}]}


def _totp(secret: str) -> str:
    """The six digits of now for a base32 secret (RFC 6238, SHA-1, 30 s)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.digest(key, struct.pack(">Q", int(time.time()) // 30), hashlib.sha1)
    offset = digest[-1] & 15
    number = struct.unpack_from(">I", digest, offset)[0] & 0x7FFFFFFF
    return f"{number % 1_000_000:06}"
