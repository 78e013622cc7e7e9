"""What is asked: nodes and their origin, given by URLs, or started here with a Valkey and then broken.

`DemoRegion` starts processes and blocks; under locust, which patches the standard library, the users go on meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from cache_node.demo._children import last_line, start_child
from cache_node.embedded import EmbeddedValkey
from cache_node.errors import CacheNodeError
from loadtest.results import Results

START_SECONDS = 30.0
VALKEY_AWAY_SECONDS = 5.0
NODE_AWAY_SECONDS = 3.0
_POLL_SECONDS = 0.02
_CHECKOUT = Path(__file__).parents[1]
_LISTENING = re.compile(r"listening on (http://\S+) admin (http://\S+)\n")
_ANY_PORT = "127.0.0.1:0"


@dataclass(frozen=True, slots=True)
class Service:
    """A node or an origin, by the URLs of its two ports."""

    public_url: str
    admin_url: str


class Region:
    """Nodes of one feed and their origin, which somebody else runs."""

    def __init__(self, nodes: Sequence[Service], origin: Service) -> None:
        self.nodes = tuple(nodes)
        self.origin = origin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def break_things(self, results: Results, seconds: float) -> None:
        """Nothing: they are not ours."""


class DemoRegion(Region):
    """An embedded Valkey, the demo origin and two nodes, each a process of its own that ends with this one."""

    def __init__(self, max_staleness_seconds: float) -> None:
        self._max_staleness_seconds = max_staleness_seconds
        self._valkey = EmbeddedValkey()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._secrets = secrets.token_urlsafe(48)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="loadtest-"))
            self._directory = Path(directory)
            stack.callback(self._end)
            self._valkey.start()
            origin = self._start("origin", "loadtest.origin")
            super().__init__([], origin)
            self.nodes = tuple(self._start_node(name, _ANY_PORT, _ANY_PORT) for name in ("a", "b"))
            for node in self.nodes:
                _until(lambda: _is_fresh(node), f"{node.public_url} is not fresh")  # noqa: B023  # called at once
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def break_things(self, results: Results, seconds: float) -> None:
        """In a run of `seconds` that begins now, stop Valkey after a quarter and kill a node in the middle.

        Valkey is killed and another one started on its port: the feed is lost, and a new generation begins.  In runs of
        less than 40 s both are away for a shorter time.
        """
        begun = time.monotonic()
        _sleep_until(begun + seconds / 4)
        with results.fault("Valkey is away, then empty"):
            port = self._valkey.port
            self._valkey.stop()
            time.sleep(min(VALKEY_AWAY_SECONDS, seconds / 8))
            self._valkey = EmbeddedValkey(port).start()
        _sleep_until(begun + seconds / 2)
        with results.fault("node b is killed, then started"):
            self._kill("node-b")
            time.sleep(min(NODE_AWAY_SECONDS, seconds / 8))
            node = self.nodes[1]
            self._start_node("b", node.public_url.removeprefix("http://"), node.admin_url.removeprefix("http://"))

    def _start_node(self, name: str, listen: str, admin_listen: str) -> Service:
        settings = {
            "ORIGIN_URL": self.origin.public_url,
            "REDIS_URL": self._valkey.url,
            "SECRETS": self._secrets,
            "LISTEN": listen,
            "ADMIN_LISTEN": admin_listen,
            "MAX_STALENESS_SECONDS": str(self._max_staleness_seconds),
            "NODE_ID": name,
        }
        return self._start(f"node-{name}", "cache_node", "serve", **settings)

    def _start(self, name: str, module: str, *arguments: str, **settings: str) -> Service:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CACHE_NODE_")}
        environment |= {f"CACHE_NODE_{key}": value for key, value in settings.items()}
        log = self._directory / f"{name}.log"
        log.unlink(missing_ok=True)
        command = [sys.executable, "-m", module, *arguments]
        process = start_child(command, log=log, directory=_CHECKOUT, environment=environment)
        self._processes[name] = process

        def has_begun() -> bool:
            return process.poll() is not None or _LISTENING.search(log.read_text()) is not None

        _until(has_begun, f"{name} does not listen")
        match = _LISTENING.search(log.read_text())
        if match is None:
            raise CacheNodeError(f"{name} did not start: {last_line(log)}")
        return Service(match[1], match[2])

    def _kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _end(self) -> None:
        for name in list(self._processes):
            self._kill(name)
        self._valkey.stop()


def _is_fresh(node: Service) -> bool:
    try:
        with urlopen(f"{node.public_url}/health/fresh", timeout=1.0) as answer:  # noqa: S310  # a URL of ours
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise CacheNodeError(f"{otherwise} within {START_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))
