"""What the reader keeps, for how long, and what each kind of request gets; the races are in tests/interleavings/."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from cache_node.feed.position import Position
from cache_node.sessions.answer import Answer, Wants
from cache_node.sessions.credential import Credential
from tests.fakes import ManualClock, ScriptedNode, changed, following_node, version_of

NO_CACHE = Wants(no_cache=True)
BEGINNING = int(ManualClock().wall_now)


def cookie(minted_at: int | str, name: str = "ory_kratos_session") -> Credential:
    """A session cookie with the shape of securecookie's."""
    value = base64.urlsafe_b64encode(f"{minted_at}|payload|mac".encode())
    return Credential("cookie", value, cookie_name=name)


async def read_twice(node: ScriptedNode, credential: Credential | None = None) -> tuple[Answer, Answer]:
    """A credential that the origin knows as a valid session, asked for twice."""
    credential = credential or Credential("token", b"token")
    node.origin.add(credential.value.decode())
    return await node.reader.read(credential, Wants()), await node.reader.read(credential, Wants())


# What is kept ---------------------------------------------------------------------------------------------------------


async def test_a_session_is_kept_and_given_as_it_came() -> None:
    """Status and body of a hit are the origin's, byte for byte."""
    node = await following_node()
    first, second = await read_twice(node)

    assert (first.tier, first.detail, second.tier, second.detail) == ("origin", "cold", "memory", "memory")
    assert (second.status, second.body) == (200, first.body)
    assert node.origin.reads == 1


async def test_headers_about_the_session_are_given_again_and_those_of_one_request_are_not() -> None:
    """Order and repetition are the origin's; what is bound to one request or connection is left out of the entry."""
    node = await following_node()
    about = (
        (b"cache-control", b"private, no-cache, no-store, must-revalidate"),
        (b"ory-session-cache-for", b"60"),
        (b"vary", b"Origin"),
        (b"vary", b"Cookie"),
        (b"x-kratos-authenticated-identity-id", b"identity-1"),
    )
    node.origin.extra_headers = (
        about[0],
        (b"access-control-allow-origin", b"https://one.example"),
        (b"access-control-allow-credentials", b"true"),
        *about[1:],
        (b"x-request-id", b"one"),
        (b"traceparent", b"00-1-2-03"),
        (b"x-made-up", b"1"),
    )
    first, second = await read_twice(node)

    content_type = (b"content-type", b"application/json; charset=utf-8")
    assert first.headers == (content_type, *node.origin.extra_headers), "whoever asked gets everything"
    assert second.headers == (content_type, *about)


@pytest.mark.parametrize("header", [b"set-cookie"])
async def test_an_answer_that_sets_a_cookie_is_its_callers_alone(header: bytes) -> None:
    """A re-issued cookie is relayed to whoever presented the old one, and nothing of that answer is kept."""
    node = await following_node()
    node.origin.extra_headers = ((header, b"ory_kratos_session=new; Path=/; HttpOnly"),)
    first, second = await read_twice(node)

    assert [answer.tier for answer in (first, second)] == ["origin", "origin"]
    assert all((header, b"ory_kratos_session=new; Path=/; HttpOnly") in answer.headers for answer in (first, second))
    assert len(node.memory) == 0
    assert node.redis.stored == {}


async def test_an_answer_that_sets_a_cookie_takes_the_place_of_an_entry() -> None:
    """The older entry must not be given instead of the newest word of the origin, here or by a neighbour."""
    node = await following_node()
    await node.read("token")
    node.origin.set_cookie = True
    await node.read("token", NO_CACHE)

    assert (await node.read("token")).tier == "origin"
    assert node.redis.stored == {}


@pytest.mark.parametrize("status", [301, 302, 400, 403, 404, 418])
async def test_other_answers_are_passed_on_and_never_kept(status: int) -> None:
    """A 403 depends on the identity's second factor and on configuration; the others are no answers to the question."""
    node = await following_node()
    node.origin.status = status
    answers = [await node.read("token") for _ in range(2)]

    assert [(a.status, a.body, a.tier) for a in answers] == [(status, b"scripted\n", "origin")] * 2
    assert len(node.memory) == 0
    assert node.redis.stored == {}


async def test_a_403_takes_the_place_of_an_entry() -> None:
    """A second factor was added and no event told: who has seen the 403 is not shown the older 200 again."""
    node = await following_node()
    await node.read("token")
    node.origin.status = 403
    assert (await node.read("token", NO_CACHE)).status == 403

    assert (await node.read("token")).status == 403
    assert node.redis.stored == {}


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_failures_are_never_kept(status: int) -> None:
    """The next reader asks again."""
    node = await following_node()
    node.origin.status = status
    await node.read("token")
    node.origin.status = None

    assert (await node.read("token")).status == 200


