"""Kratos or its database is stopped, killed, suspended: cached sessions go on, nobody is logged out, all resumes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
import psutil
import pytest

from cache_node.app import Node
from cache_node.demo._children import end_child, start_child
from cache_node.demo.kratos_server import CORS_ORIGIN, TOKENIZER_TEMPLATE, KratosServer
from cache_node.demo.postgres_server import StopMode, find_installation
from cache_node.embedded import EmbeddedValkey
from tests.demo.exchanges import Headers
from tests.kratos.nodes import (
    NEGATIVE,
    WHOAMI,
    Nodes,
    bad_token,
    by_cookie,
    by_token,
    cache_status,
    client_session,
    is_try_again,
    sign_in,
    told,
)
from tests.waiting import eventually

STALE = "cache-node; fwd=stale; detail=stale-if-error"
COLD = "cache-node; fwd=miss; detail=cold"
SOON_SECONDS = 1.0
"""Within this a good token must be answered once Kratos is ready."""
TTL_SECONDS = 0.5


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


# A crowd through restarts of the database ---------------------------------------------------------------------------

Kind = Literal["cached", "new", "bad"]
CLIENTS: dict[Kind, int] = {"cached": 4, "new": 8, "bad": 4}
ANSWERS_A_PHASE: dict[tuple[Kind, int], int] = {
    ("cached", 200): 300,
    ("new", 200): 300,
    ("new", 503): 100,  # each takes half a second
    ("bad", 401): 8,
    ("bad", 503): 8,
}
"""At least so many are awaited before the database is stopped, or while it is away."""


MORE_SESSIONS = """
    INSERT INTO sessions
    SELECT (jsonb_populate_record(s, jsonb_build_object(
        'id', gen_random_uuid(), 'token', 'ory_st_' || md5(random()::text || n), 'logout_token', gen_random_uuid()
    ))).* FROM sessions s, generate_series(1, {count}) n WHERE s.token = '{token}' RETURNING token
"""
END_CONNECTIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


async def sql(kratos: KratosServer, statement: str) -> list[str]:
    """The rows of its one column, as the database's superuser sees them."""
    psql, dsn = find_installation() / "bin/psql", kratos.dsn.partition("&")[0]
    process = await asyncio.create_subprocess_exec(str(psql), dsn, "-XAtqc", statement, stdout=asyncio.subprocess.PIPE)
    rows = (await process.communicate())[0].decode().split()
    assert process.returncode == 0
    return rows


async def make_sessions(kratos: KratosServer, token: str, count: int) -> list[str]:
    """Tokens of so many new sessions, copies of the row of one that Kratos wrote: logging in takes much longer."""
    tokens = await sql(kratos, MORE_SESSIONS.format(count=count, token=token))
    assert len(tokens) == count
    return tokens


