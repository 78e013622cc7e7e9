"""What can change, and how a feed entry says it.

A feed entry is one stream field holding msgpack `[version, server time in µs, source, [[type, session id, identity id,
settle ms], …]]`.  Version and time are put before the rest by the append script.  Settling belongs to a later version:
this one writes 0, and treats an event that asks for it as unknown.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from cache_node.errors import InvalidEventError

VERSION = 1
ENTRY_FIELD = b"e"
MAX_ID_BYTES = 128
MAX_EVENTS = 10_000
"""Events of one publish call."""
ENTRY_EVENTS = 100
"""Events of one feed entry: a page of them must not hold the loop of a node for long, and an entry is never parted."""

_TOKEN = re.compile(r"ory_[a-z]{2}_", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


class EventType(enum.Enum):
    """The kinds of change; the text is what `POST /invalidations` takes, the wire carries `code`."""

    SESSION_REVOKED = "session.revoked"
    SESSION_CHANGED = "session.changed"
    IDENTITY_CHANGED = "identity.changed"
    IDENTITY_DELETED = "identity.deleted"
    FLUSH = "flush"

    def __init__(self, text: str) -> None:
        self.names_session = text.startswith("session.")
        """Whether it invalidates one session, whatever identity id it carries."""
        self.names_identity = text.startswith("identity.")
        """Whether it invalidates all sessions of one identity."""
        self.names_nothing = text == "flush"
        """Whether it voids everything."""
        self.ends_session = text == "session.revoked"
        self.ends_what_it_names = text in ("session.revoked", "identity.deleted")


_CODES = {
    EventType.SESSION_REVOKED: 1,
    EventType.SESSION_CHANGED: 2,
    EventType.IDENTITY_CHANGED: 3,
    EventType.IDENTITY_DELETED: 4,
    EventType.FLUSH: 5,
}
_TYPES = {code: event_type for event_type, code in _CODES.items()}


class Event(NamedTuple):
    """One change.  `session.*` needs `session_id`, `identity.*` needs `identity_id`; build it with `Event.checked`."""

    type: EventType
    session_id: str | None = None
    identity_id: str | None = None

    @classmethod
    def checked(cls, type_: Any, session_id: object = None, identity_id: object = None) -> Event:
        """Take an event from outside: ids normalised.  Raises InvalidEventError saying what is wrong with it."""
        try:
            event_type = EventType(type_)
        except ValueError:
            known = ", ".join(t.value for t in EventType)
            raise InvalidEventError(f"type must be one of {known}") from None
        session = _checked_id("session_id", session_id)
        identity = _checked_id("identity_id", identity_id)
        if event_type.names_session and session is None:
            raise InvalidEventError(f"{event_type.value} needs session_id")
        if event_type.names_identity and identity is None:
            raise InvalidEventError(f"{event_type.value} needs identity_id")
        if event_type is EventType.FLUSH and (session is not None or identity is not None):
            raise InvalidEventError("flush voids everything and takes no id")
        return cls(event_type, session, identity)


class FeedEntry(NamedTuple):
    """One entry of the feed as read: `number` is that of its last event, `events` None if this version cannot tell."""

    number: int
    events: tuple[Event, ...] | None
    published_us: int | None = None
    """The server's TIME when it was written, µs; None if this version cannot tell."""


def normalise_id(value: str) -> str:
    """Ids are opaque, but UUIDs are lower-cased: an upper-case revoke would kill nothing."""
    return value.lower() if _UUID.fullmatch(value) else value


def pack(event: Event) -> bytes:
    """The row of an event in its feed entry.

    Raises InvalidEventError for one that fails to name what its type says: it would void a whole region's caches.
    """
    if (event.type.names_session and not event.session_id) or (event.type.names_identity and not event.identity_id):
        raise InvalidEventError(f"{event.type.value} names nothing")
    row: bytes = msgpack.packb((_CODES[event.type], event.session_id, event.identity_id, 0))
    return row


def encode(source: str, events: Sequence[Event]) -> bytes:
    """`frame` of events that are not packed yet."""
    return frame(source, [pack(event) for event in events])


def frame(source: str, rows: Sequence[bytes]) -> bytes:
    """What the publisher writes of a feed entry: source and packed events, to be put behind version and time."""
    head: bytes = msgpack.packb(source) + msgpack.Packer().pack_array_header(len(rows))
    return head + b"".join(rows)


def decode(payload: bytes) -> tuple[Event, ...] | None:
    """Events of a feed entry's field; None for another version, an unknown type, or anything malformed."""
    return read_entry(0, payload).events


def read_entry(number: int, payload: bytes) -> FeedEntry:
    """The feed entry with that field, as far as this version can read it."""
    try:
        version, published_us, _source, rows = msgpack.unpackb(payload)
        if version != VERSION or not rows:
            return FeedEntry(number, None)
        return FeedEntry(number, tuple([_event(*row) for row in rows]), int(published_us))
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException):
        return FeedEntry(number, None)


def _event(code: int, session_id: object, identity_id: object, settle_ms: int) -> Event:
    event_type = _TYPES[code]
    if settle_ms:
        raise ValueError("settling is not known to this version")
    session, identity = _read_id(session_id), _read_id(identity_id)
    if (event_type.names_session and session is None) or (event_type.names_identity and identity is None):
        raise ValueError("the event names nothing")
    return Event(event_type, session, identity)


def _read_id(value: object) -> str | None:
    # A quarter of what `_checked_id` costs, a million times in a replay: nearly all ids are in lower case already.
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_BYTES:
        raise ValueError("no id")
    return value if value.islower() else normalise_id(value)


def _checked_id(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        what = "" if isinstance(value, str) else f", not {type(value).__name__}"
        raise InvalidEventError(f"{name} must be a text that is not empty{what}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidEventError(f"{name} must be valid Unicode") from None
    if size > MAX_ID_BYTES:
        raise InvalidEventError(f"{name} must be at most {MAX_ID_BYTES} bytes")
    if _TOKEN.match(value):
        # It would name nothing, and be readable in the feed for as long as that is retained.
        raise InvalidEventError(f"{name} must be the id, and not a token: it begins as one does")
    return normalise_id(value)
