"""`python -m benchmarks.slow_clients`: do a thousand half-sent requests slow the others down?

One node and one origin of this machine.  Memory hits over four connections are timed, in turn without and with 1,000
connections that have sent half a request head each and are renewed as the node hangs up on them after 5 s.  Prints
p50 and p99 of both and their ratios, and exits with 1 if p99 is more than doubled: only the ratio counts, the machine's
own noise is in both.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import uvloop

from benchmarks.asking import Asker
from cache_node.demo.origin import DemoOrigin
from tests.command_lines import at_least, at_least_one, exit_status
from tests.e2e.processes import ServeProcess
from tests.waiting import eventually

SLOW_CLIENTS = 1000
CONNECTIONS = 4
ALLOWED_RATIO = 2.0
HALF = b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nX-Session-Tok"


async def keep_half_sent(address: tuple[str, int]) -> None:
    """Connects, sends half a head, waits to be hung up on, begins again."""

    async def one(number: int) -> None:
        await asyncio.sleep(number / SLOW_CLIENTS)
        while True:
            try:
                reader, writer = await asyncio.open_connection(*address)
                writer.write(HALF)
                await reader.read()
                writer.close()
            except OSError:
                await asyncio.sleep(0.1)

    await asyncio.gather(*(one(number) for number in range(SLOW_CLIENTS)))


def run_slow_clients(address: tuple[str, int]) -> None:
    """In a process of its own, so that their work is not the timed client's; who started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(keep_half_sent(address))


async def time_hits(url: str, token: str, requests: int) -> list[float]:
    """Seconds of each of so many memory hits, over a few connections at once."""
    took: list[float] = []

    async def one() -> None:
        asker = Asker(url)
        await asker.ask(token)
        for _ in range(requests // CONNECTIONS):
            begun = time.perf_counter()
            head = await asker.ask(token)
            took.append(time.perf_counter() - begun)
            if b"detail=memory" not in head:
                raise AssertionError(head)
        asker.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return took


async def measure(rounds: int, requests: int) -> dict[str, list[float]]:
    """The times of both cases, in turn."""
    took: dict[str, list[float]] = {"without": [], "with": []}
    async with DemoOrigin() as origin, ServeProcess(origin.public_url) as node:
        url = urlsplit(node.public_url)
        address = url.hostname or "", url.port or 0
        await origin.create_identity("somebody@example.test", "a password of somebody")
        token, _ = await origin.login_token("somebody@example.test", "a password of somebody")

        asker = Asker(node.public_url)

        async def is_hit() -> bool:
            return b"detail=memory" in await asker.ask(token)

        await eventually(is_hit, lambda: node.stderr, 10.0)
        asker.close()
        for round_ in range(rounds):
            took["without"] += await time_hits(node.public_url, token, requests)
            slow = multiprocessing.get_context("spawn").Process(target=run_slow_clients, args=(address,), daemon=True)
            slow.start()
            await asyncio.sleep(3.0)  # all have connected
            took["with"] += await time_hits(node.public_url, token, requests)
            slow.kill()
            slow.join()
            print(f"round {round_ + 1} of {rounds}", file=sys.stderr, flush=True)
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and judge; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_clients", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--requests", type=at_least(CONNECTIONS), default=8000, help="a round and case (default: 8000)")
    options = parser.parse_args(arguments)
    took = asyncio.run(measure(options.rounds, options.requests))
    ratios = {}
    for name, index in (("p50", 49), ("p99", 98)):
        values = {case: statistics.quantiles(times, n=100)[index] for case, times in took.items()}
        ratios[name] = values["with"] / values["without"]
        print(
            f"{name}: {values['without'] * 1e6:.0f} µs without, {values['with'] * 1e6:.0f} µs with "
            f"{SLOW_CLIENTS} half-sent requests, ratio {ratios[name]:.2f}"
        )
    return 0 if ratios["p99"] <= ALLOWED_RATIO else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
