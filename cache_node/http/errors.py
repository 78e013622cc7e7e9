"""Errors of the node's own, in the shape that Kratos gives its errors, so that clients need one parser."""

from __future__ import annotations

import http

import orjson


def error_body(status: int, message: str) -> bytes:
    """One line of JSON: `{"error":{"code":503,"status":"Service Unavailable","message":"…"}}`."""
    error = {"code": status, "status": http.HTTPStatus(status).phrase, "message": message}
    return orjson.dumps({"error": error}) + b"\n"