async def test_a_body_above_a_sixteenth_of_the_bound_is_passed_on_and_not_kept() -> None:
    """One answer must not push many sessions out; it is kept in neither tier."""
    node = await following_node(memory_bytes=1 << 20)
    node.origin.padding_bytes = (1 << 16) - 500
    first, second = await read_twice(node)
    assert second.tier == "memory", "just small enough"
    node.log.server.append(changed())
    await node.follow()
    node.origin.padding_bytes = 1 << 16
    first, second = await read_twice(node)

    assert [(answer.status, answer.tier) for answer in (first, second)] == [(200, "origin")] * 2
    assert len(first.body) > 1 << 16
    assert len(node.memory) == 0
    assert node.redis.stored == {}


# For how long ---------------------------------------------------------------------------------------------------------


async def after(node: ScriptedNode, seconds: float) -> None:
    """Time passes, and the feed is confirmed."""
    node.clock.advance(seconds)
    await node.follow()


async def test_an_entry_lives_for_the_ttl() -> None:
    """The backstop, for changes that no event told of."""
    node = await following_node(ttl_seconds=900.0)
    await node.read("token")
    await after(node, 900.0)
    assert (await node.read("token")).tier == "memory"
    await after(node, 0.001)

    answer = await node.read("token")
    assert (answer.tier, answer.detail) == ("origin", "ttl")


async def test_an_entry_of_redis_lives_for_the_ttl_too() -> None:
    """Its age counts from when the origin was asked, not from when it was taken over."""
    neighbour = await following_node(ttl_seconds=900.0)
    await neighbour.read("token")
    node = neighbour.neighbour()
    await after(node, 899.0)
    assert (await node.read("token")).tier == "redis"
    await after(node, 2.0)

    assert (await node.read("token")).tier == "origin"


async def test_the_end_of_a_session_is_a_miss_and_no_401() -> None:
    """It may have been extended: only the origin knows.  A second early, for clocks that differ."""
    node = await following_node()
    session = node.origin.sessions[b"token"]
    session.expires_at = "2027-01-15T08:05:00.5Z"  # 300.5 s after the beginning
    await node.read("token")
    await after(node, 299.4)
    assert (await node.read("token")).tier == "memory"
    await after(node, 0.2)
    session.expires_at, session.version = "2027-01-16T08:00:00Z", 1

    answer = await node.read("token")
    assert (answer.status, version_of(answer), answer.tier, answer.detail) == (200, 1, "origin", "expired")


async def test_the_end_of_a_session_in_redis_is_a_miss() -> None:
    """As in memory."""
    neighbour = await following_node()
    neighbour.origin.sessions[b"token"].expires_at = "2027-01-15T08:05:00Z"
    await neighbour.read("token")
    node = neighbour.neighbour()
    await after(node, 299.5)

    assert (await node.read("token")).tier == "origin"


async def test_a_cookie_has_an_age_limit_of_its_own() -> None:
    """Kratos refuses a cookie that was minted too long ago, however long its session lives."""
    node = await following_node()
    credential = cookie(BEGINNING - 86_400 + 100)
    _first, second = await read_twice(node, credential)
    assert second.tier == "memory"
    await after(node, 98.5)
    assert (await node.reader.read(credential, Wants())).tier == "memory"
    await after(node, 1.0)

    answer = await node.reader.read(credential, Wants())
    assert (answer.tier, answer.detail) == ("origin", "expired")


async def test_a_session_that_ends_before_its_cookie_does() -> None:
    """The earlier of the two counts."""
    node = await following_node()
    credential = cookie(BEGINNING)
    node.origin.add(credential.value.decode()).expires_at = "2027-01-15T08:05:00Z"
    await node.reader.read(credential, Wants())
    await after(node, 299.5)

    assert (await node.reader.read(credential, Wants())).detail == "expired"


@pytest.mark.parametrize("minted_at", ["", "tomorrow", "-1", "1" * 13])
async def test_a_cookie_whose_mint_date_cannot_be_read_is_not_kept(minted_at: str) -> None:
    """How long it may be answered for is not known."""
    node = await following_node()
    first, second = await read_twice(node, cookie(minted_at))

    assert [(answer.status, answer.tier) for answer in (first, second)] == [(200, "origin")] * 2
    assert node.redis.stored == {}


async def test_a_wall_clock_that_steps_back_makes_ages_unknown() -> None:
    """An entry from the future has no age that could be young enough; a second is tolerated."""
    node = await following_node()
    await node.read("token")
    node.clock.wall_now -= 1.0
    answer = await node.read("token")
    assert (answer.tier, answer.age_seconds) == ("memory", 0.0)
    node.clock.wall_now -= 0.5

    assert (await node.read("token")).tier == "origin"


