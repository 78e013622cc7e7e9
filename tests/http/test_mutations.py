"""Byte-level mutations of requests: whatever a client sends, nobody else notices, and nobody gets what is another's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from typing import Any

import psutil
import pytest

from cache_node.feed.events import decode, encode
from cache_node.http import server
from cache_node.http.server import HttpServer, bind
from cache_node.http.whoami import Whoami
from cache_node.sessions.entry import Entry, parse_session, read_session
from cache_node.sessions.keys import Key
from cache_node.sessions.sealing import seal, unseal
from tests.fakes import ScriptedNode, changed, flush, following_node, identity_changed, revoked

REQUESTS = [
    b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nX-Session-Token: victim\r\n\r\n",
    b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer victim\r\nX-Request-ID: 1\r\n\r\n",
    b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nCookie: a=b; ory_kratos_session=victim; c=d\r\n\r\n",
    b"HEAD /sessions/whoami HTTP/1.1\r\nHost: node\r\nX-Session-Token: victim\r\nCache-Control: max-age=5\r\n\r\n",
    b"GET /sessions/whoami?tokenize_as=x HTTP/1.1\r\nHost: node\r\nX-Session-Token: victim\r\n\r\n",
    b"POST /sessions/whoami HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /sessions/whoami HTTP/1.1\r\nHost: node\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nCache-Node-Min-Position: 1800000000000000-1\r\n\r\n",
    b"OPTIONS /sessions/whoami HTTP/1.1\r\nHost: node\r\nOrigin: https://app.example\r\n\r\n",
    b"GET /sessions/whoami HTTP/1.0\r\nHost: node\r\nConnection: keep-alive\r\nX-Session-Token: victim\r\n\r\n",
]
GOOD = b"GET /sessions/whoami HTTP/1.1\r\nHost: node\r\nX-Session-Token: good\r\nConnection: close\r\n\r\n"
INTERESTING = [
    b"\r\n",
    b"\r\n\r\n",
    b"\x00",
    b"\xff",
    b"%",
    b":",
    b";",
    b",",
    b" ",
    b"\t",
    b"=",
    b'"',
    b"0",
    b"-1",
    b"\n",
]
WORDS = [
    b"Host: x\r\n",
    b"Content-Length: 9\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Expect: 100-continue\r\n",
    b"A" * 300,
]


def mutated(dice: random.Random, text: bytes) -> bytes:
    """One to four changes: a bit, a byte, a piece taken out, doubled or put in, a cut."""
    changed_text = bytearray(text)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at = dice.randrange(len(changed_text) + 1)
        end = min(len(changed_text), at + dice.choice([1, 1, 2, 8, 30]))
        match dice.randrange(7):
            case 0 if at < len(changed_text):
                changed_text[at] ^= 1 << dice.randrange(8)
            case 1 if at < len(changed_text):
                changed_text[at] = dice.randrange(256)
            case 2:
                del changed_text[at:end]
            case 3:
                changed_text[at:at] = changed_text[at:end]
            case 4:
                changed_text[at:at] = dice.choice(INTERESTING)
            case 5:
                changed_text[at:at] = dice.choice(WORDS)
            case _:
                del changed_text[at:]
    return bytes(changed_text)


class Quiet:
    """An observer that has nothing to say."""

    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        """Nothing."""


async def exchange(address: tuple[str, int], sent: bytes, first_word_seconds: float) -> bytes:
    """What comes back; who has heard nothing by then has sent all it has, and ends its side."""
    reader, writer = await asyncio.open_connection(*address)
    answer = b""
    try:
        async with asyncio.timeout(10):
            writer.write(sent)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(first_word_seconds):
                    answer = await reader.read(65536)
            writer.write_eof()
            return answer + await reader.read()
    except (ConnectionError, OSError):
        return answer
    finally:
        writer.close()


@pytest.fixture
async def node() -> ScriptedNode:
    built = await following_node(memory_bytes=1 << 20)
    built.origin.add("victim", "victims-session", "victims-identity")
    built.origin.add("good", "goods-session", "goods-identity")
    return built


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.timeout(300)
async def test_mutated_requests(node: ScriptedNode, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """5,000 of them: each is answered or hung up on in time, the next good request is answered as ever, with its own
    session, and memory does not grow."""
    monkeypatch.setattr(server, "_GRACE_SECONDS", 0.0)

    async def otherwise(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    serving = HttpServer(Whoami(node.reader, Quiet(), "ory_kratos_session", otherwise), bind("127.0.0.1", 0))
    await serving.start()
    host, _, port = serving.address.rpartition(":")
    address = host, int(port)
    dice = random.Random(seed)
    process = psutil.Process()
    lanes = asyncio.Semaphore(200)

    async def asked(sent: bytes, first_word_seconds: float) -> bytes:
        async with lanes:
            return await exchange(address, sent, first_word_seconds)

    async def round_() -> int:
        """How many were answered."""
        sent = [mutated(dice, dice.choice(REQUESTS)) for _ in range(200)]
        answers = await asyncio.gather(*(asked(each, 0.1) for each in sent), asked(GOOD, 10.0))
        good = answers.pop()
        assert good.startswith(b"HTTP/1.1 200 "), good
        assert b'"goods-session"' in good
        for each, answer in zip(sent, answers, strict=True):
            assert not answer or answer.startswith(b"HTTP/1."), (each, answer)
            assert b"goods-session" not in answer, (each, answer)
            assert b"victims-session" not in answer or b"victim" in each, (each, answer)
            assert b" 500 " not in answer[:20], (each, answer)
        return sum(map(bool, answers))

    answered = sum(await asyncio.gather(*(round_() for _ in range(5))))
    gc.collect()
    grown_from = process.memory_info().rss
    for _ in range(4):  # five rounds at once, so that nobody waits for those who hear nothing
        answered += sum(await asyncio.gather(*(round_() for _ in range(5))))
    await serving.drain()
    gc.collect()
    assert process.memory_info().rss - grown_from < 10_000_000
    assert answered > 2_500, "most of them are answered"


def test_mutated_entries_open_under_no_key() -> None:
    """40,000 changes of a sealed entry, and of its key: an entry is its own, or none."""
    dice = random.Random(2)
    key = Key(dice.randbytes(32), dice.randbytes(32))
    entry = Entry.of(b'{"id":"a"}' * 20, ((b"vary", b"Cookie"),), "s", "i", 2e9, 1.8e9, 1, 7)
    sealed = seal(key, entry)
    for _ in range(40_000):
        changed_bytes = mutated(dice, sealed)
        if changed_bytes != sealed:
            assert unseal(key, changed_bytes) is None
    for _ in range(1000):
        assert unseal(Key(mutated(dice, key.name)[:32].ljust(32, b"\0"), dice.randbytes(32)), sealed) is None


def test_mutated_events_are_read_or_not() -> None:
    """40,000 changes of what a publisher writes: events that name something, or an entry that cannot be read."""
    dice = random.Random(3)
    texts = [
        encode("source", events)
        for events in (revoked(), [*changed(), *identity_changed()], flush(), [*revoked()] * 100)
    ]
    frame = b"\x94\x01\xcf" + (1_800_000_000_000_000).to_bytes(8, "big")
    for _ in range(40_000):
        events = decode(mutated(dice, frame + dice.choice(texts)))
        for event in events or ():
            assert not event.type.names_session or event.session_id
            assert not event.type.names_identity or event.identity_id


def test_mutated_sessions_are_read_or_not() -> None:
    """Whatever an origin says with 200: facts with ids and an end, or none."""
    dice = random.Random(4)
    body = (
        b'{"id":"a-session","active":true,"expires_at":"2030-01-01T00:00:00Z","identity":{"id":"an-identity",'
        b'"traits":{"email":"a@example.test"}}}\n'
    )
    for _ in range(20_000):
        session = parse_session(mutated(dice, body))
        facts = None if session is None else read_session(session)
        assert facts is None or (facts.session_id and facts.identity_id)
