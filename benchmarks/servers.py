"""The servers that are measured, each as its own processes on one core, and what they cost there.

A child inherits the cores of the process that starts it (what taskset does), so all that it starts stays on its core.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from benchmarks.apps import COUNT_PATH
from cache_node.demo._children import end_child, last_line, start_child
from cache_node.embedded import DEFAULT_MAXMEMORY_BYTES, EmbeddedValkey
from cache_node.errors import CacheNodeError
from tests.e2e.processes import ServeProcess
from tests.waiting import eventually

SERVER_CORE, LOAD_CORE = 0, 1
START_SECONDS = 15.0
STOP_SECONDS = 5.0
APT_SECONDS = 300.0
ORIGIN_PORT = 9002
"""Where nginx.conf and varnish.vcl look for the origin."""
NGINX_PORT = 9010
NGINX_CACHE = Path("/dev/shm/ngc")  # noqa: S108  # as nginx.conf has it
BASELINES = Path(__file__).parent / "baselines"
CHECKOUT = Path(__file__).parents[1]
_LISTENING = re.compile(r"listening on (http://\S+)\n")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Server:
    """A running one; `pid` is the first of its processes."""

    url: str
    pid: int
    admin_url: str = ""

    @property
    def port(self) -> int:
        """Of its URL."""
        return urlsplit(self.url).port or 0

    def cpu_seconds(self) -> float:
        """Processor time of all its processes so far, those that have ended included, to 10 ms."""
        return sum(_ticks(pid) for pid in _family(self.pid)) / _TICKS


def _stat(pid: int) -> list[str]:
    # The name in parentheses may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _ticks(pid: int) -> int:
    # utime, stime, and the same of its children once they have ended
    return sum(int(field) for field in _stat(pid)[11:15])


def _family(pid: int) -> list[int]:
    """It, its children, and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started within runs on this core."""
    if core >= (os.cpu_count() or 1):
        raise CacheNodeError(f"there is no core {core}: a benchmark needs one for the server and one for the load")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.asynccontextmanager
async def beside_the_load(
    *command: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program on the core of the load, which ends with the block.  A Ctrl-C in the terminal is for us to act on."""
    with pinned(LOAD_CORE):
        process = await asyncio.create_subprocess_exec(
            *command, cwd=CHECKOUT, stdin=stdin, stdout=stdout, stderr=stderr, process_group=0
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def move(server: Server, *cores: int) -> None:
    """Let its processes run on these cores, which whoever started them kept to one."""
    for pid in _family(server.pid):
        os.sched_setaffinity(pid, cores)


def touch_memory(size_bytes: int) -> None:
    """Have a virtual machine given so many bytes of memory by its host, so that what grows then waits for none.

    [A node that keeps what it finds in Redis: 31 µs a hit in pages that were used before, 42 in others.]
    """
    subprocess.run([sys.executable, "-c", f"bytearray(b'x') * {size_bytes}"], check=True)


def tool(name: str, package: str) -> str:
    """The path of a program, which apt-get installs if it is not there.  Raises CacheNodeError if that fails."""
    found = shutil.which(name)
    if found is None:
        print(f"there is no {name}: apt-get install {package}", file=sys.stderr, flush=True)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, env=environment, capture_output=True, timeout=APT_SECONDS, check=False)
        found = shutil.which(name)
    if found is None:
        raise CacheNodeError(f"{name} is missing and could not be installed: apt-get install {package}")
    return found


def origin_count(origin: Server) -> int:
    """How many requests an origin of apps.py has answered."""
    with urlopen(origin.url + COUNT_PATH, timeout=5.0) as answer:  # noqa: S310  # a URL of ours
        return int(answer.read())


@contextlib.asynccontextmanager
async def _process(
    command: Sequence[str], directory: Path, url: str = "", end: signal.Signals = signal.SIGKILL
) -> AsyncIterator[Server]:
    """One that listens at `url`, or says where it does."""
    log = directory / "log"
    if url and _is_open(url):
        raise CacheNodeError(f"something listens at {url} already: another run of a benchmark?")
    with pinned(SERVER_CORE):
        process = start_child(command, log=log, directory=CHECKOUT, environment=os.environ, death_signal=end)
    try:

        def has_begun() -> bool:
            if process.poll() is not None:
                raise CacheNodeError(f"{Path(command[0]).name} did not start: {last_line(log)}")
            return _is_open(url) if url else _LISTENING.search(log.read_text()) is not None

        await eventually(has_begun, log.read_text, START_SECONDS)
        match = _LISTENING.search(log.read_text())
        yield Server(match[1] if match else url, process.pid)
    finally:
        await end_child(process, end, STOP_SECONDS)


