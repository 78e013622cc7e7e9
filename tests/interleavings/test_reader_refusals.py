"""401s that are believed: when one is kept, how long it stands, and what becomes of an entry that one contradicts.

Whether the origin's 401 may be believed at all is the origin client's to find out (tests/sessions/test_origin.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.feed.events import Event, EventType
from cache_node.sessions.answer import Wants
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.origin import OriginAnswer
from cache_node.sessions.reader import REFUSAL_SECONDS
from tests.fakes import (
    Gate,
    ScriptedNode,
    ScriptedOrigin,
    changed,
    flush,
    following_node,
    get_as_far_as_they_can,
    identity_changed,
    revoked,
    version_of,
)

NO_CACHE = Wants(no_cache=True)


def identity_deleted() -> list[Event]:
    return [Event(EventType.IDENTITY_DELETED, None, "another")]


# Kept for a few seconds, in memory ------------------------------------------------------------------------------------


async def refused_node() -> ScriptedNode:
    """A node that has kept a 401 for `token`."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    assert (await node.read("token")).status == 401
    return node


async def test_a_refusal_is_given_again_for_a_few_seconds() -> None:
    """Made-up tokens cost the origin one request each, not one a second; the age counts from that request."""
    node = await refused_node()
    node.clock.advance(1.0)
    answer = await node.read("token")
    assert (answer.status, answer.tier, answer.detail, answer.age_seconds) == (401, "negative", "negative", 1.0)
    await node.follow()
    node.clock.advance(1.0)
    await node.follow()
    node.clock.advance(REFUSAL_SECONDS - 2.0)
    await node.follow()

    assert (await node.read("token")).tier == "origin"
    assert node.origin.reads == 2


async def test_a_refusal_is_never_shared_through_redis() -> None:
    """It is not worth a write, and a neighbour could not judge it."""
    node = await refused_node()

    assert node.redis.stored == {}


async def test_a_refusal_stands_while_sessions_are_only_revoked() -> None:
    """Revocations make no session valid, so a flood of them costs no refusal."""
    node = await refused_node()
    node.log.server.append([*revoked("another"), *revoked("session-1")])
    await node.follow()

    assert (await node.read("token")).tier == "negative"


@pytest.mark.parametrize("event", [changed, identity_changed, identity_deleted, flush])
async def test_a_refusal_falls_with_any_other_event(event: Callable[[], list[Event]]) -> None:
    """A disabled identity that is enabled again makes its sessions valid, and a refusal knows no ids to be named by."""
    node = await refused_node()
    node.origin.sessions[b"token"].valid = True
    node.log.server.append(event())
    await node.follow()

    assert (await node.read("token")).status == 200


