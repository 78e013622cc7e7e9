"""What is interrupted ends at once, with one line that says so, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cache_node.cli import INTERRUPTED
from tests.waiting import eventually_blocking


@pytest.mark.parametrize(
    ("command", "under_way"),
    [
        ("benchmarks evict", "evict begins"),
        ("benchmarks.feed --cases publish", "publish"),
        ("loadtest --seconds 30 --users 20", "answers ("),
        ("tests.histories", "seed 0:"),
        pytest.param("tests.guards feed-fence", "caught", marks=pytest.mark.slow),
    ],
)
@pytest.mark.process
def test_an_interrupt_is_one_line(command: str, under_way: str, tmp_path: Path) -> None:
    """As from a terminal: the children hear it, too."""
    more = ["--results", str(tmp_path)] if command.startswith("benchmarks") else []
    said = tmp_path / "said"
    with said.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *command.split(), *more],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path(__file__).parents[1],
        )
    try:
        eventually_blocking(lambda: under_way in said.read_text(), said.read_text, 60.0)
        children = psutil.Process(running.pid).children(recursive=True)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(30.0) == INTERRUPTED, said.read_text()
    finally:
        running.kill()
        running.wait()
    assert said.read_text().splitlines()[-1] == "interrupted: no verdict"
    assert "Traceback" not in said.read_text()
    assert not psutil.wait_procs(children, timeout=10.0)[1]
