"""`python -m benchmarks.invalidate`: how soon after its publish is a revocation heeded by the last of eight nodes?

All nodes know a session; it is published as revoked, and each node is asked again and again, with a millisecond between
an answer and the next question.  What counts is from before the publish to the sending of the first question, on the
slowest node, that did not get the old answer: whoever asks later does not get it either.  Meanwhile other events are
published at the given rate.  A process that only sleeps on the nodes' core shows how late the machine itself is.
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
from benchmarks.asking import Asker
from benchmarks.lateness import sleeper
from benchmarks.load import BadAnswerError
from benchmarks.servers import LOAD_CORE, SERVER_CORE, node, pinned, pinned_valkey, python_app
from benchmarks.sessions import ids_of, token_of
from cache_node.environment import PublisherSettings
from cache_node.sources.publisher import AsyncPublisher
from loadtest.results import percentile
from tests.waiting import eventually

RATES = (1, 100, 1000)
WATCHED_PER_SECOND = 10
"""At most: of the events, those whose end is watched."""
PAUSE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Found:
    """At one rate: seconds from each watched publish on, how late the sleeper woke, and events a second by round."""

    heeded: list[float]
    overslept: list[float]
    events_per_second: list[float]


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
            task = asyncio.create_task(publish())
            under_way.add(task)
            task.add_done_callback(under_way.discard)

    running = asyncio.create_task(keep_on())
    try:
        yield published
    finally:
        running.cancel()
        await asyncio.gather(*under_way)


async def watch(askers: Sequence[Asker], publisher: AsyncPublisher, token: str) -> float:
    """Seconds from the publish of the session's end until no node gives its old answer."""

    async def knows(asker: Asker) -> bool:
        return b"detail=memory" in await asker.ask(token)

    async def is_known() -> bool:
        return all(await asyncio.gather(*(knows(asker) for asker in askers)))

    await eventually(is_known, lambda: "some node does not keep the session", 10.0)

    async def heeded_at(asker: Asker) -> float:
        while True:
            sent = time.monotonic()
            if not await knows(asker):
                return sent
            if sent > begun + 10.0:
                raise BadAnswerError("a node gives the old answer 10 s after the publish")
            await asyncio.sleep(PAUSE_SECONDS)

    begun = time.monotonic()
    watching = [asyncio.create_task(heeded_at(asker)) for asker in askers]
    await publisher.session_revoked(ids_of(token)[0])
    return max(await asyncio.gather(*watching)) - begun


async def measure_at(
    rate: int, seconds: float, askers: Sequence[Asker], publisher: AsyncPublisher, numbers: Iterator[int]
) -> tuple[list[float], float]:
    """One `watch` after the other among so many events a second, at least one; and how many a second these were."""
    watched_per_second = min(rate, WATCHED_PER_SECOND)
    begun, heeded = time.monotonic(), list[float]()
    async with background(publisher, rate - watched_per_second) as published:
        while not heeded or time.monotonic() < begun + seconds:
            heeded.append(await watch(askers, publisher, token_of(next(numbers))))
            await asyncio.sleep(max(0.0, begun + len(heeded) / watched_per_second - time.monotonic()))
        took = time.monotonic() - begun
    return heeded, (len(published) + len(heeded)) / took


async def measure(options: argparse.Namespace) -> dict[int, Found]:
    """All rates in turn."""
    found: dict[int, Found] = {}
    numbers = iter(range(10**9))
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin"))
        valkey = stack.enter_context(pinned_valkey())
        nodes = [await stack.enter_async_context(node(origin, valkey.url)) for _ in range(options.nodes)]
        askers = [stack.enter_context(contextlib.closing(Asker(server.url))) for server in nodes]
        publisher = await stack.enter_async_context(AsyncPublisher(settings=PublisherSettings(valkey.url)))
        for rate in list(options.rates) * options.rounds:
            with sleeper(SERVER_CORE) as overslept, pinned(LOAD_CORE):
                heeded, events_per_second = await measure_at(rate, options.seconds, askers, publisher, numbers)
            one = found.setdefault(rate, Found([], [], []))
            one.heeded.extend(heeded)
            one.overslept.extend(overslept)
            one.events_per_second.append(events_per_second)
            report.progress(f"{rate} events a second: {len(heeded)} watched")
    return found


def rows(found: dict[int, Found]) -> list[list[str]]:
    """Milliseconds by rate."""
    made = [
        ["events/s", "were", "watched", "p50 ms", "p99 ms", "max ms", "asleep p50 ms", "asleep p99 ms", "asleep max ms"]
    ]
    for rate, one in found.items():
        row = [str(rate), report.spread(one.events_per_second), str(len(one.heeded))]
        for values in (sorted(one.heeded), sorted(one.overslept)):
            row += [f"{percentile(values, share) * 1000:.3g}" for share in (0.5, 0.99, 1.0)]
        made.append(row)
    return made


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    found = await measure(options)
    print(
        report.table(
            f"from the publish until the last of {options.nodes} nodes heeds it, and a sleep's lateness", rows(found)
        )
    )
    report.write(options.results, "invalidate", {rate: asdict(one) for rate, one in found.items()})
    return 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = report.parser("invalidate", __doc__, rounds=1, seconds=30.0)
    made.add_argument("--nodes", type=int, default=8, help="default: 8")
    made.add_argument("--rates", nargs="+", type=int, default=RATES, help="events a second")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return report.run(bench(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
