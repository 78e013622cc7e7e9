"""`python -m benchmarks.lateness`: how late this machine wakes a process that only sleeps, which is nobody's fault.

Sleeps for a millisecond again and again until its stdin ends, then prints by how much each sleep was too long.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.servers import pinned

NAP_SECONDS = 0.001


@contextlib.contextmanager
def sleeper(core: int) -> Iterator[list[float]]:
    """One beside what runs on this core; the list is filled at the end, in seconds."""
    command = [sys.executable, "-m", "benchmarks.lateness"]
    overslept: list[float] = []
    with (
        pinned(core),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0) as process,
    ):
        try:
            if process.stdout is not None:
                process.stdout.readline()
            yield overslept
            overslept += json.loads(process.communicate()[0])
        finally:
            process.kill()


def main() -> None:
    """The sleeping process."""
    print("asleep", flush=True)
    overslept = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        begun = time.monotonic()
        time.sleep(NAP_SECONDS)
        overslept.append(time.monotonic() - begun - NAP_SECONDS)
    print(json.dumps(overslept))


if __name__ == "__main__":
    main()