async def test_an_event_during_a_fill_that_is_refused() -> None:
    """Refused, then the identity is enabled, then the 401 arrives: it is not kept, and no late joiner gets it."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    node.origin.gate = gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.origin.sessions[b"token"].valid = True
    node.log.server.append(identity_changed())
    await node.follow()
    reader_b = asyncio.create_task(node.read("token"))
    await get_as_far_as_they_can()
    node.origin.gate = None
    gate.open()

    assert (await reader_a).status == 401
    assert (await reader_b).status == 200
    assert (await node.read("token")).status == 200


async def test_a_revocation_during_a_fill_that_is_refused() -> None:
    """The harmless order: a 401 is not older than a revocation in anything that matters."""
    node = await following_node()
    node.origin.sessions[b"token"].valid = False
    node.origin.gate = gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await gate.arrived()
    node.log.server.append(revoked())
    await node.follow()
    reader_b = asyncio.create_task(node.read("token"))
    await get_as_far_as_they_can()
    gate.open()

    assert [(await reader).status for reader in (reader_a, reader_b)] == [401, 401]
    assert node.origin.reads == 1
    assert (await node.read("token")).tier == "negative"


class AskingTwice(ScriptedOrigin):
    """Refuses, and is asked once more when the gate opens, as a 401 that nobody expected is."""

    async def read(
        self, credential: Credential, *, on_begin: Callable[[], None], is_expected: Callable[[], bool], patient: bool
    ) -> OriginAnswer:
        on_begin()
        assert self.gate is not None
        await self.gate.passed()
        gate, self.gate = self.gate, None
        answer = await super().read(credential, on_begin=on_begin, is_expected=is_expected, patient=patient)
        self.gate = gate
        return answer


async def test_an_event_before_the_last_time_that_the_origin_was_asked_voids_no_refusal() -> None:
    """A 401 takes a second to be believed, and events come every few milliseconds: what counts is the last read."""
    node = await following_node()
    origin = AskingTwice(node.clock)
    origin.gate = Gate()
    stranger = ScriptedNode(node.log.server, origin, node.clock)
    await stranger.follow()
    reader = asyncio.create_task(stranger.read("token"))
    await origin.gate.arrived()
    stranger.log.server.append(changed("somebody-else"))
    await stranger.follow()
    origin.gate.open()

    assert (await reader).status == 401
    assert (await stranger.read("token")).tier == "negative"


async def test_a_refusal_is_not_for_those_who_demand_more() -> None:
    """no-cache, max-age and min-position ask the origin, whatever was refused before."""
    position = (await following_node()).fence.position
    for wants in (NO_CACHE, Wants(max_age_seconds=60.0), Wants(min_position=position)):
        node = await refused_node()
        node.origin.sessions[b"token"].valid = True
        answer = await node.read("token", wants)
        assert (answer.status, answer.detail) == (200, wants.more_than_plain)


async def test_a_later_answer_takes_the_place_of_a_refusal() -> None:
    """What is kept of a key is the origin's newest word."""
    node = await refused_node()
    node.origin.sessions[b"token"].valid = True
    await node.read("token", NO_CACHE)

    assert (await node.read("token")).tier == "memory"
    node.origin.sessions[b"token"].valid = False
    assert (await node.read("token", NO_CACHE)).status == 401
    assert (await node.read("token")).tier == "negative"


async def test_a_refusal_that_sets_a_cookie_is_its_callers_alone() -> None:
    """As with any answer that does: relayed to who asked, not kept, and not shared with who came too late."""
    node = await following_node()
    node.origin.extra_headers = ((b"set-cookie", b"csrf=1"),)
    node.origin.gate = gate = Gate()
    reader_a = asyncio.create_task(node.read("made-up"))
    await gate.arrived()
    reader_b = asyncio.create_task(node.read("made-up"))
    await get_as_far_as_they_can()
    node.origin.gate = None
    gate.open()

    answers = [await reader_a, await reader_b, await node.read("made-up")]
    assert [(answer.status, answer.tier) for answer in answers] == [(401, "origin")] * 3
    assert node.origin.reads == 3


# Against what the feed proves unchanged -------------------------------------------------------------------------------


async def test_a_believed_401_that_contradicts_an_entry_kills_it() -> None:
    """The origin is right and the feed has missed something: the entry is dead, in both tiers, and that is counted."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].valid = False
    assert (await node.read("token")).tier == "memory", "no event has told"

    assert (await node.read("token", NO_CACHE)).status == 401
    assert node.reader.counts["missed_events"] == 1
    assert (await node.read("token")).tier == "negative"
    assert len(node.memory) == 0
    assert node.redis.stored == {}
    node.clock.advance(REFUSAL_SECONDS)
    await node.follow()
    assert (await node.read("token")).status == 401, "and it stays dead when the refusal is over"


async def test_an_event_that_comes_while_a_401_is_on_its_way_was_not_missed() -> None:
    """The change is committed, the event is a moment later: that is how it always is, and nothing to be alarmed by."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].valid = False
    node.origin.gate = gate = Gate()
    reader = asyncio.create_task(node.read("token", NO_CACHE))
    await gate.arrived()
    node.log.server.append(revoked())
    await node.follow()
    gate.open()

    assert (await reader).status == 401
    assert node.reader.counts["missed_events"] == 0


