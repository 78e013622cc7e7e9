"""Histories for as long as it takes, or as it may: no part of the suite, `make guards ARGS=--histories` asks for it."""

from __future__ import annotations

import logging

import pytest

from tests.histories.__main__ import run

SEED = 7000


@pytest.mark.timeout(0)
@pytest.mark.parametrize("seconds", [20, 120])
def test_no_history_breaks_a_promise(seconds: int) -> None:
    """The first one that does is shown as it is."""
    logging.disable(logging.WARNING)
    run(SEED, seconds=seconds, shrinks=False)
