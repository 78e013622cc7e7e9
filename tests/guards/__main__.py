"""`python -m tests.guards [-v] [-j N] [--histories] [PATTERN …]`: those whose file, race or test contains a pattern, or
all; with `--histories` those that random histories notice."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.command_lines import at_least_one, exit_status
from tests.guards.histories import WORLD, is_of_the_world, play_without, why_unnoticed
from tests.guards.patch import Patch, PatchError, copy_checkout, read_patch, renew_patch
from tests.guards.races import RACES, read_guarantees, uncovered_guarantees, uncovered_races
from tests.guards.run import end_all, run_unpatched, run_without

FOLDER = Path(__file__).parent
CHECKOUT = FOLDER.parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("-j", "--jobs", type=at_least_one, default=2, help="copies tested at once (default: 2)")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each removed guard was caught")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a file name, race or test")
    parser.add_argument(
        "--renew", action="store_true", help="write those anew whose surroundings have changed; no tests"
    )
    parser.add_argument(
        "--histories", action="store_true", help="play random histories without each guard, instead of running its test"
    )
    options = parser.parse_args(arguments)
    patches, problems = _read_all(FOLDER)
    chosen = [patch for patch in patches if _matches(patch, options.patterns)]
    _say(problems if chosen else [*problems, "ERROR    no patch matches"])
    # One snapshot for all, so that nobody's editing gets in between.
    with tempfile.TemporaryDirectory(prefix="cache-node-guards-") as folder:
        snapshot = copy_checkout(CHECKOUT, Path(folder))
        if options.renew:
            return int(not _renew(chosen, snapshot) or bool(problems) or not chosen)
        if options.histories:
            return int(not _play([patch for patch in chosen if is_of_the_world(patch)], snapshot, options.jobs))
        passed = bool(chosen) and _run(chosen, snapshot, options.jobs, options.verbose)
    missing = [] if options.patterns else _uncovered(patches)
    return 0 if passed and not (problems or missing) else 1


def _run(chosen: Sequence[Patch], snapshot: Path, jobs: int, verbose: bool) -> bool:
    started = time.monotonic()
    broken = run_unpatched(chosen, snapshot)
    _say(broken)
    caught = 0
    with _pool(jobs) as pool:
        for patch, outcome in zip(chosen, pool.map(lambda p: run_without(p, snapshot), chosen), strict=True):
            caught += outcome.kind == "caught"
            _say([f"{outcome.kind:<8} {patch.name}  {patch.race}  {patch.test}  {outcome.seconds:.1f} s"])
            if outcome.kind != "caught" or verbose:
                _say([f"         {outcome.words}"])
    _say([f"{caught} of {len(chosen)} removed guards caught in {time.monotonic() - started:.0f} s"])
    return caught == len(chosen) and not broken


def _play(chosen: Sequence[Patch], snapshot: Path, jobs: int) -> bool:
    """A line for each as it is done, then all, those that took longest last."""
    if not chosen:
        _say([f"ERROR    no patch that matches changes any of {', '.join(WORLD)}"])
        return False
    started, rows, wrong = time.monotonic(), [], 0
    with _pool(jobs) as pool:
        for patch, outcome in zip(chosen, pool.map(lambda p: play_without(p, snapshot), chosen), strict=True):
            why = why_unnoticed(patch)
            is_right = outcome.kind == ("caught" if why is None else "MISSED")
            verdict = {"caught": "found", "MISSED": "missed"}.get(outcome.kind, outcome.kind)
            wrong += not is_right
            rows.append((outcome.seconds, f"{verdict:<8} {patch.path.stem:<44} {outcome.seconds:5.1f} s"))
            _say([f"{rows[-1][1]}  {outcome.words if outcome.kind != 'MISSED' else why or ''}"[:160]])
            if not is_right:
                _say([f"WRONG    {why or 'it should be found'}: {patch.guard}"])
    _say(["", *(line for _, line in sorted(rows))])
    _say([f"{len(rows) - wrong} of {len(rows)} as they should be, in {time.monotonic() - started:.0f} s"])
    return not wrong


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield pool
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise


def _renew(chosen: Sequence[Patch], snapshot: Path) -> bool:
    complete = True
    for patch in chosen:
        with tempfile.TemporaryDirectory(prefix="cache-node-guards-") as folder:
            try:
                if renew_patch(patch, copy_checkout(snapshot, Path(folder))):
                    _say([f"renewed  {patch.name}: look at it, then run it"])
            except PatchError as error:
                complete = False
                _say([f"ERROR    {patch.name} {error}"])
    return complete


def _read_all(folder: Path) -> tuple[list[Patch], list[str]]:
    patches, problems = [], []
    for path in sorted(folder.glob("*.patch")):
        try:
            patches.append(read_patch(path))
        except PatchError as error:
            problems.append(f"ERROR    {path.name} {error}")
    return patches, problems


def _uncovered(patches: Sequence[Patch]) -> list[str]:
    races = uncovered_races(patches)
    _say(races or [f"covered  all {len(RACES)} races"])
    readme = CHECKOUT / "README.md"
    found = read_guarantees(readme.read_text()) if readme.exists() else None
    if found is None:
        _say(["MISSING  README.md has no section Guarantees"])
        return [*races, "no Guarantees"]
    guarantees = uncovered_guarantees(found, patches)
    _say(guarantees or [f"covered  all {len(found)} guarantees of README.md"])
    return races + guarantees


def _matches(patch: Patch, patterns: Sequence[str]) -> bool:
    return not patterns or any(part in text for part in patterns for text in (patch.name, patch.race, patch.test))


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(exit_status(main))
