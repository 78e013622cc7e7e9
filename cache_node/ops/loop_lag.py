"""How late the event loop comes to what is due: the wait of a request before anything of it can be timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

INTERVAL_SECONDS: Final = 0.1


class LoopLag:
    """Looks ten times a second, from its making until `stop`; tells `observe` each time, in seconds."""

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(INTERVAL_SECONDS, self._look, self._loop.time() + INTERVAL_SECONDS)

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()

    def _look(self, due_at: float) -> None:
        now = self._loop.time()
        self._observe(max(0.0, now - due_at))
        self._timer = self._loop.call_at(now + INTERVAL_SECONDS, self._look, now + INTERVAL_SECONDS)