async def test_a_401_that_nobody_vouches_for_is_passed_on_and_nothing_else() -> None:
    """An origin without a readiness path: never kept, and no entry falls because of it."""
    node = await following_node()
    node.origin.believes_401 = False
    await node.read("token")
    node.origin.sessions[b"token"].valid = False

    assert (await node.read("token", NO_CACHE)).status == 401
    assert (await node.read("token")).tier == "memory"
    node.log.server.append(revoked())
    await node.follow()
    assert [(await node.read("token")).tier for _ in range(2)] == ["origin", "origin"]


# The answer to no credential ------------------------------------------------------------------------------------------


async def test_the_anonymous_answer_is_the_origins_and_asked_for_once() -> None:
    """It is true without the origin, without a lease, and after what happens to anybody."""
    node = await following_node()
    first = await node.read(None)
    assert (first.status, first.tier, first.detail) == (401, "origin", "anonymous")
    node.origin.down = True
    node.log.server.append(identity_changed())
    await node.follow()
    node.clock.advance(59.0)

    again = await node.read(None)
    assert (again.status, again.tier, again.body, again.age_seconds) == (401, "negative", first.body, 59.0)
    node.clock.advance(3600.0)
    assert (await node.read(None)).body == first.body, "asked again, and the origin is down"


@pytest.mark.parametrize("is_reset", [False, True])
async def test_the_anonymous_answer_is_asked_for_again_after_a_flush(is_reset: bool) -> None:
    """The origin's configuration may say it in other words now; while it is down, the old ones are as true."""
    node = await following_node()
    old = await node.read(None)
    node.origin.refusal_body = b"{}"
    if is_reset:
        node.log.server.restart_empty()
    else:
        node.log.server.append(flush())
    await node.follow()

    node.origin.down = True
    assert (await node.read(None)).body == old.body
    node.origin.down = False
    assert [(await node.read(None)).body for _ in range(2)] == [b"{}"] * 2
    assert (await node.read(None)).tier == "negative"


async def test_who_asks_after_a_flush_does_not_get_the_anonymous_answer_from_before() -> None:
    """Not by joining the read that had begun then, either."""
    node = await following_node()
    node.origin.gate = gate = Gate()
    early = asyncio.create_task(node.read(None))
    await gate.arrived()
    node.origin.refusal_body = b"{}"
    node.log.server.append(flush())
    await node.follow()
    late = asyncio.create_task(node.read(None))
    await asyncio.sleep(0)
    gate.open()

    assert (await early).body != b"{}"
    assert (await late).body == b"{}"


async def test_strangers_share_no_cookie() -> None:
    """The answer to no credential goes to all who have none, so it sets nobody's cookie."""
    node = await following_node()
    node.origin.extra_headers = ((b"vary", b"Cookie"), (b"set-cookie", b"csrf=1"))
    answers = await asyncio.gather(*(node.read(None) for _ in range(3)))
    answers.append(await node.read(None))

    headers = ((b"content-type", b"application/json"), (b"vary", b"Cookie"))
    assert [answer.headers for answer in answers] == [headers] * 4


async def test_an_entry_outlives_the_refusal_of_another_credential() -> None:
    """Keys do not mix."""
    node = await following_node()
    await node.read("token")
    assert (await node.read("made-up")).status == 401

    assert version_of(await node.read("token")) == 0
    assert (await node.read("made-up")).tier == "negative"


async def test_what_could_not_be_taken_away_from_redis_does_not_come_back_in_an_outage() -> None:
    """Nor after it: the refusal stays the newest word of the origin."""
    node = await following_node()
    await node.read("token")
    stored = dict(node.redis.stored)
    node.origin.sessions[b"token"].valid = False
    assert (await node.read("token", NO_CACHE)).status == 401
    node.redis.stored.update(stored)  # the discard was lost
    node.clock.advance(REFUSAL_SECONDS + 1.0)
    await node.follow()
    node.origin.down = True
    with pytest.raises(OriginUnavailableError):
        await node.read("token")
    node.origin.down = False

    assert (await node.read("token")).status == 401


