"""check-config against real servers: each thing that a node would suffer from is one line, and a good one is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from cache_node.app import Node
from cache_node.config import NodeSettings
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from cache_node.feed.follower import FeedState
from cache_node.ops.check_config import wrong_settings, wrong_surroundings
from tests.readme_acl import acl_of_the_readme, url_of_the_user
from tests.waiting import eventually

RIGHTS = [word.removeprefix("+") for word in acl_of_the_readme() if word.startswith("+")]


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(scope="module")
def shared_valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def origin() -> AsyncIterator[DemoOrigin]:
    async with DemoOrigin() as running:
        yield running


def settings(origin_url: str, redis_url: str | None, **more: Any) -> NodeSettings:
    given = {"origin_url": origin_url, "redis_url": redis_url, "secrets": ("s" * 40,)} | more
    return NodeSettings.model_validate({name: value for name, value in given.items() if value is not None})


async def test_all_is_well(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    assert await wrong_surroundings(settings(origin.public_url, valkey.url)) == []
    assert await wrong_surroundings(settings(origin.public_url, None)) == []


async def test_it_leaves_nothing_behind(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    """But the generation, which the first node would begin as well."""
    await wrong_surroundings(settings(origin.public_url, valkey.url))
    with redis.Redis(port=valkey.port) as client:
        assert client.keys() == [b"{cache-node}:generation"]


async def test_a_user_with_the_rights_of_the_readme(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    """Is enough for check-config, and for a node that follows, fills, hits and is told."""
    with redis.Redis(port=valkey.port) as client:
        client.execute_command(*acl_of_the_readme())
    url = url_of_the_user(valkey.port)
    assert await wrong_surroundings(settings(origin.public_url, url)) == []
    async with Node(settings(origin.public_url, url, listen="127.0.0.1:0", admin_listen="127.0.0.1:0")) as node:
        parts = node.parts
        await eventually(lambda: parts.follower.state is FeedState.FOLLOWING, lambda: parts.follower.state)
        await eventually(lambda: parts.follower.replay_done, lambda: parts.follower.counts)
        receipt = await parts.publisher.session_revoked("somebody", wait=True)
        assert receipt.dead_everywhere
        await parts.redis_tier.settle()
    with redis.Redis(port=valkey.port) as client:
        log = client.execute_command("ACL", "LOG")
        assert log == [], "nothing that the node did was refused"


@pytest.mark.parametrize("right", RIGHTS)
async def test_a_right_that_is_missing(shared_valkey: EmbeddedValkey, origin: DemoOrigin, right: str) -> None:
    """Each of those that README.md gives is said to be missing, in one line that names it."""
    with redis.Redis(port=shared_valkey.port) as client:
        client.execute_command(*acl_of_the_readme(), f"-{right}")
    problems = await wrong_surroundings(settings(origin.public_url, url_of_the_user(shared_valkey.port)))
    command = right.replace("|", " ").upper()
    assert problems == [f"CACHE_NODE_REDIS_URL: this user may not use this command: {command}"]


async def test_keys_of_another_prefix(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    with redis.Redis(port=valkey.port) as client:
        client.execute_command(*acl_of_the_readme())
    url = url_of_the_user(valkey.port)
    problems = await wrong_surroundings(settings(origin.public_url, url, key_prefix="another"))
    assert any("may not use these keys" in problem for problem in problems), problems


@pytest.mark.parametrize("user", ["cache-node:wrong", "nobody:wrong"])
async def test_a_wrong_password(valkey: EmbeddedValkey, origin: DemoOrigin, user: str) -> None:
    """It is not shown."""
    with redis.Redis(port=valkey.port) as client:
        client.execute_command(*acl_of_the_readme())
    (problem,) = await wrong_surroundings(settings(origin.public_url, f"redis://{user}@127.0.0.1:{valkey.port}"))
    assert problem == "CACHE_NODE_REDIS_URL: the server refuses this user or password"


async def test_nobody_listens(origin: DemoOrigin) -> None:
    problems = await wrong_surroundings(settings("http://127.0.0.1:1", "redis://127.0.0.1:1"))
    assert [problem.partition(":")[0] for problem in problems] == ["CACHE_NODE_REDIS_URL", "CACHE_NODE_ORIGIN_URL"]
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("scheme", "answer", "reason"),
    [
        ("http", b"", "ServerDisconnectedError"),
        ("http", b"hunter2: what somebody sent", "ClientResponseError"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "WRONG_VERSION_NUMBER"),
    ],
    ids=["hangs up", "is no HTTP", "is no TLS"],
)
async def test_an_origin_that_does_not_answer_is_named_with_the_reason(scheme: str, answer: bytes, reason: str) -> None:
    """And nothing that it said, which may be what others sent it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        (problem,) = await wrong_surroundings(settings(f"{scheme}://{address}", None))
    assert problem.startswith(f"CACHE_NODE_ORIGIN_URL: no answer from {address} (")
    assert reason in problem
    assert "hunter2" not in problem


