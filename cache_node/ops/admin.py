"""The admin port: invalidations, status, metrics.  What it accepts and answers is stable.

Publishing is all it does to the feed: this node hears of it from there, as every other does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cache_node.errors import FeedUnavailableError
from cache_node.feed.events import Event, EventType
from cache_node.feed.position import Position
from cache_node.ops.access import Gate
from cache_node.ops.answers import error_answer, json_answer
from cache_node.ops.audit import audit
from cache_node.ops.bodies import EarlyAnswers, read_body
from cache_node.ops.components import Components
from cache_node.ops.exposition import CONTENT_TYPE, Exposition
from cache_node.ops.invalidations import BadEventsError, read_events
from cache_node.ops.status import status
from cache_node.sources.publisher import RECEIPT_TIMEOUT_SECONDS
from cache_node.sources.receipt import Receipt

MAX_WAIT_SECONDS: Final = 60.0
RETRY_AFTER_SECONDS: Final = 1

_NUMBER = re.compile(r"[0-9.eE+-]{1,24}", re.ASCII)


def admin_app(components: Components) -> ASGIApp:
    """The ASGI application of the admin port; wants `http` scopes only, no lifespan."""
    admin = _Admin(components)
    app = Starlette(
        routes=[
            Route("/invalidations", admin.invalidations, methods=["POST"]),
            Route("/flush", admin.flush, methods=["POST"]),
            Route("/status", admin.status, methods=["GET"]),
            Route("/metrics", admin.metrics, methods=["GET"]),
        ],
        exception_handlers={
            HTTPException: _refused,
            BadEventsError: _bad_events,
            FeedUnavailableError: _feed_unavailable,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return EarlyAnswers(Gate(app, components.settings.admin_token))


class _Admin:
    def __init__(self, components: Components) -> None:
        self._components = components
        self._exposition = Exposition(components)

    async def invalidations(self, request: Request) -> Response:
        wait_seconds = _wait_seconds(request)
        events = await read_events(await read_body(request))
        return await self._publish(request, events, wait_seconds)

    async def flush(self, request: Request) -> Response:
        wait_seconds = _wait_seconds(request)
        if (await read_body(request)).strip() not in (b"", b"{}"):
            raise HTTPException(400, "a flush has no body: it voids everything")
        return await self._publish(request, [Event(EventType.FLUSH)], wait_seconds)

    async def status(self, _request: Request) -> Response:
        return json_answer(status(self._components))

    async def metrics(self, _request: Request) -> Response:
        return Response(self._exposition.render(), headers={"Content-Type": CONTENT_TYPE})

    async def _publish(self, request: Request, events: Sequence[Event], wait_seconds: float | None) -> Response:
        publisher = self._components.publisher
        with self._recorded(request, events) as result:
            if wait_seconds is None:
                result.position = await publisher.publish(events)
                return json_answer({"position": str(result.position)})
            receipt = await publisher.publish_and_wait(events, timeout_seconds=wait_seconds)
            result.position = receipt.position
            self._count_receipt(receipt)
            return json_answer(receipt.to_json())

    @contextmanager
    def _recorded(self, request: Request, events: Sequence[Event]) -> Iterator[_Result]:
        """Counts and audits a publish, whatever way it ends."""
        result = _Result()
        try:
            yield result
        except FeedUnavailableError:
            result.failure = "unavailable"
            raise
        finally:
            outcome = "published" if result.position is not None else result.failure
            self._count(events, outcome)
            audit(events, outcome=outcome, position=result.position, client=_client(request))

    def _count(self, events: Sequence[Event], outcome: str) -> None:
        stats = self._components.stats
        stats.publishes[outcome] += 1
        if outcome == "published":
            stats.published_events.update(event.type.value for event in events)

    def _count_receipt(self, receipt: Receipt) -> None:
        outcome = "dead_everywhere" if receipt.dead_everywhere else "incomplete"
        self._components.stats.receipts[outcome].observe(receipt.elapsed_seconds)


@dataclass(slots=True)
class _Result:
    position: Position | None = None
    failure: str = "interrupted"


def _wait_seconds(request: Request) -> float | None:
    """How long to wait for the receipt; None for no receipt.  Raises HTTPException for any other query."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in ("wait", "timeout_seconds"):
            raise HTTPException(400, "the only query parameters are wait and timeout_seconds")
        if name in given:
            raise HTTPException(400, f"{name} is there twice")
        given[name] = value
    if given.get("wait", "false") not in ("true", "false"):
        raise HTTPException(400, "wait must be true or false")
    timeout = _timeout_seconds(given["timeout_seconds"]) if "timeout_seconds" in given else RECEIPT_TIMEOUT_SECONDS
    return timeout if given.get("wait") == "true" else None


def _timeout_seconds(text: str) -> float:
    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_WAIT_SECONDS:
        raise HTTPException(400, f"timeout_seconds must be a number above 0 and at most {MAX_WAIT_SECONDS:g}")
    return seconds


def _client(request: Request) -> str | None:
    if request.client is None:
        return None
    host = f"[{request.client.host}]" if ":" in request.client.host else request.client.host
    return f"{host}:{request.client.port}"


async def _refused(_request: Request, exc: Any) -> Response:
    return error_answer(exc.status_code, exc.detail, exc.headers)


async def _bad_events(_request: Request, exc: Any) -> Response:
    return json_answer({"errors": [{"index": index, "error": error} for index, error in exc.errors]}, 400)


async def _feed_unavailable(_request: Request, exc: Any) -> Response:
    error = f"the feed could not be written, so publish again: {exc}"
    return error_answer(503, error, {"Retry-After": str(RETRY_AFTER_SECONDS)})


async def _failed(_request: Request, _exc: Exception) -> Response:
    # Starlette raises it again behind the answer, and the server logs it.
    return error_answer(500, "the node failed at this; its log has more")
