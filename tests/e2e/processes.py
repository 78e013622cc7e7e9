"""`cache-node serve` as an operator starts it: a process of its own, with the environment it is given."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Self

from tests.waiting import eventually

SECRET = "s" * 40
"""Of a node that is given a Redis."""
_LISTENING = re.compile(r"listening on (http://\S+) admin (http://\S+)\n")


class ServeProcess:
    """One node in its own process; `stderr` collects its log."""

    def __init__(self, origin_url: str, redis_url: str | None = None, **settings: str) -> None:
        given: dict[str, str] = {
            "CACHE_NODE_ORIGIN_URL": origin_url,
            "CACHE_NODE_LISTEN": "127.0.0.1:0",
            "CACHE_NODE_ADMIN_LISTEN": "127.0.0.1:0",
        }
        if redis_url is not None:
            given |= {"CACHE_NODE_REDIS_URL": redis_url, "CACHE_NODE_SECRETS": SECRET}
        given |= {f"CACHE_NODE_{name.upper()}": value for name, value in settings.items()}
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("CACHE_NODE_")} | given
        self.stderr = ""
        self.public_url = ""
        self.admin_url = ""

    async def __aenter__(self) -> Self:
        self.process = start(["serve"], self._environment)
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        line = self.process.stdout.readline() if self.process.stdout else ""
        match = _LISTENING.fullmatch(line)
        if match is None:
            self.process.kill()
            raise AssertionError(f"serve said {line!r} on stdout and on stderr: {self.stderr}")
        self.public_url, self.admin_url = match[1], match[2]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read_log(self) -> None:
        if self.process.stderr is not None:
            for line in self.process.stderr:
                self.stderr += line

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, timeout_seconds: float) -> int:
        """Its exit status, once it has ended."""
        await eventually(
            lambda: self.process.poll() is not None, lambda: f"still running; its log: {self.stderr}", timeout_seconds
        )
        return self.process.returncode


def start(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """`cache-node` with `arguments`, its pipes open."""
    return subprocess.Popen(
        [sys.executable, "-m", "cache_node", *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
