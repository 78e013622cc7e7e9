"""Child processes that end with this one, whatever way it ends.

Not promised: a grandchild's end, and on systems other than Linux the end of a child whose parent was killed by SIGKILL.
A child must be started from a thread that lives as long as the child should (the event loop's own): Linux sends the
death signal when the *thread* that started the child ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_SECONDS = 0.01

# Runs between fork and exec, in a fresh interpreter, for `preexec_fn` is not safe with threads.  Changing the user
# clears the death signal (prctl(2)), hence this order; the parent may have died before prctl, hence the last check.
_LAUNCHER = """
import ctypes, os, sys
death_signal, parent, uid, gid = map(int, sys.argv[1:5])
if sys.platform == "linux":
    libc = ctypes.CDLL(None)
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    libc.prctl(1, death_signal)
    if os.getppid() != parent:
        sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


def start_child(
    command: Sequence[str],
    *,
    log: Path,
    directory: Path,
    environment: Mapping[str, str],
    death_signal: signal.Signals = signal.SIGKILL,
    user: tuple[int, int] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute path and its arguments), its output appended to `log`; the caller owns and ends it.

    `user` is a (uid, gid) to run it as, which takes root.  `death_signal` is what it gets when this process is gone.
    """
    uid, gid = user if user is not None else (-1, -1)
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
    numbers = [str(int(death_signal)), str(os.getpid()), str(uid), str(gid)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*launcher, *numbers, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,  # a Ctrl-C in the terminal is ours to act on
        )


async def end_child(process: subprocess.Popen[bytes], how: signal.Signals, timeout_seconds: float) -> None:
    """Send `how`, and SIGKILL when the process is still there after `timeout_seconds`; return when it is gone."""
    if process.poll() is None:
        process.send_signal(how)
    if not await poll_until(lambda: process.poll() is not None, timeout_seconds):
        process.kill()
        await poll_until(lambda: process.poll() is not None, timeout_seconds)


async def poll_until(is_done: Callable[[], bool], timeout_seconds: float) -> bool:
    """Ask `is_done` every 10 ms; False when `timeout_seconds` have passed without a yes."""
    deadline = time.monotonic() + timeout_seconds
    while not is_done():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, or a word saying that there is none."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
