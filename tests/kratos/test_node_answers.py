"""Whoever asks a node is told what Kratos itself says to the same request, from whatever tier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from cache_node.demo.api import COOKIE_NAME
from cache_node.demo.kratos_server import CORS_ORIGIN, TOKENIZER_TEMPLATE, KratosServer
from tests.demo.exchanges import Exchange, Headers, exchange, load
from tests.demo.test_origin import COOKIE_OF, TOKEN_OF, recorded_credential, substituted
from tests.kratos.nodes import (
    MEMORY,
    NEGATIVE,
    PASSWORD,
    REDIS,
    WHOAMI,
    Nodes,
    Person,
    bad_token,
    by_cookie,
    by_token,
    cache_status,
    header,
    sign_in,
    together,
    told,
)

COLD = "cache-node; fwd=miss; detail=cold"
KINDS: dict[str, Callable[[Person], Headers]] = {
    "token": lambda person: person.by_token,
    "bearer": lambda person: person.by_bearer,
    "cookie": lambda person: person.by_cookie,
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_session_is_answered_as_by_kratos_from_every_tier(nodes: Nodes, kind: str) -> None:
    """Cold from Kratos, then from memory, on the other node from Redis, then from its memory: equal each time."""
    credential = KINDS[kind](await sign_in(nodes.kratos))
    assert await nodes.agree(nodes.a, credential) == COLD
    assert await nodes.agree(nodes.a, credential) == MEMORY
    await nodes.a.parts.redis_tier.settle()
    assert await nodes.agree(nodes.b, credential) == REDIS
    assert await nodes.agree(nodes.b, credential) == MEMORY


@pytest.mark.parametrize("kind", KINDS)
async def test_head_is_answered_as_by_kratos_and_shares_the_entry_of_get(nodes: Nodes, kind: str) -> None:
    """A HEAD says what the GET says, length included, without a body; its miss makes an entry with the whole body."""
    credential = KINDS[kind](await sign_in(nodes.kratos))
    assert await nodes.agree(nodes.a, credential, "HEAD") == COLD
    assert await nodes.agree(nodes.a, credential, "HEAD") == MEMORY
    got = await nodes.ask(nodes.a, credential)
    assert cache_status(got) == MEMORY
    assert told(got) == told(await nodes.ask_kratos(credential))
    await nodes.a.parts.redis_tier.settle()
    from_redis = await nodes.ask(nodes.b, credential, "HEAD")
    assert cache_status(from_redis) == REDIS
    assert from_redis.body == ""
    assert header(from_redis, "content-length") == str(len(got.body.encode()))


async def test_one_token_is_one_entry_in_whatever_header_it_comes(nodes: Nodes) -> None:
    """A session token and the same token as bearer share an entry, in memory and in Redis."""
    person = await sign_in(nodes.kratos)
    assert await nodes.agree(nodes.a, person.by_token) == COLD
    assert await nodes.agree(nodes.a, person.by_bearer) == MEMORY
    await nodes.a.parts.redis_tier.settle()
    assert await nodes.agree(nodes.b, person.by_bearer) == REDIS
    assert await nodes.agree(nodes.b, person.by_token) == MEMORY


async def test_the_cookies_of_one_session_are_entries_of_their_own(nodes: Nodes) -> None:
    """Two sessions of one identity, by token and by cookie, are told apart."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token, person.by_cookie)
    by_token_, by_cookie_ = [await nodes.ask(nodes.a, each) for each in (person.by_token, person.by_cookie)]
    assert f'"id":"{person.session}"' in by_token_.body
    assert f'"id":"{person.cookie_session}"' in by_cookie_.body


