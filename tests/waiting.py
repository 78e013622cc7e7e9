"""Waiting without sleeping for a guessed time: poll until it is so, and say what was seen last if it never is."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

POLL_SECONDS = 0.005


class NotInTimeError(AssertionError):
    """What was waited for did not come.  `make guards` takes it for a time-out, never for a caught guard."""


async def eventually(
    predicate: Callable[[], bool | Awaitable[bool]],
    describe: Callable[[], object] = lambda: "no description",
    timeout_seconds: float = 5.0,
) -> None:
    """Return once `predicate()` holds; fail with `describe()`, the last state, after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        held = predicate()
        if inspect.isawaitable(held):
            held = await held
        if held:
            return
        if time.monotonic() > deadline:
            raise NotInTimeError(f"not so within {timeout_seconds:g} s: {describe()}")
        await asyncio.sleep(POLL_SECONDS)


def eventually_blocking(
    predicate: Callable[[], bool],
    describe: Callable[[], object] = lambda: "no description",
    timeout_seconds: float = 5.0,
) -> None:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout_seconds
    while not predicate():
        if time.monotonic() > deadline:
            raise NotInTimeError(f"not so within {timeout_seconds:g} s: {describe()}")
        time.sleep(POLL_SECONDS)
