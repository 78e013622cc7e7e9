"""Packed ids: the text comes back, so that no two ids are one."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from cache_node.feed.ids import UUID_BYTES, pack_id, unpack_id

uuids = st.uuids().map(str)
near_uuids = uuids.map(str.upper) | uuids.map(lambda text: text.replace("-", "", 1) + "-")
near_16_bytes = st.text("abc", min_size=UUID_BYTES - 3, max_size=UUID_BYTES + 1)


def test_a_uuid_takes_16_bytes() -> None:
    """Its own."""
    text = "227acb06-4539-4896-a221-db29fbd352e8"

    assert pack_id(text) == UUID(text).bytes
    assert unpack_id(UUID(text).bytes) == text.encode()


@given(uuids | near_uuids | near_16_bytes | st.text(max_size=40))
def test_the_text_comes_back(text: str) -> None:
    """To the letter: only what is exactly a UUID's text is packed as one."""
    assert unpack_id(pack_id(text)) == text.encode()
