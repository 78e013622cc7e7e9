"""The read path.  The numbers are the README's, and the order is the code's.

    1. find the credential (http/credentials.py)      6. redis tier
    2. derive the key                                 7. fill lock between nodes
    3. memory tier                                    8. origin
    4. join or start the flight                       9. store, and answer every waiter
    5. take `as_of`

In step 9 the fast lane's waiters that were there before the read come first, for what it says is theirs in any case.
Fence and lease are asked at every hit, after every await, and before every store, with no await in between.  What goes
to Redis is written behind that, which is safe, because every reader of it asks again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cache_node.errors import OriginUnavailableError
from cache_node.feed.clock import Clock
from cache_node.feed.fence import Fence
from cache_node.feed.lease import Lease
from cache_node.feed.position import Position
from cache_node.sessions.answer import Answer, Tier, Wants
from cache_node.sessions.complaints import Complaints
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import (
    CLOCK_TOLERANCE_SECONDS,
    EXPIRY_MARGIN_SECONDS,
    Entry,
    Headers,
    credential_ends_at,
    pack_headers,
    parse_session,
    read_session,
    unpack_headers,
)
from cache_node.sessions.flight import Flight, Flights
from cache_node.sessions.keys import Key, KeyRing
from cache_node.sessions.memory_tier import MemoryTier, Refusal
from cache_node.sessions.origin import OriginAnswer
from cache_node.sessions.ports import SessionOrigin, SharedTier, Tell

logger = logging.getLogger(__name__)

_PLAIN = Wants()

REFUSAL_SECONDS = 5.0
"""How long a believed 401 is given again without asking."""
ANONYMOUS_SECONDS = 60.0
"""How long the answer to no credential is given again without asking; of all events only a flush can change it."""

# What a stored answer repeats of the origin's: everything that says something about the session, and nothing that is
# bound to one request (Set-Cookie, CORS, dates, tracing).
REPLAYED_HEADERS = frozenset(
    b"content-type cache-control vary pragma expires content-language ory-error-id ory-session-cache-for "
    b"x-kratos-authenticated-identity-id x-content-type-options".split()
)


@dataclass(frozen=True, slots=True)
class FromRedis:
    """A run ended in the redis tier, with an entry that was admitted then."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class FromOrigin:
    """The origin answered; `entry` or `refusal` is what its answer makes, where that may be kept."""

    answer: OriginAnswer
    entry: Entry | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class OriginFailed:
    """The origin could not do its work; `answer` is its 429 or 5xx, if it said so much."""

    failure: OriginUnavailableError
    answer: OriginAnswer | None = None


Outcome = FromRedis | FromOrigin | OriginFailed

HearAnswer = Callable[[Answer | BaseException], None]

# Of what is not kept, these say something about the session; a proxy's 404 or 302 does not.
_ABOUT_THE_CREDENTIAL = (200, 403)


