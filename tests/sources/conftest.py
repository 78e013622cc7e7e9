"""The real Valkeys of tests/feed/, for publishers."""

from __future__ import annotations

from tests.feed.conftest import log, names, own_valkey, redis, valkey

__all__ = ["log", "names", "own_valkey", "redis", "valkey"]
