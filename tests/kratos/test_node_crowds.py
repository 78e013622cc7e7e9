"""A crowd that asks through restarts of Kratos' database: of thousands of answers no good token's is 401.

A file of its own, for another process may run it beside `test_node_outages.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Literal

import aiohttp

from cache_node.app import Node
from cache_node.demo.kratos_server import KratosServer
from cache_node.demo.postgres_server import StopMode, find_installation
from cache_node.embedded import EmbeddedValkey
from tests.kratos.nodes import SOON_SECONDS, TTL_SECONDS, WHOAMI, Nodes, bad_token, client_session, sign_in
from tests.waiting import eventually

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
