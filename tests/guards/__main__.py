"""`python -m tests.guards [-v] [-j N] [PATTERN …]`: those whose file, race or test contains a pattern, or all."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.guards.patch import Patch, PatchError, read_patch
from tests.guards.races import RACES, read_guarantees, uncovered_guarantees, uncovered_races
from tests.guards.run import run_unpatched, run_without

FOLDER = Path(__file__).parent
CHECKOUT = FOLDER.parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.guards", description=__doc__)
    parser.add_argument("-j", "--jobs", type=int, default=2, help="copies tested at once (default: 2)")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how each removed guard was caught")
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="part of a file name, race or test")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    patches, problems = _read_all(FOLDER)
    chosen = [patch for patch in patches if _matches(patch, options.patterns)]
    _say(problems)
    if not chosen:
        _say(["ERROR    no patch matches"])
        return 1
    broken = run_unpatched(chosen, CHECKOUT)
    _say(broken)
    caught = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for patch, outcome in zip(chosen, pool.map(lambda p: run_without(p, CHECKOUT), chosen), strict=True):
            caught += outcome.kind == "caught"
            _say([f"{outcome.kind:<8} {patch.name}  {patch.race}  {patch.test}  {outcome.seconds:.1f} s"])
            if outcome.kind != "caught" or options.verbose:
                _say([f"         {outcome.words}"])
    missing = [] if options.patterns else _uncovered(patches)
    _say([f"{caught} of {len(chosen)} removed guards caught in {time.monotonic() - started:.0f} s"])
    return 0 if caught == len(chosen) and not (problems or broken or missing) else 1


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
    sys.exit(main())