@dataclass(slots=True)
class Crowd:
    """Clients that ask both nodes on and on: tokens asked before, tokens never asked, tokens of nobody."""

    nodes: Nodes
    client: aiohttp.ClientSession
    cached: list[str]
    unasked: list[str]
    seen: Counter[tuple[Kind, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    turned_away: list[str] = field(default_factory=list)
    """Good tokens whose last answer was 503."""

    async def ask(self, node: Node, kind: Kind, token: str) -> int:
        begun = time.monotonic()
        async with self.client.get(node.public_url + WHOAMI, headers={"X-Session-Token": token}) as answer:
            body = await answer.text()
            right = {"cached": (200,), "new": (200, 503), "bad": (401, 503)}[kind]
            is_right = answer.status in right and (answer.status != 503 or "Retry-After" in answer.headers)
            if not is_right:
                seconds = time.monotonic() - begun
                self.wrong.append(
                    f"{kind} {answer.status} after {seconds:.3f} s {answer.headers['Cache-Status']}: {body}"
                )
            self.seen[kind, answer.status] += 1
            return answer.status

    async def go_on(self, kind: Kind, chance: random.Random) -> None:
        """One client, until it is cancelled."""
        while True:
            node = chance.choice(self.nodes.nodes)
            if kind == "cached":
                await self.ask(node, kind, chance.choice(self.cached))
            elif kind == "bad":
                await self.ask(node, kind, bad_token())
            else:
                await self.ask_new(node, chance)

    async def ask_new(self, node: Node, chance: random.Random) -> None:
        again = self.turned_away and chance.random() < 0.5
        source = self.turned_away if again else self.unasked
        token = source.pop(chance.randrange(len(source)))
        if await self.ask(node, "new", token) == 503:
            self.turned_away.append(token)

    async def answers(self, *wanted: tuple[Kind, int]) -> None:
        """Return when enough more answers of each of these kinds and statuses have come."""
        before = self.seen.copy()
        await eventually(
            lambda: all(self.seen[each] >= before[each] + ANSWERS_A_PHASE[each] for each in wanted),
            lambda: f"{self.seen - before} since {before}",
            30.0,
        )

    async def is_welcome(self, token: str) -> float:
        """Seconds until the token is answered 200, asked again and again, after it was asked for the first time."""
        begun = time.monotonic()
        for node in itertools.cycle(self.nodes.nodes):
            if await self.ask(node, "new", token) == 200:
                return time.monotonic() - begun
            assert time.monotonic() < begun + 10 * SOON_SECONDS, self.seen
        raise AssertionError


@contextlib.asynccontextmanager
async def crowd(nodes: Nodes) -> AsyncIterator[Crowd]:
    person = await sign_in(nodes.kratos)
    tokens = await make_sessions(nodes.kratos, person.token, 20_000)
    async with client_session() as client:
        people = Crowd(nodes, client, tokens[:20], tokens[20:])
        for token in people.cached:
            for node in nodes.nodes:
                assert await people.ask(node, "cached", token) == 200
        kinds = [kind for kind, count in CLIENTS.items() for _ in range(count)]
        clients = [asyncio.create_task(people.go_on(kind, random.Random(n))) for n, kind in enumerate(kinds)]
        try:
            yield people
        finally:
            for task in clients:
                task.cancel()
            ended = await asyncio.gather(*clients, return_exceptions=True)
        assert {type(each) for each in ended} == {asyncio.CancelledError}, ended


async def test_nobody_is_logged_out_through_restarts_of_the_database(
    kratos: KratosServer, valkey: EmbeddedValkey
) -> None:
    """Of thousands of answers, before, in and after each outage, no good token's is 401: cached ones are always 200,
    past their TTL too, others 200 or 503; and 200 within a second of asking once Kratos is ready."""
    modes: list[StopMode] = ["fast", "kill", "immediate", "fast", "kill"]
    waited = []
    async with Nodes(kratos, valkey.url, {"entry_ttl_seconds": TTL_SECONDS}) as nodes, crowd(nodes) as people:
        for mode in modes:
            await people.answers(("cached", 200), ("new", 200), ("bad", 401))
            await kratos.stop_database(mode)
            await people.answers(("cached", 200), ("new", 503), ("bad", 503))
            await kratos.start_database()
            await kratos.wait_ready()
            some = people.turned_away[:6] + people.unasked[:6]
            waited += await asyncio.gather(*map(people.is_welcome, some))
    assert people.wrong == []
    assert people.seen.total() > 5000
    assert max(waited) < SOON_SECONDS


class WideKratos(KratosServer):
    """With the connections to its database that Kratos gives itself on 16 cores: 32, of which 16 rest open."""

    @property
    def dsn(self) -> str:
        return f"{super().dsn}&max_conns=32&max_idle_conns=16"


async def test_nobody_is_logged_out_when_the_database_ends_its_connections(valkey: EmbeddedValkey) -> None:
    """As it does in a failover, when a backend crashes, when a pooler restarts: each dead connection makes a good token
    a 401 while `/health/ready` may say 200, several times in a row."""
    async with WideKratos() as kratos, Nodes(kratos, valkey.url) as nodes, client_session() as client:
        person = await sign_in(kratos)
        people = Crowd(nodes, client, [], await make_sessions(kratos, person.token, 600))

        async def ask_new(count: int) -> None:
            new = [people.unasked.pop() for _ in range(count)]
            await asyncio.gather(*(people.ask(nodes.nodes[n % 2], "new", token) for n, token in enumerate(new)))

        for _ in range(8):
            await ask_new(64)  # so that Kratos has as many connections as it may
            await sql(kratos, END_CONNECTIONS)
            await ask_new(8)
        assert people.wrong == []


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
