"""`python -m benchmarks.memory`: what an entry costs beside its bytes, and whether many of them make anybody wait.

A process of its own fills a memory tier and looks at its resident memory.  Then --entries sessions are written into a
Valkey, sealed as a node would, and a node with room for all of them is asked for one session, open loop, while readers
find the others in Redis, which inserts them in memory as fast as it goes.  At the same time and rate, on the same core,
the floor is asked, a C program that writes a constant: what the machine makes wait makes both wait.  In turn with it a
node is asked that has room for about 1,000, so that it evicts as many as it inserts.  A process that only sleeps on
that core shows how late the machine wakes anybody.  Exit status 1: it is more than is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import math
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from benchmarks import report
from benchmarks.checks import check
from benchmarks.lateness import sleeper
from benchmarks.load import OPEN_LOOP, BadAnswerError, run_open_loop, run_wrk_fresh
from benchmarks.servers import (
    SERVER_CORE,
    Server,
    beside_the_load,
    compiled,
    floor,
    node,
    origin_count,
    pinned_valkey,
    python_app,
)
from benchmarks.sessions import BODY_BYTES, body_of, ids_of, token_of
from cache_node.environment import PublisherSettings
from cache_node.errors import CacheNodeError
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry, Headers
from cache_node.sessions.keys import KeyRing
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.sealing import seal
from cache_node.sources.publisher import AsyncPublisher
from loadtest.results import percentile
from tests.command_lines import at_least_one, exit_status
from tests.e2e.processes import SECRET

FEW = 1000
ROOM_BYTES = 2560
"""A node's room for one entry: body, headers and overhead, generously."""
REDIS_BYTES = 3072
"""Valkey's, as generously."""
SHARES = {"p50": 0.5, "p99.9": 0.999, "longest": 1.0}
STRAY_SHARE = 0.01
"""Of the reads, that others may be than hits in Redis."""
TURNS_OF_MANY = 2
"""Of the node with room for all, behind one of the other."""
BYTES_AT_MOST = 350
LATER_AT_MOST_SECONDS = 0.01
TIMES_AT_MOST = 2
LIFETIME_SECONDS = 86400.0
WRITTEN_AT_ONCE = 500
PROGRESS_ENTRIES = 50_000
PROBES_PER_SECOND = 500
PROBE_CONNECTIONS = 16
INSERTING_READERS = 4
HEADERS: Headers = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate"),
    (b"content-type", b"application/json; charset=utf-8"),
    (b"vary", b"Cookie"),
    (b"x-kratos-authenticated-identity-id", b"%(identity)b"),
)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(entries: int) -> float:
    """Bytes an entry that this process needs beyond bodies and headers; everything of an entry is its own."""
    tier = MemoryTier(1 << 34)
    held = 0
    put(tier, entries)  # what the first entry brings along
    gc.collect()
    before = resident_bytes()
    for number in range(entries):
        held += put(tier, number)
        if number % PROGRESS_ENTRIES == PROGRESS_ENTRIES - 1:
            report.progress(f"{number + 1} filled in")
    return (resident_bytes() - before - held) / entries


def put(tier: MemoryTier, number: int) -> int:
    """Keep an entry; returns the bytes of its body and headers."""
    entry = entry_of(number, bytes(BODY_BYTES), Position(1 << 50, number))
    tier.put(number.to_bytes(32, "little"), entry)
    return BODY_BYTES + sum(len(name) + len(value) for name, value in entry.headers)


def entry_of(number: int, body: bytes, as_of: Position) -> Entry:
    """As it comes from the network, each header in objects of its own."""
    session_id, identity_id = ids_of(token_of(number))
    headers = tuple((_copied(name), _copied(value % {b"identity": identity_id.encode()})) for name, value in HEADERS)
    expires_at = 4e9 + number
    return Entry.of(body, headers, session_id, identity_id, expires_at, time.time(), as_of.generation, as_of.number)


def _copied(value: bytes) -> bytes:
    return bytes(bytearray(value))


