"""The shortest way through the read path, for plain requests: without parser and application, for a hit without a task.

What it answers is what `whoami.py` would answer, byte for byte, but for an age and a date of the same second: a hit is
rendered once a second for each entry that is asked for.  All that is asked there before a hit is asked here at every
hit.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from email.utils import formatdate
from functools import partial

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from cache_node.errors import OriginUnavailableError
from cache_node.feed.clock import Clock
from cache_node.feed.fence import Fence
from cache_node.feed.lease import Lease
from cache_node.http.template import Headers, Known, Template
from cache_node.http.whoami import Observer, cache_status, headers_of, unavailable
from cache_node.sessions.answer import Answer, Tier
from cache_node.sessions.entry import Entry, pack_headers
from cache_node.sessions.hedged_lru import Turn
from cache_node.sessions.keys import Key, KeyRing
from cache_node.sessions.reader import Reader

logger = logging.getLogger(__name__)

RENDERED_SECONDS = 1.0
RENDERED_BYTES = 8 * 1024 * 1024
"""Rendered answers that are kept at most, for a second at most; above that each hit renders its own."""
MOST_JOINED = 64 * 1024
"""A larger body is never joined with a head: 100 clients that did not read one of 6 MB cost 660 MiB, and cost 105."""
LOOK_EVERY = 8
"""When most looks in Redis find nothing, one request in so many looks there first; the others leave that to the reader,
which looks and locks in one round trip."""
_LOOKS_HEEDED = 4
SAMPLE_EVERY = 256
"""One hit in so many is timed, on average; at random, since a fixed stride would time the same connection each time."""

# The head at once, and not line by line as the slow path does it, which tests hold against it.
_HEAD = b"HTTP/1.1 200 OK\r\ndate: %b\r\n%bcache-status: %b\r\nage: %d\r\ncontent-length: %d\r\n\r\n"
_CACHE_STATUS: dict[Tier, bytes] = {"memory": cache_status("memory", "memory"), "redis": cache_status("redis", "redis")}

Hear = Callable[[bytes | None, bytes], None]
"""Is told once: head and body of the answer, or None where the slow path must say what it is."""


class _Rendered(msgspec.Struct, frozen=True, gc=False):
    entry: Entry
    since: float
    until: float
    data: bytes


class FastLane:
    """One node's, asked by all its connections.

    `turn` is the memory tier's.  `observe` is told how long a hit in memory took (seconds), of some of them;
    `observer`, of each in Redis.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        keys: KeyRing,
        fence: Fence,
        lease: Lease,
        clock: Clock,
        turn: Turn,
        observe: Callable[[float], None],
        observer: Observer,
        session_cookie: str,
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._digest = keys.digest
        self._known: Known = {"token": {}, "cookie": {}}
        self._fence = fence
        self._lease = lease
        self._turn = turn
        self._steady = clock.steady
        self._wall = clock.wall
        self._observe = observe
        self._observer = observer
        self._session_cookie = session_cookie.encode()
        self._rendered: dict[bytes, _Rendered] = {}
        self._rendered_bytes = 0
        self._rendered_until = float("-inf")
        self._date = b""
        self._found_share = 1.0  # of the latest looks
        self._left_alone = 0  # requests since the last one
        self._dice = random.Random()  # noqa: S311  # of which hits are timed
        self._next_sample = 1
        self.hits = 0
        """Answers given from memory."""
        self.now = float("-inf")
        """Reading of the steady clock when the last answer was given, or asked for."""

    def template(self, request: bytes, headers: Headers, before: Template | None) -> Template:
        """Of a request that the parser has consumed exactly."""
        return Template(request, headers, self._session_cookie, self._digest, self._known, before)

    def seconds_since(self, then: float) -> float:
        """By the steady clock."""
        return self._steady() - then

    def answer(self, name: bytes) -> bytes | None:
        """The whole answer to a plain GET for the entry of this name; None if it is none to be given so."""
        now = self._steady()
        if now >= self._rendered_until:
            self._begin_second(now)
        found = self._rendered.get(name)
        if (
            found is None
            or now >= self._lease.until
            or not found.entry.key  # the tier has let it go
            or found.entry.admitted_version != self._fence.version
            or not found.since <= self._wall() < found.until
        ):
            found = self._judge(name, found)
            if found is None:
                return None
        found.entry.used_in = self._turn.now
        self.now = now
        self.hits = hits = self.hits + 1
        if hits == self._next_sample:
            self._next_sample += self._dice.randrange(1, 2 * SAMPLE_EVERY)
            self._observe(self._steady() - now)
        return found.data

    def ask(self, template: Template, hear: Hear, tasks: set[asyncio.Task[None]]) -> bool:
        """Look for what memory cannot answer in the other tiers; False if the slow path must do that.

        What waits for a run is among `tasks`, as uvicorn has those of requests there, so that it can be cut off.
        """
        if template.has_request_id:
            return False
        self.now = now = self._steady()
        keys = self._keys.derive_from(template.digest, template.kind, template.value)
        if self._found_share >= 0.5 or self._left_alone == LOOK_EVERY - 1:
            self._left_alone = 0
            if self._reader.look_up(keys, partial(self._tell, now, template, keys, hear, tasks)):
                return True
        else:
            self._left_alone += 1
        self._read(now, template, keys, hear, tasks)
        return True

    def _tell(
        self,
        begun: float,
        template: Template,
        keys: tuple[Key, ...],
        hear: Hear,
        tasks: set[asyncio.Task[None]],
        entry: Entry | None,
    ) -> None:
        self._found_share += ((entry is not None) - self._found_share) / _LOOKS_HEEDED
        if entry is None:
            self._read(begun, template, keys, hear, tasks)
            return
        now = self._begin_answer()
        self._observer.observe_request("redis", 200, "redis", now - begun)
        hear(self._head_of(entry, "redis"), entry.body)

    def _read(
        self, begun: float, template: Template, keys: tuple[Key, ...], hear: Hear, tasks: set[asyncio.Task[None]]
    ) -> None:
        reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        tasks.add(reading)  # type: ignore[arg-type]  # it is waited for and cancelled, which any future can be

        def tell(answer: Answer | BaseException) -> None:
            if not reading.done():
                reading.set_result(None)
                self._tell_answer(begun, hear, answer)

        def ended(_: asyncio.Future[None]) -> None:
            tasks.discard(reading)
            if reading.cancelled():
                self._tell_answer(begun, hear, asyncio.CancelledError())

        reading.add_done_callback(ended)
        self._reader.read_later(keys, template.credential, tell)

    def _tell_answer(self, begun: float, hear: Hear, answer: Answer | BaseException) -> None:
        if isinstance(answer, OriginUnavailableError | asyncio.CancelledError):
            answer = unavailable(answer, "origin")
        elif not isinstance(answer, Answer):
            logger.error("a read failed", exc_info=answer)
            hear(None, b"")
            return
        now = self._begin_answer()
        lines = pack_headers(((b"date", self._date), *headers_of(answer)))
        hear(b"%b%b\r\n" % (STATUS_LINE[answer.status], lines), answer.body)
        self._observer.observe_request(answer.tier, answer.status, answer.detail, now - begun)

    def _begin_answer(self) -> float:
        """The time, of an answer that was asked for."""
        self.now = now = self._steady()
        if now >= self._rendered_until:
            self._begin_second(now)
        return now

    def _begin_second(self, now: float) -> None:
        self._rendered = {}
        for digests in self._known.values():
            digests.clear()
        self._rendered_bytes = 0
        self._rendered_until = now + RENDERED_SECONDS
        self._date = formatdate(self._wall(), usegmt=True).encode()

    def _judge(self, name: bytes, known: _Rendered | None) -> _Rendered | None:
        """The reader's own judgement, and what was rendered of that entry."""
        entry = self._reader.find_hit(name)
        if entry is None or len(entry.body) > MOST_JOINED:
            return None
        if known is not None and known.entry is entry:
            return known
        data = self._head_of(entry, "memory") + entry.body
        found = _Rendered(entry, *self._reader.may_be_given(entry), data)
        if self._rendered_bytes + len(found.data) <= RENDERED_BYTES:
            self._rendered_bytes += len(found.data)
            self._rendered[name] = found
        return found

    def _head_of(self, entry: Entry, tier: Tier) -> bytes:
        age = int(entry.age_seconds(self._wall()))
        return _HEAD % (self._date, entry.lines, _CACHE_STATUS[tier], age, len(entry.body))
