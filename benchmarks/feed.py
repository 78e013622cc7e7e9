"""`python -m benchmarks.feed`: what an event costs the nodes that hear of it, the feed's server, and who publishes it.

`apply` and `replay` are a follower's own steps over a real Valkey, in this process, whose CPU time counts: pages read,
parsed and remembered, singly (an event to a feed entry) and in entries of 100.  `admit` is the question that each entry
in use costs after each event, `identity` an event that names one session or 10,000.  `confirm` is a confirm that brings
nothing, `publish` one publisher with one caller or 300, `nodes` eight real nodes while events come for --seconds.
Exit status 1: it costs more than is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.request import urlopen

from benchmarks import report
from benchmarks.invalidate import background
from benchmarks.servers import LOAD_CORE, Server, node, pinned, pinned_valkey, python_app
from cache_node.environment import PublisherSettings
from cache_node.feed import scripts
from cache_node.feed.clock import SystemClock
from cache_node.feed.events import ENTRY_EVENTS, Event, EventType, frame, pack
from cache_node.feed.fence import Fence
from cache_node.feed.follower import Follower
from cache_node.feed.lease import Lease
from cache_node.feed.log import RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.feed.redis_client import build_client, run_script
from cache_node.feed.registry import Membership
from cache_node.sessions.entry import Entry
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sources.publisher import AsyncPublisher
from tests.command_lines import at_least, at_least_one, exit_status
from tests.waiting import eventually

MILLION = 1_000_000
STEPS = 2_000
"""Confirms, or events that are asked about, of one measurement."""
ENTRIES_IN_USE = 1_000
SESSIONS_OF_ONE = 10_000
RECORDS = 300
CALLERS = 300
TIMEOUT_SECONDS = 60.0
_HEADS = ["what", "figure", "promised"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value a round, and what it may be at most, if anything is promised."""

    what: str
    unit: str
    values: list[float]
    at_most: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the median is within what is promised."""
        return self.at_most is None or statistics.median(self.values) <= self.at_most


class Feed:
    """A Valkey of its own, emptied before each use, and a follower on it in this process."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.names = RedisNames("bench")
        self.client = build_client(server.url, timeout_seconds=TIMEOUT_SECONDS)
        self.log = RedisLog(server.url, self.names, timeout_seconds=TIMEOUT_SECONDS)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        await self.log.aclose()

    async def empty(self) -> None:
        """Nothing is there any more."""
        await self.client.flushall()

    async def append(self, events: int, together: int) -> None:
        """So many revocations, `together` to a feed entry, as publishers write them."""
        keys = [self.names.generation, self.names.feed]
        for _ in range(0, events, max(1000, together)):
            args: list[Any] = [0, 1, 2 * MILLION]
            for _ in range(max(1, 1000 // together)):
                args += [together, frame("bench", [pack(revocation()) for _ in range(together)])]
            await run_script(self.client, scripts.APPEND, keys, args)

    async def follower(self, fence: Fence) -> Follower:
        """One that stands at the feed's end."""
        clock = SystemClock()
        follower = Follower(self.log, fence, Lease(clock), clock, Membership("bench", "default", 2.0))
        await catch_up(follower)
        return follower

    async def cpu_seconds(self) -> float:
        """Of the server so far, to the µs."""
        said = await self.client.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


def revocation() -> Event:
    """Of somebody else's session."""
    return Event(EventType.SESSION_REVOKED, str(uuid.uuid4()), str(uuid.uuid4()))


def new_fence(ids: int = 250_000) -> Fence:
    """An empty one."""
    return Fence(SystemClock(), window_seconds=900.0, max_ids=ids)


async def catch_up(follower: Follower) -> None:
    """Confirm until nothing new comes."""
    while await follower.confirm():
        pass


async def timed(doing: Awaitable[object], events: int) -> tuple[float, float]:
    """CPU µs of this process an event, and by the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    await doing
    return (time.process_time() - cpu) / events * 1e6, (time.perf_counter() - clock) / events * 1e6


async def apply(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """A node that has fallen behind catches up."""
    figures = []
    for together, at_most in ((1, 16.0), (ENTRY_EVENTS, 4.0)):
        values = []
        for _ in range(options.rounds):
            await feed.empty()
            follower = await feed.follower(new_fence())
            await feed.append(options.events, together)
            cpu, _ = await timed(catch_up(follower), options.events)
            if follower.counts["events"] != options.events or not follower.is_fresh:
                raise AssertionError(f"the follower has {follower.counts} of {options.events} events")
            values.append(cpu)
            report.progress(f"{options.events} events applied, {together} to an entry: {cpu:.2f} µs CPU each")
        figures.append(Figure(f"apply, {_each(together)}", "CPU µs an event", values, at_most))
    return figures


async def replay(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """A node that starts reads back all that is retained, with room to remember it."""
    figures = []
    for together, at_most in ((1, 15.0), (ENTRY_EVENTS, 5.0)):
        values, servers, waits = [], [], []
        await feed.empty()
        await feed.append(options.events, together)
        for _ in range(options.rounds):
            fence = new_fence(2 * options.events)
            follower = await feed.follower(fence)
            before = await feed.cpu_seconds()
            cpu, wait = await timed(follower.replay(), options.events)
            servers.append((await feed.cpu_seconds() - before) / options.events * 1e6)
            if follower.counts["replayed"] != options.events or fence.floor != together:
                raise AssertionError(f"the replay has read {follower.counts['replayed']}, the floor is {fence.floor}")
            values.append(cpu)
            waits.append(wait)
            report.progress(f"{options.events} events replayed, {_each(together)}: {wait * options.events / 1e6:.2f} s")
        figures.append(Figure(f"replay, {_each(together)}", "CPU s a million", values, at_most))
        figures.append(Figure(f"replay, {_each(together)}: Valkey", "CPU s a million", servers))
        figures.append(Figure(f"replay, {_each(together)}: by the clock", "s a million", waits))
    return figures


def _each(together: int) -> str:
    return "singly" if together == 1 else f"entries of {together}"


async def admit(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """Each entry in use is asked for again after each event, of which 100,000 others are remembered."""
    fence = new_fence()
    fence.reset(Position(1, 0))
    numbers = iter(range(1, 10 * MILLION))
    for number, _ in zip(numbers, range(100_000), strict=False):
        fence.apply(Position(1, number), [revocation()])
    in_use = [entry_of(str(uuid.uuid4()), str(uuid.uuid4()), fence) for _ in range(ENTRIES_IN_USE)]
    values = []
    for _ in range(options.rounds):
        spent = 0.0
        for number, _ in zip(numbers, range(STEPS // 10), strict=False):
            fence.apply(Position(1, number), [revocation()])
            begun = time.process_time()
            for entry in in_use:
                fence.admits(entry)
            spent += time.process_time() - begun
        values.append(spent / (STEPS // 10 * ENTRIES_IN_USE) * 1e6)
    if not all(map(fence.admits, in_use)):
        raise AssertionError("an entry that no event names is not admitted")
    return [Figure("admit an entry after an event", "CPU µs", values, 0.3)]


def entry_of(session_id: str, identity_id: str, fence: Fence) -> Entry:
    """One that was read just now."""
    position = fence.position
    if position is None:
        raise AssertionError("the fence has not begun")
    now = time.time()
    return Entry.of(b"", (), session_id, identity_id, now + 3600.0, now, position.generation, position.number)


async def identity(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """An event that names an identity, whose sessions are all kept."""
    fence = new_fence()
    fence.reset(Position(1, 0))
    figures = []
    number = 0
    for sessions in (1, SESSIONS_OF_ONE):
        values = []
        for _ in range(options.rounds):
            someone = str(uuid.uuid4())
            tier = MemoryTier(1 << 30)
            for each in range(sessions):
                tier.put(each.to_bytes(32, "little"), entry_of(str(uuid.uuid4()), someone, fence))
            events = [Event(EventType.IDENTITY_CHANGED, None, someone)]
            begun = time.process_time()
            for _ in range(STEPS):
                number += 1
                fence.apply(Position(1, number), events)
            values.append((time.process_time() - begun) / STEPS * 1e6)
            kept = [tier.get(each.to_bytes(32, "little")) for each in range(sessions)]
            if any(entry is None or fence.admits(entry) for entry in kept):
                raise AssertionError("a session of the identity is not kept, or still admitted")
            tier.clear()
        figures.append(Figure(f"an identity event, {sessions:,} of its sessions kept", "CPU µs", values))
    return [*figures, _ratio("the same, by the first", figures[1], figures[0], 1.5)]


def _ratio(what: str, one: Figure, other: Figure, at_most: float) -> Figure:
    pairs = zip(one.values, other.values, strict=True)
    return Figure(what, "ratio", [value / base for value, base in pairs], at_most)


async def confirm(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """A confirm that brings nothing: the beat of a quiet feed."""
    await feed.empty()
    follower = await feed.follower(new_fence())
    ours: list[Figure] = []
    servers: list[Figure] = []
    for records in (1, RECORDS):
        for number in range(records - 1):
            await feed.log.confirm(None, 0, f"node-{number} {uuid.uuid4().hex[:16]}", "1 1 2000000 1 default", 0)
        if await follower.confirm() or follower.nodes_known != records:
            raise AssertionError(f"the registry has {follower.nodes_known} records, not {records}")
        figures: tuple[list[float], list[float]] = [], []
        for _ in range(options.rounds):
            before = await feed.cpu_seconds()
            cpu, _ = await timed(_confirms(follower), STEPS)
            figures[0].append(cpu)
            figures[1].append((await feed.cpu_seconds() - before) / STEPS * 1e6)
        known = f"a confirm, {records} in the registry"
        ours.append(Figure(f"{known}: node", "CPU µs", figures[0]))
        servers.append(Figure(f"{known}: Valkey", "CPU µs", figures[1]))
    return [*ours, *servers, _ratio("the same at Valkey, by the first", servers[1], servers[0], 1.5)]


async def _confirms(follower: Follower) -> None:
    for _ in range(STEPS):
        await follower.confirm()


async def publish(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """One publisher, whose callers publish an event each and wait for its position before the next."""
    figures = []
    for callers in (1, CALLERS):
        await feed.empty()
        values: tuple[list[float], list[float], list[float]] = [], [], []
        events = STEPS * min(callers, 20) // callers * callers
        async with AsyncPublisher(settings=PublisherSettings(feed.server.url, feed.names.prefix)) as publisher:
            last = await publisher.flush()
            for _ in range(options.rounds):
                before = await feed.cpu_seconds()
                cpu, wait = await timed(_publishes(publisher, callers, events // callers), events)
                values[0].append(cpu)
                values[1].append((await feed.cpu_seconds() - before) / events * 1e6)
                values[2].append(1e6 / wait)
                last = Position(last.generation, last.number + events)
            if await publisher.flush() != Position(last.generation, last.number + 1):
                raise AssertionError("an event was lost or written twice")
        for unit, each in zip(("CPU µs", "CPU µs at Valkey", "a second"), values, strict=True):
            figures.append(Figure(f"a publish, {callers} at once", unit, each))
    return figures


async def _publishes(publisher: AsyncPublisher, callers: int, each: int) -> None:
    async def call() -> None:
        for _ in range(each):
            await publisher.session_revoked(str(uuid.uuid4()))

    await asyncio.gather(*(call() for _ in range(callers)))


async def nodes(feed: Feed, options: argparse.Namespace) -> list[Figure]:
    """Eight real nodes, all on one core with Valkey, while events come from the other."""
    await feed.empty()
    cores: list[tuple[float, float, float]] = []
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(python_app("origin"))
        starting = (node(origin, feed.server.url, key_prefix=feed.names.prefix) for _ in range(options.nodes))
        servers = [await stack.enter_async_context(one) for one in starting]
        settings = PublisherSettings(feed.server.url, feed.names.prefix)
        publisher = await stack.enter_async_context(AsyncPublisher(settings=settings))

        async def spent() -> tuple[float, float, float]:
            return sum(one.cpu_seconds() for one in servers), await feed.cpu_seconds(), time.process_time()

        for _ in range(options.rounds):
            begun, before = time.monotonic(), await spent()
            async with background(publisher, options.rate) as published:
                await asyncio.sleep(options.seconds)
            took, after = time.monotonic() - begun, await spent()
            await _all_apply(servers, await publisher.flush())
            one, two, three = ((now - then) / took for now, then in zip(after, before, strict=True))
            cores.append((one, two, three))
            report.progress(f"{len(published) / took:.0f} events a second: {one:.2f} cores for the nodes")
    about = f"{options.nodes} nodes at {options.rate} events/s"
    parts = [
        Figure(f"{about}: {part}", "cores", list(values))
        for part, values in zip(("nodes", "Valkey", "publisher"), zip(*cores, strict=True), strict=True)
    ]
    return [*parts, Figure(f"{about}: all", "cores", [sum(each) for each in cores], 2.0)]


async def _all_apply(servers: Sequence[Server], position: Position) -> None:
    def positions() -> list[str]:
        return [_position(server) for server in servers]

    await eventually(lambda: set(positions()) == {str(position)}, positions)


def _position(server: Server) -> str:
    with urlopen(f"{server.admin_url}/status", timeout=5.0) as answer:  # noqa: S310  # a URL of ours
        return str(json.loads(answer.read())["position"])


CASES: dict[str, Callable[[Feed, argparse.Namespace], Awaitable[list[Figure]]]] = {
    "apply": apply,
    "replay": replay,
    "admit": admit,
    "identity": identity,
    "confirm": confirm,
    "publish": publish,
    "nodes": nodes,
}


def rows(figures: Sequence[Figure]) -> list[list[str]]:
    """The table."""
    made = [_HEADS]
    for figure in figures:
        promised = "" if figure.at_most is None else f"at most {figure.at_most:g}"
        made.append([figure.what, f"{report.spread(figure.values)} {figure.unit}", promised])
    return made


@contextlib.asynccontextmanager
async def running_feed() -> AsyncIterator[Feed]:
    """On the servers' core, while this process is on the other."""
    with pinned_valkey() as valkey, pinned(LOAD_CORE):
        feed = Feed(valkey)
        try:
            yield feed
        finally:
            await feed.aclose()


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    figures: list[Figure] = []
    async with running_feed() as feed:
        for name in options.cases:
            report.progress(name)
            figures += await CASES[name](feed, options)
    print(report.table(f"the feed, {options.events:,} events", rows(figures)))
    verdicts = [
        (f"{one.what}: {statistics.median(one.values):.3g} {one.unit}, at most {one.at_most:g}", one.holds)
        for one in figures
        if one.at_most is not None
    ]
    found = {"events": options.events, "figures": [asdict(one) for one in figures], "promises": report.shown(verdicts)}
    report.write(options.results, "feed", found)
    return report.judged(verdicts)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = report.parser("feed", __doc__, seconds=5.0)
    made.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES)
    made.add_argument(
        "--events",
        type=at_least(1000, 1000),
        default=200_000,
        help="to apply and replay, in whole thousands (default: 200,000)",
    )
    made.add_argument("--nodes", type=at_least_one, default=8, help="default: 8")
    made.add_argument("--rate", type=at_least_one, default=1000, help="events a second that they hear (default: 1,000)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return report.run(bench(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
