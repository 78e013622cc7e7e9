"""The last request of a connection as fixed bytes with holes, so that the next one need not be parsed.

A request that the parser has consumed exactly is kept with its connection: the value of its credential is a hole, and
so is the value of one header that nobody heeds (a trace id), once that has been seen to change.  A later read with the
same fixed bytes, and nothing but harmless characters in its holes, parses the same way.  This is equality with bytes
that the parser has seen, never a search for what looks like a header; whatever is not equal goes to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from cache_node.http.credentials import GO_SPACE, extract
from cache_node.http.plain import is_plain
from cache_node.sessions.credential import Credential

HEEDED = frozenset(
    b"host connection keep-alive proxy-connection content-length transfer-encoding upgrade expect te trailer "
    b"cookie authorization x-session-token x-session-cookie origin cache-control pragma cache-node-min-position".split()
)
"""Headers that parser, server or application look at.  Of all others the values change nothing in a cached answer."""

_REQUEST_LINE = b"GET /sessions/whoami HTTP/1.1"
# No space, so that nothing is stripped from it; no semicolon, comma or quote, so that a cookie stays one cookie.
_CREDENTIAL = re.compile(rb"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,4096}")
_IGNORED = re.compile(rb"[\x21-\x7e]{1,1024}")

Headers = list[tuple[bytes, bytes]]
Digest = Callable[[str, bytes], bytes]
"""From kind and value of a credential to what `KeyRing.digest` makes of them."""
Known = Mapping[str, dict[bytes, bytes]]
"""By kind, digests of credentials that have come lately, and were found harmless.  Whoever owns it empties it.

Connections of a balancer carry anybody's credentials in turn: hashing each again is 0.6 of 8 µs.
"""
MOST_KNOWN = 2048
"""Of a kind; and no longer than so many bytes each."""
MOST_KNOWN_BYTES = 1024


class Template:
    """One connection's.  `headers` are the request's, as parsed; `before` is the template that did not fit it.

    Nothing is learned from a request until the next one comes: most connections of some clients carry one only.
    """

    __slots__ = (
        "_digest",
        "_headers",
        "_holes",
        "_known",
        "_known_by_kind",
        "_learnt",
        "_session_cookie",
        "_varying",
        "digest",
        "has_request_id",
        "kind",
        "name",
        "request",
        "value",
    )

    def __init__(
        self,
        request: bytes,
        headers: Headers,
        session_cookie: bytes,
        digest: Digest,
        known: Known,
        before: Template | None,
    ) -> None:
        self.request = request
        self.digest = b""
        """Of the credential that was found last."""
        self.name: bytes | None = None
        """Of the entry that the request asks for; None as long as nothing was learned."""
        self._headers = headers
        self._session_cookie = session_cookie
        self._digest = digest
        self._known_by_kind = known
        self._known: dict[bytes, bytes] = {}
        self._holes: _Holes | None = None
        self._learnt: Credential | None = None
        """The one that the request was parsed with."""
        self.has_request_id = False
        self.kind = ""
        self.value = b""
        """Of the credential that was found last, and its kind."""
        self._varying: bytes | None = (
            None if before is None else before._varying or _differing(before._headers, headers)
        )

    @property
    def credential(self) -> Credential:
        """The last one that was found."""
        assert self._learnt is not None  # noqa: S101
        return Credential(self._learnt.kind, self.value, self._learnt.bearer, self._learnt.cookie_name)

    def name_in(self, data: bytes) -> bytes | None:
        """The name of the entry that a whole request asks for; None if the parser must say what that is."""
        if self._holes is None and not self._learn():
            return None
        holes = self._holes
        assert holes is not None  # noqa: S101
        if holes.around is not None and holes.fit_again(data):
            self.request = data
            return self.name
        value = holes.credential_in(data)
        if value is None:
            return None
        if value == self.value and self.name is not None:
            holes.expect(value)
        else:
            digest = self._known.get(value)
            if digest is None:
                if not _CREDENTIAL.fullmatch(value):
                    return None
                digest = self._digest(self.kind, value)
                if len(self._known) < MOST_KNOWN and len(value) <= MOST_KNOWN_BYTES:
                    self._known[value] = digest
            holes.around = None
            self.value = value
            self.digest = digest
            self.name = digest[:32]
        self.request = data
        return self.name

    def _learn(self) -> bool:
        credential = extract(self._headers, self._session_cookie)
        if not isinstance(credential, Credential) or not is_plain(self._headers):
            return False
        self._holes = _find_holes(self.request, self._headers, credential, self._varying)
        self._learnt, self.kind, self.value = credential, credential.kind, credential.value
        self.has_request_id = any(name == b"x-request-id" for name, _ in self._headers)
        self._known = self._known_by_kind[credential.kind]
        return self._holes is not None


class _Holes:
    """Fixed bytes, and what is between them; `first` and `last` enclose all, `middle` is None with one hole."""

    __slots__ = ("_credential_first", "_first", "_last", "_middle", "around")

    def __init__(self, request: bytes, credential: slice, ignored: slice | None) -> None:
        spans = sorted([credential] if ignored is None else [credential, ignored], key=lambda span: int(span.start))
        self._first = request[: spans[0].start]
        self._last = request[spans[-1].stop :]
        self._middle = None if ignored is None else request[spans[0].stop : spans[1].start]
        self._credential_first = spans[0] is credential
        self.around: tuple[bytes, bytes] | None = None
        """The fixed bytes with a credential that came twice running, which need not be looked for again: 0.6 instead of
        1.0 µs where a trace id alone changes."""

    def credential_in(self, data: bytes) -> bytes | None:
        """What stands in the credential's place in a request of this form, harmless or not."""
        first, last = self._first, self._last
        if not (data.startswith(first) and data.endswith(last)):
            return None
        start, end = len(first), len(data) - len(last)
        if self._middle is None:
            return data[start:end]
        split = data.find(self._middle, start, end)
        if split < 0:
            return None
        behind = split + len(self._middle)
        if self._credential_first:
            return data[start:split] if _IGNORED.fullmatch(data, behind, end) else None
        return data[behind:end] if _IGNORED.fullmatch(data, start, split) else None

    def expect(self, value: bytes) -> None:
        """This credential, which was found harmless."""
        if self._middle is not None:
            is_first = self._credential_first
            before = self._first + value + self._middle if is_first else self._first
            self.around = before, self._last if is_first else self._middle + value + self._last

    def fit_again(self, data: bytes) -> bool:
        """Whether this is a request of this form with the credential that is expected."""
        before, behind = self.around  # type: ignore[misc]
        return (
            data.startswith(before)
            and data.endswith(behind)
            and _IGNORED.fullmatch(data, len(before), len(data) - len(behind)) is not None
        )


