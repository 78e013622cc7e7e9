"""Asking a node in process as a client does: the bytes of a request, over connections that are kept."""

from __future__ import annotations

import asyncio
import re
from typing import get_args

from uvicorn.config import Config
from uvicorn.server import ServerState

from cache_node.errors import OriginUnavailableError
from cache_node.http.fast_lane import FastLane
from cache_node.sessions.answer import Answer, Tier, Wants
from tests.http.wire import App, ScriptedTransport, config_of, connect, request

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_CACHE_STATUS = re.compile(r"cache-node; (hit|fwd=\S+); detail=(\S+)")
_OF_THE_NODE = (b"date", b"cache-status", b"age", b"content-length")
"""Headers that are no part of an `Answer`."""
_TIERS: dict[str, Tier] = {f"hit {tier}": tier for tier in get_args(Tier)} | {"fwd=stale stale-if-error": "stale"}


class NoAnswerError(AssertionError):
    """The connection ended, or what came is not what a node says."""


def whoami_request(token: str | None, wants: Wants) -> bytes:
    """Who presents this token, or nothing, asks, and demands so much."""
    directives = ["no-cache"] * wants.no_cache
    if wants.max_age_seconds is not None:
        assert wants.max_age_seconds == int(wants.max_age_seconds), "not to be said in a header"
        directives.append(f"max-age={int(wants.max_age_seconds)}")
    lines = [] if token is None else [f"X-Session-Token: {token}"]
    if directives:
        lines.append(f"Cache-Control: {', '.join(directives)}")
    if wants.min_position is not None:
        lines.append(f"Cache-Node-Min-Position: {wants.min_position}")
    return request(*lines)


class Client:
    """Whoever asks one node: with one connection, or as many as there are requests under way."""

    def __init__(self, app: App, lane: FastLane) -> None:
        self._config = config_of(app)
        self._lane = lane
        self._resting: list[_Line] = []

    async def ask(self, request: bytes) -> Answer:
        """Raises OriginUnavailableError for the node's own 503, and NoAnswerError for what is none.

        Who is cancelled is cut off: the connection is lost, and the request is cancelled, as when a server ends.
        """
        line = self._resting.pop() if self._resting else _Line(self._config, self._lane)
        try:
            written = await line.ask(request)
        except asyncio.CancelledError:
            line.cut_off()
            raise
        if not line.is_closing():
            self._resting.append(line)
        return _answer_of(written)


class _Line(ScriptedTransport):
    """One connection; `ask` is called when the answer before is there."""

    def __init__(self, config: Config, lane: FastLane) -> None:
        super().__init__(asyncio.get_running_loop())
        self._answer: asyncio.Future[bytes] = self.loop.create_future()
        self._state = ServerState()
        connect(self, config, self._state, lane)

    async def ask(self, request: bytes) -> bytes:
        self._answer = self.loop.create_future()
        assert isinstance(self.protocol, asyncio.Protocol)
        self.protocol.data_received(request)
        answer = await self._answer
        await asyncio.sleep(0)  # an answer takes its time to the client, in which the run that brought it stores it
        return answer

    def write(self, data: bytes | bytearray | memoryview) -> None:
        super().write(data)
        head, end, body = self.written.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if end and length is not None and len(body) >= int(length[1]) and not self._answer.done():
            self._answer.set_result(self.written)
            self.written = b""

    def close(self) -> None:
        super().close()
        if not self._answer.done():
            self._answer.set_exception(NoAnswerError(f"the connection ended behind {self.written!r}"))

    def cut_off(self) -> None:
        """The connection, and the application's task for it."""
        self.close()
        for task in self._state.tasks:
            task.cancel()


def _answer_of(written: bytes) -> Answer:
    head, _, body = written.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
    status, values = int(status_line.split()[1]), dict(headers)
    said = _CACHE_STATUS.fullmatch(values.get(b"cache-status", b"").decode())
    if said is None or len(body) != int(values[b"content-length"]):
        raise NoAnswerError(f"no answer of a node: {written!r}")
    how, detail = said.groups()
    if status == 503 and b"retry-after" in values:
        raise OriginUnavailableError(detail, body.decode())
    tier = "bypass" if how == "fwd=bypass" else _TIERS.get(f"{how} {detail}", "origin")
    kept = tuple(line for line in headers if line[0] not in _OF_THE_NODE)
    return Answer(status, kept, body, tier, detail, float(values[b"age"]))
