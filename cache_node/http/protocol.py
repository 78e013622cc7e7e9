"""uvicorn's HTTP protocol with the limits that it lacks: size and time of a request head, and a Host header.

What is refused gets Kratos' error shape, never out of its turn, and its connection ends.  Bodies have no limit of size
or time here; the application reads them, or ignores them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from cache_node.http.errors import error_body
from cache_node.http.fast_lane import MOST_JOINED, FastLane

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from cache_node.http.template import Template

HEAD_BYTES: Final = 65536
"""The largest request head: request line, headers, blank line.  The trailers of a chunked body have the same limit."""
HEAD_SECONDS: Final = 5.0
"""How long a head may take to arrive, from the connection for its first request, else from the head's first byte."""
KEEP_ALIVE_SECONDS: Final = 75
"""How long a connection may rest between requests: longer than a balancer's usual 60."""
TEMPLATE_BYTES: Final = 4096
"""The largest request that is kept with its connection, which may be one of thousands at rest."""
LINGER_SECONDS: Final = 2.0
"""How long what a refused client still sends is read, so that the kernel does not reset the answer on its way."""

# Reads reach 256 KiB.  Fed in pieces, no byte of a head goes uncounted for longer than one piece.
_PIECE_BYTES = 8192

_BETWEEN, _HEAD, _BODY = range(3)


