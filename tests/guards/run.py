"""Runs tests in copies of the checkout, one guard less in each, and says whether that was noticed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import pytest

from tests.guards.patch import Patch, PatchError, apply_patch, copy_checkout
from tests.guards.verdict import VARIABLE, EndOfTest, read_endings

TEST_SECONDS = 30.0
"""A test that takes longer without its guard has not noticed, it hangs."""
ALL_TESTS_SECONDS = 300.0

# Starting Python and importing other people's packages takes three times as long as most of the tests, so each process
# is forked from one that has done so.
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        "aiohttp",
        "cryptography.hazmat.primitives.ciphers.aead",
        "hypothesis",
        "msgspec",
        "orjson",
        "pydantic_settings",
        "pytest",
        "pytest_asyncio",
        "redis.asyncio",
        "starlette.applications",
        "uvicorn",
    ]
)

_ENDED = threading.Event()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`caught`: the test failed with an assertion; `MISSED`: it passed; `ERROR`: whatever else `words` say."""

    kind: Literal["caught", "MISSED", "ERROR"]
    seconds: float
    words: str = ""


def run_without(patch: Patch, checkout: Path, *, test: str | None = None, seconds: float = TEST_SECONDS) -> Outcome:
    """Take the guard away in a copy and run its test there, or `test`, which may take so long."""
    started = time.monotonic()

    def outcome(kind: Literal["caught", "MISSED", "ERROR"], words: str = "") -> Outcome:
        return Outcome(kind, time.monotonic() - started, words)

    with tempfile.TemporaryDirectory(prefix="cache-node-guards-") as folder:
        copy = copy_checkout(checkout, Path(folder))
        try:
            apply_patch(patch, copy)
        except PatchError as error:
            return outcome("ERROR", str(error))
        run = _pytest([test or patch.test], copy, ["-x"], seconds)
        if run.status is None:
            return outcome("ERROR", f"was not done within {seconds:g} s")
        wrong = [ending for ending in run.endings if not Path(ending.package).is_relative_to(copy)]
        if wrong:
            return outcome("ERROR", f"did not test the copy, but {wrong[0].package}")
        if run.status == 0 and run.endings:
            return outcome("MISSED", patch.guard)
        if run.status == 1 and run.endings and all(e.ending != "other" for e in run.endings):
            return outcome("caught", next(e.words for e in run.endings if e.ending == "assertion"))
        return outcome("ERROR", next((e.words for e in run.endings if e.ending == "other"), run.last_words))


def run_unpatched(patches: Sequence[Patch], checkout: Path) -> list[str]:
    """Run all named tests with all guards in place; one line for each that does not pass."""
    tests = sorted({patch.test for patch in patches})
    with tempfile.TemporaryDirectory(prefix="cache-node-guards-") as folder:
        run = _pytest(tests, copy_checkout(checkout, Path(folder)), [], ALL_TESTS_SECONDS)
    if run.status == 0:
        return []
    lines = [
        f"ERROR    with all guards in place {e.test} fails: {e.words}" for e in run.endings if e.ending != "passed"
    ]
    return lines or [f"ERROR    with all guards in place the tests do not run: {run.last_words}"]


def end_all() -> None:
    """Kill the tests under way in all threads; what would begin later ends at once."""
    _ENDED.set()
    for process in multiprocessing.active_children():
        _kill(process)


@dataclass(frozen=True, slots=True)
class _Run:
    status: int | None
    """pytest's exit status; None if it had to be ended."""
    endings: list[EndOfTest]
    last_words: str


def _pytest(tests: Sequence[str], copy: Path, options: Sequence[str], seconds: float) -> _Run:
    verdict, output, ended = (copy.parent / name for name in ("verdict", "output", "ended"))
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "tests.guards.verdict", "--tb=short", *options, *tests]
    process = _FORKSERVER.Process(target=_run_in_copy, args=(copy, verdict, output, ended, arguments))
    process.start()
    try:
        process.join(0.0 if _ENDED.is_set() else seconds)
        status = process.exitcode
        if status is not None and ended.exists():
            # A start in another thread polls this process too, and of two that do one hears 255 [once in 440 runs].
            status = int(ended.read_text())
    finally:
        if process.exitcode is None:
            _kill(process)
            process.join()
    lines = [line.strip() for line in output.read_text().splitlines() if line.strip()] if output.exists() else []
    errors = [line for line in lines if line.startswith(("E  ", "ERROR: "))]  # as pytest marks them
    return _Run(status, read_endings(verdict), " | ".join(errors[-2:] or lines[-1:]))


def _kill(process: BaseProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()  # it may not lead its group yet


def _run_in_copy(copy: Path, verdict: Path, output: Path, ended: Path, arguments: list[str]) -> None:
    """In a new process: forget the checkout, and run pytest in the copy."""
    os.setsid()
    checkout = str(Path(__file__).parents[2])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "cache_node")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry not in ("", checkout))]
    sys.dont_write_bytecode = True
    for variable in [name for name in os.environ if name.startswith(("CACHE_NODE_", "PYTEST_"))]:
        del os.environ[variable]
    os.environ |= {VARIABLE: str(verdict), "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(copy)
    with output.open("w") as file, open(os.devnull) as nothing:
        for number, source in ((0, nothing), (1, file), (2, file)):
            os.dup2(source.fileno(), number)
    status = int(pytest.main([*arguments, "-W", "ignore:Module already imported"]))
    ended.write_text(str(status))
    sys.exit(status)
