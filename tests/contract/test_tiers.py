"""One contract, two tiers: what was put comes back as it was, under its own key and no other."""

from __future__ import annotations

import asyncio
import os

import pytest

from cache_node.sessions.entry import Entry, Headers
from cache_node.sessions.keys import Key
from tests.contract.conftest import LARGEST_BODY_BYTES, Tier

HEADERS: Headers = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate"),
    (b"vary", b"Origin"),
    (b"content-type", b"application/json; charset=utf-8"),
    (b"vary", b"Cookie"),
)


def key() -> Key:
    return Key(os.urandom(32), os.urandom(32))


def entry(body: bytes = b'{"id":"1"}\n', headers: Headers = HEADERS, number: int = 42) -> Entry:
    return Entry.of(
        body=body,
        headers=headers,
        session_id="227acb06-4539-4896-a221-db29fbd352e8",
        identity_id="b7353567-b616-473e-ac8a-c8e6bd858b0f",
        expires_at=1795609388.684829,
        fetched_at=1795522988.123456,
        generation=1_795_522_988_123_456,
        number=number,
    )


async def test_an_unknown_key_has_no_entry(tier: Tier) -> None:
    """None, and no error."""
    assert await tier.get(key()) is None


async def test_what_was_put_comes_back_equal_in_all_fields(tier: Tier) -> None:
    """`as_of` and times included, to the last bit, and as often as it is asked for."""
    name = key()
    await tier.put(name, entry())

    for _ in range(2):
        assert await tier.get(name) == entry()


@pytest.mark.parametrize("number", [0, 2**53 + 1, 2**63 - 1])
async def test_numbers_of_any_size_come_back_exactly(tier: Tier, number: int) -> None:
    """A position that was rounded would be another one."""
    name = key()
    await tier.put(name, entry(number=number))
    found = await tier.get(name)

    assert found is not None
    assert (found.generation, found.number) == (1_795_522_988_123_456, number)


async def test_a_later_entry_takes_the_place_of_an_earlier_one(tier: Tier) -> None:
    """There is one entry under a key, the last that was put."""
    name = key()
    await tier.put(name, entry(b"old", number=1))
    await tier.put(name, entry(b"new", (), number=2))

    assert await tier.get(name) == entry(b"new", (), number=2)


async def test_a_discarded_entry_is_gone(tier: Tier) -> None:
    """One that is not there can be discarded as well, and another can be put in its place."""
    name = key()
    await tier.discard(name)
    await tier.put(name, entry())
    await tier.discard(name)
    assert await tier.get(name) is None
    await tier.put(name, entry())

    assert await tier.get(name) == entry()


async def test_two_keys_do_not_mix(tier: Tier) -> None:
    """Each has its own entry, also when all are asked for at once."""
    keys = [key() for _ in range(200)]
    for number, name in enumerate(keys):
        await tier.put(name, entry(b"body %d" % number, number=number))
    found = await asyncio.gather(*(tier.get(name) for name in keys))

    assert found == [entry(b"body %d" % number, number=number) for number in range(200)]
    await tier.discard(keys[7])
    assert await tier.get(keys[7]) is None
    assert await tier.get(keys[8]) == entry(b"body 8", number=8)


@pytest.mark.parametrize("size", [0, 1, 200, 1500, 65_535, 200_000, LARGEST_BODY_BYTES])
async def test_bodies_of_any_size(tier: Tier, size: int) -> None:
    """From none to the largest that is kept."""
    name = key()
    body = os.urandom(size)
    await tier.put(name, entry(body))
    found = await tier.get(name)

    assert found is not None
    assert found.body == body


@pytest.mark.parametrize("body", [bytes(range(256)), b"\xff\xfe\x00", b"\x00" * 100, "Söhne\u2028".encode()])
async def test_bodies_are_bytes(tier: Tier, body: bytes) -> None:
    """Whatever they mean, if anything."""
    name = key()
    await tier.put(name, entry(body))

    assert await tier.get(name) == entry(body)


@pytest.mark.parametrize(
    "headers",
    [
        (),
        HEADERS,
        tuple(reversed(HEADERS)),
        ((b"vary", b"Cookie"), (b"vary", b"Cookie")),
        ((b"ory-error-id", b""),),
        ((b"x-latin", b"caf\xe9"), (b"x-bytes", bytes(range(128, 256)))),
    ],
)
async def test_headers_keep_order_repetition_and_bytes(tier: Tier, headers: Headers) -> None:
    """As the origin sent them."""
    name = key()
    await tier.put(name, entry(headers=headers))
    found = await tier.get(name)

    assert found is not None
    assert found.headers == headers