class _Refused(Exception):
    """Raised inside a parser callback: the parser then stops, and stays stopped."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


_TOO_LARGE = (431, f"The request head is larger than {HEAD_BYTES} bytes.")
_NO_HOST = (400, "The request needs exactly one Host header.")
_MALFORMED = (400, "The request is not valid HTTP.")


class _OrderlyFlow(FlowControl):
    """Reads no more while pipelined requests wait, however often uvicorn asks for the body of the one that runs."""

    def __init__(self, transport: asyncio.Transport, is_full: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._is_full = is_full

    def resume_reading(self) -> None:
        if not self._is_full():
            super().resume_reading()


class LimitedHttpToolsProtocol(HttpToolsProtocol):
    """One connection of an `HttpServer`.

    A request that arrives in one read costs no timer.  The parser tells of a header when it is complete, so the bytes
    that it holds back are counted as they arrive.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        lane: FastLane | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._lane = lane
        self._template: Template | None = None  # only while the connection rests between two requests
        self._candidate: Template | None = None  # of the request that is being answered
        self._asked: Template | None = None  # of the request whose answer the lane looks for
        self._is_ending = False
        self._answered_at = float("-inf")
        self._messages = 0
        self._phase = _BETWEEN
        self._running: RequestResponseCycle | None = None  # whose answer is next, or was last, on the wire
        self._deaf = False  # whatever arrives now is of no interest
        self._unread = b""  # waits until the requests before it have been answered
        self._timer: asyncio.TimerHandle | None = None  # of a head under way, or of the end after a refusal
        # Bytes since the head under way began, or since the last byte of a body.  A head owns all of the piece that it
        # begins; of a piece in which it comes behind another request its share is unknown, and counts as none.
        self._undelivered = 0
        self._share = 0
        self._piece = b""
        self._tail = b""  # the three bytes before the piece: a head's blank line may lie across

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _OrderlyFlow(transport, self._is_full)
        self._timer = self.loop.call_later(HEAD_SECONDS, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._running is not None:  # uvicorn tells only the newest of several pipelined requests
            _disconnect(self._running)
        self._template = self._candidate = self._asked = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        template = self._template
        if template is not None:
            name = template.name
            if data != template.request or name is None:
                name = template.name_in(data)
            if name is not None:
                answer = self._lane.answer(name)  # type: ignore[union-attr]  # templates are a lane's
                if answer is not None:
                    self._answered_at = self._lane.now  # type: ignore[union-attr]
                    self.transport.write(answer)
                    return
                if self._lane.ask(template, self._hear, self.tasks):  # type: ignore[union-attr]
                    self._answered_at = self._lane.now  # type: ignore[union-attr]
                    self._asked, self._template = template, None
                    return
            self._template = None
        elif self._asked is not None:
            if not self._is_ending:
                self._unread += data
            self.flow.pause_reading()
            return
        self._parse_alone(data, template)

    def _hear(self, head: bytes | None, body: bytes) -> None:
        """What the lane was asked for; None if the parser must have the request."""
        template, self._asked = self._asked, None
        if template is None:  # the connection was lost
            return
        late, self._unread = self._unread, b""
        self._answered_at = self._lane.now  # type: ignore[union-attr]  # who asked it
        is_last = self._is_ending and b"\r\n\r\n" not in late
        if head is None:
            self._parse_alone(template.request, template)
        else:
            if is_last:
                head = head[:-2] + b"connection: close\r\n\r\n"
            elif not self._is_ending:
                self._template = template
            self._write(head, body)
        if late and not is_last:
            self.flow.resume_reading()
            self.data_received(late)
        if self._is_ending:
            super().shutdown()

    def _write(self, head: bytes, body: bytes) -> None:
        if len(body) <= MOST_JOINED:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)

    def _parse_alone(self, data: bytes, template: Template | None) -> None:
        """A read for the parser, and what it leaves behind for the next one; `template` did not fit it."""
        is_alone = self._phase == _BETWEEN and not self._is_full() and not self._is_answer_due()
        messages = self._messages
        self._receive(data)
        is_whole = is_alone and self._phase == _BETWEEN and self._messages == messages + 1 and not self._deaf
        if self._lane is None or not is_whole or len(data) > TEMPLATE_BYTES:
            self._candidate = None
        else:
            self._candidate = self._lane.template(data, list(self.cycle.scope["headers"]), template)

    def _receive(self, data: bytes) -> None:
        if self._unread:
            self._unread += data
        else:
            self._feed_pieces(data)

    def _feed_pieces(self, data: bytes) -> None:
        if len(data) <= _PIECE_BYTES:
            self._feed(data)
        else:
            for start in range(0, len(data), _PIECE_BYTES):
                if self.pipeline:  # a read of nothing but small requests would become thousands of waiting ones
                    self._unread = data[start:]
                    break
                self._feed(data[start : start + _PIECE_BYTES])
        self._watch_head()

    def _feed(self, piece: bytes) -> None:
        while piece and not self._deaf:
            piece = self._parse(piece)

    def _parse(self, piece: bytes) -> bytes:
        """Returns what the parser left over, as it does behind a request for an upgrade."""
        self._piece = piece
        if self._phase == _BETWEEN:
            self._share = len(piece)
        else:
            self._undelivered += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade()
            return piece[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse_for(error)
        else:
            if self._phase != _BETWEEN:
                self._await_more(piece)
        return b""

    def _await_more(self, piece: bytes) -> None:
        self._tail = (self._tail + piece)[-3:]
        if self._undelivered > HEAD_BYTES:
            self._refuse(*_TOO_LARGE)

    def _decline_upgrade(self) -> None:
        # An upgrade that is not accepted is an ordinary request.  But the parser takes no body of it, and what a
        # client means as one must not be read as its next request.
        if any(name in (b"content-length", b"transfer-encoding") for name, _ in self.scope["headers"]):
            self.cycle.keep_alive = False
            self._deaf = True

    # Parser callbacks

    def on_message_begin(self) -> None:
        self._phase = _HEAD
        self._messages += 1
        self._undelivered, self._share = self._share, 0
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._check_head()
        super().on_headers_complete()
        self.headers = []  # the application has the list; trailers, which the parser also calls headers, go elsewhere
        self._phase = _BODY
        self._undelivered = 0
        self._stop_timer()

    def on_body(self, body: bytes) -> None:
        self._undelivered = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = _BETWEEN
        super().on_message_complete()

    def _check_head(self) -> None:
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() not in ("1.0", "0.9")):
            raise _Refused(*_NO_HOST)
        # As the count includes all of the piece, it leaves a doubt from here on.
        if self._undelivered > HEAD_BYTES - _PIECE_BYTES and self._head_bytes() > HEAD_BYTES:
            raise _Refused(*_TOO_LARGE)

    def _head_bytes(self) -> int:
        # It began before this piece, so the first blank line is its end.
        behind = (self._tail + self._piece).partition(b"\r\n\r\n")[2]
        return self._undelivered - len(behind)

    # Answers in their turn

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unread and not self.pipeline:
            data, self._unread = self._unread, b""
            self._feed_pieces(data)
        if self._phase == _HEAD and not self._is_answer_due():
            self._unset_keepalive_if_required()
            self._watch_head()
        elif self._phase == _BETWEEN and not (self._is_full() or self._is_answer_due() or self.flow.write_paused):
            self._template, self._candidate = self._candidate, None

    def pause_writing(self) -> None:
        self._template = None
        super().pause_writing()

    def shutdown(self) -> None:
        self._template = None
        if self._asked is not None:
            self._is_ending = True  # behind the answers that are due
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        rested = float(self.timeout_keep_alive)
        if self._lane is not None:
            rested = 0.0 if self._asked is not None else self._lane.seconds_since(self._answered_at)
        if rested < self.timeout_keep_alive:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive - rested, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def _is_full(self) -> bool:
        return bool(self.pipeline or self._unread)

    def _is_answer_due(self) -> bool:
        return self._running is not None and not self.cycle.response_complete

    def _watch_head(self) -> None:
        # The clock stands still while an earlier answer is due: meanwhile uvicorn may have stopped reading.
        if self._phase == _HEAD and self._timer is None and not self._is_answer_due():
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Refusals

    def _refuse_for(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, _Refused):
            self._refuse(cause.status, cause.message)
        else:
            # The parser's text may quote the URL.
            self.logger.debug("malformed request: %s", type(cause or error).__name__)
            self._refuse(*_MALFORMED)

    def _refuse(self, status: int, message: str) -> None:
        """Answers the message being parsed, unless that would not be its turn, and ends the connection."""
        self._deaf = True
        self._stop_timer()
        refused = self._withdraw() if self._phase == _BODY else None
        if self._is_answer_due():
            self.cycle.keep_alive = False  # the last answer that is still due closes behind itself
            return
        if refused is None or not refused.response_started:
            self.transport.write(self._error_answer(status, message))
        self._linger()

    def _withdraw(self) -> RequestResponseCycle:
        """Takes back the request whose body turned out to be broken; its application sees a disconnect."""
        refused = self.cycle
        _disconnect(refused)
        if self._running is None or self._running is refused:
            self._running = None
        else:
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
        return refused

    def _linger(self) -> None:
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _error_answer(self, status: int, message: str) -> bytes:
        body = error_body(status, message)
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"
        return head if self._is_head_request() else head + body

    def _is_head_request(self) -> bool:
        return self._phase != _BETWEEN and bool(self.url) and self.parser.get_method() == b"HEAD"


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Its application is told that the client is gone, and may write no more, not even `100 Continue`."""
    cycle.disconnected = True
    cycle.waiting_for_100_continue = False
    cycle.message_event.set()
