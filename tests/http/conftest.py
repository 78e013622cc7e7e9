"""A loop that goes where a test takes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.http.wire import ManualLoop


@pytest.fixture
def loop() -> Iterator[ManualLoop]:
    manual = ManualLoop()
    yield manual
    for task in asyncio.all_tasks(manual):
        task.cancel()
    manual.settle()
    manual.close()
