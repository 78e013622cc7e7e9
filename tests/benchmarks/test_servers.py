"""What is compared answers alike, and each is known by its own processes; what needs Debian's packages is not asked."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from benchmarks.asking import Asker
from benchmarks.checks import check
from benchmarks.hit import CASES
from benchmarks.lateness import sleeper
from benchmarks.load import OPEN_LOOP, BadAnswerError, run_open_loop, run_wrk_fresh
from benchmarks.servers import (
    SERVER_CORE,
    SERVERS,
    Server,
    compiled,
    nginx,
    node,
    origin_count,
    pinned,
    python_app,
    tool,
)
from benchmarks.sessions import body_of, cookie_of, ids_of, token_in_cookie, token_of
from cache_node.errors import CacheNodeError
from cache_node.sessions.credential import cookie_minted_at
from cache_node.sessions.entry import parse_session, read_session

pytestmark = pytest.mark.process


@pytest.fixture
async def origin() -> AsyncIterator[Server]:
    async with python_app("origin") as server:
        yield server


@pytest.mark.parametrize("size", [1536, 4096, 16384])
def test_a_session_has_the_asked_size_and_may_be_cached(size: int) -> None:
    body = body_of(token_of(7, size)) or b""
    session = parse_session(body)
    assert session is not None
    facts = read_session(session)
    assert len(body) == size
    assert facts is not None
    assert (facts.session_id, facts.identity_id) == ids_of(token_of(7, size))


def test_a_cookie_stands_for_its_token_and_has_a_date() -> None:
    assert token_in_cookie(cookie_of(7)) == token_of(7)
    assert cookie_minted_at(cookie_of(7).encode()) is not None
    assert token_in_cookie("bm8gY29va2ll") == ""
    assert body_of("ory_st_of_somebody_else") is None


@pytest.mark.parametrize("name", ["node", "raw", "starlette", "redis"])
@pytest.mark.parametrize("case", ["one", "cookie"])
async def test_each_server_gives_the_session_from_its_cache(name: str, case: str, origin: Server) -> None:
    async with SERVERS[name](origin) as server:
        await check(name, server, origin, CASES[case].requests())
    assert origin_count(origin) == 1


async def test_a_server_without_a_cache_is_not_timed(origin: Server) -> None:
    with pytest.raises(BadAnswerError, match="asks the origin each time"):
        await check("origin", origin, origin, CASES["one"].requests())


async def test_a_server_with_another_answer_is_not_timed(origin: Server) -> None:
    with pytest.raises(BadAnswerError, match="200 with 1536 bytes that are not the session's"):
        await check("raw", origin, origin, dict.fromkeys(CASES["one"].requests(), b"another"))


async def test_a_node_costs_what_its_valkey_costs_too(origin: Server) -> None:
    """Hits of the memory tier take no Redis, reads of new sessions do."""
    async with node(origin) as server:
        before = server.cpu_seconds()
        asker = Asker(server.url)
        with contextlib.closing(asker):
            for number in range(200):
                await asker.ask(token_of(number))
        assert before < server.cpu_seconds()
        (valkey,) = psutil.Process(server.pid).children()
        assert 0 < Server("", valkey.pid).cpu_seconds() < server.cpu_seconds()


async def test_the_port_of_the_baselines_origin_is_asked_for(origin: Server) -> None:
    with pytest.raises(CacheNodeError, match="9002"):
        await nginx(origin).__aenter__()


async def test_a_server_that_does_not_start_says_why(origin: Server) -> None:
    with pytest.raises(CacheNodeError, match=r"did not start: .*in use"):
        await python_app("origin", "--port", str(origin.port)).__aenter__()


def test_what_is_missing_and_cannot_be_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CacheNodeError, match=r"nothing-of-the-kind is missing .*: apt-get install a-package"):
        tool("nothing-of-the-kind", "a-package")


def test_a_core_that_is_not_there_is_no_place_for_a_server() -> None:
    with pytest.raises(CacheNodeError, match="no core 100000"), pinned(100_000):
        pass


def wrk_that_says(text: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's package need not be there."""
    program = directory / "wrk"
    program.write_text(f"#!/bin/sh\necho '{text}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/bin:/usr/bin")


FIGURES = '"seconds": 1.0, "p50": 1, "p99": 1, "p999": 1, "max": 1}'


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ('{"requests": 10, "failed": 1, "bytes": 20000, ' + FIGURES, "1 of 10 requests got no 2xx"),
        ('{"requests": 0, "failed": 0, "bytes": 0, ' + FIGURES, "0 of 0 requests"),
        ('{"requests": 10, "failed": 0, "bytes": 9999, ' + FIGURES, "too few for 10 answers"),
        ("unable to connect", "unable to connect"),
    ],
)
async def test_a_load_with_a_bad_answer_is_none(
    says: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrk_that_says(says, tmp_path, monkeypatch)
    with pytest.raises(BadAnswerError, match=why):
        await run_wrk_fresh("http://127.0.0.1:1", 1, 0, 1, body_bytes=1000, connections=1)


@pytest.fixture
def open_loop(tmp_path: Path) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc, which compiles the open-loop client")
    return compiled(OPEN_LOOP, tmp_path)


async def test_the_open_loop_times_every_request_that_was_due(open_loop: str, origin: Server) -> None:
    took = await run_open_loop(open_loop, origin.url, 200, 0.2, token=token_of(1), connections=4)
    assert len(took) == origin_count(origin) == 40
    assert 0 < min(took) <= max(took) < 1


async def test_the_open_loop_counts_the_wait_for_a_busy_server(open_loop: str) -> None:
    """One answer takes 0.1 s, one is due every 0.02 s: each waits 0.08 s longer than the one before."""
    async with python_app("origin", "--delay-seconds", "0.1") as slow:
        took = await run_open_loop(open_loop, slow.url, 50, 0.1, token=token_of(1), connections=1)
    assert len(took) == 5
    for number, seconds in enumerate(took):
        assert seconds >= 0.1 + 0.08 * number


async def test_the_open_loop_takes_no_bad_answer(open_loop: str, origin: Server) -> None:
    with pytest.raises(BadAnswerError, match="an answer was not 200"):
        await run_open_loop(open_loop, origin.url, 50, 0.1, token="of nobody", connections=1)


async def test_the_open_loop_gives_up_on_a_silent_server(open_loop: str) -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        took = await run_open_loop(open_loop, url, 50, 0.1, token=token_of(1), connections=1)
    assert took == [float("inf")] * 5


def test_a_sleeper_is_late() -> None:
    with sleeper(SERVER_CORE) as overslept:
        assert not overslept
    assert all(late > 0 for late in overslept)
