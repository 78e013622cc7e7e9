"""What all tests share.

With REQUIRE_ALL=1 a test that would be skipped fails, because somebody promised its needs.  Generated examples have no
deadline of their own: on a busy machine one of them would miss it now and then.

Tests that start a process, a Valkey above all, are marked `process`: by the fixtures that they use, else by hand.  The
mark is kept honest: any other test fails as it starts one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

MARKS_OF_PROCESSES = ("process", "kratos", "model")
FIXTURES_OF_PROCESSES = {"valkey", "own_valkey", "shared_valkey", "primary_and_replica", "lasting_pair"}
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("REQUIRE_ALL") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = call.excinfo.value if call.excinfo is not None else "no reason given"
        report.outcome = "failed"
        report.longrepr = f"skipped although REQUIRE_ALL=1: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES_OF_PROCESSES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.process)


_running: list[pytest.Item] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _running.append(item)
    try:
        return (yield)
    finally:
        _running.pop()


def _refuse_processes(event: str, arguments: object) -> None:
    if event in STARTS and not all(any(map(item.get_closest_marker, MARKS_OF_PROCESSES)) for item in _running):
        pytest.fail(f"{event}: a test that starts a process is marked so (@pytest.mark.process)")


sys.addaudithook(_refuse_processes)