def _find_holes(request: bytes, headers: Headers, credential: Credential, varying: bytes | None) -> _Holes | None:
    """None for a request in any but the usual form."""
    lines = request.split(b"\r\n")
    if lines[0] != _REQUEST_LINE or lines[-2:] != [b"", b""] or len(lines) != len(headers) + 3:
        return None
    start = len(lines[0]) + 2
    credential_span = ignored_span = None
    for line, (name, value) in zip(lines[1:-2], headers, strict=True):
        written, _, rest = line.partition(b":")
        if written.lower() != name or rest.strip(b" \t") != value:
            return None
        value_start = start + len(line) - len(rest.lstrip(b" \t"))
        if name == varying:
            ignored_span = slice(value_start, value_start + len(value))
        elif name in (b"x-session-token", b"authorization", b"cookie"):
            offset = _offset(name, value, credential)
            if offset is not None:
                credential_span = slice(value_start + offset, value_start + offset + len(credential.value))
        start += len(line) + 2
    return None if credential_span is None else _Holes(request, credential_span, ignored_span)


def _offset(name: bytes, value: bytes, credential: Credential) -> int | None:
    """Where in the header's value the credential is."""
    if credential.kind == "token":
        is_there = name == (b"authorization" if credential.bearer else b"x-session-token")
        return len(value) - len(credential.value) if is_there and value.endswith(credential.value) else None
    start = 0
    for pair in value.split(b";") if name == b"cookie" else ():
        cookie, _, content = pair.partition(b"=")
        if cookie.strip(GO_SPACE) == credential.cookie_name.encode("latin-1"):
            return start + len(cookie) + 1 if content == credential.value else None
        start += len(pair) + 1
    return None


def _differing(before: Headers, after: Headers) -> bytes | None:
    """The one unheeded header that has another value now, where all else but heeded values is the same."""
    if len(before) != len(after) or any(old[0] != new[0] for old, new in zip(before, after, strict=True)):
        return None
    names = [old[0] for old, new in zip(before, after, strict=True) if old != new and old[0] not in HEEDED]
    return names[0] if len(names) == 1 and [name for name, _ in after].count(names[0]) == 1 else None
