"""Log lines on stderr, written by a thread: who reads them may stand still, a node must not.

With a plain stream handler a log collector that stalls stops the event loop as soon as its pipe of 64 KiB is full, and
with it every request, the lease, and the end by SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import Final

MAX_WAITING_LINES: Final = 10_000
"""What is more is dropped and counted."""
LAST_LINES_SECONDS: Final = 1.0
"""How long the end of a process waits for its last lines to be read."""


class LineHandler(logging.Handler):
    """Formats at once, writes to the file descriptor `fd` behind that.  `close()` gives the last lines their time."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._dropped = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._write_all, name="cache-node-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        if self._lines.qsize() >= MAX_WAITING_LINES:
            self._dropped += 1
            return
        try:
            text = self.format(record)
        except (TypeError, ValueError, LookupError):  # arguments that do not fit must not fail whoever says something
            text = f"{record.levelname} {record.name}: a line that cannot be formatted: {record.msg}"
        if self._dropped:
            text = f"{self._dropped} lines of this log were dropped: nobody read it\n{text}"
            self._dropped = 0
        self._lines.put((text + "\n").encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """Write what waits, for a second at most; what comes later is not written."""
        if not self._is_closed:
            self._is_closed = True
            self._lines.put(None)
            self._thread.join(LAST_LINES_SECONDS)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # a full disk, a closed pipe: there is nowhere to say so
                while line:
                    line = line[os.write(self._fd, line) :]