async def filled_elsewhere(entries: int) -> float:
    """`fill` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--fill", str(entries)]
    async with beside_the_load(*command, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    if process.returncode:
        raise CacheNodeError("could not fill a memory tier")
    return float(output)


async def write_sealed(valkey: Server, entries: int) -> None:
    """The sessions numbered from 1 on, as a node with SECRET writes them, as of an event of now."""
    async with AsyncPublisher(settings=PublisherSettings(valkey.url)) as publisher:
        as_of = await publisher.session_revoked(str(uuid.uuid4()))
    keys, names = KeyRing([SECRET]), RedisNames()
    with redis.Redis.from_url(valkey.url) as client:
        for first in range(1, entries + 1, WRITTEN_AT_ONCE):
            batch = client.pipeline(transaction=False)
            for number in range(first, min(first + WRITTEN_AT_ONCE, entries + 1)):
                token = token_of(number)
                key = keys.derive(Credential("token", token.encode()))[0]
                sealed = seal(key, entry_of(number, body_of(token) or b"", as_of))
                batch.set(names.entry(key.name), sealed, ex=int(LIFETIME_SECONDS))
            batch.execute()
            await asyncio.sleep(0)  # an interrupt comes in here
            if (first - 1) % PROGRESS_ENTRIES == 0:
                report.progress(f"{first - 1} of {entries} written into Valkey")


@dataclass(slots=True)
class Waits:
    """What was seen while entries were inserted; seconds, of hits of the node, answers of the floor, and sleeps."""

    inserted: int = 0
    hits: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    asleep: list[float] = field(default_factory=list)
    later: float = -math.inf
    """By how much the node's latest was later than the floor's, in the turn in which that was most."""

    def add(self, inserted: int, hits: list[float], floor: list[float], asleep: list[float]) -> None:
        """A turn."""
        self.inserted += inserted
        self.hits += hits
        self.floor += floor
        self.asleep += asleep
        self.later = max(self.later, max(hits) - max(floor))

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Of each."""
        ascending = {name: sorted(getattr(self, name)) for name in ("hits", "floor", "asleep")}
        return {
            name: {shown: percentile(values, share) for shown, share in SHARES.items()}
            for name, values in ascending.items()
        }


class Inserting:
    """Nodes over a Valkey that has all the sessions, and a floor on their core."""

    def __init__(self, nodes: Mapping[int, Server], floor: Server, binary: str, options: argparse.Namespace) -> None:
        self._nodes = nodes
        self._floor = floor
        self._binary = binary
        self._entries: int = options.entries
        self._seconds: float = options.seconds
        self.waits = {room: Waits() for room in nodes}

    async def turn(self, room: int) -> None:
        """The node with room for so many gets further sessions, and the first ones again once it has had all."""
        server, waits = self._nodes[room], self.waits[room]
        first = waits.inserted % self._entries
        left = self._entries - first
        with sleeper(SERVER_CORE) as overslept:
            inserting = run_wrk_fresh(
                server.url, self._seconds, 1 + first, left, body_bytes=BODY_BYTES, connections=INSERTING_READERS
            )
            load, hits, answers = await asyncio.gather(inserting, self._probe(server), self._probe(self._floor))
        waits.add(min(load.requests, left), hits, answers, overslept)
        report.progress(f"room for {room}: {waits.inserted} inserted")

    async def _probe(self, server: Server) -> list[float]:
        rate, connections = PROBES_PER_SECOND, PROBE_CONNECTIONS
        return await run_open_loop(
            self._binary, server.url, rate, self._seconds, token=token_of(0), connections=connections
        )


async def wait_while_inserting(options: argparse.Namespace, origin: Server, valkey: Server) -> dict[int, Waits]:
    """By room, until all entries are in where there is room for them; in turns, as the machine is never the same."""
    token = token_of(0)
    lifetimes = dict.fromkeys(("entry_ttl_seconds", "fence_window_seconds"), str(LIFETIME_SECONDS))
    async with contextlib.AsyncExitStack() as stack:
        binary = compiled(OPEN_LOOP, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))))
        base = await stack.enter_async_context(floor())
        nodes = {}
        for room in (FEW, options.entries):
            server = node(origin, valkey.url, memory_bytes=str(room * ROOM_BYTES), **lifetimes)
            nodes[room] = await stack.enter_async_context(server)
            await check("node", nodes[room], origin, {f"X-Session-Token: {token}": body_of(token) or b""})
        asked = origin_count(origin)
        inserting = Inserting(nodes, base, binary, options)
        while inserting.waits[options.entries].inserted < options.entries:
            await inserting.turn(FEW)
            for _ in range(TURNS_OF_MANY):
                if inserting.waits[options.entries].inserted < options.entries:
                    await inserting.turn(options.entries)
        strays, all_inserted = origin_count(origin) - asked, sum(one.inserted for one in inserting.waits.values())
        if strays > STRAY_SHARE * all_inserted:
            raise BadAnswerError(f"of {all_inserted} reads {strays} were not found in Redis")
    return inserting.waits


