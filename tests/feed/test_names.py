"""Names in Redis, which must not change: nodes and publishers of other versions use them, too."""

from __future__ import annotations

from cache_node.feed.names import RedisNames


def test_names_of_one_feed_may_be_used_by_one_script() -> None:
    """The feed's keys carry literal braces, so that a cluster keeps them together."""
    names = RedisNames("tier")
    assert (names.feed, names.generation, names.nodes) == ("{tier}:feed", "{tier}:generation", "{tier}:nodes")


def test_entries_spread() -> None:
    """An entry's name has no braces, and is the keyed hash in hexadecimal."""
    assert RedisNames("tier").entry(b"\x01\xff" * 16) == b"tier:e:" + b"01ff" * 16