async def test_no_credential_and_refused_ones_get_kratos_own_401(nodes: Nodes) -> None:
    """First from Kratos, then from the node's short memory for refusals; GET and HEAD."""
    refused: dict[str, Headers] = {
        "nothing": [],
        "other scheme": [("Authorization", "Basic YTpi")],
        "other cookies": [("Cookie", "a=b; c=d")],
        "unknown token": by_token("ory_st_doesnotexist"),
        "unknown bearer": [("Authorization", "Bearer ory_st_unknown_bearer")],
        "garbage cookie": by_cookie("garbage"),
        "well-formed cookie of nobody": by_cookie("MTc5NTUyMjk4OHxZV0pqfHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4"),
    }
    for name, headers in refused.items():
        first = await nodes.agree(nodes.a, headers)
        assert first.startswith("cache-node; fwd=miss; ") or first == NEGATIVE, name
        for method in ("GET", "HEAD"):
            assert await nodes.agree(nodes.a, headers, method) == NEGATIVE, name


REQUEST_IDS: dict[str, Headers] = {
    "plain": [("X-Request-ID", "req-42")],
    "lower-case name": [("x-request-id", "req-43")],
    "to be escaped": [("X-Request-ID", 'a"b\\c/<d>&e')],
    "padded": [("X-Request-ID", "  req 44\t ")],
    "a tab inside": [("X-Request-ID", "a\tb")],
    "empty": [("X-Request-ID", "")],
    "twice": [("X-Request-ID", "first"), ("X-Request-ID", "second")],
    "twice, the first empty": [("X-Request-ID", ""), ("X-Request-ID", "second")],
    "UTF-8": [("X-Request-ID", "zoë-\u2028-\u20ac".encode().decode("latin-1"))],
    "long": [("X-Request-ID", "x" * 5000)],
}


async def test_request_ids_are_repeated_where_kratos_repeats_them(nodes: Nodes) -> None:
    """In the body of a 401, stored ones too, each with the id of its own request; not in that of a session."""
    person = await sign_in(nodes.kratos)

    async def check(headers: Headers, request_id: Headers) -> None:
        for _ in range(2):
            await nodes.agree(nodes.a, headers + request_id)
            await nodes.agree(nodes.a, headers)

    await together(
        check(headers, request_id)
        for request_id in REQUEST_IDS.values()
        for headers in ([], by_token(bad_token()), person.by_token)
    )


def mixtures(person: Person) -> dict[str, tuple[int, Headers]]:
    """What presents not exactly one credential once, and the status that a real Kratos gives."""
    bad = bad_token()
    return {
        "token and cookie": (200, person.by_token + person.by_cookie),
        "token and bearer": (200, person.by_token + person.by_bearer),
        "bearer and cookie": (200, person.by_bearer + person.by_cookie),
        "token and bad cookie": (500, person.by_token + by_cookie("garbage")),
        "bearer and bad cookie": (500, person.by_bearer + by_cookie("garbage")),
        "bad token and cookie": (401, by_token(bad) + person.by_cookie),
        "bad bearer and cookie": (200, [("Authorization", f"Bearer {bad}"), *person.by_cookie]),
        "bad token and bearer": (401, by_token(bad) + person.by_bearer),
        "token twice": (200, person.by_token + by_token(bad)),
        "bad token first": (401, by_token(bad) + person.by_token),
        "empty token first": (401, by_token("") + person.by_token),
        "bearer twice": (200, [*person.by_bearer, ("Authorization", f"Bearer {bad}")]),
        "cookie twice, the first bad": (200, [("Cookie", f"{COOKIE_NAME}=bad; {COOKIE_NAME}={person.cookie}")]),
        "cookie twice, the last bad": (200, [("Cookie", f"{COOKIE_NAME}={person.cookie}; {COOKIE_NAME}=bad")]),
        "cookie in two lines": (200, by_cookie("bad") + person.by_cookie),
    }


async def test_mixtures_of_credentials_are_kratos_to_judge(nodes: Nodes) -> None:
    """Each time anew, with a request id too, and with nothing kept of it: not even of the parts."""
    person = await sign_in(nodes.kratos)

    async def check(name: str, status: int, headers: Headers) -> None:
        assert (await nodes.ask_kratos(headers)).status == status, name
        for _ in range(2):
            assert await nodes.agree(nodes.a, headers) == "cache-node; fwd=bypass; detail=mixed", name
        await nodes.agree(nodes.a, [*headers, ("X-Request-ID", "req-42")])
        await nodes.agree(nodes.a, headers, "HEAD")

    await together(check(name, status, headers) for name, (status, headers) in mixtures(person).items())
    for credential in (person.by_token, person.by_cookie):
        assert await nodes.agree(nodes.a, credential) == COLD


