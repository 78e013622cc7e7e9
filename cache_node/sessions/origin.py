"""The origin: asked within a deadline and a concurrency limit, and not believed when it says 401 in an outage.

Kratos answers 401 when its database is down, exactly as for a bad token, while its readiness says 503.  One probe
after the 401 does not tell them apart: an outage may end in between, and one dead database connection makes a good
token a 401 while the rest is ready.  [A real Kratos, 150 restarts of Postgres: 943 false 401s were followed by a
probe that said 200.  32 connections ended by Postgres: of 160 good tokens 34 were refused twice, with a good probe
after each.]  But Kratos' driver pings what has rested for a second, so that after 1.0 s no false one was left.  Hence:

- what was refused is asked again at once, which gives most good tokens their answer,
- and is believed to be refused if a read says so that began more than a second after the first refusal,
- unless the refusal was expected (its session was revoked, its time is over): then the first one is believed;
- and always a probe that was sent after the 401 must have said ready.

Turns to ask are the breaker's (breaker.py).  Failures in a row are silence, garbage, 5xx, and refusals in an outage.
They open it if a probe does not say ready then, or where many credentials had no answer at all: what the origin cannot
do for one of them must not keep the others out.  A 429, a 5xx and the anonymous 401 close it if a probe says ready.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from cache_node.errors import OriginUnavailableError
from cache_node.feed.clock import Clock
from cache_node.sessions.breaker import FAILURES, Breaker, Turn
from cache_node.sessions.complaints import Complaints
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Headers
from cache_node.sessions.origin_client import CONTROL, OriginClient

logger = logging.getLogger(__name__)

WHOAMI_PATH = "/sessions/whoami"
PROBE_SECONDS = 2.0
DEAD_CONNECTIONS_SECONDS = 1.05
"""After so long the origin has found out which of its database connections are dead."""
QUEUE_SECONDS = 1.0
"""How long a read may wait for its turn; then 503, because the origin is not the one to wait longer."""

# Connection-bound (RFC 9110 section 7.6.1), or written anew for each answer.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade content-length date age".split()
)
_NOT_FORWARDED = frozenset((b"host", b"expect"))
_CREDENTIALS = (b"x-session-token", b"cookie", b"authorization")
_NOBODY = 0
_ACCEPT = (b"Accept", b"application/json")


@dataclass(frozen=True, slots=True)
class OriginAnswer:
    """What the origin said.  `headers`: names in lower case, order and repetition kept, hop-by-hop ones dropped.

    So is the body's length, except in answers to HEAD, where nothing else tells it.
    """

    status: int
    headers: Headers
    body: bytes
    fetched_at: float
    """Unix seconds before the request was sent."""
    believed: bool = True
    """False for a 401 of an origin without a readiness path: passed on, never stored."""

    @property
    def is_failure(self) -> bool:
        """Whether the origin could not do its work just now: not an answer about the credential."""
        return self.status == 429 or self.status >= 500

    def header(self, name: bytes) -> bytes | None:
        """First value of a header, by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


class _Request(NamedTuple):
    """What goes to the origin, behind what its client adds."""

    method: str
    target: str
    headers: Headers
    body: bytes = b""


class _Asked(NamedTuple):
    """An answer, the turn that it was asked in, and when the request began, by the steady clock."""

    answer: OriginAnswer
    turn: Turn
    begun: float


