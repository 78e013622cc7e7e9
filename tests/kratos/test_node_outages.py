"""Kratos or its database is stopped, killed, suspended: cached sessions go on, nobody is logged out, all resumes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from cache_node.demo._children import end_child, start_child
from cache_node.demo.kratos_server import CORS_ORIGIN, TOKENIZER_TEMPLATE, KratosServer
from cache_node.demo.postgres_server import StopMode
from cache_node.embedded import EmbeddedValkey
from tests.demo.exchanges import Headers
from tests.kratos.nodes import (
    NEGATIVE,
    SOON_SECONDS,
    TTL_SECONDS,
    WHOAMI,
    Nodes,
    bad_token,
    by_cookie,
    by_token,
    cache_status,
    is_try_again,
    sign_in,
    told,
)
from tests.waiting import eventually

STALE = "cache-node; fwd=stale; detail=stale-if-error"
COLD = "cache-node; fwd=miss; detail=cold"


async def until_stale(nodes: Nodes, headers: Headers) -> None:
    """Both nodes say that the entry is past its TTL and that the origin is away; every answer until then is 200."""
    statuses: list[str] = []

    async def is_stale() -> bool:
        answers = await nodes.ask_both(headers)
        assert {answer.status for answer in answers} == {200}
        statuses[:] = map(cache_status, answers)
        return statuses == [STALE, STALE]

    await eventually(is_stale, lambda: statuses)


async def assert_good_again(nodes: Nodes, *credentials: Headers) -> None:
    """Kratos is ready: both nodes answer 200 at once."""
    begun = time.monotonic()
    answers = await asyncio.gather(*(nodes.ask_both(each) for each in credentials))
    seconds = time.monotonic() - begun
    assert {answer.status for both in answers for answer in both} == {200}
    assert seconds < SOON_SECONDS


@pytest.mark.parametrize("mode", ["fast", "kill"])
async def test_database_stopped(kratos: KratosServer, valkey: EmbeddedValkey, mode: StopMode) -> None:
    """Cached sessions answer 200, past their TTL too; whatever no entry answers gets 503, good or bad, and nothing of
    it is remembered: good ones answer again within a second of Kratos' readiness."""
    async with Nodes(kratos, valkey.url, {"entry_ttl_seconds": TTL_SECONDS}) as nodes:
        person, never_asked, asked_now, gone = [await sign_in(kratos) for _ in range(4)]
        known = [person.by_token, person.by_bearer, person.by_cookie]
        bad = bad_token()
        owns = [told(await nodes.ask_kratos(headers)) for headers in known]
        for headers in (*known, gone.by_token):
            await nodes.ask_both(headers)
        await kratos.stop_database(mode)

        await until_stale(nodes, person.by_token)
        for headers, own in zip(known, owns, strict=True):
            for extra in ([], [("Cache-Control", "no-cache")], [("Cache-Control", "max-age=0")]):
                for answer in await nodes.ask_both([*headers, *extra]):
                    assert told(answer) == own
                    assert cache_status(answer) == STALE
            assert {answer.status for answer in await nodes.ask_both(headers, "HEAD")} == {200}

        unknown = [asked_now.by_token, asked_now.by_bearer, asked_now.by_cookie, by_token(bad), by_cookie("garbage")]
        mixed = [
            person.by_token + person.by_cookie,
            person.by_token + by_cookie("garbage"),
            person.by_token + person.by_bearer,
            [*person.by_token, ("Origin", CORS_ORIGIN)],
        ]
        for headers in unknown + mixed:
            for method in ("GET", "HEAD"):
                for answer in await nodes.ask_both(headers, method) + await nodes.ask_both(headers, method):
                    assert is_try_again(answer), answer
        for method, path in (("POST", WHOAMI), ("GET", f"{WHOAMI}?tokenize_as={TOKENIZER_TEMPLATE}")):
            assert all(map(is_try_again, await nodes.ask_both(person.by_token, method, path)))
        assert {answer.status for answer in await nodes.ask_both([])} == {401}, "nothing was presented"

        await nodes.publish("session.revoked", session_id=gone.session)
        for answer in await nodes.ask_both(gone.by_token):
            assert is_try_again(answer), "an event counts in an outage too"
        for node in nodes.nodes:
            for health in ("alive", "ready", "fresh"):
                asked = await kratos.request("GET", f"{node.public_url}/health/{health}")
                assert (health, asked.status) == (health, 200)

        await kratos.start_database()
        await kratos.wait_ready()
        await assert_good_again(nodes, never_asked.by_token, never_asked.by_cookie, *unknown[:3], *known)
        for headers in (by_token(bad), by_cookie("garbage")):
            assert await nodes.both_agree(headers) == [COLD, COLD], "the 401 of the outage was not kept"
            assert await nodes.both_agree(headers) == [NEGATIVE, NEGATIVE]
        for headers in mixed:
            await nodes.both_agree(headers)