async def test_odd_ways_to_present_one_credential_are_read_as_kratos_reads_them(nodes: Nodes) -> None:
    """Padding, quotes, case, other cookies, other paths to the same handler: equal answers, cached or not."""
    person = await sign_in(nodes.kratos)
    token, cookie = person.token, person.cookie
    await nodes.cache(person.by_token, person.by_cookie)
    odd: dict[str, Headers] = {
        "padded token": by_token(f"  {token}\t "),
        "token in other case": by_token(token.upper()),
        "token with a space inside": by_token(f"{token} x"),
        "two tokens in one line": by_token(f"{token}, {token}"),
        "lower-case scheme": [("Authorization", f"bearer {token}")],
        "two spaces": [("Authorization", f"Bearer  {token}")],
        "three words": [("Authorization", f"Bearer {token} x")],
        "tab": [("Authorization", f"Bearer\t{token}")],
        "no word": [("Authorization", "Bearer")],
        "padded bearer": [("Authorization", f"  Bearer {token}  ")],
        "other scheme": [("Authorization", f"Token {token}")],
        "empty token and bearer": by_token("") + person.by_bearer,
        "empty token and cookie": by_token("") + person.by_cookie,
        "empty bearer and cookie": [("Authorization", ""), *person.by_cookie],
        "basic and cookie": [("Authorization", "Basic YTpi"), *person.by_cookie],
        "quoted cookie": by_cookie(f'"{cookie}"'),
        "half-quoted cookie": by_cookie(f'"{cookie}'),
        "cookie among others": [("Cookie", f"a=b; {COOKIE_NAME}={cookie}; c=d")],
        "cookie in the second line": [("Cookie", "a=b"), *person.by_cookie],
        "cookie without a blank": [("Cookie", f"a=b;{COOKIE_NAME}={cookie};c=d")],
        "cookie with blanks": [("Cookie", f"  {COOKIE_NAME}={cookie}  ;  c=d")],
        "cookie with a blank before the sign": [("Cookie", f"{COOKIE_NAME} ={cookie}")],
        "cookie with a blank behind the sign": [("Cookie", f"{COOKIE_NAME}= {cookie}")],
        "cookie with a comma": [("Cookie", f"{COOKIE_NAME}={cookie}, a=b")],
        "cookie name in other case": [("Cookie", f"{COOKIE_NAME.upper()}={cookie}")],
        "cookie name with a prefix": [("Cookie", f"x{COOKIE_NAME}={cookie}")],
        "cookie percent-encoded": by_cookie(cookie.replace("=", "%3D")),
        "cookie without padding": by_cookie(cookie.rstrip("=")),
        "cookie tampered with": by_cookie(cookie[:60] + ("A" if cookie[60] != "A" else "B") + cookie[61:]),
        "cookie cut off": by_cookie(cookie[:100]),
        "empty cookie": by_cookie(""),
        "empty cookie header": [("Cookie", "")],
        "token as cookie": by_cookie(token),
        "cookie as token": by_token(cookie),
        "header of older versions": [("X-Session-Cookie", cookie)],
    }
    await together(twice(nodes, headers) for headers in odd.values())


async def twice(nodes: Nodes, headers: Headers, method: str = "GET", path: str = WHOAMI) -> None:
    """The node agrees with Kratos at the first time and at the second, which may be from a tier."""
    for _ in range(2):
        await nodes.agree(nodes.a, headers, method, path)


