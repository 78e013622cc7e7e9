from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from cache_node.demo.api import COOKIE_NAME, ApiError
from cache_node.demo.origin import DemoOrigin
from tests.demo.exchanges import Exchange, exchange, load
from tests.demo.scenario import RECORDING, Outage, Scenario

PASSWORD = "correct horse battery"

# The recorded request's own credentials, by the exchange that shows them, are replaced by ours.
TOKEN_OF = {"token": "token-GET", "aal1-token": "aal1-before-second-factor", "aal2-token": "aal2-session"}
COOKIE_OF = {"cookie": "cookie", "aal1-cookie": "aal1-cookie-of-aal2-identity"}
NOT_SPOKEN = {"tokenize"}  # the demo origin has no tokenizer template


@pytest.fixture
async def origin() -> AsyncIterator[DemoOrigin]:
    async with DemoOrigin() as origin:
        yield origin


async def log_in(origin: DemoOrigin, email: str = "a@example.test") -> tuple[str, str, str]:
    """The identity's id, a token and the token's session id."""
    identity = await origin.create_identity(email, PASSWORD)
    token, session = await origin.login_token(email, PASSWORD)
    return identity, token, session["id"]


async def status(origin: DemoOrigin, token: str) -> int:
    return (await origin.whoami({"X-Session-Token": token})).status


async def test_whoami_answers_as_recorded_from_kratos(origin: DemoOrigin) -> None:
    recorded = load("recorded-whoami.json")
    identity, token, session = await log_in_as_recorded(origin, "a@example.test", {"zeta": 1, "alpha": {"b": True}})
    cookie = await origin.login_cookie("a@example.test", PASSWORD)
    cookie_session = await session_of(origin, cookie)
    _, aal1_token, _ = await log_in_as_recorded(origin, "b@example.test", None)
    aal1_cookie = await origin.login_cookie("b@example.test", PASSWORD)
    aal2_token, _ = await origin.login_token("b@example.test", PASSWORD)
    before: dict[str, Callable[[], Awaitable[object]]] = {
        "cookie-after-extend": lambda: origin.extend_session(cookie_session),
        "identity-disabled": lambda: origin.disable_identity(identity),
        "identity-enabled-again": lambda: origin.enable_identity(identity),
        "session-revoked": lambda: origin.revoke_session(session),
        "aal2-session": lambda: origin.add_second_factor(aal2_token),
    }
    ours = {
        "token": token,
        "cookie": cookie,
        "aal1-token": aal1_token,
        "aal1-cookie": aal1_cookie,
        "aal2-token": aal2_token,
    }
    replaced = {recorded_credential(recorded, name): value for name, value in ours.items()}
    for each in recorded:
        if each.name in NOT_SPOKEN:
            continue
        if each.name in before:
            await before[each.name]()
        headers = [(name, substituted(value, replaced)) for name, value in each.headers]
        done = await exchange(origin.public_url, each.method, each.path, headers)
        assert done.masked() == each.masked(), each.name


async def log_in_as_recorded(origin: DemoOrigin, email: str, metadata: object) -> tuple[str, str, str]:
    name = {"last": "O'Neil & Söhne", "first": "Zoë <b>"}
    identity = await origin.create_identity(email, PASSWORD, traits={"name": name}, metadata_public=metadata)
    token, session = await origin.login_token(email, PASSWORD)
    return identity, token, session["id"]


async def session_of(origin: DemoOrigin, cookie: str) -> str:
    answer = await origin.whoami({"Cookie": f"{COOKIE_NAME}={cookie}"})
    found = re.match(rb'{"id":"([^"]+)"', answer.body)
    assert found, answer
    return found[1].decode()


def recorded_credential(recorded: list[Exchange], name: str) -> str:
    shown = next(each for each in recorded if each.name == (TOKEN_OF | COOKIE_OF)[name])
    return shown.headers[0][1].removeprefix(f"{COOKIE_NAME}=")


def substituted(value: str, replaced: dict[str, str]) -> str:
    for recorded, ours in replaced.items():
        # One recorded request has the `=` at the cookie's end percent-encoded.
        value = value.replace(recorded, ours).replace(recorded.replace("=", "%3D"), ours.replace("=", "%3D"))
    return value


