from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache_node.app import Node
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from cache_node.feed.position import Position
from cache_node.ops import bodies
from tests.ops.conftest import MakeNode
from tests.ops.ports import FLUSH, REVOKED, ask, eventually, following, status_of

TOKEN = "a-token-for-the-admin-port"
MIB = 1024 * 1024


def audit_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [r for r in caplog.records if r.name == "cache_node.audit"]
    assert all(r.levelno == logging.INFO for r in records)
    return [json.loads(r.getMessage()) for r in records]


# Publishing -----------------------------------------------------------------------------------------------------------


async def test_an_event_gets_a_position_and_the_node_applies_it(node: Node) -> None:
    reply = await ask("POST", f"{node.admin_url}/invalidations", REVOKED)
    assert (reply.status, list(reply.json)) == (200, ["position"])
    await eventually(lambda: status_of(node), lambda seen: seen["position"] == reply.json["position"])


async def test_an_array_is_one_entry_with_the_position_of_its_last_event(node: Node) -> None:
    before = Position.parse((await status_of(node))["position"])
    events = [REVOKED, {"type": "identity.changed", "identity_id": "i-1"}, FLUSH]
    reply = await ask("POST", f"{node.admin_url}/invalidations", events)
    assert reply.json == {"position": str(Position(before.generation, before.number + 3))}


async def test_wait_gives_a_receipt_that_names_every_node(make_node: MakeNode) -> None:
    nodes = [await make_node(node_id="n1", region="here"), await make_node(node_id="n2", region="here")]
    for each in nodes:
        await following(each)
    reply = await ask("POST", f"{nodes[0].admin_url}/invalidations?wait=true&timeout_seconds=5", REVOKED)
    assert reply.status == 200
    receipt = reply.json["receipt"]
    assert receipt["dead_everywhere"] is True
    assert 0 < receipt["elapsed_seconds"] < 5
    assert sorted(each["node_id"] for each in receipt["nodes"]) == ["n1", "n2"]
    assert {each["region"] for each in receipt["nodes"]} == {"here"}
    assert {each["state"] for each in receipt["nodes"]} <= {"applied", "lease_expired"}
    for each in nodes:
        fence = each.parts.fence
        assert fence.has_applied(Position.parse(reply.json["position"])), each.parts.settings.node_id


async def test_a_receipt_that_is_not_complete_in_time_says_so(make_node: MakeNode) -> None:
    node = await make_node(max_staleness_seconds=60.0)  # a young generation: leases from before it may last that long
    await following(node)
    reply = await ask("POST", f"{node.admin_url}/invalidations?wait=true&timeout_seconds=0.05", REVOKED)
    assert reply.status == 200
    assert reply.json["receipt"]["dead_everywhere"] is False
    assert reply.seconds < 1.5


async def test_a_flush_is_published(node: Node) -> None:
    reply = await ask("POST", f"{node.admin_url}/flush?wait=true")
    assert reply.json["receipt"]["dead_everywhere"] is True
    assert (await status_of(node))["floor"] == reply.json["position"]
    assert (await ask("POST", f"{node.admin_url}/flush", b" {} ")).status == 200


async def test_a_flush_with_a_body_is_refused_for_it_might_mean_less(node: Node) -> None:
    reply = await ask("POST", f"{node.admin_url}/flush", REVOKED)
    assert (reply.status, list(reply.json)) == (400, ["error"])


async def test_many_at_once_all_get_through(node: Node) -> None:
    replies = await asyncio.gather(*(ask("POST", f"{node.admin_url}/invalidations", REVOKED) for _ in range(100)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.json["position"] for reply in replies}) == 100


async def test_the_largest_batch_gets_through(node: Node) -> None:
    events = [{"type": "session.revoked", "session_id": f"{n:036}"} for n in range(10_000)]
    body = json.dumps(events, separators=(",", ":")).encode()
    assert len(body) < MIB
    reply = await ask("POST", f"{node.admin_url}/invalidations", body)
    assert reply.status == 200
    await eventually(lambda: status_of(node), lambda seen: seen["position"] == reply.json["position"])


# Refusals -------------------------------------------------------------------------------------------------------------