class Reader:
    """Answers whose session a credential is.  One per node; belongs to its event loop."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        memory: MemoryTier,
        redis: SharedTier,
        origin: SessionOrigin,
        fence: Fence,
        lease: Lease,
        clock: Clock,
        ttl_seconds: float,
        stale_if_error_seconds: float,
        cookie_max_age_seconds: float,
        neighbour_seconds: float,
    ) -> None:
        self._keys = keys
        self._memory = memory
        self._redis = redis
        self._origin = origin
        self._fence = fence
        self._lease = lease
        self._clock = clock
        self._ttl = ttl_seconds
        self._stale_ttl = ttl_seconds + stale_if_error_seconds
        self._cookie_max_age = cookie_max_age_seconds
        self._neighbour_seconds = neighbour_seconds
        self._flights: Flights[Outcome] = Flights()
        self._lookups: dict[bytes, list[Tell]] = {}
        self._anonymous_flights: Flights[OriginAnswer] = Flights()
        self._anonymous: Refusal | None = None
        self._complaints = Complaints(logger, clock)
        self.counts: Counter[str] = Counter()
        """`rejected_fills` (by the fence or for want of a lease), `missed_events`, `shared_again`."""

    async def read(self, credential: Credential, wants: Wants) -> Answer:
        """Raises OriginUnavailableError where neither a tier nor the origin has an answer."""
        keys = self._keys.derive(credential)  # 2
        name = keys[0].name
        found = self._look_in_memory(name, wants)  # 3
        if isinstance(found, Answer):
            return found
        ask_origin = wants.no_cache or self._is_contradicted(name)
        while True:  # 4
            outcome, joined_before_read = await self._flights.join(
                name, lambda flight: self._fill(flight, keys, credential), ask_origin=ask_origin
            )
            answer = self._answer_from(outcome, joined_before_read, name, wants, found)
            if answer is not None:
                return answer
            # Somebody else's result that is not good enough for this reader: the next run's read begins after it.
            self.counts["shared_again"] += 1
            ask_origin = True

    def read_later(self, keys: tuple[Key, ...], credential: Credential, hear: HearAnswer) -> None:
        """The same of a plain request, told to who has no task to wait with, and not before this has returned: an
        answer, or why there is none."""
        found = self._look_in_memory(keys[0].name, _PLAIN)
        if isinstance(found, Answer):
            asyncio.get_running_loop().call_soon(hear, found)
        else:
            self._join_later(keys, credential, hear, found, ask_origin=self._is_contradicted(keys[0].name))

    def _join_later(
        self, keys: tuple[Key, ...], credential: Credential, hear: HearAnswer, missed: str, *, ask_origin: bool
    ) -> None:
        name = keys[0].name

        def landed(outcome: Outcome | BaseException, joined_before_read: bool) -> None:
            if isinstance(outcome, BaseException):
                hear(outcome)
                return
            try:
                answer = self._answer_from(outcome, joined_before_read, name, _PLAIN, missed)
            except OriginUnavailableError as exc:
                hear(exc)
                return
            if answer is not None:
                hear(answer)
                return
            self.counts["shared_again"] += 1
            self._join_later(keys, credential, hear, missed, ask_origin=True)

        self._flights.join_later(
            name, lambda flight: self._fill(flight, keys, credential), landed, ask_origin=ask_origin
        )

    def _is_contradicted(self, name: bytes) -> bool:
        """Whether the origin has said otherwise than what Redis may still hold from before."""
        return self._memory.get_refusal(name) is not None

    def find_hit(self, name: bytes) -> Entry | None:
        """Step 3 for a plain request: an entry that may be given now."""
        entry = self._memory.get(name)
        return entry if entry is not None and self._why_not(entry, _PLAIN) is None else None

    def look_up(self, keys: tuple[Key, ...], tell: Tell) -> bool:
        """Step 6 for a plain request: a look in the redis tier; `tell` hears once what may be given then, or None.

        False, and `tell` hears nothing, where memory knows something of the key, or a flight is under way: the newest
        word of the origin may be on its way, and must not be followed by an older one.
        """
        name = keys[0].name
        waiting = self._lookups.get(name)
        if waiting is not None:
            waiting.append(tell)
            return True
        if name in self._memory or name in self._flights or not self._lease.holds():
            return False
        waiting = self._lookups[name] = [tell]
        self._redis.look_up(keys, partial(self._looked_up, name, waiting))
        return True

    def _looked_up(self, name: bytes, waiting: list[Tell], entry: Entry | None) -> None:
        if self._lookups.get(name) is not waiting:  # a flight has begun
            entry = None
        else:
            del self._lookups[name]
            if entry is not None and not self._take(name, entry):
                entry = None
        for tell in waiting:
            try:
                tell(entry)
            except Exception:  # one reader's trouble, and not that of the others
                logger.exception("a reader could not be told")

    def may_be_given(self, entry: Entry) -> tuple[float, float]:
        """From when until when (Unix seconds) its age and its end allow an entry to be given to plain requests."""
        until = min(entry.expires_at - EXPIRY_MARGIN_SECONDS, entry.fetched_at + self._ttl)
        return entry.fetched_at - CLOCK_TOLERANCE_SECONDS, until

    async def read_anonymous(self) -> Answer:
        """The answer to no credential: the origin's own, asked now and then, and true without it."""
        known = self._anonymous
        if known is not None and self._clock.steady() < known.until and self._is_of_now(known):
            return self._from_refusal(known)
        try:
            answer, joined_before_read = await self._anonymous_flights.join(b"", self._fill_anonymous, ask_origin=False)
        except OriginUnavailableError:
            if known is None:
                raise
            return self._from_refusal(known)
        if known is not None and answer.is_failure:
            return self._from_refusal(known)
        return self._from_origin(answer, "anonymous") if joined_before_read else await self.read_anonymous()

    def _is_of_now(self, anonymous: Refusal) -> bool:
        """Whether no flush is newer; without a feed there is none."""
        if anonymous.as_of is None:
            return self._fence.position is None
        return self._fence.is_above_floor(anonymous.as_of)

    async def pass_on(
        self,
        method: str,
        target: str,
        headers: Headers,
        body: bytes,
        detail: str,
        *,
        credential: Credential | None,
        anonymous: bool,
    ) -> Answer:
        """A request that goes to the origin for itself; `detail` says why.

        `credential` is the single one that it presents; without one, `anonymous` says that it presents none at all.
        """
        name = None if credential is None else self._keys.derive(credential)[0].name
        answer = await self._origin.pass_on(
            method,
            target,
            headers,
            body,
            anonymous=anonymous,
            is_expected=lambda: credential is not None and name is not None and self._is_over(name, credential),
        )
        if method == "GET":
            self._session_in(answer)
        return Answer(answer.status, answer.headers, answer.body, "bypass", detail)

    # 3: the memory tier ---------------------------------------------------------------------------------------------

    def _look_in_memory(self, name: bytes, wants: Wants) -> Answer | str:
        """An answer, or the word for why there is none."""
        entry = self._memory.get(name)
        if entry is None:
            refusal = self._memory.get_refusal(name)
            if refusal is None or not self._stands(refusal):
                return "cold"
            return wants.more_than_plain or self._from_refusal(refusal)
        why_not = self._why_not(entry, wants)
        return self._from_entry(entry, "memory", "memory") if why_not is None else why_not

    def _why_not(self, entry: Entry, wants: Wants) -> str | None:
        """None if the entry may be given as a cached answer now, else the word for why not."""
        now = self._clock.wall()
        if not self._lease.holds():
            return "no-lease"
        if not self._fence.admits(entry):
            return "fenced"
        if entry.is_expired(now):
            return "expired"
        if wants.no_cache:
            return "no-cache"
        if not entry.is_younger_than(self._ttl, now):
            return "ttl"
        if wants.max_age_seconds is not None and not entry.is_younger_than(wants.max_age_seconds, now):
            return "max-age"
        if wants.min_position is not None and not self._fence.has_applied(wants.min_position):
            return "min-position"
        return None

    def _stands(self, refusal: Refusal) -> bool:
        return (
            refusal.as_of is not None
            and self._clock.steady() < refusal.until
            and self._lease.holds()
            and self._fence.admits_negative(refusal.as_of)
        )

    # 4 to 9: one run of a flight ------------------------------------------------------------------------------------

    async def _fill(self, flight: Flight[Outcome], keys: tuple[Key, ...], credential: Credential) -> Outcome:
        self._lookups.pop(keys[0].name, None)  # what they bring is older than what this brings
        try:
            return await self._fill_with_lock(flight, keys, credential)
        finally:
            self._redis.release(keys[0], is_kept=False)  # where it was not before

    async def _fill_with_lock(self, flight: Flight[Outcome], keys: tuple[Key, ...], credential: Credential) -> Outcome:
        as_of: Position | None = None

        def begin_read() -> None:
            nonlocal as_of
            as_of = self._fence.position  # 5; where the origin must be asked more than once, the last time counts
            flight.begin_read()

        if not flight.must_ask_origin:
            entry = await self._look_in_redis_or_lock(flight, keys)  # 6 and 7
            if entry is not None and not flight.must_ask_origin:
                return FromRedis(entry)
        try:
            answer = await self._origin.read(  # 8
                credential,
                on_begin=begin_read,
                is_expected=lambda: self._is_over(keys[0].name, credential),
                patient=self._admitted(keys[0].name) is None,
            )
            session = self._session_in(answer)
        except OriginUnavailableError as exc:
            return await self._without_origin(keys, OriginFailed(exc))
        if answer.is_failure:
            failed = OriginUnavailableError("failing", f"the origin answered {answer.status}")
            return await self._without_origin(keys, OriginFailed(failed, answer))
        if session is not None:
            await flight.tell_early(FromOrigin(answer))
        return self._store(keys, credential, as_of, answer, session)  # 9

    async def _look_in_redis(self, keys: tuple[Key, ...]) -> Entry | None:
        """An admitted entry, kept in memory by now; anything else is a miss for everybody."""
        if not self._lease.holds():
            return None
        entry = await self._redis.get(keys)
        return entry if entry is not None and self._take(keys[0].name, entry) else None

    async def _look_in_redis_or_lock(self, flight: Flight[Outcome], keys: tuple[Key, ...]) -> Entry | None:
        """The same; None when it is this node's turn to ask the origin, since no other is at it, or for too long."""
        until = self._clock.steady() + self._neighbour_seconds
        for attempt in itertools.count():
            if not self._lease.holds():
                break
            entry, is_elsewhere = await self._redis.get_or_lock(keys, attempt)
            if entry is not None and self._take(keys[0].name, entry):
                self._redis.release(keys[0], is_kept=True)
                return entry
            if not is_elsewhere or flight.must_ask_origin or self._clock.steady() >= until:
                break
        return None

    def _take(self, name: bytes, entry: Entry) -> bool:
        """Keep in memory what was found in Redis, if it may be given now."""
        if self._why_not(entry, _PLAIN) is not None:
            return False
        self._memory.put(name, entry)
        return True

    async def _without_origin(self, keys: tuple[Key, ...], outcome: Outcome) -> Outcome:
        """The origin failed: an admitted entry answers, if there is one in either tier.

        Not in Redis where the origin has refused: what could not be taken away from there would come back.
        """
        if self._admitted(keys[0].name) is None and self._memory.get_refusal(keys[0].name) is None:
            await self._look_in_redis(keys)
        return outcome

    def _store(
        self,
        keys: tuple[Key, ...],
        credential: Credential,
        as_of: Position | None,
        answer: OriginAnswer,
        session: dict[str, Any] | None,
    ) -> Outcome:
        """Keep what may be kept, after asking fence and lease; no await in here."""
        if answer.status == 401 and answer.believed:
            return self._store_refusal(keys, as_of, answer)
        entry = self._entry_from(credential, as_of, answer, session)
        if entry is None:
            # The newest word of the origin is not an entry: an older one must not be given in its place.  A node
            # without a position has none, and leaves its neighbours theirs.
            if answer.status in _ABOUT_THE_CREDENTIAL and answer.believed and as_of is not None:
                self._forget(keys, answer)
            return FromOrigin(answer)
        if not (self._fence.admits(entry) and self._lease.holds()):
            self.counts["rejected_fills"] += 1
            self._memory.put_subject(keys[0].name, entry)
        elif self._memory.put(keys[0].name, entry):
            self._redis.put(keys[0], entry)
            self._redis.release(keys[0], is_kept=True)
        else:
            self._forget(keys, answer)
        return FromOrigin(answer, entry=entry)

    def _store_refusal(self, keys: tuple[Key, ...], as_of: Position | None, answer: OriginAnswer) -> Outcome:
        # Where it contradicts what the feed proves unchanged, and is believed, an event was missed.
        self.counts["missed_events"] += self._admitted(keys[0].name) is not None
        self._forget(keys, answer)
        if answer.header(b"set-cookie") is not None:
            return FromOrigin(answer)
        refusal = Refusal(
            answer.body, _head_of(answer), answer.fetched_at, self._clock.steady() + REFUSAL_SECONDS, as_of
        )
        if self._stands(refusal):
            self._memory.put_refusal(keys[0].name, refusal)
        return FromOrigin(answer, refusal=refusal)

    def _is_over(self, name: bytes, credential: Credential) -> bool:
        """Whether this node knows by itself why the credential is refused: it is too old, or its session ended."""
        now = self._clock.wall()
        ends_at = credential_ends_at(credential, self._cookie_max_age)
        entry = self._memory.get(name)
        if (ends_at is not None and now >= ends_at) or (entry is not None and entry.is_expired(now)):
            return True
        subject = self._memory.get_subject(name) if entry is None else entry
        return subject is not None and self._fence.is_gone(subject)

    def _forget(self, keys: tuple[Key, ...], answer: OriginAnswer) -> None:
        """What was known, for an answer that is nothing to keep.  In its place stays a refusal that is none to give: as
        long as it does, Redis is not asked, from where the older word could come back before it is gone there."""
        self._memory.put_refusal(keys[0].name, Refusal(b"", b"", answer.fetched_at, float("-inf"), None))
        for key in keys:  # under an older secret it would be found again
            self._redis.discard(key)

    def _entry_from(
        self, credential: Credential, as_of: Position | None, answer: OriginAnswer, session: dict[str, Any] | None
    ) -> Entry | None:
        """None if the answer must not be kept."""
        facts = read_session(session) if answer.status == 200 and session is not None else None
        credential_end = credential_ends_at(credential, self._cookie_max_age)
        if facts is None or as_of is None or credential_end is None or answer.header(b"set-cookie") is not None:
            return None
        return Entry.of(
            body=answer.body,
            headers=_replayed(answer),
            session_id=facts.session_id,
            identity_id=facts.identity_id,
            expires_at=min(facts.expires_at, credential_end),
            fetched_at=answer.fetched_at,
            generation=as_of.generation,
            number=as_of.number,
        )

    async def _fill_anonymous(self, flight: Flight[OriginAnswer]) -> OriginAnswer:
        as_of = self._fence.position
        flight.begin_read()
        answer = await self._origin.read_anonymous(patient=self._anonymous is None)
        self._session_in(answer)
        # Strangers share it, and nobody's cookie is for another.
        answer = replace(answer, headers=tuple(line for line in answer.headers if line[0] != b"set-cookie"))
        if answer.status == 401:
            until = self._clock.steady() + ANONYMOUS_SECONDS
            self._anonymous = Refusal(answer.body, _head_of(answer), answer.fetched_at, until, as_of)
        return answer

    def _session_in(self, answer: OriginAnswer) -> dict[str, Any] | None:
        """The session of a 2xx, if nobody has compressed it.

        Raises OriginUnavailableError for a 2xx that is none: an error page of something in between logs nobody in.
        """
        if not 200 <= answer.status < 300 or answer.header(b"content-encoding") not in (None, b"identity"):
            return None
        session = parse_session(answer.body)
        if session is None:
            self._complaints.say("no session", f"origin: {answer.status} with what is no session; it counts as failed")
            raise OriginUnavailableError("garbage", f"the origin answered {answer.status} with what is no session")
        return session

    # What a waiter may have -----------------------------------------------------------------------------------------

    def _answer_from(
        self, outcome: Outcome, joined_before_read: bool, name: bytes, wants: Wants, missed: str
    ) -> Answer | None:
        """This waiter's answer, judged after it woke up; None if it must join another run."""
        match outcome:
            case FromRedis(entry):
                return self._from_entry(entry, "redis", "redis") if self._why_not(entry, wants) is None else None
            case OriginFailed():
                return self._answer_in_outage(outcome, name, wants)
            case FromOrigin(answer):
                return (
                    self._from_origin(answer, missed) if joined_before_read or self._may_share(outcome, wants) else None
                )

    def _may_share(self, outcome: FromOrigin, wants: Wants) -> bool:
        """Whether an answer of the origin is good for somebody who joined after its read began."""
        if outcome.refusal is not None:
            return wants.more_than_plain is None and self._stands(outcome.refusal)
        return outcome.entry is not None and self._why_not(outcome.entry, wants) is None

    def _answer_in_outage(self, outcome: OriginFailed, name: bytes, wants: Wants) -> Answer:
        entry = self._admitted(name)
        is_new_enough = wants.min_position is None or self._fence.has_applied(wants.min_position)
        if entry is not None and is_new_enough:
            return self._from_entry(entry, "stale", "stale-if-error")
        if outcome.answer is not None:
            return self._from_origin(outcome.answer, "origin-error")
        raise OriginUnavailableError(outcome.failure.cause, str(outcome.failure))

    def _admitted(self, name: bytes) -> Entry | None:
        """The entry that the feed proves unchanged, past its TTL too, but never past its session's end."""
        entry = self._memory.get(name)
        if entry is None or not (self._lease.holds() and self._fence.admits(entry)):
            return None
        now = self._clock.wall()
        return entry if not entry.is_expired(now) and entry.is_younger_than(self._stale_ttl, now) else None

    def _from_entry(self, entry: Entry, tier: Tier, detail: str) -> Answer:
        age = entry.age_seconds(self._clock.wall())
        return Answer(200, entry.headers, entry.body, tier, detail, age)

    def _from_refusal(self, refusal: Refusal) -> Answer:
        age = max(0.0, self._clock.wall() - refusal.fetched_at)
        return Answer(401, unpack_headers(refusal.head), refusal.body, "negative", "negative", age)

    def _from_origin(self, answer: OriginAnswer, detail: str) -> Answer:
        age = max(0.0, self._clock.wall() - answer.fetched_at)
        return Answer(answer.status, answer.headers, answer.body, "origin", detail, age)


def _replayed(answer: OriginAnswer) -> Headers:
    return tuple((name, value) for name, value in answer.headers if name in REPLAYED_HEADERS)


def _head_of(answer: OriginAnswer) -> bytes:
    return pack_headers(_replayed(answer))
