"""`python -m benchmarks.memory`: what an entry costs beside its bytes, and whether many of them make anybody wait.

A process of its own fills a memory tier and looks at its resident memory.  Then a node is asked for one session, open
loop, while cold reads insert --entries others: once with room for about 1,000, and once with room for all.  What the
second adds to the longest wait and to p99.9 is what a large tier costs; the cold reads themselves are in both, and so
is the machine, whose own lateness a process that only sleeps on the node's core shows.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import report
from benchmarks.checks import check
from benchmarks.lateness import sleeper
from benchmarks.load import OPEN_LOOP, run_open_loop, run_wrk_fresh
from benchmarks.servers import SERVER_CORE, compiled, node, python_app
from benchmarks.sessions import BODY_BYTES, body_of, ids_of, token_of
from cache_node.errors import CacheNodeError
from cache_node.sessions.entry import Entry, Headers
from cache_node.sessions.memory_tier import MemoryTier
from loadtest.results import percentile

FEW = 1000
FILLED_BODY_BYTES = 256
ROOM_BYTES = 4096
"""A node's room for one entry: body, headers and overhead, generously."""
PROBES_PER_SECOND = 500
PROBE_CONNECTIONS = 16
INSERTING_READERS = 4
APART = 10_000_000
"""Between the first sessions of two turns."""
HEADERS: Headers = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate"),
    (b"content-type", b"application/json; charset=utf-8"),
    (b"vary", b"Cookie"),
    (b"x-kratos-authenticated-identity-id", b"%b"),
)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(entries: int) -> float:
    """Bytes an entry that this process needs beyond bodies and headers; everything of an entry is its own."""
    tier = MemoryTier(1 << 40)
    held = 0
    put(tier, entries)  # what the first entry brings along
    gc.collect()
    before = resident_bytes()
    for number in range(entries):
        held += put(tier, number)
    return (resident_bytes() - before - held) / entries


def put(tier: MemoryTier, number: int) -> int:
    """Keep an entry; returns the bytes of its body and headers."""
    session_id, identity_id = ids_of(token_of(number))
    values = (value.replace(b"%b", identity_id.encode()) for _, value in HEADERS)
    headers = tuple((_copied(name), _copied(value)) for (name, _), value in zip(HEADERS, values, strict=True))
    body = bytes(FILLED_BODY_BYTES)
    tier.put(
        number.to_bytes(32, "little"), Entry.of(body, headers, session_id, identity_id, 4e9, 1.8e9, 1 << 50, number)
    )
    return len(body) + sum(len(name) + len(value) for name, value in headers)


def _copied(value: bytes) -> bytes:
    return bytes(bytearray(value))


def filled_elsewhere(entries: int) -> float:
    """`fill` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--fill", str(entries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CacheNodeError(f"could not fill a memory tier: {done.stderr.strip().splitlines()[-1:]}")
    return float(done.stdout)


@dataclass(slots=True)
class Waits:
    """What was seen while entries were inserted; seconds."""

    inserted: int = 0
    took: list[float] = field(default_factory=list)
    overslept: list[float] = field(default_factory=list)


async def wait_while_inserting(entries: int, room: int, seconds: float, binary: str) -> Waits:
    """A node with `room` for so many entries, asked while at least `entries` are inserted, in turns of `seconds`."""
    waits = Waits()
    token = token_of(0)
    async with (
        python_app("origin") as origin,
        node(origin, memory_bytes=str(room * ROOM_BYTES)) as server,
    ):
        await check("node", server, origin, {f"X-Session-Token: {token}": body_of(token) or b""})
        for turn in itertools.count(1):
            with sleeper(SERVER_CORE) as overslept:
                probing = asyncio.create_task(
                    run_open_loop(
                        binary, server.url, PROBES_PER_SECOND, seconds, token=token, connections=PROBE_CONNECTIONS
                    )
                )
                load = await run_wrk_fresh(
                    server.url, seconds, turn * APART, APART, body_bytes=BODY_BYTES, connections=INSERTING_READERS
                )
                waits.took += await probing
            waits.inserted += load.requests
            waits.overslept += overslept
            report.progress(f"room for {room}: {waits.inserted} inserted")
            if waits.inserted >= entries:
                break
    return waits


def row_of(room: int, rounds: Sequence[Waits]) -> list[str]:
    """Milliseconds, round by round."""
    row = [str(room), report.spread([one.inserted for one in rounds])]
    for values in ([sorted(one.took) for one in rounds], [sorted(one.overslept) for one in rounds]):
        row += [report.spread([percentile(each, share) * 1000 for each in values]) for share in (0.5, 0.999, 1.0)]
    return row


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    sizes = sorted({FEW, options.entries})
    each = {entries: [filled_elsewhere(entries) for _ in range(options.rounds)] for entries in sizes}
    made = [["entries", "bytes each"], *([str(size), report.spread(values)] for size, values in each.items())]
    print(report.table("resident memory beyond bodies and headers", made), flush=True)
    waits: dict[int, list[Waits]] = {room: [] for room in sizes}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        binary = compiled(OPEN_LOOP, Path(directory))
        for _ in range(options.rounds):
            for room in sizes:
                waits[room].append(await wait_while_inserting(options.entries, room, options.seconds, binary))
    heads = ["room for", "inserted", "p50 ms", "p99.9 ms", "longest ms", "asleep p50 ms", "p99.9 ms", "longest ms"]
    print(
        report.table("a hit while others are inserted", [heads, *(row_of(room, seen) for room, seen in waits.items())])
    )
    shown = {room: [asdict(one) for one in rounds] for room, rounds in waits.items()}
    report.write(options.results, "memory", {"bytes_each": each, "waits": shown})
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = report.parser("memory", __doc__, rounds=1, seconds=10.0)
    parser.add_argument("--entries", type=int, default=1_000_000, help="default: 1,000,000, which takes 40 minutes")
    parser.add_argument("--fill", type=int, metavar="N", help="only fill a tier with so many, and print the bytes each")
    options = parser.parse_args(arguments)
    if options.fill:
        print(fill(options.fill))
        return 0
    return report.run(bench(options))


if __name__ == "__main__":
    sys.exit(main())