async def test_paths_and_queries_are_read_as_kratos_reads_them(nodes: Nodes) -> None:
    """Only `tokenize_as` matters, however it is written; every other query has the plain answer."""
    person = await sign_in(nodes.kratos)
    await nodes.cache(person.by_token)
    plain = [f"{WHOAMI}?", f"{WHOAMI}?foo=bar", f"{WHOAMI}?tokenise_as=jwt1", f"{WHOAMI}?a&b=c&a", f"{WHOAMI}?=&&"]
    for path in plain:
        assert await nodes.agree(nodes.a, person.by_token, path=path) == MEMORY, path
    template = TOKENIZER_TEMPLATE
    queries = [
        *(f"tokenize_as={template}", f"a=b&tokenize_as={template}", f"tokenize%5Fas={template}"),
        *("tokenize_as=nope", "tokenize_as=%3Cb%3E", "tokenize_as=", "tokenize_as", "TOKENIZE_AS=nope"),
        *(f"tokenize_as=&tokenize_as={template}", "a=%zz", "a=b;tokenize_as=nope", f"tokenize_as={template[:-1]}%31"),
    ]
    await together(
        nodes.agree(nodes.a, headers, method, f"{WHOAMI}?{query}")
        for query in queries
        for method in ("GET", "HEAD")
        for headers in (person.by_token, person.by_cookie, [], by_token(bad_token()))
    )
    tokenized = await nodes.ask(nodes.a, person.by_token, path=f"{WHOAMI}?tokenize_as={template}")
    assert '"tokenized":"ey' in tokenized.body
    again = await nodes.ask(nodes.a, person.by_token, path=f"{WHOAMI}?tokenize_as={template}")
    assert again.body != tokenized.body, "a token is signed for each request"
    assert '"tokenized"' not in (await nodes.ask(nodes.a, person.by_token)).body
    assert cache_status(again) == "cache-node; fwd=bypass; detail=tokenize"


@pytest.mark.parametrize("method", METHODS)
async def test_methods_and_origins_are_answered_as_by_kratos(nodes: Nodes, method: str) -> None:
    """Of each method, from an allowed origin, another one and none, with and without a credential."""
    person = await sign_in(nodes.kratos)
    origins: list[Headers] = [[("Origin", value)] for value in (CORS_ORIGIN, "http://evil.example.test", "null")]

    async def check(credential: Headers, origin: Headers) -> None:
        is_plain = method in ("GET", "HEAD") and not origin
        for _ in range(2):
            status = await nodes.agree(nodes.a, credential + origin, method)
            assert status.startswith("cache-node; fwd=bypass; ") != is_plain

    await together(
        check(credential, origin)
        for origin in ([], *origins)
        for credential in ([], by_token(bad_token()), person.by_token, person.by_bearer, person.by_cookie)
    )


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_a_body_goes_on_to_kratos_which_ignores_it(nodes: Nodes, method: str) -> None:
    """Such a request is passed on, with its body, and answered as by Kratos; so is the same without one."""
    person = await sign_in(nodes.kratos)

    async def check(credential: Headers) -> None:
        own, answer = [
            await exchange(url, method, WHOAMI, credential, body={"any": "thing " * 500})
            for url in (nodes.kratos.public_url, nodes.a.public_url)
        ]
        assert told(answer) == told(own)
        assert cache_status(answer).startswith("cache-node; fwd=bypass; ")
        await nodes.agree(nodes.a, credential)

    await together(map(check, ([], person.by_token, person.by_cookie, by_token(bad_token()))))


async def test_preflights_are_answered_as_by_kratos(nodes: Nodes) -> None:
    """By Kratos, which alone knows its configuration."""
    for origin in (CORS_ORIGIN, "http://evil.example.test"):
        for wanted in ("x-session-token", "cache-control", "authorization, content-type", ""):
            for wanted_method in ("GET", "POST", "DELETE", "TRACE"):
                headers = [("Origin", origin), ("Access-Control-Request-Method", wanted_method)]
                headers += [("Access-Control-Request-Headers", wanted)] if wanted else []
                assert await nodes.agree(nodes.a, headers, "OPTIONS") == "cache-node; fwd=bypass; detail=method"