def _is_open(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1.0).close()
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def python_app(name: str, *arguments: str) -> AsyncIterator[Server]:
    """One of apps.py."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        command = [sys.executable, "-m", "benchmarks.apps", name, *arguments]
        async with _process(command, Path(directory), end=signal.SIGTERM) as server:
            yield server


@contextlib.contextmanager
def pinned_valkey(maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES) -> Iterator[Server]:
    """A Valkey of its own."""
    with pinned(SERVER_CORE):
        valkey = EmbeddedValkey(maxmemory_bytes=maxmemory_bytes).start()
    try:
        yield Server(valkey.url, valkey.pid)
    finally:
        valkey.stop()


@contextlib.asynccontextmanager
async def node(origin: Server, redis_url: str | None = None, **settings: str) -> AsyncIterator[Server]:
    """`cache-node serve`, with an embedded Valkey if it is given none, once it may answer from its cache."""
    with pinned(SERVER_CORE):
        serve = ServeProcess(origin.url, redis_url, **settings)
        await serve.__aenter__()
    try:
        await eventually(lambda: _is_fresh(serve.public_url), lambda: serve.stderr, START_SECONDS)
        yield Server(serve.public_url, serve.process.pid, serve.admin_url)
    finally:
        await serve.__aexit__()


def _is_fresh(url: str) -> bool:
    try:
        with urlopen(f"{url}/health/fresh", timeout=1.0) as answer:  # noqa: S310  # a URL of ours
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.asynccontextmanager
async def nginx(origin: Server, *, open_file_cache: bool = False) -> AsyncIterator[Server]:
    """nginx.conf, or that with `open_file_cache`, which spares opening the cached file at each answer.

    But for one number: of 1,024 connections nginx keeps a sixteenth free, and hangs up on a thousand clients.
    """
    _expect_port(origin)
    configuration = (BASELINES / "nginx.conf").read_text().replace("connections 1024", "connections 4096")
    port, cache = NGINX_PORT, NGINX_CACHE
    if open_file_cache:
        port, cache = NGINX_PORT + 1, cache.with_name("ngc-open")
        configuration = (
            configuration.replace("access_log off;", "access_log off; open_file_cache max=10000;")
            .replace(f"listen 127.0.0.1:{NGINX_PORT};", f"listen 127.0.0.1:{port};")
            .replace(str(NGINX_CACHE), str(cache))
        )
    shutil.rmtree(cache, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        path = Path(directory)
        os.chmod(directory, 0o755)  # noqa: S103  # its worker has another user
        (path / "nginx.conf").write_text(configuration)
        command = [tool("nginx", "nginx-light"), "-p", directory, "-c", str(path / "nginx.conf")]
        async with _process(command, path, f"http://127.0.0.1:{port}", signal.SIGTERM) as server:
            yield server
    shutil.rmtree(cache, ignore_errors=True)


@contextlib.asynccontextmanager
async def varnish(origin: Server) -> AsyncIterator[Server]:
    """varnish.vcl, but for one word: without it Varnish's own rules heed Kratos' `no-store` and keep nothing."""
    _expect_port(origin)
    configuration = (BASELINES / "varnish.vcl").read_text()
    configuration = configuration.replace("set beresp.ttl = 60s;", "set beresp.ttl = 60s; return (deliver);")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        path = Path(directory)
        (path / "varnish.vcl").write_text(configuration)
        tool("gcc", "gcc")  # Varnish compiles its configuration
        port = _free_port()
        where = ["-F", "-j", "none", "-n", directory, "-a", f"127.0.0.1:{port}", "-s", "malloc,256m"]
        command = [tool("varnishd", "varnish"), *where, "-f", str(path / "varnish.vcl")]
        async with _process(command, path, f"http://127.0.0.1:{port}", signal.SIGTERM) as server:
            yield server


@contextlib.asynccontextmanager
async def floor() -> AsyncIterator[Server]:
    """floor.c: one constant answer to every read."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        binary = compiled(BASELINES / "floor.c", Path(directory))
        port = _free_port()
        async with _process([binary, str(port)], Path(directory), f"http://127.0.0.1:{port}") as server:
            yield server


def compiled(source: Path, directory: Path) -> str:
    """The path of the program of a C file."""
    binary = directory / source.stem
    command = [tool("gcc", "gcc"), "-O2", "-w", "-o", str(binary), str(source), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)
    if done.returncode:
        raise CacheNodeError(f"{source.name} does not compile (apt-get install libc6-dev?): {done.stderr}")
    return str(binary)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _expect_port(origin: Server) -> None:
    if origin.port != ORIGIN_PORT:
        raise CacheNodeError(f"the baselines' configuration has its origin on port {ORIGIN_PORT}")


Start = Callable[[Server], AbstractAsyncContextManager[Server]]

SERVERS: dict[str, Start] = {
    "node": node,
    "floor": lambda _origin: floor(),
    "nginx": nginx,
    "nginx-open": lambda origin: nginx(origin, open_file_cache=True),
    "varnish": varnish,
    "raw": lambda origin: python_app("raw", "--origin", origin.url),
    "starlette": lambda origin: python_app("starlette", "--origin", origin.url),
    "redis": lambda origin: python_app("redis", "--origin", origin.url),
}