async def test_an_origin_whose_name_nobody_knows_is_named() -> None:
    (problem,) = await wrong_surroundings(settings("http://nobody.invalid:4433", None))
    assert problem.startswith("CACHE_NODE_ORIGIN_URL: no answer from nobody.invalid:4433 (")
    assert "Error" not in problem


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (None, "redis_version:unstable"),
        (None, "redis_version:8.x\r\nconnected_slaves:many"),
        ("its answers have other types", None),
    ],
    ids=["a version without numbers", "half a version", "answers of another type"],
)
async def test_what_answers_strangely_is_a_line(origin: DemoOrigin, said: str | None, version: str | None) -> None:
    """Never a traceback: it may be a proxy, a fork, or something else altogether."""
    info = b"*0\r\n" if version is None else b"$%d\r\n%b\r\n" % (len(version), version.encode())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while count := int((await reader.readuntil(b"\r\n"))[1:]):
                words = []
                for _ in range(count):
                    size = int((await reader.readuntil(b"\r\n"))[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                writer.write(info if words[0] == b"INFO" else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        lines = await wrong_surroundings(settings(origin.public_url, f"redis://127.0.0.1:{port}"))
    assert lines
    assert all(line.startswith("CACHE_NODE_REDIS_URL") for line in lines)
    assert said is None or said in lines[0]


async def test_a_policy_that_evicts_the_feed(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    with redis.Redis(port=valkey.port) as client:
        for policy, is_wrong in {"allkeys-lru": True, "volatile-lru": False, "noeviction": False}.items():
            client.config_set("maxmemory-policy", policy)
            problems = await wrong_surroundings(settings(origin.public_url, valkey.url))
            assert bool(problems) is is_wrong, problems
            assert not is_wrong or policy in problems[0]


async def test_a_replica_and_its_primary(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    with EmbeddedValkey() as replica, redis.Redis(port=replica.port) as client:
        client.replicaof("127.0.0.1", str(valkey.port))

        async def is_linked() -> bool:
            return bool(client.info("replication").get("master_link_status") == "up")

        await eventually(is_linked, lambda: client.info("replication"), 20.0)
        problems = await wrong_surroundings(settings(origin.public_url, replica.url))
        assert any("is a replica" in problem or "read only" in problem for problem in problems), problems
        (problem,) = await wrong_surroundings(settings(origin.public_url, valkey.url))
        assert "has replicas" in problem


async def test_nodes_that_disagree(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    given = settings(origin.public_url, valkey.url, listen="127.0.0.1:0", admin_listen="127.0.0.1:0")
    async with Node(given) as node:
        await eventually(lambda: node.parts.follower.is_fresh, lambda: node.parts.follower.state)
        problems = await wrong_surroundings(settings(origin.public_url, valkey.url, max_staleness_seconds=5.0))
        assert problems == [
            "CACHE_NODE_REDIS_URL: CACHE_NODE_MAX_STALENESS_SECONDS is 5 here and 2 on another node",
        ]


async def test_an_origin_that_is_not_kratos(valkey: EmbeddedValkey, origin: DemoOrigin) -> None:
    problems = await wrong_surroundings(settings(origin.admin_url, valkey.url))
    assert len(problems) >= 1
    assert "is it Kratos' public URL?" in problems[0]
    (problem,) = await wrong_surroundings(settings(origin.public_url, valkey.url, origin_ready_path="/nope"))
    assert "no 401 would be believed" in problem


def test_nothing_of_a_user_in_the_origin_url_is_shown() -> None:
    (problem,) = wrong_settings({"CACHE_NODE_ORIGIN_URL": "http://somebody:hunter2@127.0.0.1:1"}, None)
    assert "somebody" not in problem
    assert "hunter2" not in problem


def test_wrong_settings_are_one_line_each() -> None:
    environ = {
        "CACHE_NODE_ORIGIN_URL": "ftp://x",
        "CACHE_NODE_MEMORY_BYTES": "lots",
        "CACHE_NODE_MISSPELLED": "1",
        "CACHE_NODE_REDIS_URL": "redis://127.0.0.1",
    }
    found = [line.partition(" ")[0].strip("'") for line in wrong_settings(environ, None)]
    assert sorted(found) == sorted([*(environ.keys() - {"CACHE_NODE_REDIS_URL"}), "CACHE_NODE_SECRETS"])
    assert list(wrong_settings({"CACHE_NODE_ORIGIN_URL": "http://127.0.0.1:1"}, None)) == []
