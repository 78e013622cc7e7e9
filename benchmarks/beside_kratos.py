"""What a node adds to the answers of a real Kratos, read cold on one connection.

Each session is read once through the node and once from Kratos itself, in turn one or the other first, so that whatever
slows the machine down is in both.  A node of each round has nothing cached.

A node that shares its core with Kratos and Postgres finds the core's caches full of them, at each read [it adds 0.35 ms
more].  An edge node has a machine of its own: what is judged is one on the other core, beside whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks import report
from benchmarks.asking import Asker
from benchmarks.load import BadAnswerError
from benchmarks.servers import LOAD_CORE, SERVER_CORE, Server, move, node, pinned, pinned_valkey
from cache_node.demo.kratos_build import build_kratos
from cache_node.demo.kratos_server import KratosServer
from cache_node.demo.postgres_server import find_installation

SESSIONS = 300
WARM_UP = 20
"""Of them, read first and not counted."""
LOGINS_AT_ONCE = 4
_PERSON, _PASSWORD = "somebody@example.test", "a password of somebody"


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds of each read of one round, through the node and past it, and whether it shares its core with Kratos."""

    through: list[float]
    past: list[float]
    shares_core: bool

    @property
    def adds(self) -> float:
        """By which part of Kratos' own p50 the node's is longer."""
        return statistics.median(self.through) / statistics.median(self.past) - 1


async def measure(rounds: int) -> list[Beside]:
    """Round by round.  Raises CacheNodeError if there can be no Kratos here."""
    async with kratos() as (server, tokens), contextlib.AsyncExitStack() as stack:
        valkey = stack.enter_context(pinned_valkey())
        found = []
        for number in range(rounds):
            for core in (SERVER_CORE, LOAD_CORE):
                async with node(server, valkey.url, key_prefix=f"round-{number}-{core}") as through:
                    move(through, core)
                    with pinned(LOAD_CORE):
                        found.append(Beside(*await read_all(tokens, through, server), core == SERVER_CORE))
            report.progress(f"beside Kratos, round {number + 1}")
    return found


@contextlib.asynccontextmanager
async def kratos() -> AsyncIterator[tuple[Server, list[str]]]:
    """A Kratos on its Postgres, built if need be, and the tokens of its sessions."""
    find_installation()
    await build_kratos(progress=report.progress)  # on all cores
    server = KratosServer()
    with pinned(SERVER_CORE):
        await server.start()
    report.progress("Kratos is ready")
    try:
        await server.create_identity(_PERSON, _PASSWORD)
        places = asyncio.Semaphore(LOGINS_AT_ONCE)

        async def token() -> str:
            async with places:
                return (await server.login_token(_PERSON, _PASSWORD))[0]

        yield Server(server.public_url, 0), await asyncio.gather(*(token() for _ in range(SESSIONS)))
    finally:
        await server.stop()


async def read_all(tokens: Sequence[str], through: Server, past: Server) -> tuple[list[float], list[float]]:
    """Each once from both, on a connection each; the seconds it took."""
    took: dict[str, list[float]] = {"through": [], "past": []}
    with contextlib.closing(Asker(through.url)) as one, contextlib.closing(Asker(past.url)) as other:
        ways = [("through", one, b"detail=cold"), ("past", other, b" 200 ")]
        for number, token in enumerate(tokens):
            for name, asker, expected in ways[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                head = await asker.ask(token)
                took[name].append(time.perf_counter() - begun)
                if expected not in head:
                    raise BadAnswerError(f"no cold read of a session {name} the node: {head.decode('latin-1')}")
    return took["through"][WARM_UP:], took["past"][WARM_UP:]
