"""The Promela models of the protocol, checked by Spin: what must hold holds, and every planted bug is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.model.runs import RUNS, Run

FOLDER = Path(__file__).parent
TOOLS = ("spin", "gcc")
EXACT_SECONDS = 300
MEMORY_MIB = 3000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the verifier said: errors found, states that it stored, and whether its time was over first."""

    errors: int
    states: str
    is_stopped: bool
    seconds: float
    said: str


def verify(run: Run, folder: Path) -> Verdict:
    """Generate, compile and run the verifier of one model in a folder of its own."""
    folder.mkdir()
    shutil.copy(FOLDER / f"{run.model}.pml", folder / "m.pml")
    _call(folder, "spin", *(f"-D{define}" for define in run.defines), "-a", "m.pml")
    is_hash = run.seconds is not None
    search = "-DBITSTATE" if is_hash else "-DCOLLAPSE"
    options = ["-DSAFETY", search, f"-DMEMLIM={MEMORY_MIB}", "-DNOFAIR", "-DVECTORSZ=2048"]
    # -O1: most searches take less time than compiling them, and -O2 makes none of them faster.
    _call(folder, "gcc", "-O1", "-w", *options, "-o", "pan", "pan.c")
    began = time.monotonic()
    seconds = run.seconds or EXACT_SECONDS
    try:
        said = _call(folder, "./pan", "-n", "-E", "-m1000000", *(["-w28"] if is_hash else []), seconds=seconds)
        is_stopped = False
    except subprocess.TimeoutExpired as late:
        said, is_stopped = (late.stdout or b"").decode(), True
    states = re.search(r"([\d.e+]+) states, stored", said)
    errors = re.search(r"errors: (\d+)", said)
    return Verdict(
        errors=int(errors[1]) if errors else 0,
        states=states[1] if states else "?",
        is_stopped=is_stopped,
        seconds=time.monotonic() - began,
        said=said,
    )


def _call(folder: Path, *command: str, seconds: float | None = None) -> str:
    """What it said; it leaves the cores to tests that run meanwhile in another process and have deadlines."""
    nicely = ("nice", "-n", "19", *command)
    done = subprocess.run(nicely, cwd=folder, capture_output=True, timeout=seconds, check=False)
    text = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 0 or command[0] == "./pan", text
    return text


@pytest.fixture(scope="module")
def verdicts(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Run, Future[Verdict]]]:
    """Those of the runs that were chosen, two at a time."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {' and '.join(missing)} (Debian: apt-get install spin gcc libc6-dev)")
    folder = tmp_path_factory.mktemp("spin")
    here = [item for item in request.session.items if item.path == Path(__file__)]
    chosen: list[Any] = [item.callspec.params["run"] for item in here if isinstance(item, pytest.Function)]
    with ThreadPoolExecutor(max(1, min(2, os.cpu_count() or 1))) as pool:
        yield {run: pool.submit(verify, run, folder / str(number)) for number, run in enumerate(chosen)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.model
@pytest.mark.timeout(2 * EXACT_SECONDS)
@pytest.mark.parametrize("run", RUNS, ids=str)
def test_model(run: Run, verdicts: dict[Run, Future[Verdict]]) -> None:
    verdict = verdicts[run].result()
    print(f"{run}: {verdict.errors} errors, {verdict.states} states, {verdict.seconds:.1f} s")

    assert (verdict.errors > 0) == run.is_violated, verdict.said
    assert run.seconds is not None or not verdict.is_stopped, "an exact search must end"
    assert run.seconds is None or not run.is_violated