async def test_one_line_for_each_bad_event_and_none_applied(node: Node) -> None:
    before = (await status_of(node))["position"]
    events = [REVOKED, {"type": "session.revoked"}, {"type": "no"}, FLUSH, {"type": "flush", "settle": 1}]
    reply = await ask("POST", f"{node.admin_url}/invalidations", events)
    assert reply.status == 400
    assert list(reply.json) == ["errors"]
    assert [each["index"] for each in reply.json["errors"]] == [1, 2, 4]
    assert all(set(each) == {"index", "error"} and "\n" not in each["error"] for each in reply.json["errors"])
    published = Position.parse((await ask("POST", f"{node.admin_url}/invalidations", REVOKED)).json["position"])
    assert published.number == Position.parse(before).number + 1


async def test_what_is_not_json_or_no_event_at_all_is_one_error(node: Node) -> None:
    for body in [b"", b"no", b"NaN", b"5", b"[]", b'"\xff"', b"[" * 100_000, b"{}{}"]:
        reply = await ask("POST", f"{node.admin_url}/invalidations", body)
        assert (reply.status, list(reply.json)) == (400, ["error"]), body[:20]


BAD_QUERIES = [
    *("timeout_seconds=0", "timeout_seconds=-1", "timeout_seconds=60.001", "timeout_seconds=nan"),
    *("timeout_seconds=inf", "timeout_seconds=5s", "timeout_seconds=", "timeout_seconds=1_0", "timeout_seconds=e"),
    *("wait=yes", "wait", "wait=true&wait=true", "wait=true&timeout_seconds=1&timeout_seconds=1", "now=true"),
    "wait=true&timeout_seconds=%D9%A1",  # a figure one, in Arabic
]


@pytest.mark.parametrize("path", ["/invalidations", "/flush"])
async def test_a_query_that_is_not_understood_is_refused(node: Node, path: str) -> None:
    for query in BAD_QUERIES:
        reply = await ask("POST", f"{node.admin_url}{path}?{query}", REVOKED if path == "/invalidations" else b"")
        assert (reply.status, list(reply.json)) == (400, ["error"]), query
    assert node.parts.stats.publishes.total() == 0


async def test_a_query_that_is_understood(node: Node) -> None:
    for query in [
        "wait=false",
        "timeout_seconds=60",
        "wait=false&timeout_seconds=1e-05",
        "wait=true&timeout_seconds=5.0",
    ]:
        reply = await ask("POST", f"{node.admin_url}/invalidations?{query}", REVOKED)
        assert (reply.status, "receipt" in reply.json) == (200, "wait=true" in query), query


async def test_too_many_events(node: Node) -> None:
    reply = await ask("POST", f"{node.admin_url}/invalidations", [FLUSH] * 10_001)
    assert (reply.status, list(reply.json)) == (413, ["error"])


async def test_a_body_of_a_mebibyte_is_read_and_one_more_byte_is_not(node: Node) -> None:
    padded = json.dumps(REVOKED).encode().ljust(MIB)
    assert (await ask("POST", f"{node.admin_url}/invalidations", padded)).status == 200
    reply = await ask("POST", f"{node.admin_url}/invalidations", padded + b" ")
    assert (reply.status, list(reply.json)) == (413, ["error"])


async def test_a_body_without_length_or_end_is_refused_early(node: Node) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    async with asyncio.timeout(10):
        reply = await ask("POST", f"{node.admin_url}/invalidations", endless())
    assert (reply.status, list(reply.json)) == (413, ["error"])
    assert reply.headers["Connection"] == "close"
    assert sent < 256 * MIB


