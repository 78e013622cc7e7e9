"""A pytest plugin: how each test of a run ended, and whose `cache_node` was tested, as JSON for the caller.

Loaded with `-p tests.guards.verdict`; writes to the file that the variable GUARDS_VERDICT names.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

import cache_node

VARIABLE = "GUARDS_VERDICT"

Ending = Literal["passed", "assertion", "other"]


@dataclass(frozen=True, slots=True)
class EndOfTest:
    """`assertion`: an assertion of the test's own did not hold; `other`: whatever else keeps it from passing."""

    test: str
    ending: Ending
    words: str
    package: str
    """The file of the `cache_node` that was tested."""


def read_endings(path: Path) -> list[EndOfTest]:
    """What the plugin wrote; nothing for a run that was cut off."""
    if not path.exists():
        return []
    return [EndOfTest(**json.loads(line)) for line in path.read_text().splitlines()]


def judge(error: BaseException) -> Ending:
    """A time-out is no assertion, nor is an error that only a broken patch would raise, such as a NameError."""
    # Matched by name: only pytest-timeout, not an import, decides which class that is.
    if type(error).__name__ == "NotInTimeError":
        return "other"
    if isinstance(error, AssertionError):
        return "assertion"
    if isinstance(error, pytest.fail.Exception) and str(error).startswith("DID NOT RAISE"):
        return "assertion"
    return "other"


@pytest.hookimpl(tryfirst=True)  # the first to answer is the last to be asked, and this one never answers
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        error = call.excinfo.value
        # An error of set-up or tear-down says nothing about the guard.
        ending: Ending = judge(error) if call.when == "call" else "other"
        words = f"{call.when}: {type(error).__name__}: {error}".splitlines()[0]
    elif call.when == "call":
        ending, words = "passed", ""
    else:
        return
    _write(EndOfTest(item.nodeid, ending, words, cache_node.__file__ or ""))


def _write(ending: EndOfTest) -> None:
    path = os.environ.get(VARIABLE)
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(ending)) + "\n")
