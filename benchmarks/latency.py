"""`python -m benchmarks.latency`: how long an answer takes at which rate of requests, until a server cannot follow.

Open loop: a request is due at its time whatever became of those before it, and its time counts from then.  The node,
nginx, the route with a Redis key, and `floor`, which shows what the machine and the load generator add by themselves.
In each round the servers are asked in turn at each rate; one that is further behind at the end than LATE_SECONDS is
not asked for more.  Writes latency.json and latency.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.checks import check
from benchmarks.load import OPEN_LOOP, run_open_loop
from benchmarks.servers import ORIGIN_PORT, SERVERS, compiled, python_app
from benchmarks.sessions import body_of, token_of
from loadtest.charts import Chart, Series, standalone
from loadtest.results import percentile
from tests.command_lines import at_least_one, exit_status

RATES = (500, 1000, 2000, 4000, 8000, 16000, 24000, 32000, 48000, 64000, 96000, 128000, 160000, 200000)
CONNECTIONS = 64
LATE_SECONDS = 0.25
"""Of its last answers: then the server, or the machine, does not follow."""
COLOURS = {"node": "#1a7f37", "floor": "#8c959f", "nginx": "#0969da", "redis": "#cf222e"}
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}

Points = dict[int, dict[str, list[float]]]
"""Rate, percentile, and its values in seconds, one a round."""


def is_late(took: Sequence[float]) -> bool:
    """Whether the server was further and further behind: half of the last tenth had to wait too long."""
    return statistics.median(took[-max(1, len(took) // 10) :]) > LATE_SECONDS


async def measure(options: argparse.Namespace) -> tuple[dict[str, Points], dict[str, int]]:
    """What each server took, and the first rate at which it was late in half of the rounds."""
    points: dict[str, Points] = {name: {} for name in options.servers}
    saturated: dict[str, int] = {}
    token = token_of(0)
    requests = {f"X-Session-Token: {token}": body_of(token) or b""}
    async with contextlib.AsyncExitStack() as stack:
        binary = compiled(OPEN_LOOP, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))))
        origin = await stack.enter_async_context(python_app("origin", "--port", str(ORIGIN_PORT)))
        servers = {name: await stack.enter_async_context(SERVERS[name](origin)) for name in options.servers}
        for rate in options.rates:
            late = dict.fromkeys(servers, 0)
            for number in range(options.rounds):
                for name in [name for name in servers if name not in saturated]:
                    await check(name, servers[name], origin, requests)
                    took = await run_open_loop(
                        binary, servers[name].url, rate, options.seconds, token=token, connections=CONNECTIONS
                    )
                    late[name] += is_late(took)
                    ascending = sorted(took)
                    for shown, share in SHARES.items():
                        points[name].setdefault(rate, {}).setdefault(shown, []).append(percentile(ascending, share))
                    median = percentile(ascending, 0.5) * 1000
                    report.progress(f"{rate}/s, round {number + 1}: {name} p50 {median:.3g} ms")
            saturated |= {name: rate for name, times in late.items() if times * 2 > options.rounds}
    return points, saturated


def rows(points: dict[str, Points], saturated: dict[str, int]) -> list[list[str]]:
    """Milliseconds by rate; a server that cannot follow has no further rows."""
    made = [["requests/s", *(f"{name} {shown} ms" for name in points for shown in ("p50", "p99"))]]
    for rate in sorted({rate for each in points.values() for rate in each}):
        row = [str(rate)]
        for name, each in points.items():
            if rate >= saturated.get(name, sys.maxsize):
                row += ["late" if rate == saturated[name] else "", ""]
            else:
                row += [report.spread([value * 1000 for value in each[rate][shown]]) for shown in ("p50", "p99")]
        made.append(row)
    return made


def plot(points: dict[str, Points]) -> str:
    """The medians of the rounds, p50 as lines and p99 dashed."""
    series = []
    for name, each in points.items():
        for shown, style in (("p50", "line"), ("p99", "dashed")):
            values = [(rate / 1000, statistics.median(found[shown]) * 1000) for rate, found in sorted(each.items())]
            followed = [(at, value) for at, value in values if math.isfinite(value)]
            series.append(Series(f"{name} {shown}", COLOURS.get(name, "#8250df"), followed, style))
    fastest = max(at for one in series for at, _ in one.points)
    chart = Chart(0.0, fastest, (), unit="k/s", gap=math.inf)
    return standalone(
        chart.draw("ms from when a request was due to its answer, by thousands of requests a second", series)
    )


async def bench(options: argparse.Namespace) -> int:
    """Measure, print, write and draw."""
    points, saturated = await measure(options)
    print(
        report.table(
            "latency by rate: median of the rounds, and from where to where they went", rows(points, saturated)
        )
    )
    for name, rate in saturated.items():
        print(f"{name} does not follow at {rate}/s")
    report.write(options.results, "latency", {"seconds": points, "saturated_at": saturated})
    (options.results / "latency.svg").write_text(plot(points))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = report.parser("latency", __doc__)
    parser.add_argument("--rates", nargs="+", type=at_least_one, default=RATES)
    parser.add_argument("--servers", nargs="+", default=[*COLOURS], choices=SERVERS)
    return report.run(bench(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(exit_status(main))
