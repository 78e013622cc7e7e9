"""What must be covered: the races that the core was built against, and the guarantees that README.md gives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tests.guards.patch import GUARANTEE, Patch

RACES = (
    "fill race on one node",
    "fill race across two nodes through Redis",
    "joiner after the event",
    "event while the entry is being read from Redis",
    "floor raised during a fill",
    "new generation during a fill",
    "lease expiring between read and write",
    "a wake-up read and a confirm that reach two different servers",
    "an early addition to the fence without its confirm",
    "an entry stamped forward and then named by an event",
    "a bucket dropped while its ids are cached",
    "a gap after trimming",
    "FLUSHALL and an empty restart with a revocation lost",
    "a publisher that writes before the first confirm after a failover",
)

_SECTION = re.compile(r"^## Guarantees[ \t]*$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ITEM = re.compile(r"^(?:[-*+]|\d+[.)])[ \t]+(.*(?:\n(?![-*+] |\d+[.)] |#).*)*)", re.MULTILINE)
_TESTS_AT_END = re.compile(r"(?:`tests/[^`]+::[^`]+`[\s,;.)]*(?:and\s+)?)+\Z")
_TEST = re.compile(r"`(tests/[^`]+::[^`]+)`")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One item of README.md's list: its words, and the tests that it ends with."""

    text: str
    tests: tuple[str, ...]


def read_guarantees(readme: str) -> list[Guarantee] | None:
    """The items of the section `## Guarantees`; None if there is no such section."""
    section = _SECTION.search(readme)
    if section is None:
        return None
    guarantees = []
    for item in _ITEM.finditer(section[1]):
        text = " ".join(item[1].split())
        end = _TESTS_AT_END.search(text)
        guarantees.append(Guarantee(text[: end.start()] if end else text, tuple(_TEST.findall(end[0]) if end else ())))
    return guarantees


def uncovered_races(patches: Sequence[Patch]) -> list[str]:
    """One line per race without a patch, and per patch of a race that is not known."""
    named = {patch.race for patch in patches}
    lines = [f"MISSING  no patch for the race: {race}" for race in RACES if race not in named]
    lines += [
        f"MISSING  {patch.name} names no race of tests/guards/races.py: {patch.race}"
        for patch in patches
        if patch.race not in RACES and not patch.race.startswith(GUARANTEE)
    ]
    return lines


def uncovered_guarantees(guarantees: Sequence[Guarantee], patches: Sequence[Patch]) -> list[str]:
    """One line per guarantee that ends with no test, and per test of one that no patch makes fail."""
    guarded = {patch.test for patch in patches}
    lines = [] if guarantees else ["MISSING  README.md has a section Guarantees without items"]
    for guarantee in guarantees:
        if not guarantee.tests:
            lines.append(f"MISSING  a guarantee of README.md ends with no test: {guarantee.text}")
        lines += [
            f"MISSING  no patch for {test}, which README.md names for: {guarantee.text}"
            for test in guarantee.tests
            if test not in guarded
        ]
    return lines