# For whom -------------------------------------------------------------------------------------------------------------


async def test_one_token_has_one_entry_however_it_is_presented() -> None:
    """X-Session-Token and bearer are the same question; a cookie of the same bytes is another one."""
    node = await following_node()
    await node.read("token")
    assert (await node.reader.read(Credential("token", b"token", bearer=True), Wants())).tier == "memory"
    other = await node.reader.read(Credential("cookie", b"token", cookie_name="ory_kratos_session"), Wants())

    assert other.tier == "origin"


async def test_two_cookies_of_one_session_have_entries_of_their_own() -> None:
    """Only the origin can say that a cookie is good."""
    node = await following_node()
    await read_twice(node, cookie(BEGINNING))

    assert (await node.reader.read(cookie(BEGINNING + 1), Wants())).status == 401


async def test_max_age_takes_what_was_fetched_at_most_so_long_ago() -> None:
    """Older entries stay for others."""
    node = await following_node()
    await node.read("token")
    await after(node, 10.0)
    assert (await node.read("token", Wants(max_age_seconds=10.0))).tier == "memory"
    node.origin.sessions[b"token"].version = 1
    assert version_of(await node.read("token")) == 0
    answer = await node.read("token", Wants(max_age_seconds=9.0))

    assert (version_of(answer), answer.tier, answer.detail) == (1, "origin", "max-age")
    assert version_of(await node.read("token")) == 1


async def test_max_age_takes_no_older_entry_of_redis() -> None:
    """Where an answer was stored does not make it younger."""
    neighbour = await following_node()
    await neighbour.read("token")
    node = neighbour.neighbour()
    await after(node, 10.0)
    answer = await node.read("token", Wants(max_age_seconds=9.0))

    assert (answer.tier, answer.age_seconds) == ("origin", 0.0)


async def test_stamping_forward_does_not_make_an_entry_younger() -> None:
    """Age says when the origin was asked, whatever was proven since."""
    node = await following_node()
    await node.read("token")
    for _ in range(5):
        node.log.server.append(changed("another"))
        await after(node, 1.0)
        await node.read("token")

    assert (await node.read("token")).age_seconds == 5.0
    assert (await node.read("token", Wants(max_age_seconds=4.0))).tier == "origin"


async def test_min_position_is_served_once_it_is_applied() -> None:
    """Read your writes: before that the origin is asked, afterwards the tiers are good enough."""
    node = await following_node()
    await node.read("token")
    position = node.log.server.append(changed("another"))
    wants = Wants(min_position=position)
    answer = await node.read("token", wants)
    assert (answer.tier, answer.detail) == ("origin", "min-position")
    await node.follow()

    assert (await node.read("token", wants)).tier == "memory"


async def test_min_position_is_served_from_redis_once_it_is_applied() -> None:
    """As from memory."""
    neighbour = await following_node()
    await neighbour.read("token")
    node = neighbour.neighbour()
    await node.follow()
    applied = node.fence.position
    assert applied is not None

    ahead = replace(applied, number=applied.number + 1)
    assert (await node.read("token", Wants(min_position=ahead))).tier == "origin"
    node.memory.discard(next(iter(node.redis.stored)))
    assert (await node.read("token", Wants(min_position=applied))).tier == "redis"


@pytest.mark.parametrize("difference", [-1, 1])
async def test_min_position_of_another_generation_asks_the_origin(difference: int) -> None:
    """It cannot be compared, whatever its number."""
    node = await following_node()
    await node.read("token")
    assert node.fence.position is not None
    position = Position(node.fence.position.generation + difference, 0)

    assert (await node.read("token", Wants(min_position=position))).tier == "origin"


async def test_no_cache_asks_the_origin_and_its_answer_is_kept() -> None:
    """It is as good for others as any fill."""
    node = await following_node()
    await node.read("token")
    node.origin.sessions[b"token"].version = 1
    answer = await node.read("token", NO_CACHE)

    assert (version_of(answer), answer.tier, answer.detail) == (1, "origin", "no-cache")
    assert version_of(await node.read("token")) == 1
    assert node.redis.gets == 1, "the first reader's"


async def test_what_is_passed_on_keeps_nothing() -> None:
    """A request that goes to the origin for itself is answered by it alone."""
    node = await following_node()
    answer = await node.reader.pass_on(
        "POST",
        "/sessions/whoami?a=1",
        ((b"x-session-token", b"token"),),
        b"",
        "method",
        credential=None,
        anonymous=False,
    )

    assert (answer.tier, answer.detail) == ("bypass", "method")
    assert node.origin.passed_on == 1
    assert len(node.memory) == 0