async def test_whoever_goes_on_sending_after_the_answer_is_hung_up_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.admin_url.rpartition(":")[2]))
    writer.write(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n \r\n")
    async with asyncio.timeout(5):
        answer = await reader.read()  # until the end of the connection
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.count(b"HTTP/1.1") == 1
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.1)
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.admin_url.rpartition(":")[2]))
    writer.write(b"POST /invalidations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_paths_and_methods_that_are_not_there(node: Node) -> None:
    for method, path, status in [
        ("GET", "/", 404),
        ("GET", "/status/", 404),
        ("POST", "/invalidations/", 404),
        ("GET", "/invalidations", 405),
        ("GET", "/flush", 405),
        ("POST", "/status", 405),
        ("DELETE", "/metrics", 405),
        ("OPTIONS", "/flush", 405),
    ]:
        reply = await ask(method, node.admin_url + path)
        assert (reply.status, list(reply.json)) == (status, ["error"]), (method, path)
    assert (await ask("GET", f"{node.admin_url}/flush")).headers["Allow"] == "POST"


# Access ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded(make_node: MakeNode) -> Node:
    return await make_node(admin_token=TOKEN)


BAD_AUTHORIZATIONS = [
    *(None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer é"),
]


async def test_without_the_token_nothing_is_answered(guarded: Node) -> None:
    for authorization in BAD_AUTHORIZATIONS:
        headers = {} if authorization is None else {"Authorization": authorization}
        for method, path in [("GET", "/status"), ("GET", "/metrics"), ("POST", "/flush"), ("POST", "/x"), ("PUT", "/")]:
            reply = await ask(method, guarded.admin_url + path, headers=headers)
            assert (reply.status, list(reply.json)) == (401, ["error"]), authorization
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert TOKEN.encode() not in reply.body
    assert guarded.parts.stats.publishes.total() == 0


async def test_the_token_opens_and_then_host_and_origin_do_not_matter(guarded: Node) -> None:
    headers = {"Authorization": f"bearer {TOKEN}", "Host": "node.example.test", "Origin": "https://ops.example.test"}
    assert (await ask("GET", f"{guarded.admin_url}/status", headers=headers)).status == 200
    assert (await ask("POST", f"{guarded.admin_url}/flush", headers=headers)).status == 200


async def test_two_tokens_are_none(guarded: Node) -> None:
    head = f"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nAuthorization: Bearer x\r\n\r\n"
    assert b" 401 " in await first_line(guarded, head.encode())


async def test_a_web_page_may_not_use_a_port_without_token(node: Node) -> None:
    for page in ["https://evil.example", "null", "http://localhost", ""]:
        reply = await ask("POST", f"{node.admin_url}/flush", headers={"Origin": page})
        assert (reply.status, list(reply.json)) == (403, ["error"]), page
    assert node.parts.stats.publishes.total() == 0


async def test_without_token_the_node_goes_by_the_names_of_this_machine_only(node: Node) -> None:
    for host, status in [
        ("evil.example", 403),
        ("127.0.0.1.evil.example:1", 403),
        ("LocalHost:1", 200),
        ("[::1]", 200),
    ]:
        assert (await ask("GET", f"{node.admin_url}/status", headers={"Host": host})).status == status, host


async def test_a_request_without_host_is_not_let_in(node: Node) -> None:
    assert b" 403 " in await first_line(node, b"GET /status HTTP/1.0\r\n\r\n")


async def first_line(node: Node, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(node.admin_url.rpartition(":")[2]))
    writer.write(request)
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()
    return line


# Audit ----------------------------------------------------------------------------------------------------------------


async def test_every_invalidation_leaves_one_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    assert logging.getLogger().getEffectiveLevel() == logging.WARNING  # audit lines do not depend on it
    events = [REVOKED, {"type": "session.revoked", "session_id": "s-2", "identity_id": "i-2"}]
    first = await ask("POST", f"{node.admin_url}/invalidations", events)
    second = await ask("POST", f"{node.admin_url}/flush?wait=true")
    await ask("POST", f"{node.admin_url}/invalidations", [{"type": "no"}])
    lines = audit_lines(caplog)
    assert [line.pop("client").rpartition(":")[0] for line in lines] == ["127.0.0.1", "127.0.0.1"]
    assert lines == [
        {
            "action": "session.revoked",
            "ids": {"session.revoked": ["s-1", "s-2"]},
            "count": 2,
            "outcome": "published",
            "position": first.json["position"],
        },
        {
            "action": "flush",
            "ids": {"flush": []},
            "count": 1,
            "outcome": "published",
            "position": second.json["position"],
        },
    ]


async def test_an_id_cannot_forge_a_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    id_ = 'x\r\n2026-01-01 INFO cache_node.audit: {"action":"flush"}\x00\x1b[2J\x7f\x85\u2028\u202e"'
    reply = await ask("POST", f"{node.admin_url}/invalidations", {"type": "session.revoked", "session_id": id_})
    assert reply.status == 200
    (record,) = [r for r in caplog.records if r.name == "cache_node.audit"]
    text = record.getMessage()
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["ids"] == {"session.revoked": [id_]}


async def test_a_token_where_an_id_belongs_goes_nowhere(make_node: MakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """It names no session, and would stand in the feed and in the audit: refused, without being repeated."""
    caplog.set_level(logging.DEBUG)
    node = await make_node(admin_token=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for token in ("ory_st_0123456789abcdef", "ORY_ST_0123456789abcdef"):
        event = {"type": "session.revoked", "session_id": token}
        reply = await ask("POST", f"{node.admin_url}/invalidations", event, headers=headers)
        assert reply.status == 400
        assert b"0123456789abcdef" not in reply.body
    assert audit_lines(caplog) == []
    assert TOKEN not in caplog.text
    assert "0123456789abcdef" not in caplog.text


# Outages --------------------------------------------------------------------------------------------------------------


async def test_with_the_feed_suspended_publishing_says_503_in_time_and_works_again_by_itself(
    own_valkey: EmbeddedValkey, make_node: MakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    node = await make_node(redis_url=own_valkey.url)
    await following(node)
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        paths = ["/invalidations", "/invalidations?wait=true", "/flush", "/flush?wait=true&timeout_seconds=60"]
        replies = await asyncio.gather(
            *(ask("POST", node.admin_url + p, REVOKED if p.startswith("/inv") else b"") for p in paths)
        )
        for reply in replies:
            assert (reply.status, list(reply.json)) == (503, ["error"])
            assert int(reply.headers["Retry-After"]) > 0
            assert reply.seconds < 5
            assert "\n" not in reply.json["error"]
        lost = await status_of(node)
        assert (lost["state"], lost["fresh"], lost["lease_seconds"]) == ("LOST", False, None)
        assert lost["freshness_seconds"] > 1
        assert lost["published"] == {"events": 0, "failures": 4}
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    lines = audit_lines(caplog)
    assert [(line["outcome"], line["position"]) for line in lines] == [("unavailable", None)] * 4

    async def publish() -> int:
        return (await ask("POST", f"{node.admin_url}/invalidations", REVOKED)).status

    await eventually(publish, lambda status: status == 200, seconds=3)
    await eventually(lambda: status_of(node), lambda seen: seen["state"] == "FOLLOWING", seconds=3)


async def test_without_a_feed_publishing_says_503_in_time(make_node: MakeNode, unreachable_url: str) -> None:
    node = await make_node(redis_url=unreachable_url)
    reply = await ask("POST", f"{node.admin_url}/invalidations", REVOKED)
    assert reply.status == 503
    assert reply.seconds < 5


async def test_a_caller_that_leaves_does_not_take_its_event_along(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps(REVOKED).encode()
    head = f"POST /invalidations?wait=true HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(node.admin_url.rpartition(":")[2]))) as gone:
        gone.sendall(head.encode() + body)

    async def lines() -> list[dict[str, Any]]:
        return audit_lines(caplog)

    assert [line["outcome"] for line in await eventually(lines, bool)] == ["published"]


async def test_what_the_end_of_the_node_cuts_off_is_audited(
    make_node: MakeNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache_node.app.DRAIN_SECONDS", 0.2)
    node = await make_node(max_staleness_seconds=60.0)  # so that the receipt takes longer than the drain
    await following(node)
    asking = asyncio.create_task(ask("POST", f"{node.admin_url}/flush?wait=true&timeout_seconds=60"))
    await eventually(lambda: status_of(node), lambda seen: Position.parse(seen["position"]).number == 1)
    assert audit_lines(caplog) == []
    await node.stop()
    await asyncio.gather(asking, return_exceptions=True)
    assert [line["outcome"] for line in audit_lines(caplog)] == ["interrupted"]


async def test_a_revoked_session_is_asked_for_again(node: Node, origin: DemoOrigin) -> None:
    await origin.create_identity("a@example.test", "correct horse battery")
    token, session = await origin.login_token("a@example.test", "correct horse battery")
    url, headers = f"{node.public_url}/sessions/whoami", {"X-Session-Token": token}
    for _ in range(2):
        assert (await ask("GET", url, headers=headers)).status == 200
    await origin.revoke_session(session["id"])
    event = {"type": "session.revoked", "session_id": session["id"].upper()}
    reply = await ask("POST", f"{node.admin_url}/invalidations?wait=true", event)
    assert reply.json["receipt"]["dead_everywhere"] is True
    assert (await ask("GET", url, headers=headers)).status == 401