class Origin:
    """Client of one origin; owns its connections.  All reads raise OriginUnavailableError when nothing may be believed.

    `ready_path` empty: the origin has no readiness to ask.
    """

    def __init__(self, url: str, clock: Clock, *, timeout_seconds: float, concurrency: int, ready_path: str) -> None:
        self._base = url.rstrip("/")
        self._clock = clock
        self._timeout = timeout_seconds
        self._breaker = Breaker(concurrency, timeout_seconds)
        self._readiness = Readiness(self._probe) if ready_path else None
        self._ready_path = ready_path
        self._looking: asyncio.Task[None] | None = None
        self._client: OriginClient | None = None  # made in the event loop
        self._complaints = Complaints(logger, clock)
        self.observe: Callable[[str, float], None] = lambda outcome, seconds: None
        """Called after each request with its status or cause of failure, and how long it took."""
        self.counts: Counter[str] = Counter()
        """`unbelieved` 401s."""

    async def aclose(self) -> None:
        """Close the connections."""
        self._breaker.close()
        if self._looking is not None:
            self._looking.cancel()
        if self._readiness is not None:
            self._readiness.close()
        if self._client is not None:
            await self._client.aclose()

    @property
    def is_open(self) -> bool:
        """Whether the breaker lets nobody through but trials."""
        return self._breaker.is_open

    async def read(
        self,
        credential: Credential,
        *,
        on_begin: Callable[[], None],
        is_expected: Callable[[], bool],
        patient: bool = True,
    ) -> OriginAnswer:
        """What the origin says of the credential: a GET with its own header and `Accept`, nothing else of any client.

        `on_begin` is called right before each request is sent; `is_expected` when it was refused, see above.  Who is
        not `patient` has another answer, and does not wait while the breaker is open.
        """
        request = _Request("GET", WHOAMI_PATH, (credential.header(), _ACCEPT))
        return await self._believed(request, on_begin, is_expected, hash(credential), patient)

    async def read_anonymous(self, *, patient: bool = True) -> OriginAnswer:
        """What it says to those who present nothing; that 401 is true in an outage too."""
        return await self._ask_anonymously(_Request("GET", WHOAMI_PATH, (_ACCEPT,)), patient)

    async def pass_on(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        anonymous: bool,
        is_expected: Callable[[], bool],
    ) -> OriginAnswer:
        """One client's request for that client alone, with all its headers but hop-by-hop ones."""
        request = _Request(method, target, _forwarded(headers), body)
        if anonymous:
            return await self._ask_anonymously(request, True)
        who = hash(tuple(value for name, value in headers if name.lower() in _CREDENTIALS))
        return await self._believed(request, lambda: None, is_expected, who, True)

    async def _believed(
        self,
        request: _Request,
        on_begin: Callable[[], None],
        is_expected: Callable[[], bool],
        who: int,
        patient: bool,
    ) -> OriginAnswer:
        """Ask until the answer is none that must be doubted; reads and probes together have one deadline."""
        ask = partial(self._ask_in_turn, request, on_begin, who, patient)
        limit = self._timeout + min(QUEUE_SECONDS, self._timeout) + DEAD_CONNECTIONS_SECONDS
        ends_at = asyncio.get_running_loop().time() + limit
        asked = await ask()  # which ends in time by itself
        if asked.answer.status != 401:
            return asked.answer
        if self._readiness is None:
            self._answered()
            return replace(asked.answer, believed=False)
        try:
            async with asyncio.timeout_at(ends_at):
                return await self._doubted(asked, ask, is_expected, self._readiness)
        except TimeoutError:
            raise OriginUnavailableError("timeout", f"the origin could not be believed within {limit:g} s") from None

    async def _doubted(
        self,
        asked: _Asked,
        ask: Callable[[], Awaitable[_Asked]],
        is_expected: Callable[[], bool],
        readiness: Readiness,
    ) -> OriginAnswer:
        """What is behind a refusal, after as many reads and probes as that takes."""
        surely_from = self._clock.steady() + DEAD_CONNECTIONS_SECONDS
        for refusals in itertools.count(1):
            if not await readiness.asked_now():
                self._failed(asked.turn, is_answer=False)
                break
            self._answered()
            if is_expected() or asked.begun >= surely_from:
                return asked.answer
            if refusals > 1:
                await asyncio.sleep(surely_from - self._clock.steady())
            asked = await ask()
            if asked.answer.status != 401:
                return asked.answer
        self.counts["unbelieved"] += 1
        self._complaints.say(
            "401", f"origin {self._base}: 401 while {self._ready_path} is not 200; 503 for whom no entry answers"
        )
        raise OriginUnavailableError("unready", "the origin refused the credential while it is not ready")

    async def _ask_anonymously(self, request: _Request, patient: bool) -> OriginAnswer:
        answer = (await self._ask_in_turn(request, lambda: None, _NOBODY, patient)).answer
        if answer.status == 401:
            self._breaker.widen()
            self._look_whether_it_is_over()
        return answer

    async def _ask_in_turn(self, request: _Request, on_begin: Callable[[], None], who: int, patient: bool) -> _Asked:
        came = self._clock.steady()
        try:
            turn = await self._breaker.take(min(QUEUE_SECONDS, self._timeout), who, patient=patient)
        except OriginUnavailableError as exc:
            self.observe(exc.cause, self._clock.steady() - came)
            raise
        try:
            on_begin()
            begun = self._clock.steady()
            return _Asked(await self._ask(request, turn), turn, begun)
        finally:
            self._breaker.give_back(turn)

    async def _ask(self, request: _Request, turn: Turn) -> OriginAnswer:
        try:
            answer = await self._observed(request)
        except OriginUnavailableError as exc:
            self._complaints.say("failing", f"origin {self._base}: {exc}; 503 for credentials that no entry answers")
            self._failed(turn, is_answer=exc.cause == "garbage")
            raise
        self._complaints.over("failing", f"origin {self._base}: answering again")
        if answer.status == 404 or answer.is_failure:
            hint = "is that Kratos' public URL?" if answer.status == 404 else "passed on where no entry answers"
            self._complaints.say(str(answer.status), f"origin {self._base}: {answer.status}; {hint}")
        if answer.status >= 500:
            self._failed(turn, is_answer=True)
        if answer.is_failure:
            self._look_whether_it_is_over()
        elif answer.status != 401:  # which is judged where its probe is known
            self._answered()
        return answer

    async def _observed(self, request: _Request) -> OriginAnswer:
        begun = self._clock.steady()
        outcome = "error"
        try:
            answer = await self._answer_to(request, self._timeout)
            outcome = str(answer.status)
            return answer
        except OriginUnavailableError as exc:
            outcome = exc.cause
            raise
        finally:
            self.observe(outcome, self._clock.steady() - begun)

    def _answered(self) -> None:
        self._breaker.answered()
        self._complaints.over("open", f"origin {self._base}: it works again, and is asked more with each answer")

    def _failed(self, turn: Turn, *, is_answer: bool) -> None:
        self._breaker.failed(turn)
        if not self._breaker.is_suspicious:
            return
        if self._readiness is not None:
            self._look(self._confirm(self._readiness, is_answer=is_answer))
        elif self._breaker.have_many_failed:
            self._open()

    async def _confirm(self, readiness: Readiness, *, is_answer: bool) -> None:
        is_ready = await readiness.asked_now()
        if not self._breaker.is_suspicious:
            return
        if is_ready and (is_answer or not self._breaker.have_many_failed):
            self._breaker.forgive()
        else:
            self._open()

    def _look_whether_it_is_over(self) -> None:
        """After an answer that proves nothing for itself."""
        if self._breaker.is_open and self._readiness is not None:
            self._look(self._close_if_ready(self._readiness))

    async def _close_if_ready(self, readiness: Readiness) -> None:
        if await readiness.asked_now():
            self._answered()

    def _look(self, looking: Coroutine[Any, Any, None]) -> None:
        """One at a time, behind the reads."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(looking)
        else:
            looking.close()

    def _open(self) -> None:
        self._complaints.say(
            "open",
            f"origin {self._base}: {FAILURES} failures in a row; a read now and then until it works",
        )
        self._breaker.open()

    async def _answer_to(self, request: _Request, timeout_seconds: float) -> OriginAnswer:
        fetched_at = self._clock.wall()
        try:
            if self._client is None:
                self._client = OriginClient(self._base)
            async with asyncio.timeout(timeout_seconds):
                status, raw_headers, body = await self._client.request(*request)
            answer = OriginAnswer(status, _kept(raw_headers, with_length=request.method == "HEAD"), body, fetched_at)
            _check_sendable(answer, request)
            return answer
        except TimeoutError:
            raise OriginUnavailableError("timeout", f"the origin did not answer within {timeout_seconds:g} s") from None
        except (aiohttp.ClientConnectionError, OSError) as exc:
            raise OriginUnavailableError("unreachable", f"no answer from the origin: {type(exc).__name__}") from None
        except (aiohttp.ClientError, HttpProcessingError, ValueError) as exc:
            # Texts of these errors may quote what was sent or received.
            raise OriginUnavailableError("garbage", f"the origin's answer is no HTTP: {type(exc).__name__}") from None

    async def _probe(self) -> bool:
        try:
            answer = await self._answer_to(_Request("GET", self._ready_path, ()), min(PROBE_SECONDS, self._timeout))
        except OriginUnavailableError:
            return False
        return answer.status == 200


class Readiness:
    """One probe in flight, shared by all who ask."""

    def __init__(self, probe: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._probe = probe
        self._task: asyncio.Task[bool] | None = None

    async def asked_now(self) -> bool:
        """What a probe sent after this call says."""
        if self._task is not None:
            # It was sent before: it proves nothing to this caller.
            await asyncio.wait([self._task])
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._probe())
        return await asyncio.shield(self._task)

    def close(self) -> None:
        """Give up the probe under way."""
        if self._task is not None:
            self._task.cancel()


def _check_sendable(answer: OriginAnswer, request: _Request) -> None:
    """Raises ValueError for what no server may send on: such an answer would end the client's connection."""
    status, asked = answer.status, request.headers
    if not 200 <= status <= 599 or (status == 304 and not any(name.lower().startswith(b"if-") for name, _ in asked)):
        raise ValueError("the origin's status is none that answers the question")
    if CONTROL.search(b"".join([value for _name, value in answer.headers])):
        raise ValueError("the origin's headers hold control characters")
    if status == 204 and answer.body:
        raise ValueError("the origin's answer has a body where none belongs")


def _kept(raw: Headers, *, with_length: bool) -> Headers:
    headers = [(name.lower(), value) for name, value in raw]
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    return tuple([each for each in headers if each[0] not in dropped or (with_length and each[0] == b"content-length")])


def _forwarded(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    dropped = _HOP_BY_HOP | _NOT_FORWARDED | _named_by_connection(headers)
    return tuple((name, value) for name, value in headers if name.lower() not in dropped)


def _named_by_connection(headers: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}
