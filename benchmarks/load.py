"""Requests to a server of this machine from its other core, bounded in connections and seconds.

Closed loop by wrk, open loop by a program of ours.
"""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from benchmarks.servers import beside_the_load, tool
from cache_node.errors import CacheNodeError
from cache_node.sessions.origin import WHOAMI_PATH

OPEN_LOOP = Path(__file__).with_name("open_loop.c")
SCRIPT = Path(__file__).with_name("load.lua")

TIMEOUT_SECONDS = 10
"""A server that lets newcomers wait, as uvicorn does when many are busy, is slow and no failure."""


class BadAnswerError(CacheNodeError):
    """A server gave an answer that is none to compare."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a run; latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    p999: float
    max: float


async def run_wrk(
    url: str,
    seconds: float,
    arguments: Sequence[str],
    *,
    headers: Mapping[str, str] = MappingProxyType({}),
    connections: int,
    least_bytes: int,
) -> Load:
    """Closed loop: each of so many connections asks as soon as it has its answer; see load.lua for the arguments.

    wrk knows whole seconds only.  Raises BadAnswerError if an answer was not 2xx, or was shorter than `least_bytes`.
    """
    how = [
        "-t1",
        f"-c{connections}",
        f"-d{math.ceil(seconds)}s",
        f"--timeout={TIMEOUT_SECONDS}s",
        "-s",
        str(SCRIPT),
        url + WHOAMI_PATH,
    ]
    for header, value in headers.items():
        how += ["-H", f"{header}: {value}"]
    pipe, same = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    async with beside_the_load(tool("wrk", "wrk"), *how, "--", *arguments, stdout=pipe, stderr=same) as process:
        output = (await process.communicate())[0].decode(errors="replace")
    last = output.rstrip().rpartition("\n")[2]
    if process.returncode or not last.startswith("{"):
        raise BadAnswerError(f"wrk at {url}: {output}")
    figures = json.loads(last)
    failed, size = figures.pop("failed"), figures.pop("bytes")
    if failed or not figures["requests"]:
        raise BadAnswerError(f"{url}: {failed} of {figures['requests']} requests got no 2xx: {output}")
    if size < least_bytes * figures["requests"]:
        raise BadAnswerError(f"{url}: {size} bytes are too few for {figures['requests']} answers")
    return Load(**figures)


async def run_wrk_list(
    url: str,
    seconds: float,
    header_lines: Sequence[str],
    *,
    headers: Mapping[str, str],
    trace: bool,
    connections: int,
    least_bytes: int,
) -> Load:
    """`run_wrk` with these credentials in turn, and the same further headers on each request."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as lines:
        lines.write("\n".join(header_lines) + "\n")
        lines.flush()
        arguments = ["list", lines.name, *(["trace"] if trace else [])]
        return await run_wrk(url, seconds, arguments, headers=headers, connections=connections, least_bytes=least_bytes)


async def run_wrk_fresh(url: str, seconds: float, first: int, count: int, *, body_bytes: int, connections: int) -> Load:
    """`run_wrk` with the tokens numbered from `first` on, one request each until `count` have been used."""
    arguments = ["fresh", str(first), str(count), str(body_bytes)]
    return await run_wrk(url, seconds, arguments, connections=connections, least_bytes=body_bytes)


async def run_open_loop(
    binary: str, url: str, rate: float, seconds: float, *, token: str, connections: int
) -> list[float]:
    """Requests at a fixed rate: seconds from when each was due to its answer, infinite if there was none a second after
    the last was due.  `binary` is OPEN_LOOP, compiled.  Raises BadAnswerError if an answer was not 200.
    """
    parts = urlsplit(url)
    arguments = [str(parts.port), str(rate), str(seconds), str(connections)]
    request = f"GET {WHOAMI_PATH} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Session-Token: {token}\r\n\r\n"
    pipe = asyncio.subprocess.PIPE
    async with beside_the_load(binary, *arguments, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        output, errors = await process.communicate(request.encode())
    took = array("f", output).tolist()
    if process.returncode or any(seconds < 0 for seconds in took):
        raise BadAnswerError(f"{url} at {rate:g}/s: {errors.decode(errors='replace') or 'an answer was not 200'}")
    return took
