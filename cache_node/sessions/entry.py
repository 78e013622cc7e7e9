"""One cached answer: what the origin said about a live session, and until when and against what it must be judged."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import orjson

from cache_node.feed.events import MAX_ID_BYTES, normalise_id
from cache_node.feed.ids import pack_id, unpack_id
from cache_node.sessions.credential import Credential, cookie_minted_at
from cache_node.sessions.hedged_lru import Node

EXPIRY_MARGIN_SECONDS = 1.0
"""An entry ends this much before its session, for clocks that differ: then it is a miss, and the origin decides."""
CLOCK_TOLERANCE_SECONDS = 1.0
"""An entry may come from a neighbour whose wall clock is ahead by this much; more is an unknown age."""

Headers = tuple[tuple[bytes, bytes], ...]

_IDENTITY_LINE = b"x-kratos-authenticated-identity-id: %b\r\n"
# Stands for the id of the entry's own identity, which the entry has already.  No header has this byte (origin.py).
_OWN_IDENTITY = b"\0"


class Entry(Node, gc=False):
    """A 200 of the origin.  Owned by the memory tier; the fence alone changes it (`number`, `admitted_version`).

    A plain field for whatever a hit or the fence reads: ids and times packed into one object would take 112 bytes
    less, and 0.15 µs more each time.
    """

    body: bytes
    head: bytes
    """The headers as HTTP/1.1 lines, but for what tells one session's from another's."""
    session: bytes
    """Id of the session that it shows, packed."""
    identity: bytes
    """Id of the session's identity, packed."""
    expires_at: float
    """When the session, or the cookie that presented it, ends by its own date; Unix seconds."""
    fetched_at: float
    """Unix seconds before the origin was asked."""
    generation: int
    number: int
    admitted_version: int = -1

    @classmethod
    def of(
        cls,
        body: bytes,
        headers: Headers,
        session_id: str,
        identity_id: str,
        expires_at: float,
        fetched_at: float,
        generation: int,
        number: int,
    ) -> Entry:
        """`expires_at` and `fetched_at` are Unix seconds, `generation` and `number` the position of `as_of`."""
        head = pack_headers(headers).replace(_IDENTITY_LINE % identity_id.encode(), _IDENTITY_LINE % _OWN_IDENTITY)
        return cls(body, head, pack_id(session_id), pack_id(identity_id), expires_at, fetched_at, generation, number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self._content() == other._content()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _content(self) -> tuple[object, ...]:
        ids, times = (self.session, self.identity), (self.expires_at, self.fetched_at)
        return self.body, self.headers, ids, times, self.generation, self.number

    @property
    def headers(self) -> Headers:
        """The origin's own, names in lower case, order kept."""
        return unpack_headers(self.lines)

    @property
    def lines(self) -> bytes:
        """The headers as HTTP/1.1 lines, each with its end."""
        return self.head.replace(_OWN_IDENTITY, unpack_id(self.identity))

    def is_expired(self, now: float) -> bool:
        """Whether the session, or the cookie that presented it, has ended by its own date."""
        return now >= self.expires_at - EXPIRY_MARGIN_SECONDS

    def is_younger_than(self, limit_seconds: float, now: float) -> bool:
        """Whether it was fetched at most `limit_seconds` ago; never if the clocks make no sense of it."""
        return -CLOCK_TOLERANCE_SECONDS <= now - self.fetched_at <= limit_seconds

    def age_seconds(self, now: float) -> float:
        """Seconds since the origin was asked, as far as the clocks can tell."""
        return max(0.0, now - self.fetched_at)


def pack_headers(headers: Headers) -> bytes:
    """As HTTP/1.1 lines, each with its end; names have no colon, values no line feed (origin.py sees to it)."""
    return b"".join([b"%b: %b\r\n" % line for line in headers])


def unpack_headers(lines: bytes) -> Headers:
    """The headers that were packed."""
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]
    return tuple([(name, value) for name, _, value in pairs])


class SessionFacts(msgspec.Struct, frozen=True):
    """What must be known of a session to cache its answer."""

    session_id: str
    identity_id: str
    expires_at: float


def parse_session(body: bytes) -> dict[str, Any] | None:
    """A session, cacheable or not: a JSON object with an id and an identity's id; None if the body is none."""
    try:
        session: dict[str, Any] = orjson.loads(body)
        return session if all(isinstance(i, str) and i for i in (session["id"], session["identity"]["id"])) else None
    except (ValueError, TypeError, KeyError):
        return None


def read_session(session: dict[str, Any]) -> SessionFacts | None:
    """Ids (UUIDs lower-cased) and expiry of a parsed session; None if it is none that can be cached."""
    try:
        session_id, identity_id = session["id"], session["identity"]["id"]
        expires_at = datetime.fromisoformat(session["expires_at"])
        known = session["active"] is True and expires_at.tzinfo is not None
        ids_known = all(len(i.encode()) <= MAX_ID_BYTES for i in (session_id, identity_id))
    except (ValueError, TypeError, KeyError):
        return None
    if not (known and ids_known):
        return None
    return SessionFacts(normalise_id(session_id), normalise_id(identity_id), expires_at.timestamp())


def credential_ends_at(credential: Credential, cookie_max_age_seconds: float) -> float | None:
    """Unix seconds after which the credential itself is too old, however long the session lives.

    Infinite for a token; None for a cookie whose mint date cannot be read, which is therefore not cacheable.
    """
    if credential.kind != "cookie":
        return float("inf")
    minted_at = cookie_minted_at(credential.value)
    return None if minted_at is None else minted_at + cookie_max_age_seconds
