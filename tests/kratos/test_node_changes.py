"""What is changed at Kratos and published is seen at once on both nodes; a session ends when its time is over."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime

from cache_node.app import Node
from cache_node.demo.kratos_server import KratosServer
from cache_node.embedded import EmbeddedValkey
from tests.demo.exchanges import Exchange, Headers
from tests.kratos.nodes import (
    MEMORY,
    NEGATIVE,
    PASSWORD,
    Nodes,
    Person,
    by_cookie,
    by_token,
    cache_status,
    distinct,
    is_try_again,
    sign_in,
    told,
)
from tests.waiting import eventually

FENCED = "cache-node; fwd=stale; detail=fenced"


async def revoke(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.revoke_session(person.session)
    await nodes.publish("session.revoked", session_id=person.session)


async def log_out(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.logout_token(person.token)
    await nodes.publish("session.revoked", session_id=person.session, identity_id=person.identity)


async def revoke_in_upper_case(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.revoke_session(person.session)
    await nodes.publish("session.revoked", session_id=person.session.upper())


async def delete_sessions(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.delete_identity_sessions(person.identity)
    await nodes.publish("identity.deleted", identity_id=person.identity)


async def delete_sessions_one_by_one(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.delete_identity_sessions(person.identity)
    await nodes.publish("session.revoked", session_id=person.cookie_session)
    await nodes.publish("session.revoked", session_id=person.session)


async def delete_identity(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.delete_identity(person.identity)
    await nodes.publish("identity.deleted", identity_id=person.identity)


async def disable(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.disable_identity(person.identity)
    await nodes.publish("identity.changed", identity_id=person.identity)


async def flush(nodes: Nodes, person: Person) -> None:
    await nodes.kratos.delete_identity(person.identity)
    await nodes.publish("flush")


ENDS_OF_THE_TOKEN = [revoke, log_out, revoke_in_upper_case]
ENDS_OF_ALL = [delete_sessions, delete_sessions_one_by_one, delete_identity, disable, flush]


async def test_an_ended_session_gets_kratos_own_401_everywhere_at_once(nodes: Nodes) -> None:
    """After the receipt no node answers 200, and what both say is Kratos' 401, then and from the short memory."""
    for end in ENDS_OF_THE_TOKEN + ENDS_OF_ALL:
        person = await sign_in(nodes.kratos)
        await nodes.cache(person.by_token, person.by_cookie)
        await end(nodes, person)
        ended = [person.by_token, person.by_bearer] + ([person.by_cookie] if end in ENDS_OF_ALL else [])
        first = await asyncio.gather(*(nodes.ask_both(each) for each in ended))
        assert {answer.status for both in first for answer in both} == {401}, end
        for headers, both in zip(ended, first, strict=True):
            own = told(await nodes.ask_kratos(headers))
            assert [told(answer) for answer in both] == [own, own], end
            assert await nodes.both_agree(headers) == [NEGATIVE, NEGATIVE], end
            assert await nodes.both_agree([*headers, ("X-Request-ID", "req-42")]) == [NEGATIVE, NEGATIVE], end
            assert await nodes.both_agree(headers, "HEAD") == [NEGATIVE, NEGATIVE], end
        if end in ENDS_OF_THE_TOKEN:
            assert await nodes.both_agree(person.by_cookie) == [MEMORY, MEMORY], "the other session lives on"


async def test_a_login_after_the_end_is_a_session_like_any_other(nodes: Nodes) -> None:
    """Events name what was there: a session that begins after `identity.deleted` is kept and answered from memory."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token)
    await delete_sessions(nodes, person)
    token, _ = await nodes.kratos.login_token(person.email, PASSWORD)
    await nodes.cache(by_token(token))
    assert [answer.status for answer in await nodes.ask_both(person.by_token)] == [401, 401]


async def test_an_identity_enabled_again_is_let_in_at_once(nodes: Nodes) -> None:
    """A refusal that a node remembers does not outlive `identity.changed`, again and again."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token, person.by_cookie)
    for _ in range(3):
        await disable(nodes, person)
        for headers in (person.by_token, person.by_cookie):
            assert [answer.status for answer in await nodes.ask_both(headers)] == [401, 401]
            assert await nodes.both_agree(headers) == [NEGATIVE, NEGATIVE]
        await nodes.kratos.enable_identity(person.identity)
        await nodes.publish("identity.changed", identity_id=person.identity)
        for headers in (person.by_token, person.by_cookie):
            assert [answer.status for answer in await nodes.ask_both(headers)] == [200, 200]
            assert await nodes.both_agree(headers) == [MEMORY, MEMORY]


async def test_changed_traits_are_in_the_next_answer(nodes: Nodes) -> None:
    """All sessions of the identity have the new body after `identity.changed`; those of others stay in memory."""
    person, other = await sign_in(nodes.kratos), await sign_in(nodes.kratos)
    await nodes.cache(person.by_token, person.by_cookie, other.by_token)
    for number in range(3):
        name = {"first": f"Zoë <{number}>", "last": "O'Neil & Söhne"}
        await nodes.kratos.patch_identity(
            person.identity,
            [
                {"op": "add", "path": "/traits/name", "value": name},
                {"op": "add", "path": "/metadata_public", "value": {"number": number}},
            ],
        )
        await nodes.publish("identity.changed", identity_id=person.identity)
        for headers in (person.by_token, person.by_cookie):
            answers = await nodes.ask_both(headers)
            assert distinct(answers) == distinct([await nodes.ask_kratos(headers)])
            assert json.loads(answers[0].body)["identity"]["traits"]["name"] == name
            assert await nodes.both_agree(headers) == [MEMORY, MEMORY]
    assert await nodes.both_agree(other.by_token) == [MEMORY, MEMORY]


