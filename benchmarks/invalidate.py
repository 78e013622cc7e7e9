"""`python -m benchmarks.invalidate`: how soon after its publish is a revocation heeded by the last of eight nodes?

All nodes know a session, and a process of its own asks each of them for it every millisecond; it is published as
revoked.  What is promised counts from the return of the publish call to the reception of the last old answer of all
nodes, and is nothing if that came earlier.  As a question and the next are a millisecond apart, the time until the last
of the questions that first got another answer is shown too: whoever asks later does not get the old one.  Meanwhile
other events are published, so that there are as many a second as given.  Nodes and Valkey run on whichever of the two
cores is free; a process that only sleeps shows how late the machine itself is.  Exit status 1: it takes longer than is
promised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass

from benchmarks import report
from benchmarks.lateness import sleeper
from benchmarks.servers import LOAD_CORE, SERVER_CORE, move, node, pinned, pinned_valkey, python_app
from benchmarks.sessions import ids_of, token_of
from benchmarks.watching import Watcher, watcher
from cache_node.environment import PublisherSettings
from cache_node.sources.publisher import AsyncPublisher
from loadtest.results import percentile
from tests.command_lines import at_least_one, exit_status

RATES = (1, 100, 1000)
WATCHED_PER_SECOND = 10
"""At most: of the events, those whose end is watched."""
UNDER_WAY = 100
"""Publishes at most: where the machine does not follow, fewer are made, and shown."""
SHARES = {"p50": 0.5, "p99": 0.99, "max": 1.0}
PROMISED_RATE = 100
PROMISES = {"p50": 0.005, "p99": 0.015}
"""At that rate, at most so many seconds."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Seconds that a publish call took, and from its return until the last old answer and until none was given more."""

    publish: float
    last_old: float
    denied: float


@dataclass(frozen=True, slots=True)
class Found:
    """At one rate: what was watched, by how many seconds the sleeper woke late, and events a second by round."""

    watched: list[Watched]
    overslept: list[float]
    events_per_second: list[float]

    def ascending(self) -> dict[str, list[float]]:
        """What the table shows of it, each in order."""
        times = {name: sorted(getattr(one, name) for one in self.watched) for name in ("publish", "last_old", "denied")}
        return times | {"asleep": sorted(self.overslept)}


@contextlib.asynccontextmanager
async def background(publisher: AsyncPublisher, rate: float) -> AsyncIterator[list[float]]:
    """So many events a second that name nobody's session; the list has the time of each that was acknowledged."""
    published: list[float] = []
    under_way: set[asyncio.Task[None]] = set()

    async def publish() -> None:
        await publisher.session_revoked(str(uuid.uuid4()))
        published.append(time.monotonic())

    async def keep_on() -> None:
        begun, number = time.monotonic(), 0
        while rate:
            number += 1
            await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
            if len(under_way) < UNDER_WAY:
                task = asyncio.create_task(publish())
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    running = asyncio.create_task(keep_on())
    try:
        yield published
    finally:
        running.cancel()
        await asyncio.gather(*under_way)


async def watch(nodes: Watcher, publisher: AsyncPublisher, token: str) -> Watched:
    """Publish the end of a session that all nodes know."""
    await nodes.known(token)
    called = time.monotonic()
    await publisher.session_revoked(ids_of(token)[0])
    returned = time.monotonic()
    last_old, denied = await nodes.ended()
    return Watched(returned - called, max(0.0, last_old - returned), max(0.0, denied - returned))


async def measure_at(
    rate: int, seconds: float, nodes: Watcher, publisher: AsyncPublisher, numbers: Iterator[int]
) -> tuple[list[Watched], float]:
    """One `watch` after the other among so many events a second, at least one; and how many a second these were."""
    watched_per_second = min(rate, WATCHED_PER_SECOND)
    begun, watched = time.monotonic(), list[Watched]()
    async with background(publisher, rate - watched_per_second) as published:
        while not watched or time.monotonic() < begun + seconds:
            watched.append(await watch(nodes, publisher, token_of(next(numbers))))
            await asyncio.sleep(max(0.0, begun + len(watched) / watched_per_second - time.monotonic()))
        took = time.monotonic() - begun
    return watched, (len(published) + len(watched)) / took


async def measure(options: argparse.Namespace) -> dict[int, Found]:
    """All rates in turn."""
    found: dict[int, Found] = {}
    numbers = iter(range(10**9))
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin"))
        valkey = stack.enter_context(pinned_valkey())
        nodes = [await stack.enter_async_context(node(origin, valkey.url)) for _ in range(options.nodes)]
        for server in (origin, valkey, *nodes):
            move(server, SERVER_CORE, LOAD_CORE)
        watching = await stack.enter_async_context(watcher(nodes))
        publisher = await stack.enter_async_context(AsyncPublisher(settings=PublisherSettings(valkey.url)))
        for rate in list(options.rates) * options.rounds:
            with sleeper(SERVER_CORE) as overslept, pinned(LOAD_CORE):
                watched, events_per_second = await measure_at(rate, options.seconds, watching, publisher, numbers)
            one = found.setdefault(rate, Found([], [], []))
            one.watched.extend(watched)
            one.overslept.extend(overslept)
            one.events_per_second.append(events_per_second)
            report.progress(f"{rate} events a second: {len(watched)} watched")
    return found


def rows(found: dict[int, Found]) -> list[list[str]]:
    """Milliseconds by rate."""
    made = [["events/s", "were", "watched", "publish", "last old answer", "no more", "a sleep's lateness"]]
    for rate, one in found.items():
        row = [str(rate), report.spread(one.events_per_second), str(len(one.watched))]
        for values in one.ascending().values():
            row += [" / ".join(f"{percentile(values, share) * 1000:.3g}" for share in SHARES.values())]
        made.append(row)
    return made


def judge(found: dict[int, Found], nodes: int) -> report.Verdicts:
    """What is promised, if its rate was measured."""
    if PROMISED_RATE not in found:
        return []
    last_old = found[PROMISED_RATE].ascending()["last_old"]
    verdicts = []
    for shown, limit in PROMISES.items():
        took = percentile(last_old, SHARES[shown])
        text = f"{nodes} nodes, {PROMISED_RATE} events a second: the last old answer {took * 1000:.3g} ms"
        verdicts.append((f"{text} after the publish at {shown}, at most {limit * 1000:g}", took <= limit))
    return verdicts


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    found = await measure(options)
    title = f"ms of the publish call, and from its return to the last old answer of {options.nodes} nodes: "
    print(report.table(title + " / ".join(SHARES), rows(found)))
    verdicts = judge(found, options.nodes)
    rates = {rate: asdict(one) for rate, one in found.items()}
    report.write(options.results, "invalidate", {"rates": rates, "promises": report.shown(verdicts)})
    return report.judged(verdicts)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = report.parser("invalidate", __doc__, seconds=10.0)
    made.add_argument("--nodes", type=at_least_one, default=8, help="default: 8")
    made.add_argument("--rates", nargs="+", type=at_least_one, default=RATES, help="events a second")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return report.run(bench(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
