"""What `POST /invalidations` takes: a body, read into events, or what is wrong with it for every one that is."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final, NamedTuple

import orjson
from starlette.exceptions import HTTPException

from cache_node.errors import CacheNodeError, InvalidEventError
from cache_node.feed.events import MAX_EVENTS, Event

_FIELDS: Final = ("type", "session_id", "identity_id")
_SLICE = 250
"""Events checked without a break: about 1 ms, in which no session is answered."""
_SHOWN_CHARACTERS = 60


class BadEventsError(CacheNodeError):
    """Events that cannot be published.  `errors` has index in the body and one line each, in order."""

    def __init__(self, errors: list[tuple[int, str]]) -> None:
        super().__init__(f"{len(errors)} events cannot be published")
        self.errors = errors


class _Repeated(NamedTuple):
    """Stands for an object that has a name twice: which value was meant nobody knows."""

    name: str


async def read_events(body: bytes) -> list[Event]:
    """The 1 to 10,000 events of a body: one object, or an array of them.

    Raises HTTPException, 400 for what is not JSON of that shape and 413 for too many, and BadEventsError.
    """
    rows = _read_rows(body)
    events: list[Event] = []
    errors: list[tuple[int, str]] = []
    for index, row in enumerate(rows):
        try:
            events.append(_read_event(row))
        except InvalidEventError as exc:
            errors.append((index, str(exc)))
        if index % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
    if errors:
        raise BadEventsError(errors)
    return events


def _read_rows(body: bytes) -> list[Any]:
    content = _read_json(body)
    if isinstance(content, dict | _Repeated):
        return [content]
    if not isinstance(content, list):
        raise HTTPException(400, "the body must be an event or an array of events")
    if not content:
        raise HTTPException(400, "the array of events is empty")
    if len(content) > MAX_EVENTS:
        raise HTTPException(413, f"at most {MAX_EVENTS} events can be published at once")
    return content


def _read_json(body: bytes) -> Any:
    try:
        # orjson knows what JSON is, NaN and half surrogates being none; only json tells of a name that is there twice.
        orjson.loads(body)
        return json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, orjson.JSONDecodeError) else "nested too deeply, or a number too long"
        raise HTTPException(400, f"the body is not JSON: {reason}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            return _Repeated(name)
        content[name] = value
    return content


def _read_event(row: Any) -> Event:
    if isinstance(row, _Repeated):
        raise InvalidEventError(f"{_shown(row.name)} is there twice")
    if not isinstance(row, dict):
        raise InvalidEventError("an event must be an object")
    unknown = next((name for name in row if name not in _FIELDS), None)
    if unknown is not None:
        raise InvalidEventError(f"{_shown(unknown)} is not a field of an event: those are {', '.join(_FIELDS)}")
    return Event.checked(row.get("type"), row.get("session_id"), row.get("identity_id"))


def _shown(name: str) -> str:
    text = repr(name)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
