"""The parts of one running node that the ops room looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cache_node.config import NodeSettings
from cache_node.feed.clock import Clock
from cache_node.feed.fence import Fence
from cache_node.feed.follower import Follower
from cache_node.feed.lease import Lease
from cache_node.ops.metrics import Metrics
from cache_node.sessions.memory_tier import MemoryTier
from cache_node.sessions.origin import Origin
from cache_node.sessions.reader import Reader
from cache_node.sessions.redis_tier import RedisTier
from cache_node.sources.publisher import AsyncPublisher


@dataclass(frozen=True, slots=True)
class Components:
    """Built by `app.py`, which owns all of it and closes what must be closed; everything belongs to one event loop."""

    settings: NodeSettings
    clock: Clock
    fence: Fence
    lease: Lease
    follower: Follower
    memory: MemoryTier
    redis_tier: RedisTier
    origin: Origin
    reader: Reader
    publisher: AsyncPublisher
    """Writes to the feed of this node's region."""
    stats: Metrics
    """What the HTTP edge and the origin client were told to count into."""
    is_draining: Callable[[], bool]
    """Whether the node has been told to end."""
