"""`python -m loadtest`: a minute of users at the demo, whose Valkey and one of whose nodes are taken away meanwhile.

Exit status: 0 good, 1 wrong answers or too slow, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import locust  # isort: skip  # noqa: F401  # first: it patches the standard library

import itertools
import math
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

import click
import gevent
from locust.env import Environment

from cache_node.cli import INTERRUPTED
from cache_node.environment import check_http_url
from cache_node.errors import CacheNodeError, ConfigurationError
from loadtest.region import DemoRegion, Region, Service
from loadtest.report import progress, render, summary
from loadtest.users import Member, Run, users_of
from loadtest.verdict import COULD_NOT_RUN, Limits, judge

PROGRESS_SECONDS = 2.0
SPAWNS_PER_SECOND = 50.0
STOP_SECONDS = 15.0

_Urls = tuple[str, str]


@click.command()
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(min=1), help="How long the users are at work."
)
@click.option("--users", default=200, show_default=True, type=click.IntRange(min=3))
@click.option("--revocations-per-second", default=20.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option(
    "--max-staleness",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="The nodes' setting, in seconds.",
)
@click.option("--faults/--no-faults", default=True, show_default=True, help="Take Valkey and a node away.")
@click.option("--seed", type=int, help="Of what the users choose; their timing is not repeated.")
@click.option("--report", default=Path("loadtest/report.html"), show_default=True, type=click.Path(path_type=Path))
@click.option("--node", "nodes", nargs=2, multiple=True, metavar="URL ADMIN_URL", help="A running node, with --origin.")
@click.option("--origin", nargs=2, metavar="URL ADMIN_URL", help="Its Kratos; nothing is started, nothing is broken.")
def main(
    seconds: float,
    users: int,
    revocations_per_second: float,
    max_staleness: float,
    faults: bool,
    seed: int | None,
    report: Path,
    nodes: tuple[_Urls, ...],
    origin: _Urls | None,
) -> None:
    """Users ask two nodes, change and revoke sessions; every answer is compared with the truth."""
    if bool(nodes) != bool(origin):
        raise click.UsageError("--node and --origin go together")
    if not all(map(math.isfinite, (seconds, revocations_per_second, max_staleness))):
        raise click.UsageError("seconds and rates are finite numbers")
    if report.is_dir():
        raise click.UsageError(f"{report} is a folder: the report is a file")
    if not report.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {report.parent} for the report")
    try:
        for url in itertools.chain(origin or (), *nodes):
            check_http_url("--node and --origin", url)  # neither a password nor a path, which the report would show
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    limits = Limits()
    # As Python has it, it would end whichever user runs just then, who says so at length.
    gevent.signal_handler(signal.SIGINT, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)
    try:
        with _region(nodes, origin, max_staleness) as region:
            run = Run(region, limits, max_staleness, seed)
            play(run, seconds, users, revocations_per_second, faults=faults)
        if run.trouble:
            raise CacheNodeError(run.trouble[0])
        verdict = judge(run.results, limits, revocations_per_second)
        title = f"{seconds:g} s, {users} users, {revocations_per_second:g} revocations a second, seed {seed}"
        report.write_text(render(run.results, verdict, title))
    except (CacheNodeError, OSError) as error:
        click.echo(f"could not run: {error}", err=True)
        sys.exit(COULD_NOT_RUN)
    except KeyboardInterrupt:
        click.echo("interrupted: no verdict", err=True)
        sys.exit(INTERRUPTED)
    click.echo(summary(run.results, verdict))
    click.echo(f"report: {report}")
    sys.exit(verdict.exit_status)


def play(run: Run, seconds: float, users: int, revocations_per_second: float, *, faults: bool) -> None:
    """Let the users work for `seconds`, and break things meanwhile; what happened is in the run."""
    classes = users_of(run, users, revocations_per_second)
    environment = Environment(user_classes=[*classes], stop_timeout=STOP_SECONDS)
    for service in (run.region.origin, *run.region.nodes):
        for url in (service.public_url, service.admin_url):
            Member(environment).check(url)
    environment.events.user_error.add_listener(run.note_error)  # type: ignore[no-untyped-call]
    runner = environment.create_local_runner()
    breaker = threading.Thread(target=run.break_things, args=(seconds if faults else 0.0,), daemon=True)
    end = run.results.begun_at + seconds
    try:
        runner.start(users, spawn_rate=SPAWNS_PER_SECOND)
        breaker.start()
        while (left := end - time.monotonic()) > 0 and not run.trouble:
            time.sleep(min(left, PROGRESS_SECONDS))
            click.echo(progress(run.results), err=True)
        if not run.trouble:
            breaker.join()
    finally:
        runner.quit()
        run.close()
        run.results.ended_at = time.monotonic()


def _region(nodes: tuple[_Urls, ...], origin: _Urls | None, max_staleness: float) -> Region:
    if origin is None:
        return DemoRegion(max_staleness)
    return Region([Service(*urls) for urls in nodes], Service(*origin))


if __name__ == "__main__":
    main()