async def test_session_api_answers_as_recorded_from_kratos(origin: DemoOrigin) -> None:
    recorded = {each.name: each.masked() for each in load(RECORDING)}
    answered = await Scenario(origin).run()
    _, token, _ = await log_in(origin)
    origin.set_ready(False)
    answered += await Outage(origin, token).run()
    assert {each.name: each.masked() for each in answered} == recorded


async def test_cookie_has_the_format_of_kratos(origin: DemoOrigin) -> None:
    await log_in(origin)
    value = await origin.login_cookie("a@example.test", PASSWORD)
    date, payload, mac = base64.urlsafe_b64decode(value).split(b"|", 2)
    assert abs(int(date) - time.time()) < 60
    assert base64.urlsafe_b64decode(payload)
    assert len(mac) == 32


async def test_sessions_and_their_cookies_expire() -> None:
    async with DemoOrigin(lifespan_seconds=0) as origin:
        _, token, _ = await log_in(origin)
        cookie = await origin.login_cookie("a@example.test", PASSWORD)
        assert await status(origin, token) == 401
        assert (await origin.whoami({"Cookie": f"{COOKIE_NAME}={cookie}"})).status == 401


async def test_a_change_is_told_after_it_was_made_and_before_it_is_answered() -> None:
    told: list[tuple[str, str | None, str | None]] = []
    seen: list[int] = []
    async with DemoOrigin() as origin:
        identity, token, session = await log_in(origin)

        async def on_change(event_type: str, session_id: str | None, identity_id: str | None) -> None:
            told.append((event_type, session_id, identity_id))
            seen.append(await status(origin, token))

        origin.on_change = on_change
        await origin.extend_session(session)
        await origin.disable_identity(identity)
        await origin.enable_identity(identity)
        await origin.revoke_session(session)
        await origin.logout_token(token)
        await origin.delete_identity_sessions(identity)
        await origin.delete_identity(identity)
    assert told == [
        ("session.changed", session, identity),
        ("identity.changed", None, identity),
        ("identity.changed", None, identity),
        ("session.revoked", session, identity),
        ("session.revoked", session, identity),
        ("session.revoked", session, identity),
        ("identity.deleted", None, identity),
    ]
    assert seen == [200, 401, 200, 401, 401, 401, 401]


async def test_a_change_that_cannot_be_told_is_made_and_answered_500(caplog: pytest.LogCaptureFixture) -> None:
    async def on_change(event_type: str, session_id: str | None, identity_id: str | None) -> None:
        raise OSError("the feed is away")

    async with DemoOrigin(on_change=on_change) as origin:
        _, token, session = await log_in(origin)
        with pytest.raises(ApiError, match="answered 500"):
            await origin.revoke_session(session)
        assert await status(origin, token) == 401
    assert "the feed is away" in caplog.text


async def test_without_its_database_a_good_token_gets_401_and_ready_says_503(origin: DemoOrigin) -> None:
    _, token, _ = await log_in(origin)
    origin.set_ready(False)
    assert await status(origin, token) == 401
    assert not await origin.is_ready()
    origin.set_ready(True)
    assert await status(origin, token) == 200
    assert await origin.is_ready()


async def test_requests_are_counted_by_path(origin: DemoOrigin) -> None:
    _, token, _ = await log_in(origin)
    origin.requests.clear()
    for _ in range(3):
        await status(origin, token)
    assert origin.requests == {"/sessions/whoami": 3}


async def test_two_origins_live_in_one_process_and_know_nothing_of_each_other(origin: DemoOrigin) -> None:
    _, token, _ = await log_in(origin)
    async with DemoOrigin() as other:
        assert await status(other, token) == 401
        assert await status(origin, token) == 200


async def test_a_stopped_origin_refuses_connections_and_comes_back_with_its_sessions(origin: DemoOrigin) -> None:
    _, token, _ = await log_in(origin)
    await origin.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await status(origin, token)
    await origin.start()
    assert await status(origin, token) == 200


async def test_a_taken_port_is_an_error() -> None:
    async with DemoOrigin() as origin:
        port = int(origin.public_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await DemoOrigin(public_port=port).start()


async def test_a_long_answer_comes_in_chunks(origin: DemoOrigin) -> None:
    await origin.create_identity("a@example.test", PASSWORD, traits={"notes": "x" * 2000})
    token, _ = await origin.login_token("a@example.test", PASSWORD)
    answer = await origin.whoami({"X-Session-Token": token})
    assert answer.values("Transfer-Encoding") == ["chunked"]
    assert answer.values("Content-Length") == []
    assert answer.body.endswith(b"}\n")
