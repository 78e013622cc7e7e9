"""The admin port's answers: JSON, and `{"error": "…"}` in one line for whatever is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response


def json_answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`content` as JSON."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def error_answer(status: int, error: str, headers: Mapping[str, str] | None = None) -> Response:
    """A refusal with its one line, which never holds a credential."""
    return json_answer({"error": error}, status, headers)