async def test_other_headers_change_nothing(nodes: Nodes) -> None:
    """What Kratos ignores, of a cold answer, a stored one and a refusal; conditions and encodings among it."""
    indifferent: list[Headers] = [
        [("Accept", "text/html,application/xhtml+xml")],
        [("Accept", "application/json")],
        [("Accept", "*/*;q=0.1")],
        [("Accept-Encoding", "gzip, br")],
        [("Accept-Language", "de")],
        [("If-None-Match", '"x"'), ("If-Modified-Since", "Tue, 24 Nov 2026 12:19:19 GMT")],
        [("Range", "bytes=0-9")],
        [("Cache-Control", "max-age=60")],
        [("Cache-Control", "no-cache")],
        [("Pragma", "no-cache")],
        [("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "x.example.test"), ("X-Forwarded-For", "192.0.2.1")],
        [("Forwarded", "for=192.0.2.1;host=x.example.test;proto=https")],
        [("User-Agent", "caf\xe9")],
        [("Referer", "http://x.example.test/")],
        [("Content-Type", "application/json"), ("Content-Length", "0")],
        [("X-HTTP-Method-Override", "DELETE")],
    ]
    known = await sign_in(nodes.kratos)

    async def check(headers: Headers) -> None:
        person = await sign_in(nodes.kratos)
        for credential in (person.by_token, person.by_cookie, known.by_token, by_token(bad_token()), []):
            await twice(nodes, credential + headers)

    await together(map(check, indifferent))


async def test_recorded_kinds_of_requests_are_answered_as_by_kratos(nodes: Nodes) -> None:
    """Each recorded request, with live credentials, at Kratos and twice at both nodes, with the changes in between
    made and published."""
    recorded = load("recorded-whoami.json")
    person, other = await sign_in(nodes.kratos), await sign_in(nodes.kratos)
    aal2, _ = await nodes.kratos.login_token(other.email, PASSWORD)
    ours = {
        "token": person.token,
        "cookie": person.cookie,
        "aal1-token": other.token,
        "aal1-cookie": other.cookie,
        "aal2-token": aal2,
    }
    assert ours.keys() == (TOKEN_OF | COOKIE_OF).keys()
    replaced = {recorded_credential(recorded, name): value for name, value in ours.items()}
    change = changes(nodes, person, other, aal2)
    seen = set()

    async def check(each: Exchange) -> None:
        headers = [(name, substituted(value, replaced)) for name, value in each.headers]
        own = await nodes.ask_kratos(headers, each.method, each.path)
        assert (own.status, each.name) == (each.status, each.name)
        for node in (*nodes.nodes, *nodes.nodes):
            answer = await nodes.ask(node, headers, each.method, each.path)
            assert told(answer) == told(own), each.name
            seen.add(cache_status(answer))

    unchanged: list[Exchange] = []
    for each in recorded:
        if each.name in change:
            await together(map(check, unchanged))
            unchanged.clear()
            await change.pop(each.name)()
        if each.name != "trailing-slash":  # another path, which a node does not answer yet
            unchanged.append(each)
    await together(map(check, unchanged))
    assert change == {}
    assert {MEMORY, REDIS, NEGATIVE, COLD} <= seen


def changes(nodes: Nodes, person: Person, other: Person, aal2: str) -> dict[str, Callable[[], Awaitable[None]]]:
    """What was done to the recorded sessions right before the request of that name, and its event."""
    kratos: KratosServer = nodes.kratos

    async def extend() -> None:
        await kratos.extend_session(person.cookie_session)
        await nodes.publish("session.changed", session_id=person.cookie_session)

    async def disable() -> None:
        await kratos.disable_identity(person.identity)
        await nodes.publish("identity.changed", identity_id=person.identity)

    async def enable() -> None:
        await kratos.enable_identity(person.identity)
        await nodes.publish("identity.changed", identity_id=person.identity)

    async def revoke() -> None:
        await kratos.revoke_session(person.session)
        await nodes.publish("session.revoked", session_id=person.session)

    async def add_factor() -> None:
        await kratos.add_second_factor(aal2)
        await nodes.publish("identity.changed", identity_id=other.identity)

    return {
        "cookie-after-extend": extend,
        "identity-disabled": disable,
        "identity-enabled-again": enable,
        "session-revoked": revoke,
        "aal2-session": add_factor,
    }