async def test_a_refusal_known_before_the_outage_ends_with_its_few_seconds(nodes: Nodes) -> None:
    """A believed 401 is given from memory in the outage too, and 503 once its time is over: not for longer."""
    bad = by_token(bad_token())
    for _ in range(2):
        await nodes.both_agree(bad)
    await nodes.kratos.stop_database()
    assert [cache_status(answer) for answer in await nodes.ask_both(bad)] == [NEGATIVE, NEGATIVE]

    async def is_over() -> bool:
        answers = await nodes.ask_both(bad)
        assert all(is_try_again(answer) or cache_status(answer) == NEGATIVE for answer in answers)
        return all(map(is_try_again, answers))

    await eventually(is_over, timeout_seconds=8.0)


# Kratos itself ------------------------------------------------------------------------------------------------------


def process_of(kratos: KratosServer) -> psutil.Process:
    """Kratos itself: the child of this process that serves with its configuration."""
    configuration = str(kratos.jwks_path.parent / "kratos.yml")
    children = psutil.Process().children()
    return next(each for each in children if "serve" in each.cmdline() and configuration in each.cmdline())


def database_of(kratos: KratosServer) -> list[psutil.Process]:
    """The server and its backends."""
    data = str(kratos.jwks_path.parent / "postgres/data")
    server = next(each for each in psutil.Process().children() if data in each.cmdline())
    return [server, *server.children()]


@contextlib.contextmanager
def suspended(processes: list[psutil.Process]) -> Iterator[None]:
    """They hold their connections and say nothing; the kernel takes new ones for them."""
    each = contextlib.suppress(psutil.NoSuchProcess)  # a backend may have been ending
    for process in processes:
        with each:
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with each:
                process.resume()


SUSPENDED: dict[str, Callable[[KratosServer], list[psutil.Process]]] = {
    "kratos": lambda kratos: [process_of(kratos)],
    "its database": database_of,
}


@pytest.mark.parametrize("what", SUSPENDED)
async def test_suspended(kratos: KratosServer, valkey: EmbeddedValkey, what: str) -> None:
    """Who has no entry is told so at the deadline, who has one gets it, at once within its TTL; then all is well."""
    deadline = 0.5
    settings = {"entry_ttl_seconds": TTL_SECONDS, "origin_timeout_seconds": deadline}
    async with Nodes(kratos, valkey.url, settings) as nodes:
        person, asked_now, never_asked = [await sign_in(kratos) for _ in range(3)]
        owns = {str(headers): told(await nodes.ask_kratos(headers)) for headers in (person.by_token, person.by_cookie)}
        await nodes.ask_both(person.by_token)
        await nodes.ask_both(person.by_cookie)
        unknown = [asked_now.by_token, asked_now.by_cookie, by_token(bad_token()), person.by_token + person.by_cookie]
        with suspended(SUSPENDED[what](kratos)):
            await until_stale(nodes, person.by_token)
            for headers in (person.by_token, person.by_cookie):
                for answer in await nodes.ask_both(headers):
                    assert (told(answer), cache_status(answer)) == (owns[str(headers)], STALE)
            begun = time.monotonic()
            answers = await asyncio.gather(*(nodes.ask_both(headers) for headers in unknown))
            assert deadline <= time.monotonic() - begun < deadline + SOON_SECONDS
            assert all(is_try_again(answer) for both in answers for answer in both)
        await kratos.wait_ready()
        await assert_good_again(nodes, person.by_token, person.by_cookie, *unknown[:2], never_asked.by_token)
        for headers in unknown:
            await nodes.both_agree(headers)


async def test_kratos_killed_and_started_again(valkey: EmbeddedValkey) -> None:
    """A refused connection is an outage like any other, and a node needs nothing to find the new process."""
    async with KratosServer() as kratos, Nodes(kratos, valkey.url, {"entry_ttl_seconds": TTL_SECONDS}) as nodes:
        person, asked_now, never_asked = [await sign_in(kratos) for _ in range(3)]
        own = told(await nodes.ask_kratos(person.by_token))
        await nodes.ask_both(person.by_token)
        process = process_of(kratos)
        command, environment = process.cmdline(), process.environ()
        process.kill()
        await until_stale(nodes, person.by_token)
        assert [told(answer) for answer in await nodes.ask_both(person.by_token)] == [own, own]
        unknown = [asked_now.by_token, by_token(bad_token()), person.by_token + person.by_cookie, []]
        for headers in unknown:
            assert all(map(is_try_again, await nodes.ask_both(headers)))

        directory = kratos.jwks_path.parent
        again = start_child(command, log=directory / "kratos.log", directory=directory, environment=environment)
        try:
            await kratos.wait_ready()
            await assert_good_again(nodes, person.by_token, asked_now.by_token, never_asked.by_token)
            for headers in unknown:
                await nodes.both_agree(headers)
        finally:
            await end_child(again, signal.SIGKILL, 5.0)
