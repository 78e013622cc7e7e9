"""Every name that this project uses in Redis, in one place.

With p the key prefix: `p:e:<key>` holds an entry and `p:lock:<key>` says who fills it; no braces, so that they spread
over a cluster.  `{p}:feed`, `{p}:generation` and `{p}:nodes` carry literal braces, so that one script may use them
together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RedisNames:
    """Names below one key prefix; nodes and publishers of one feed must agree on it."""

    prefix: str = "cache-node"

    @property
    def feed(self) -> str:
        """Stream: the feed.  The id of an entry is the position of its last event."""
        return f"{{{self.prefix}}}:feed"

    @property
    def generation(self) -> str:
        """Hash: `replid`, `generation`, `number` (last one given), `followed` (µs), `asked`."""
        return f"{{{self.prefix}}}:generation"

    @property
    def nodes(self) -> str:
        """Hash: one record a process, written by its confirm (registry.py has the format)."""
        return f"{{{self.prefix}}}:nodes"

    def lock(self, key: bytes) -> bytes:
        """String with a short TTL beside the entry of that key: its fill lock (sessions/redis_tier.py)."""
        return f"{self.prefix}:lock:{key.hex()}".encode()

    def entry(self, key: bytes) -> bytes:
        """String with a TTL: one sealed entry; `key` is the keyed hash of the credential, 32 bytes."""
        return f"{self.prefix}:e:{key.hex()}".encode()
