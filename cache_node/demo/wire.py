"""How Kratos v1.3.1 writes JSON, times, errors and headers, for the demo origin.

Go's encoder, herodot's error body and net/http's header order, as recorded from a live Kratos.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

Json = dict[str, Any]
Headers = list[tuple[str, str]]

JSON_TYPE = "application/json; charset=utf-8"

# net/http sends a longer body that was written at once in chunks, without Content-Length.
_CHUNKED_ABOVE_BYTES = 2048
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class Refusal(Exception):
    """An answer that is an error, with herodot's fields; `answer` makes the response of it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str | None = None,
        error_id: str | None = None,
        details: Json | None = None,
        echoes_request_id: bool = True,
        headers: Headers | None = None,
        redirect_browser_to: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or []
        self._fields = {"reason": reason, "details": details, "message": message}
        self._error_id = error_id
        self._echoes_request_id = echoes_request_id
        self._redirect_browser_to = redirect_browser_to

    def body(self, request_id: str | None) -> bytes:
        """The JSON line, with `request_id` where Kratos echoes it."""
        error: Json = {"id": self._error_id} if self._error_id else {}
        error |= {"code": self.status, "status": HTTPStatus(self.status).phrase}
        if request_id and self._echoes_request_id:
            error["request"] = request_id
        error |= {name: value for name, value in self._fields.items() if value is not None}
        whole: Json = {"error": error}
        if self._redirect_browser_to:
            whole["redirect_browser_to"] = self._redirect_browser_to
        return encode(whole)


def unauthorized() -> Refusal:
    """The 401 for everything that is no valid session, an outage of the database included."""
    return Refusal(
        401,
        "The request could not be authorized",
        reason="No valid session credentials found in the request.",
    )


def bad_request(reason: str) -> Refusal:
    """The 400 for a request that Kratos does not understand."""
    return Refusal(400, "The request was malformed or contained invalid parameters", reason=reason)


def not_found() -> Refusal:
    """The 404 for an identity, session or flow that is not there."""
    return Refusal(404, "Unable to locate the resource")


def encode(value: object) -> bytes:
    """JSON as Go's encoder writes it: no spaces, UTF-8, `<`, `>` and `&` escaped, a newline at the end."""
    # These characters can only stand inside strings.
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES) + "\n").encode()


def jsonb(value: Any) -> Any:
    """`value` as Postgres gives back a jsonb column: keys ordered by length, then by bytes."""
    if isinstance(value, Mapping):
        names = sorted(value, key=lambda name: (len(name.encode()), name.encode()))
        return {name: jsonb(value[name]) for name in names}
    return [jsonb(each) for each in value] if isinstance(value, list) else value


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC with up to nine digits after the point and no zeros at their end."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f"{rest:09}".rstrip("0")
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{fraction}Z" if fraction else f"{moment}Z"


class WireResponse(Response):
    """A response whose header names, order and length framing are those of Go's net/http."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        super().__init__(body, status)
        ordered = sorted(headers, key=lambda header: header[0])
        ordered.append(("Date", formatdate(usegmt=True)))
        if status not in (204, 304) and len(body) <= _CHUNKED_ABOVE_BYTES:
            ordered.append(("Content-Length", str(len(body))))
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in ordered]
