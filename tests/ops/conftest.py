from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from cache_node.app import Node
from cache_node.config import NodeSettings
from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from tests.ops.ports import following

MakeNode = Callable[..., Awaitable[Node]]


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[EmbeddedValkey]:
    """One server for all tests that leave it alone; each has a key prefix of its own."""
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server for a test that stops it."""
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def unreachable_url() -> Iterator[str]:
    """Nobody listens there, and nobody can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def origin() -> AsyncIterator[DemoOrigin]:
    async with DemoOrigin() as server:
        yield server


@pytest.fixture
async def make_node(shared_valkey: EmbeddedValkey, origin: DemoOrigin) -> AsyncIterator[MakeNode]:
    """Real nodes in this process, by their settings; all of a test share one feed unless told otherwise."""
    prefix = f"test-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:

        async def make(**given: object) -> Node:
            settings = {
                "origin_url": origin.public_url,
                "redis_url": shared_valkey.url,
                "key_prefix": prefix,
                "secrets": "0123456789abcdef0123456789abcdef",
                "listen": "127.0.0.1:0",
                "admin_listen": "127.0.0.1:0",
                "max_staleness_seconds": 0.5,
            } | given
            return await stack.enter_async_context(Node(NodeSettings.model_validate(settings)))

        yield make


@pytest.fixture
async def node(make_node: MakeNode) -> Node:
    """A node that follows its feed, without a token on its admin port."""
    made = await make_node(node_id="n1", region="here")
    await following(made)
    return made
