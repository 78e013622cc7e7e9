"""What all tests share.

With REQUIRE_ALL=1 a test that would be skipped fails, because somebody promised its needs.  Generated examples have no
deadline of their own: on a busy machine one of them would miss it now and then.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

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