def row_of(room: int, rounds: Sequence[Waits]) -> list[str]:
    """Milliseconds, round by round."""
    row = [str(room), report.spread([one.inserted for one in rounds])]
    found = [one.percentiles() for one in rounds]
    for name in ("hits", "floor", "asleep"):
        row += [report.spread([each[name][shown] * 1000 for each in found]) for shown in SHARES]
    return row


def judge(bytes_each: Sequence[float], few: Sequence[Waits], many: Sequence[Waits], entries: int) -> report.Verdicts:
    """What is promised, and whether it holds: the latest of all rounds, and the medians of the other two."""
    each = statistics.median(bytes_each)
    later = max(one.later for one in many)
    times = statistics.median(
        one.percentiles()["hits"]["p99.9"] / other.percentiles()["hits"]["p99.9"]
        for one, other in zip(many, few, strict=True)
    )
    return [
        (
            f"{entries} entries: {each:.0f} bytes each beyond body and headers, at most {BYTES_AT_MOST}",
            each <= BYTES_AT_MOST,
        ),
        (
            f"{entries} inserted: the latest hit {later * 1000:.1f} ms later than the floor's latest answer, at most "
            f"{LATER_AT_MOST_SECONDS * 1000:g}",
            later <= LATER_AT_MOST_SECONDS,
        ),
        (f"p99.9 {times:.2f} × that with room for {FEW}, at most {TIMES_AT_MOST}", times <= TIMES_AT_MOST),
    ]


async def measure_waits(options: argparse.Namespace) -> dict[int, list[Waits]]:
    """By room, round by round, all from one Valkey."""
    entries = options.entries
    needed = entries * (ROOM_BYTES + REDIS_BYTES)
    if psutil.virtual_memory().available < needed:
        raise CacheNodeError(f"{entries} entries need {needed / 1e9:.1f} GB of memory: give fewer --entries")
    with pinned_valkey(entries * REDIS_BYTES) as valkey:
        async with python_app("origin") as origin:
            await write_sealed(valkey, entries)
            rounds = [await wait_while_inserting(options, origin, valkey) for _ in range(options.rounds)]
    return {room: [waits[room] for waits in rounds] for room in (FEW, entries)}


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    each = [await filled_elsewhere(options.entries) for _ in range(options.rounds)]
    print(f"\n{options.entries} entries take {report.spread(each)} bytes each beyond body and headers", flush=True)
    waits = await measure_waits(options)
    heads = ["room for", "inserted", *(f"{name} {shown}" for name in ("hit", "floor", "asleep") for shown in SHARES)]
    print(report.table("ms of a hit while others are inserted", [heads, *(row_of(*one) for one in waits.items())]))
    verdicts = judge(each, waits[FEW], waits[options.entries], options.entries)
    shown = {
        room: [{"inserted": one.inserted, "later": one.later, "seconds": one.percentiles()} for one in rounds]
        for room, rounds in waits.items()
    }
    found = {"bytes_each": each, "waits": shown, "promises": report.shown(verdicts)}
    report.write(options.results, "memory", found)
    return report.judged(verdicts)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = report.parser("memory", __doc__, rounds=1, seconds=8.0)
    made.add_argument("--entries", type=at_least_one, default=1_000_000, help="default: 1,000,000")
    made.add_argument(
        "--fill", type=at_least_one, metavar="N", help="only fill a tier with so many, and print the bytes each"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.fill is not None:
        print(fill(options.fill))
        return 0
    return report.run(bench(options))


if __name__ == "__main__":
    sys.exit(exit_status(main))
