"""Which removed guards random histories notice as well, without knowing where to look.

All of those do, within two minutes, that belong to what the histories' world is made of, but for the ones that
`UNNOTICED` names.  That nobody notices them there is looked at, too: a guard that is found is struck off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.guards.patch import Patch
from tests.guards.run import Outcome, run_without

WORLD = (
    "cache_node/feed/",
    "cache_node/sessions/entry.py",
    "cache_node/sessions/flight.py",
    "cache_node/sessions/memory_tier.py",
    "cache_node/sessions/reader.py",
    "cache_node/sources/receipt.py",
)
"""What the world of the histories is made of: guards of other files are not asked about here."""
FOUND_WITHIN_SECONDS = 120
UNNOTICED_FOR_SECONDS = 20

UNNOTICED: Mapping[str, Sequence[str]] = {}
"""Reason → patches, without `.patch`."""

_TEST = "tests/histories/endless.py::test_no_history_breaks_a_promise"
_STARTING_SECONDS = 30.0


def is_of_the_world(patch: Patch) -> bool:
    return any(target.startswith(WORLD) for target in patch.targets)


def why_unnoticed(patch: Patch) -> str | None:
    return next((why for why, names in UNNOTICED.items() if patch.path.stem in names), None)


def play_without(patch: Patch, checkout: Path) -> Outcome:
    """Histories with this guard taken away, until one breaks a promise; `caught` is what was to be noticed, or not."""
    seconds = FOUND_WITHIN_SECONDS if why_unnoticed(patch) is None else UNNOTICED_FOR_SECONDS
    return run_without(patch, checkout, test=f"{_TEST}[{seconds}]", seconds=seconds + _STARTING_SECONDS)
