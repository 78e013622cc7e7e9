"""Log lines must never wait for who reads them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from cache_node.ops import log_lines
from cache_node.ops.log_lines import LineHandler
from tests.waiting import eventually_blocking

PIPE_BYTES = 65536


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("name", logging.INFO, "", 0, "%s", (text,), None)


def test_lines_come_in_order_and_whole(pipe: tuple[int, int]) -> None:
    """The last ones, too, when the process ends; and what is no Unicode breaks nothing."""
    handler = LineHandler(pipe[1])
    for text in ("first", "sec\ud800nd", "third"):
        handler.emit(record(text))
    handler.close()
    handler.close()
    assert os.read(pipe[0], 1000) == b"first\nsec\\ud800nd\nthird\n"


def test_a_pipe_that_nobody_reads(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits; what is too much is dropped and counted, which is said when there is room again."""
    monkeypatch.setattr(log_lines, "MAX_WAITING_LINES", 10)
    monkeypatch.setattr(log_lines, "LAST_LINES_SECONDS", 0.01)
    handler = LineHandler(pipe[1])
    handler.emit(record("x" * 2 * PIPE_BYTES))
    eventually_blocking(handler._lines.empty, handler._lines.qsize)
    for number in range(25):
        handler.emit(record(f"line {number}"))
    handler.close()  # it does not wait for long, either
    monkeypatch.setattr(log_lines, "MAX_WAITING_LINES", 100)
    handler.emit(record("later"))
    seen = b""
    while b"line 9" not in seen:
        seen += os.read(pipe[0], PIPE_BYTES)
    assert seen == b"x" * 2 * PIPE_BYTES + b"\n" + b"".join(b"line %d\n" % number for number in range(10))


def test_dropped_lines_are_told(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of the next line that has room."""
    monkeypatch.setattr(log_lines, "MAX_WAITING_LINES", 0)
    handler = LineHandler(pipe[1])
    handler.emit(record("dropped"))
    handler.emit(record("dropped"))
    monkeypatch.setattr(log_lines, "MAX_WAITING_LINES", 10)
    handler.emit(record("later"))
    handler.close()
    assert os.read(pipe[0], 1000) == b"2 lines of this log were dropped: nobody read it\nlater\n"


def test_a_closed_pipe_is_nothing_to_speak_of() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    handler = LineHandler(writing)
    handler.emit(record("nobody is there"))
    handler.close()
    os.close(writing)


def test_a_line_that_cannot_be_formatted_fails_nobody(pipe: tuple[int, int]) -> None:
    """It says where it comes from, without its arguments."""
    handler = LineHandler(pipe[1])
    handler.emit(logging.LogRecord("name", logging.INFO, "", 0, "%d of them", ("secret",), None))
    handler.close()
    assert os.read(pipe[0], 1000) == b"INFO name: a line that cannot be formatted: %d of them\n"
