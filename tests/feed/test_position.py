"""Positions: a text that callers keep, and no order between generations."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_node.feed.position import Position

MOST = 2**64 - 1


@given(st.integers(0, MOST), st.integers(0, MOST))
def test_text_and_back(generation: int, number: int) -> None:
    """What `str()` gives is the stream id, and leads back to the same position, from text and from bytes."""
    position = Position(generation, number)
    assert str(position) == f"{generation}-{number}"
    assert Position.parse(str(position)) == Position.parse(str(position).encode()) == position


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1-2-3",
        " 1-2",
        "1-2\n",
        "1_0-2",
        "+1-2",
        "1--2",
        "a-b",
        "١-٢",
        b"1-\xff",
        "1" * 21 + "-1",
    ],
)
def test_everything_else_is_refused(text: str | bytes) -> None:
    """A position comes from a request's header, too: nothing but two numbers with a dash is taken for one."""
    with pytest.raises(ValueError, match="a position looks like"):
        Position.parse(text)


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge])
def test_positions_have_no_order(compare: Callable[[object, object], bool]) -> None:
    """Whoever compares numbers must have compared generations first, so the type offers no shortcut."""
    with pytest.raises(TypeError):
        compare(Position(1, 2), Position(1, 3))
