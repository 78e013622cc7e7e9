"""`python -m benchmarks.hit`: what a hit costs, beside what else could answer it.

Servers: the node; `floor`, a C program that writes one constant and is no HTTP server; nginx `proxy_cache`, as usual
and with `open_file_cache`; Varnish; an ASGI function and a Starlette route with a dictionary; and the route with a 60 s
Redis key that is usually written.  In each round they are loaded in turn.  Server CPU a request is that of all its
processes, the Redis of the route and of the node included.  wrk knows whole seconds only, so --seconds are rounded up.
Exit status 1: the node costs more than is promised.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import report
from benchmarks.checks import check
from benchmarks.load import Load, run_wrk_list
from benchmarks.servers import ORIGIN_PORT, SERVERS, Server, python_app
from benchmarks.sessions import BODY_BYTES, COOKIE_NAME, body_of, cookie_of, token_of
from tests.command_lines import exit_status

_BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "application/json, text/plain, */*",
    "Accept-Language": "en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://app.example.test/dashboard",
    "Sec-Fetch-Dest": "empty",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Site": "same-origin",
    "Priority": "u=4",
    "DNT": "1",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One way to ask; each differs from `one` in one thing."""

    about: str
    credentials: int = 1
    connections: int = 32
    body_bytes: int = BODY_BYTES
    cookie: bool = False
    trace: bool = False
    longer: int = 1
    """So many times the seconds of the others."""
    headers: Mapping[str, str] = field(default_factory=dict)

    def requests(self) -> dict[str, bytes]:
        """The header line of each credential, and the body that it must get."""
        asked = {}
        for number in range(self.credentials):
            token = token_of(number, self.body_bytes)
            cookie = f"Cookie: {COOKIE_NAME}={cookie_of(number, self.body_bytes)}"
            asked[cookie if self.cookie else f"X-Session-Token: {token}"] = body_of(token) or b""
        return asked


CASES = {
    "one": Case("one token, 32 connections, 1.5 KB"),
    "thousand": Case("1,000 tokens in turn", credentials=1000),
    "trace": Case("another traceparent each time", trace=True),
    "cookie": Case("a cookie", cookie=True),
    "browser": Case("a browser's ten headers", headers=_BROWSER),
    "4kb": Case("a body of 4 KB", body_bytes=4096),
    "16kb": Case("a body of 16 KB", body_bytes=16384),
    "alone": Case("1 connection", connections=1),
    # The first requests of all, which wait for 1,000 to be let in, must be far fewer than one in a hundred.
    "crowd": Case("1,000 connections", connections=1000, longer=4),
}

PROMISES = (
    ("one", "floor", 1.6),
    ("one", "nginx", 0.65),
    ("trace", "nginx", 0.8),
    ("thousand", "floor", 2.4),
    ("thousand", "nginx", 0.85),
)
"""Case, baseline, and how many times its CPU a request the node may take."""


@dataclass(frozen=True, slots=True)
class Round:
    """One server, once."""

    cpu_us: float
    load: Load


Rounds = dict[str, list[Round]]


async def measure(case: Case, servers: Mapping[str, Server], origin: Server, options: argparse.Namespace) -> Rounds:
    """All rounds of one case; every other one goes the other way round."""
    rounds: Rounds = {name: [] for name in servers}
    requests = case.requests()
    for number in range(options.rounds):
        for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
            server = servers[name]
            await check(name, server, origin, requests)
            before = server.cpu_seconds()
            load = await run_wrk_list(
                server.url,
                options.seconds * case.longer,
                [*requests],
                headers=case.headers,
                trace=case.trace,
                connections=case.connections,
                least_bytes=0 if name == "floor" else case.body_bytes,
            )
            cpu_us = (server.cpu_seconds() - before) / load.requests * 1e6
            rounds[name].append(Round(cpu_us, load))
            report.progress(
                f"{case.about}, round {number + 1}: {name} {cpu_us:.1f} µs, {load.requests / load.seconds:.0f}/s"
            )
    return rounds


def ratios(rounds: Rounds, name: str, base: str) -> list[float]:
    """CPU a request of one server by another's, round by round; nothing if one of them was left out."""
    pairs = zip(rounds.get(name, ()), rounds.get(base, ()), strict=False)
    return [one.cpu_us / other.cpu_us for one, other in pairs]


def rows(rounds: Rounds) -> list[list[str]]:
    """The table of a case: medians, and where the rounds lay."""
    heads = ["server", "CPU µs a request", "× floor", "× nginx", "requests/s", "p50 ms", "p99 ms", "p99.9 ms"]
    made = [heads]
    for name, each in rounds.items():
        relative = [ratios(rounds, name, base) for base in ("floor", "nginx")]
        row = [name, report.spread([one.cpu_us for one in each])]
        row += [report.spread(values) if values else "-" for values in relative]
        row.append(f"{statistics.median(one.load.requests / one.load.seconds for one in each):.0f}")
        for percentile in ("p50", "p99", "p999"):
            row.append(f"{statistics.median(getattr(one.load, percentile) for one in each) * 1000:.3g}")
        made.append(row)
    return made


def judge(results: Mapping[str, Rounds]) -> report.Verdicts:
    """What is promised of each case and baseline that was measured, and whether it holds."""
    verdicts = []
    for case, base, limit in PROMISES:
        values = ratios(results.get(case, {}), "node", base)
        if values:
            median = statistics.median(values)
            verdicts.append((f"{case}: {median:.3f} × {base}, at most {limit}", median <= limit))
    return verdicts


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    results: dict[str, Rounds] = {}
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin", "--port", str(ORIGIN_PORT)))
        servers = {name: await stack.enter_async_context(SERVERS[name](origin)) for name in options.servers}
        for name in options.cases:
            results[name] = await measure(CASES[name], servers, origin, options)
            print(report.table(f"{name}: {CASES[name].about}", rows(results[name])), flush=True)
    verdicts = judge(results)
    found: dict[str, Any] = {
        "cases": {
            case: {name: [asdict(one) for one in each] for name, each in r.items()} for case, r in results.items()
        },
        "promises": report.shown(verdicts),
    }
    report.write(options.results, "hit", found)
    return report.judged(verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = report.parser("hit", __doc__)
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES)
    parser.add_argument("--servers", nargs="+", default=[*SERVERS], choices=SERVERS)
    return report.run(bench(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
