"""After a busy run no credential, trait or address of anybody is anywhere but in the answers.

Looked into: everything in Redis, the log at debug level, metrics, status, audit lines, and what the admin port and the
public port say of errors; for each secret in plain, the usual encodings, and hashes that need no key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import urllib.parse
import zlib
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import redis

from cache_node.demo.api import COOKIE_NAME
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from tests.e2e.processes import ServeProcess
from tests.e2e.region import PASSWORD
from tests.proxy import Proxy
from tests.waiting import eventually

REDIS_PASSWORD = "the-password-of-this-redis"
ADMIN_TOKEN = "the-token-of-this-admin-port"
SECRET = "the-secret-that-keys-are-made-of-here"
EMAIL = "private.person@example.test"
HASHES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "blake2b", "blake2s", "sha3_256")


def forms_of(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """The secret as somebody careless would write it, in lower case."""
    yield "plain", secret
    yield "hex", secret.hex().encode()
    yield "reversed", secret[::-1]
    yield "URL", urllib.parse.quote_from_bytes(secret, safe="").encode()
    for shift in range(3):  # a piece of a longer text in base64 begins at any of three places
        code = base64.b64encode(b"\0" * shift + secret)
        yield f"base64 at {shift}", code[4 if shift else 0 : -4]
        yield f"base64url at {shift}", base64.urlsafe_b64encode(b"\0" * shift + secret)[4 if shift else 0 : -4]
    yield "deflate", zlib.compress(secret)[2:-4]
    for name in HASHES:
        digest = hashlib.new(name, secret).digest()
        yield f"{name}, raw", digest
        yield f"{name}, hex", digest.hex().encode()
        yield f"{name}, base64", base64.b64encode(digest).rstrip(b"=")
    for size in (16, 32):
        yield f"blake2b-{size * 8}", hashlib.blake2b(secret, digest_size=size).hexdigest().encode()


def find(secrets: dict[str, bytes], places: dict[str, bytes]) -> list[str]:
    """Which secret is where, and how."""
    found = []
    for where, text in places.items():
        lower = text.lower()
        for name, secret in secrets.items():
            for how, form in forms_of(secret):
                if form in text or form.lower() in lower:
                    found.append(f"{name} in {where}: {how}")
    return found


def test_it_would_be_found() -> None:
    """Teeth: each form, in a larger text, is seen."""
    secret = b"ory_st_0123456789abcdefghij"
    for how, form in forms_of(secret):
        assert find({"token": secret}, {"log": b"xx" + form + b"yy"}), how
    whole = base64.b64encode(b'{"token": "' + secret + b'"}')
    assert find({"token": secret}, {"log": whole})
    assert find({"token": secret}, {"log": b"nothing"}) == []


def dump(port: int) -> bytes:
    """All names and values of the server, in whatever type."""
    said = b""
    with redis.Redis(port=port, password=REDIS_PASSWORD) as client:
        readers: dict[bytes, Any] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"stream": client.xrange,
            b"list": lambda name: client.lrange(name, 0, -1),
            b"set": client.smembers,
            b"zset": lambda name: client.zrange(name, 0, -1, withscores=True),
        }
        names = list(client.scan_iter(count=1000))
        assert len(names) > 10
        for name in names:
            said += name + b"\n"
            value = readers[client.type(name)](name)
            said += (value if isinstance(value, bytes) else repr(value).encode()) + b"\n"
            said += client.dump(name) or b""
    return said


@pytest.mark.process
async def test_nothing_is_told(origin: DemoOrigin, client: aiohttp.ClientSession) -> None:
    with EmbeddedValkey() as valkey, redis.Redis(port=valkey.port) as server:
        server.config_set("requirepass", REDIS_PASSWORD)
        url = f"redis://:{REDIS_PASSWORD}@127.0.0.1:{valkey.port}"
        settings = {
            "secrets": SECRET,
            "admin_token": ADMIN_TOKEN,
            "log_level": "debug",
            "origin_timeout_seconds": "0.5",
        }
        async with Proxy(origin.public_url) as link, ServeProcess(link.url, url, **settings) as node:
            secrets, places = await busy_run(origin, link, client, node, server)
            places["Redis"] = dump(valkey.port)
            async with client.get(f"{node.public_url}/health/fresh") as answer:
                places["health"] = await answer.read()
            node.send(signal.SIGTERM)
            await node.ended(15.0)
            await eventually(lambda: not node._reader.is_alive(), lambda: "the log has no end")
            places["log"] = node.stderr.encode()
    assert b"cache_node.audit" in places["log"]
    assert b"DEBUG" in places["log"]
    secrets |= {
        "Redis password": REDIS_PASSWORD.encode(),
        "admin token": ADMIN_TOKEN.encode(),
        "secret": SECRET.encode(),
        "password": PASSWORD.encode(),
    }
    found = find(secrets, places)
    assert not found, "\n".join(found)


async def busy_run(
    origin: DemoOrigin, link: Proxy, client: aiohttp.ClientSession, node: ServeProcess, server: redis.Redis
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Hits, misses, refusals, requests that are passed on, malformed ones, outages; and what was said meanwhile."""
    secrets: dict[str, bytes] = {}
    places = {"admin answers": b"", "errors": b""}
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

    async def ask(headers: dict[str, str], query: str = "") -> int:
        async with client.get(f"{node.public_url}/sessions/whoami{query}", headers=headers) as answer:
            body = await answer.read()
            if answer.status != 200:
                places["errors"] += body + repr(dict(answer.headers)).encode()
            return answer.status

    async def tell(path: str, body: object) -> None:
        async with client.post(f"{node.admin_url}{path}", data=json.dumps(body), headers=admin) as answer:
            places["admin answers"] += await answer.read()

    async def is_fresh() -> bool:
        async with client.get(f"{node.public_url}/health/fresh") as answer:
            return answer.status == 200

    await eventually(is_fresh, lambda: node.stderr, 10.0)
    for number in range(12):
        email = f"{number}.{EMAIL}"
        await origin.create_identity(email, PASSWORD)
        token, session = await origin.login_token(email, PASSWORD)
        cookie = await origin.login_cookie(email, PASSWORD)
        made_up = f"made-up-credential-{number}-of-nobody-at-all"
        secrets |= {
            f"token {number}": token.encode(),
            f"cookie {number}": cookie.encode(),
            f"email {number}": email.encode(),
            f"made up {number}": made_up.encode(),
        }
        for _ in range(2):
            assert await ask({"X-Session-Token": token}) == 200
            assert await ask({"Authorization": f"Bearer {token}"}) == 200
            assert await ask({"Cookie": f"{COOKIE_NAME}={cookie}"}) == 200
        await ask({"X-Session-Token": token, "Cache-Control": "no-cache"})
        await ask({"X-Session-Token": token, "Cookie": f"{COOKIE_NAME}={cookie}"})
        await ask({"X-Session-Token": token}, "?tokenize_as=template")
        if number < 3:
            await ask({"X-Session-Token": made_up})
        await tell("/invalidations?wait=true", {"type": "session.changed", "session_id": session["id"]})
        await tell("/invalidations", {"type": "session.revoked", "session_id": token})  # the wrong thing in its place
        await tell("/invalidations", {"type": "nonsense", "session_id": made_up})
        assert await ask({"X-Session-Token": token}) == 200
    link.hold_replies()
    await ask({"X-Session-Token": "made-up-credential-0-of-nobody-at-all"})
    link.release_replies()
    link.cut()
    await ask({"X-Session-Token": "made-up-credential-1-of-nobody-at-all"})
    link.mend()
    server.client_kill_filter(_type="normal", skipme=True)
    await eventually(is_fresh, lambda: node.stderr, 10.0)
    for path in ("/status", "/metrics"):
        async with client.get(f"{node.admin_url}{path}", headers=admin) as answer:
            places[path] = await answer.read()
    async with client.get(f"{node.admin_url}/status", headers={"Authorization": "Bearer wrong"}) as answer:
        places["admin answers"] += await answer.read()
    return secrets, places
