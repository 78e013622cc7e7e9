"""What a node says about itself on `GET /status`.  An unknown figure is None, never 0."""

from __future__ import annotations

import os
from typing import Any, Final

from cache_node import __version__
from cache_node.feed.follower import FeedState, Follower
from cache_node.feed.position import Position
from cache_node.ops.components import Components

WAIT_REPLICAS: Final = 0
"""Replicas that must acknowledge an append or a confirm (`WAIT`): none, for a standalone Redis."""


def status(components: Components) -> dict[str, Any]:
    """The answer as JSON will show it; names are stable.  No I/O, so it also answers in an outage.

    `position` and `floor` are opaque texts; `freshness_seconds` is the age of the newest feed state that was confirmed
    complete, `lease_seconds` what is left of the lease, None if it does not hold.  `replay` is how far the reading back
    of the retained window at the start has come, None before; its `share` is the least that can be done by now.
    """
    settings = components.settings
    follower = components.follower
    state = follower.state
    return {
        "node": settings.node_id,
        "region": settings.region,
        "version": __version__,
        "state": state.value,
        "fresh": state is FeedState.FOLLOWING,
        "draining": components.is_draining(),
        "freshness_seconds": _rounded(follower.seconds_since_confirmed),
        "lease_seconds": _rounded(components.lease.seconds_left()),
        "max_staleness_seconds": settings.max_staleness_seconds,
        **_feed(components),
        "wait_replicas": WAIT_REPLICAS,
        "tiers": _tiers(components),
        "origin": {"open": components.origin.is_open, "unbelieved": components.origin.counts["unbelieved"]},
        "sources": [],
        "published": _published(components),
        "workers": [{"id": settings.node_id, "pid": os.getpid()}],
    }


def _feed(components: Components) -> dict[str, Any]:
    fence = components.fence
    position = fence.position
    return {
        "position": None if position is None else str(position),
        "generation": None if position is None else position.generation,
        "floor": None if position is None else str(Position(position.generation, fence.floor)),
        "fence_ids": len(fence),
        "events_behind": components.follower.behind,
        "nodes_known": components.follower.nodes_known,
        "replay_done": components.follower.replay_done,
        "replay": _replay(components.follower),
    }


def _replay(follower: Follower) -> dict[str, float | None] | None:
    share = follower.replay_share
    return None if share is None else {"events_read": follower.counts["replayed"], "share": _rounded(share)}


def _tiers(components: Components) -> dict[str, Any]:
    memory = components.memory
    stats = components.stats
    return {
        "memory": {
            "entries": len(memory),
            "bytes": memory.size_bytes,
            "limit_bytes": memory.max_bytes,
            "hits": stats.requests_of("memory"),
            "negative_hits": stats.requests_of("negative"),
        },
        "redis": {"hits": stats.requests_of("redis")},
    }


def _published(components: Components) -> dict[str, int]:
    stats = components.stats
    return {"events": sum(stats.published_events.values()), "failures": stats.publishes["unavailable"]}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
