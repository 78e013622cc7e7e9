"""Two nodes of one region, `a` and `b`, over one Redis."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from typing import Any

from cache_node.app import Node
from cache_node.config import NodeSettings
from tests.waiting import eventually


async def start_two_nodes(
    stack: contextlib.AsyncExitStack, redis_url: str, origin_urls: Sequence[str], **settings: Any
) -> list[Node]:
    """Started, and fresh; `stack` ends them.  Each has an origin URL of its own, `settings` win over all else."""
    secret = secrets.token_urlsafe(48)
    nodes = []
    for name, origin_url in zip("ab", origin_urls, strict=True):
        given = {
            "origin_url": origin_url,
            "redis_url": redis_url,
            "secrets": (secret,),
            "listen": "127.0.0.1:0",
            "admin_listen": "127.0.0.1:0",
            "node_id": name,
        }
        nodes.append(await stack.enter_async_context(Node(NodeSettings.model_validate(given | settings))))
    await until_fresh(nodes)
    return nodes


async def until_fresh(nodes: Sequence[Node], timeout_seconds: float = 10.0) -> None:
    await eventually(
        lambda: all(node.parts.follower.is_fresh for node in nodes),
        lambda: f"states are {[node.parts.follower.state for node in nodes]}",
        timeout_seconds,
    )
