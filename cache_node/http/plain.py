"""What is plain: a question for the one answer that all who present this credential get.

Everything else goes to the origin for itself, or demands more of a cached answer than that it may be given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cache_node.feed.position import Position
from cache_node.sessions.answer import Wants

_MAX_AGE = re.compile(rb"max-age=\"?(\d{1,9})\"?", re.ASCII)


def is_plain(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a GET of whoami without a query asks for no more than that."""
    return why_not_plain("GET", headers, b"") is None and wants_of(headers) is _PLAIN


def why_not_plain(method: str, headers: Iterable[tuple[bytes, bytes]], query: bytes) -> str | None:
    """None for a plain request, else the word for why it must go to the origin for itself."""
    if method not in ("GET", "HEAD"):
        return "method"
    for name, value in headers:
        if name == b"origin":
            return "origin-header"
        if (name == b"content-length" and value.strip() != b"0") or name == b"transfer-encoding":
            return "body"
    # Kratos heeds this one parameter only; an escaped name is the origin's to read.
    if query and (b"tokenize_as" in query or b"%" in query or b";" in query):
        return "tokenize"
    return None


def wants_of(headers: Sequence[tuple[bytes, bytes]]) -> Wants:
    """What the request demands beyond a plain answer."""
    directives = [v.strip().lower() for name, value in headers if name == b"cache-control" for v in value.split(b",")]
    positions = [value for name, value in headers if name == b"cache-node-min-position"]
    if not directives and not positions:
        return _PLAIN
    ages = [int(match[1]) for match in map(_MAX_AGE.fullmatch, directives) if match]
    no_cache = b"no-cache" in directives or b"no-store" in directives or 0 in ages
    return Wants(no_cache, float(min(ages)) if ages else None, _newest_demanded(positions))


_PLAIN = Wants()
# No feed has this position: what cannot be read cannot be compared, and asks the origin.
_UNKNOWN_POSITION = Position(0, 0)


def _newest_demanded(positions: list[bytes]) -> Position | None:
    if not positions:
        return None
    try:
        (text,) = positions
        return Position.parse(text.strip())
    except ValueError:
        return _UNKNOWN_POSITION