async def test_what_could_not_be_taken_away_from_redis_does_not_come_back() -> None:
    """The session is refused while Redis is stalled, so its entry stays there: the origin is asked, not Redis."""
    node = await following_node()
    await node.read("token")
    kept = dict(node.redis.stored)
    node.origin.sessions[b"token"].valid = False  # and the event is missed
    assert (await node.read("token", NO_CACHE)).status == 401
    node.redis.stored |= kept
    node.clock.advance(1.0)
    await node.follow()
    node.log.server.append(identity_changed("another"))
    await node.follow()  # the refusal stands no more

    assert (await node.read("token")).status == 401
    node.clock.advance(1.0)
    await node.follow()
    assert (await node.read("token")).status == 401


def forbidden(node: ScriptedNode) -> None:
    node.origin.status = 403


def another_cookie(node: ScriptedNode) -> None:
    node.origin.set_cookie = True


def too_large(node: ScriptedNode) -> None:
    node.origin.padding_bytes = node.memory.max_body_bytes


@pytest.mark.parametrize("contradict", [forbidden, another_cookie, too_large])
async def test_what_the_origin_said_last_is_not_followed_by_what_redis_still_holds(
    contradict: Callable[[ScriptedNode], None],
) -> None:
    """An answer that nobody keeps has no event: the entry from before is gone from Redis a moment later, or never."""
    node = await following_node()
    await node.read("token")
    kept = dict(node.redis.stored)
    contradict(node)
    newest = await node.read("token", NO_CACHE)
    node.redis.stored |= kept
    tell: list[Entry | None] = []

    assert not node.reader.look_up(node.keys.derive(Credential("token", b"token")), tell.append)
    again = await node.read("token")
    assert (again.status, again.tier) == (newest.status, "origin")
    node.origin.down = True
    with pytest.raises(OriginUnavailableError):
        await node.read("token")


# Whether a 401 was expected -------------------------------------------------------------------------------------------


def identity_1_deleted() -> list[Event]:
    return [Event(EventType.IDENTITY_DELETED, None, "identity-1")]


@pytest.mark.parametrize(
    ("event", "is_expected"),
    [(revoked, True), (identity_1_deleted, True), (changed, False), (identity_changed, False), (flush, False)],
)
async def test_a_401_is_expected_of_what_the_feed_says_is_gone(
    event: Callable[[], list[Event]], is_expected: bool
) -> None:
    """Only a revocation or a deletion explains it; after any other event it may as well be an outage."""
    node = await following_node()
    await node.read("token")
    node.log.server.append(event())
    await node.follow()
    await node.read("token", NO_CACHE)

    assert node.origin.is_expected() is is_expected


async def test_a_401_is_expected_of_a_fill_that_came_too_late() -> None:
    """The session was seen by a fill that the fence rejected: whose it was is known, though no entry was kept."""
    node = await following_node()
    node.origin.gate = Gate()
    reading = asyncio.create_task(node.read("token"))
    await node.origin.gate.arrived()
    node.log.server.append(revoked())
    await node.follow()
    node.origin.gate.open()
    await reading
    node.origin.gate = None
    await node.read("token")

    assert node.origin.is_expected()


async def test_a_401_is_expected_when_the_time_is_over() -> None:
    """The session's own end has passed."""
    node = await following_node()
    node.origin.sessions[b"token"].expires_at = "2027-01-15T08:01:00Z"  # a minute after the clock's beginning
    await node.read("token")
    assert not node.origin.is_expected()
    node.clock.advance(61.0)
    await node.follow()
    await node.read("token")
    assert node.origin.is_expected()


async def test_no_401_is_expected_of_a_stranger() -> None:
    """A credential that this node has never seen may be the best of all."""
    node = await following_node()
    node.log.server.append(revoked("session-of-somebody"))
    await node.follow()
    await node.read("token-of-a-stranger")

    assert not node.origin.is_expected()
