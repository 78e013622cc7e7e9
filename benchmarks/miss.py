"""`python -m benchmarks.miss`: what it costs when the memory tier does not know.

`tiers`: nodes over one Valkey.  In each round a node reads sessions cold; then new nodes, one after the other, give
memory hits for a second and find those sessions in Redis for the next, as nodes do that have just started; so does
one whose memory is full; each for 32 readers.  Then one reader reads cold through a node and past it, whose difference
is what the node adds.  `kratos`: the same at a real Kratos, if one can be had; the first time it is built, which needs
Go and takes minutes.  `crowd`: 1,000 readers ask four nodes at once for a session that nobody knows: the origin should
be asked once, for one node has the fill lock.  Exit status 1: it costs more than is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import aiohttp
import redis

from benchmarks import beside_kratos, report
from benchmarks.beside_kratos import Beside
from benchmarks.checks import check
from benchmarks.load import BadAnswerError, Load, run_wrk_fresh, run_wrk_list
from benchmarks.servers import Server, node, origin_count, pinned_valkey, python_app, touch_memory
from benchmarks.sessions import BODY_BYTES, body_of, token_of
from cache_node.errors import CacheNodeError
from cache_node.sessions.origin import WHOAMI_PATH
from tests.command_lines import exit_status
from tests.waiting import eventually

CASES = ("tiers", "kratos", "crowd")
READERS = 32
NODES = 4
CROWD = 1000
ORIGIN_DELAY_SECONDS = 0.03
"""What Kratos takes under load, so that the crowd is there before the first answer is."""
COLD_FACTOR = 24
"""Sessions are read cold for so many times longer than they are found in Redis, which is quicker."""
NEW_NODES = 3
"""In each round.  Hits in memory and in Redis are compared that are seconds apart: a shared machine's pace changes."""
FULL = "redis, memory full"
LITTLE_BYTES = 16 * 1024 * 1024
"""So much memory is soon full."""
TOUCHED_BYTES = 512 * 1024 * 1024
"""More than a node's memory grows while it is measured."""
APART = 10_000_000
"""Between the first sessions of two runs."""
STRAY_SHARE = 0.01
REDIS_TIMES_MEMORY = 8
COLD_ADDS_AT_MOST = 0.2
CROWD_ASKS_AT_MOST = 1


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one way to answer: CPU a request of the node and of Valkey, in µs, and what the readers saw."""

    node_us: float
    valkey_us: float
    load: Load

    @property
    def all_us(self) -> float:
        """Of both."""
        return self.node_us + self.valkey_us


@dataclass(frozen=True, slots=True)
class Compared:
    """With the memory hits that were measured next to it."""

    cost: Cost
    memory: Cost

    @property
    def times_memory(self) -> float:
        """CPU of all processes by that of a memory hit."""
        return self.cost.all_us / self.memory.all_us


class Region:
    """A node that reads cold, its Valkey and its origin; and others that are asked."""

    def __init__(self, first: Server, valkey: Server, origin: Server, seconds: float) -> None:
        self._first, self._valkey, self._origin = first, valkey, origin
        self._seconds = seconds
        self._next = APART

    async def memory(self, asked: Server) -> Cost:
        """A node, asked for one session again and again."""
        token = token_of(0)
        line, body = f"X-Session-Token: {token}", body_of(token) or b""
        await check("node", asked, self._origin, {line: body})
        spent = self._meter(asked)
        load = await run_wrk_list(
            asked.url, self._seconds, [line], headers={}, trace=False, connections=READERS, least_bytes=len(body)
        )
        return spent(load)

    async def cold(self) -> tuple[Cost, int]:
        """The first node, asked for sessions that are new to all; and the number of the first one."""
        first = self._take()
        report.progress(f"a node reads sessions cold for {self._seconds * COLD_FACTOR:g} s, which Redis has then")
        spent = self._meter(self._first)
        cold = spent(await self._fresh(self._first, first, APART, READERS, self._seconds * COLD_FACTOR))
        report.progress(f"it has read {cold.load.requests}")
        with redis.Redis.from_url(self._valkey.url) as client:
            await eventually(_at_rest(client), lambda: "Valkey still gets entries", 10.0)
        touch_memory(TOUCHED_BYTES)
        return cold, first

    async def redis(self, asked: Server, first: int, count: int) -> Cost:
        """A node, asked for so many sessions that are in Redis."""
        spent, before = self._meter(asked), origin_count(self._origin)
        found = spent(await self._fresh(asked, first, count, READERS, self._seconds))
        strays = origin_count(self._origin) - before
        if found.load.requests > count or strays > STRAY_SHARE * found.load.requests:
            raise BadAnswerError(f"of {found.load.requests} reads {strays} were cold, {count} may be in Redis")
        return found

    async def added(self) -> float:
        """By how much a cold read on one connection is slower at p50 than the origin, in seconds."""
        through, past = [
            await self._fresh(server, self._take(), APART, 1, self._seconds) for server in (self._first, self._origin)
        ]
        return through.p50 - past.p50

    def _take(self) -> int:
        self._next += APART
        return self._next - APART

    async def _fresh(self, server: Server, first: int, count: int, connections: int, seconds: float) -> Load:
        return await run_wrk_fresh(server.url, seconds, first, count, body_bytes=BODY_BYTES, connections=connections)

    def _meter(self, server: Server) -> _Meter:
        return _Meter(server, self._valkey)


class _Meter:
    """CPU from its making to its call."""

    def __init__(self, node: Server, valkey: Server) -> None:
        self._servers = (node, valkey)
        self._before = [server.cpu_seconds() for server in self._servers]

    def __call__(self, load: Load) -> Cost:
        pairs = zip(self._servers, self._before, strict=True)
        node_us, valkey_us = [(server.cpu_seconds() - before) / load.requests * 1e6 for server, before in pairs]
        return Cost(node_us, valkey_us, load)


def _at_rest(client: redis.Redis) -> Callable[[], bool]:
    """Whether Valkey has as many keys as at the last question."""
    last = -1

    def is_at_rest() -> bool:
        nonlocal last
        before, last = last, int(str(client.dbsize()))
        return before == last

    return is_at_rest


async def crowd(nodes: Sequence[Server], origin: Server, number: int) -> tuple[int, float]:
    """Requests of the origin for so many readers at once of one new session, and the seconds until all have it."""
    token = token_of(number)
    before = origin_count(origin)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def read(server: Server) -> bytes:
            async with client.get(server.url + WHOAMI_PATH, headers={"X-Session-Token": token}) as answer:
                return await answer.read()

        begun = asyncio.get_running_loop().time()
        bodies = await asyncio.gather(*(read(nodes[reader % len(nodes)]) for reader in range(CROWD)))
        took = asyncio.get_running_loop().time() - begun
    if set(bodies) != {body_of(token)}:
        raise BadAnswerError("not every reader got the session")
    return origin_count(origin) - before, took


async def measure_tiers(options: argparse.Namespace) -> tuple[dict[str, list[Compared]], list[float]]:
    """Costs by tier, and what a cold read adds, round by round; printed, too, as the other cases do."""
    costs: dict[str, list[Compared]] = {"memory": [], "redis": [], FULL: [], "cold": []}
    added = []
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin"))
        valkey = stack.enter_context(pinned_valkey())
        first = await stack.enter_async_context(node(origin, valkey.url))
        full = await stack.enter_async_context(node(origin, valkey.url, memory_bytes=str(LITTLE_BYTES)))
        region = Region(first, valkey, origin, options.seconds)
        for number in range(options.rounds):
            cold, number_of_first = await region.cold()
            sessions = number_of_first, cold.load.requests
            memory = await region.memory(first)
            costs["cold"].append(Compared(cold, memory))
            costs[FULL].append(Compared(await region.redis(full, *sessions), memory))
            for _ in range(NEW_NODES):
                async with node(origin, valkey.url) as new:
                    memory = await region.memory(new)
                    costs["memory"].append(Compared(memory, memory))
                    costs["redis"].append(Compared(await region.redis(new, *sessions), memory))
            report.progress(f"round {number + 1}: memory and redis")
            added.append(await region.added())
            report.progress(f"round {number + 1}: cold on one connection")
    print(report.table(f"{READERS} readers", rows(costs)))
    print(f"\na cold read on one connection adds {report.spread([one * 1e6 for one in added])} µs to the origin's p50")
    return costs, added


async def measure_crowd(options: argparse.Namespace) -> list[tuple[int, float]]:
    """`crowd` at four nodes, round by round."""
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin", "--delay-seconds", str(ORIGIN_DELAY_SECONDS)))
        valkey = stack.enter_context(pinned_valkey())
        nodes = [await stack.enter_async_context(node(origin, valkey.url)) for _ in range(NODES)]
        crowds = [await crowd(nodes, origin, number) for number in range(options.rounds)]
    asked, took = zip(*crowds, strict=True)
    print(
        f"{CROWD} readers of one new session at {NODES} nodes cost the origin {report.spread(asked)} requests", end=""
    )
    print(f" and have it after {report.spread([one * 1000 for one in took])} ms")
    return crowds


def rows(costs: dict[str, list[Compared]]) -> list[list[str]]:
    """The table of tiers."""
    made = [["answered from", "node CPU µs", "Valkey CPU µs", "both × memory", "requests/s", "p50 ms", "p99 ms"]]
    for tier, compared in costs.items():
        each = [one.cost for one in compared]
        row = [tier, *(report.spread([getattr(one, name) for one in each]) for name in ("node_us", "valkey_us"))]
        row.append(report.spread([one.times_memory for one in compared]))
        row.append(f"{statistics.median(one.load.requests / one.load.seconds for one in each):.0f}")
        row += [report.spread([getattr(one.load, name) * 1000 for one in each]) for name in ("p50", "p99")]
        made.append(row)
    return made


def judge(costs: dict[str, list[Compared]], beside: Sequence[Beside], asked: Sequence[int]) -> report.Verdicts:
    """What is promised of what was measured, and whether it holds."""
    verdicts = []
    if costs:
        dear = statistics.median(one.times_memory for one in costs["redis"])
        text = f"redis hit: {dear:.2f} × a memory hit's CPU, at most {REDIS_TIMES_MEMORY}"
        verdicts.append((text, dear <= REDIS_TIMES_MEMORY))
    if beside:
        adds = statistics.median(one.adds for one in beside if not one.shares_core)
        text = f"cold read: adds {adds:.1%} to a real Kratos' p50, at most {COLD_ADDS_AT_MOST:.0%}"
        verdicts.append((text, adds <= COLD_ADDS_AT_MOST))
    if asked:
        most = max(asked)
        text = f"{CROWD} cold readers at {NODES} nodes: {most} requests of the origin, at most {CROWD_ASKS_AT_MOST}"
        verdicts.append((text, most <= CROWD_ASKS_AT_MOST))
    return verdicts


async def measure_beside_kratos(options: argparse.Namespace) -> list[Beside]:
    """Nothing, and a line that says why, where there can be no Kratos."""
    try:
        beside = await beside_kratos.measure(options.rounds)
    except CacheNodeError as error:
        print(f"not measured beside a real Kratos: {error}")
        return []
    for shares_core, place in ((False, "on another core"), (True, "on its core")):
        rounds = [one for one in beside if one.shares_core == shares_core]
        through, past = [
            report.spread([statistics.median(getattr(one, name)) * 1000 for one in rounds])
            for name in ("through", "past")
        ]
        adds = report.spread([one.adds * 100 for one in rounds])
        print(f"beside a real Kratos, {place}, it takes {through} ms at p50, past the node {past} ms: it adds {adds} %")
    return beside


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    costs, added = await measure_tiers(options) if "tiers" in options.cases else ({}, [])
    beside = await measure_beside_kratos(options) if "kratos" in options.cases else []
    crowds = await measure_crowd(options) if "crowd" in options.cases else []
    verdicts = judge(costs, beside, [count for count, _ in crowds])
    found = {
        "costs": {tier: [asdict(one) for one in each] for tier, each in costs.items()},
        "added_seconds": added,
        "beside_kratos": [asdict(one) for one in beside],
        "crowds": [{"origin_requests": count, "seconds": seconds} for count, seconds in crowds],
        "promises": report.shown(verdicts),
    }
    report.write(options.results, "miss", found)
    return report.judged(verdicts)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = report.parser("miss", __doc__, seconds=1.0)
    made.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return report.run(bench(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