async def test_an_extended_session_sets_its_cookie_anew_for_each_caller(nodes: Nodes) -> None:
    """Kratos' `Set-Cookie` reaches who asked and nobody else: that answer is not kept, the new cookie's is."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token, person.by_cookie)
    await nodes.kratos.extend_session(person.cookie_session)
    await nodes.publish("session.changed", session_id=person.cookie_session)
    given = set()
    for node in (*nodes.nodes, *nodes.nodes):
        answer = await nodes.ask(node, person.by_cookie)
        assert cache_status(answer).startswith("cache-node; fwd=")
        assert told(answer) == told(await nodes.ask_kratos(person.by_cookie))
        given.add(set_cookie(answer))
        assert (await nodes.agree(node, person.by_cookie, "HEAD")).startswith("cache-node; fwd=")
    assert len(given) == 4, "each caller has a cookie of its own"
    for value in given:
        assert value != person.cookie
        answers = [await nodes.ask(nodes.a, by_cookie(value)) for _ in range(2)]
        assert [cache_status(answer) for answer in answers] == ["cache-node; fwd=miss; detail=cold", MEMORY]
        assert {set_cookie(answer) for answer in answers} == {""}
    assert await nodes.both_agree(person.by_token) == [MEMORY, MEMORY], "another session"


def set_cookie(answer: Exchange) -> str:
    """The value of the cookie that the answer sets, else an empty text."""
    values = [value for name, value in answer.response_headers if name.lower() == "set-cookie"]
    return values[0].partition("=")[2].partition(";")[0] if values else ""


async def test_an_extended_token_is_kept_with_its_new_end(nodes: Nodes) -> None:
    """Nothing is set for a token, and its answer names the new expiry."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token)
    before = await nodes.ask(nodes.a, person.by_token)
    await nodes.kratos.extend_session(person.session)
    await nodes.publish("session.changed", session_id=person.session)
    assert await nodes.agree(nodes.a, person.by_token) == FENCED
    await nodes.agree(nodes.b, person.by_token)
    assert await nodes.both_agree(person.by_token) == [MEMORY, MEMORY]
    assert ends_at(await nodes.ask(nodes.a, person.by_token)) > ends_at(before)


def ends_at(answer: Exchange) -> float:
    return datetime.fromisoformat(json.loads(answer.body)["expires_at"]).timestamp()


async def test_a_second_factor_makes_the_other_sessions_403(nodes: Nodes) -> None:
    """Kratos' 403 is passed on word for word to each who asks and never kept; the session that has it goes on."""
    person = await sign_in(nodes.kratos)
    aal2, _ = await nodes.kratos.login_token(person.email, PASSWORD)
    await nodes.cache(person.by_token, person.by_cookie, by_token(aal2))
    await nodes.kratos.add_second_factor(aal2)
    await nodes.publish("identity.changed", identity_id=person.identity)
    for headers in (person.by_token, person.by_bearer, person.by_cookie):
        assert [answer.status for answer in await nodes.ask_both(headers)] == [403, 403]
        for _ in range(2):
            for extra in ([], [("X-Request-ID", "r9")]):
                for method in ("GET", "HEAD"):
                    statuses = await nodes.both_agree([*headers, *extra], method)
                    assert all(status.startswith("cache-node; fwd=") for status in statuses)
    assert await nodes.agree(nodes.a, by_token(aal2)) == FENCED
    await nodes.agree(nodes.b, by_token(aal2))
    assert await nodes.both_agree(by_token(aal2)) == [MEMORY, MEMORY]
    assert '"authenticator_assurance_level":"aal2"' in (await nodes.ask(nodes.a, by_token(aal2))).body


LIFESPAN_SECONDS = 4


async def test_nothing_is_answered_from_cache_after_the_session_has_ended(valkey: EmbeddedValkey) -> None:
    """By its own date, which no event tells of: then Kratos decides, and without its database nobody does."""
    async with (
        KratosServer(lifespan_seconds=LIFESPAN_SECONDS) as kratos,
        Nodes(kratos, valkey.url, {"cookie_max_age_seconds": LIFESPAN_SECONDS}) as nodes,
    ):
        person = await sign_in(kratos)
        credentials = [person.by_token, person.by_cookie]
        await nodes.cache(*credentials)
        await until_ended(nodes, credentials, lambda answer: answer.status == 401)
        for headers in credentials:
            assert await nodes.both_agree(headers) == [NEGATIVE, NEGATIVE]

        person = await sign_in(kratos)
        credentials = [person.by_token, person.by_cookie]
        await nodes.cache(*credentials)
        await kratos.stop_database()
        await until_ended(nodes, credentials, is_try_again)


async def until_ended(nodes: Nodes, credentials: list[Headers], has_ended: Callable[[Exchange], bool]) -> None:
    """Ask both nodes on and on; no request begun after the end may be answered 200."""
    ends = {str(headers): ends_at(await nodes.ask(nodes.a, headers)) for headers in credentials}
    late: list[tuple[float, Exchange]] = []
    last: list[Exchange] = []

    async def ask(node: Node, headers: Headers) -> Exchange:
        begun = time.time()
        answer = await nodes.ask(node, headers)
        if answer.status == 200 and begun >= ends[str(headers)]:
            late.append((begun - ends[str(headers)], answer))
        return answer

    async def all_ended() -> bool:
        last[:] = await asyncio.gather(*(ask(node, headers) for node in nodes.nodes for headers in credentials))
        return all(map(has_ended, last))

    await eventually(all_ended, lambda: f"last answers: {last}", LIFESPAN_SECONDS + 2.0)
    assert not late
