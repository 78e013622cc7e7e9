"""The two HTTP ports of the demo origin: routing, and what every answer of a port has in common."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cache_node.demo.wire import (
    JSON_TYPE,
    Headers,
    Json,
    Refusal,
    WireResponse,
    bad_request,
    encode,
)

Endpoint = Callable[[Request], Awaitable["Answer | Response"]]

CACHE_CONTROL = ("Cache-Control", "private, no-cache, no-store, must-revalidate")
_CORS_ALLOWED_HEADERS = frozenset(
    ("authorization", "content-type", "max-age", "x-session-token", "x-xsrf-token", "x-csrf-token")
)
_CORS_ALLOWED_METHODS = frozenset(("POST", "GET", "PUT", "PATCH", "DELETE"))


class Answer:
    """What an endpoint has decided: a status, a body and the headers that are its own."""

    def __init__(self, status: int, body: object | None = None, headers: Headers | None = None) -> None:
        self.status = status
        self.body = b"" if body is None else encode(body)
        self.headers: Headers = [*(headers or [])]
        if body is not None:
            self.headers.append(("Content-Type", JSON_TYPE))


class Port:
    """One port: `app` serves the endpoints, `requests` counts what came by path, `is_ready` is the database's state.

    `is_public` adds what only the public port of Kratos has: `Vary`, and CORS for `cors_origins`.
    """

    def __init__(self, *, is_public: bool, cors_origins: Sequence[str] = ()) -> None:
        self.app = Starlette()
        self.app.router.redirect_slashes = False
        self.requests: Counter[str] = Counter()
        self.is_ready = True
        self._is_public = is_public
        self._cors_origins = frozenset(cors_origins)

    def add(self, path: str, methods: str, endpoint: Endpoint, *, survives_outage: bool = False) -> None:
        """Route `methods` (separated by spaces) of `path` to `endpoint`; without its database it is not asked."""

        async def handle(request: Request) -> Response:
            self.requests[request.url.path] += 1
            if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                return self._preflight(request)
            try:
                if not self.is_ready and not survives_outage:
                    raise Refusal(500, "failed to connect to the database")
                answer = await endpoint(request)
            except Refusal as refusal:
                return self._refuse(request, refusal)
            return answer if isinstance(answer, Response) else self._respond(request, answer)

        self.app.router.routes.append(Route(path, handle, methods=methods.split()))

    def _respond(self, request: Request, answer: Answer) -> Response:
        return WireResponse(answer.status, [CACHE_CONTROL, *self._common(request), *answer.headers], answer.body)

    def _refuse(self, request: Request, refusal: Refusal) -> Response:
        headers = [CACHE_CONTROL, *self._common(request), *refusal.headers, ("Content-Type", "application/json")]
        return WireResponse(refusal.status, headers, refusal.body(request.headers.get("x-request-id")))

    def _common(self, request: Request) -> Headers:
        if not self._is_public:
            return []
        headers: Headers = [("Vary", "Origin")] if self._cors_origins else []
        headers.append(("Vary", "Cookie"))
        origin = request.headers.get("origin")
        if origin in self._cors_origins:
            headers += [*_cors(origin), ("Access-Control-Expose-Headers", "Content-Type")]
        return headers

    def _preflight(self, request: Request) -> Response:
        headers: Headers = [("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers")]
        asked = request.headers.get("access-control-request-headers", "")
        names = {name.strip().lower() for name in asked.split(",") if name.strip()}
        method = request.headers["access-control-request-method"]
        origin = request.headers.get("origin")
        if origin in self._cors_origins and method in _CORS_ALLOWED_METHODS and names <= _CORS_ALLOWED_HEADERS:
            headers += [*_cors(origin), ("Access-Control-Allow-Methods", method)]
            if asked:
                headers.append(("Access-Control-Allow-Headers", asked))
        return WireResponse(204, headers)


async def read_form(request: Request) -> Json:
    """The fields of a JSON object or of an HTML form."""
    body = await request.body()
    if not body:
        raise bad_request('Unable to decode HTTP Request Body because its HTTP Header "Content-Length" is zero.')
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(body.decode()))
    form = await read_json(request)
    if not isinstance(form, dict):
        raise bad_request("The body is no JSON object.")
    return form


async def read_json(request: Request) -> Any:
    """The body as JSON, whatever it is."""
    try:
        return json.loads(await request.body())
    except ValueError:
        raise bad_request("The body is no JSON.") from None


def redirect(status: int, location: str, phrase: str, headers: Headers | None = None) -> Response:
    """A redirect as Go's net/http writes it."""
    body = f'<a href="{location}">{phrase}</a>.\n\n'.encode()
    own = [("Content-Type", "text/html; charset=utf-8"), ("Location", location)]
    return WireResponse(status, [*own, *(headers or [])], body)


def page_not_found(headers: Headers | None = None) -> Response:
    """The 404 of Go's router."""
    own = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
    return WireResponse(404, [*own, *(headers or [])], b"404 page not found\n")


def _cors(origin: str) -> Headers:
    return [("Access-Control-Allow-Credentials", "true"), ("Access-Control-Allow-Origin", origin)]
