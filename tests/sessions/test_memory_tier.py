"""The memory tier's bound: in what it accounts for, in what that really takes, and in what the whole process takes."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import pytest

from cache_node.feed.position import Position
from cache_node.sessions.entry import Entry, Headers, pack_headers
from cache_node.sessions.keys import Key
from cache_node.sessions.memory_tier import MemoryTier, Refusal
from cache_node.sessions.sealing import seal, unseal

HEADERS = (
    (b"cache-control", b"private, no-cache, no-store, must-revalidate"),
    (b"content-type", b"application/json; charset=utf-8"),
    (b"vary", b"Origin"),
    (b"vary", b"Cookie"),
    (b"x-kratos-authenticated-identity-id", b"227acb06-4539-4896-a221-db29fbd352e8"),
)


def copied(headers: Headers) -> Headers:
    """As they come from the network: each header in objects of its own."""
    return tuple((bytes(bytearray(name)), bytes(bytearray(value))) for name, value in headers)


def entry(number: int, body_bytes: int = 20, headers: Headers = HEADERS) -> Entry:
    """One like no other, sharing no object with another."""
    return Entry.of(
        body=os.urandom(body_bytes),
        headers=copied(headers),
        session_id=f"{number:036d}",
        identity_id=f"{number + 1:036d}",
        expires_at=2e9 + number,
        fetched_at=1.8e9 + number,
        generation=1_800_000_000_000_000,
        number=100_000 + number,
    )


def with_own_identity(number: int) -> Entry:
    """As Kratos answers: the header names whom the body shows."""
    return entry(number, headers=(*HEADERS[:4], (HEADERS[4][0], f"{number + 1:036d}".encode())))


def refusal(number: int) -> Refusal:
    return Refusal(
        os.urandom(157),
        pack_headers(copied(HEADERS[:4])),
        1.8e9 + number,
        1e6 + number,
        Position(1 << 50, 1000 + number),
    )


Put = Callable[[MemoryTier, int], bool]


def put_entry(headers: Headers) -> Put:
    return lambda tier, number: tier.put(os.urandom(32), entry(number, headers=headers))


def put_subject(tier: MemoryTier, number: int) -> bool:
    name = os.urandom(32)
    tier.put_subject(name, entry(number))
    return tier.get_subject(name) is not None


def put_refusal(tier: MemoryTier, number: int) -> bool:
    return tier.put_refusal(os.urandom(32), refusal(number))


@pytest.mark.parametrize(
    ("put", "count"),
    [
        pytest.param(put_entry(HEADERS), 20_000, id="entries"),
        pytest.param(
            lambda tier, number: tier.put(os.urandom(32), with_own_identity(number)), 20_000, id="entries-of-kratos"
        ),
        pytest.param(put_entry(()), 20_000, id="entries-without-headers"),
        pytest.param(
            lambda tier, number: tier.put(os.urandom(32), entry(number, headers=((b"expires", b"%d" % number),))),
            20_000,
            id="entries-with-headers-of-their-own",
        ),
        pytest.param(put_entry(HEADERS * 6), 20_000, id="entries-with-many-headers"),
        pytest.param(put_refusal, 10_000, id="refusals"),
        pytest.param(put_subject, 10_000, id="subjects"),
    ],
)
def test_what_is_accounted_is_what_it_takes(put: Put, count: int) -> None:
    """Many small ones take no more than the tier says, and more than half of it."""
    tier = MemoryTier(1 << 32)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            assert put(tier, number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert tier.size_bytes / 2 < after - before <= tier.size_bytes


def test_the_bound_holds_with_bodies_of_200_bytes_to_200_kilobytes() -> None:
    """At every step, whatever is put, replaced, refused or discarded."""
    tier = MemoryTier(4 << 20)
    dice = random.Random(8)
    names = [b"%d" % number for number in range(300)]
    for number in range(3000):
        name = dice.choice(names)
        what = dice.random()
        if what < 0.7:
            tier.put(name, Entry.of(bytes(dice.randint(200, 200_000)), (), "s", "i", 2e9, 1.8e9, 1, number))
        elif what < 0.9:
            tier.put_refusal(name, refusal(number))
        else:
            tier.discard(name)
        tier.get(dice.choice(names))
        assert 0 <= tier.size_bytes <= tier.max_bytes
    assert tier.evictions > 1000


def test_a_body_above_a_sixteenth_is_not_kept_and_the_older_entry_is_gone() -> None:
    """One large answer must not push many others out."""
    tier = MemoryTier(1 << 20)
    assert tier.put(b"key", entry(0, 1 << 16))
    assert not tier.put(b"key", entry(1, (1 << 16) + 1))

    assert tier.get(b"key") is None
    assert (len(tier), tier.size_bytes) == (0, 0)


def test_refusals_push_no_session_out() -> None:
    """Made-up tokens have a small share of their own."""
    tier = MemoryTier(1 << 20)
    for number in range(2000):
        tier.put(b"session-%d" % number, entry(number, 1000))
    assert tier.evictions > 0
    there = len(tier)
    for number in range(5000):
        tier.put_refusal(b"made up %d" % number, refusal(number))

    assert len(tier) == there
    assert tier.size_bytes <= tier.max_bytes
    assert 10 < sum(tier.get_refusal(b"made up %d" % number) is not None for number in range(5000)) < 80


def test_one_key_is_either_known_or_refused() -> None:
    """The newest word takes the place of the other."""
    tier = MemoryTier(1 << 20)
    tier.put(b"key", entry(0))
    tier.put_refusal(b"key", refusal(0))
    assert tier.get(b"key") is None
    assert tier.get_refusal(b"key") is not None
    tier.put(b"key", entry(1))
    assert tier.get_refusal(b"key") is None
    tier.put_refusal(b"key", refusal(1))
    tier.discard(b"key")

    assert tier.get(b"key") is None
    assert tier.get_refusal(b"key") is None
    subject = tier.get_subject(b"key")
    assert subject is not None, "whose it was is still known"
    assert (subject.session, subject.identity) == (entry(1).session, entry(1).identity)
    tier.clear()
    assert tier.size_bytes == 0


OWN, OTHER = (f"{2:036d}".encode(), f"{3:036d}".encode())


@pytest.mark.parametrize(
    "identities",
    [[OWN], [OTHER], [OWN, OTHER, OWN], [b""], [OWN.upper() + b" "], []],
    ids=["own", "another", "both", "empty", "odd", "none"],
)
def test_headers_stay_what_they_were_whatever_identity_they_name(identities: list[bytes]) -> None:
    """An entry's own identity is kept once, as an id, and written into the line again."""
    headers = (*HEADERS[:2], *((HEADERS[4][0], identity) for identity in identities), HEADERS[3])
    tier, key = MemoryTier(1 << 20), Key(os.urandom(32), os.urandom(32))
    for _ in range(2):  # the second finds what it has in common with the first
        kept = entry(1, headers=headers)
        assert tier.put(key.name, kept)
        assert kept.headers == headers
        elsewhere = unseal(key, seal(key, kept))
        assert elsewhere is not None
        assert elsewhere.headers == headers


def test_the_collector_has_nothing_to_visit_in_entries() -> None:
    """A tuple each, visited or not yet found out to hold nothing, stopped a node with a million for up to 64 ms."""
    tier = MemoryTier(1 << 24)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        kept = sum(tier.put(os.urandom(32), with_own_identity(number)) for number in range(1000))
        tracked = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert kept == 1000
    assert tracked < 100


# Fills a tier ten times over and tells what the process takes; argv: bound, seed.
FILLING = """
import json, os, random, sys
import cache_node.app  # all that `cache-node serve` imports
import psutil
from cache_node.sessions.entry import Entry
from cache_node.sessions.memory_tier import MemoryTier

bound, dice = int(sys.argv[1]), random.Random(int(sys.argv[2]))
before = psutil.Process().memory_info().rss
tier = MemoryTier(bound)
put = peak = largest = number = 0
while put < 10 * bound:
    # Half of them small, as sessions are, half of any size.
    size = dice.randint(200, 3000) if dice.random() < 0.5 else dice.randint(200, 200_000)
    number += 1
    headers = tuple((b"x-name-%d" % i, os.urandom(20)) for i in range(5))
    ids = "%036d" % number, "%036d" % -number
    entry = Entry.of(os.urandom(8) * (size // 8), headers, *ids, 2e9, 1.8e9, 1 << 50, number)
    name = number.to_bytes(32, "little")
    tier.put(name, entry)
    tier.get(dice.randint(max(1, number - 500), number).to_bytes(32, "little"))
    put += size
    largest = max(largest, tier.size_bytes)
    if number % 64 == 0:
        peak = max(peak, psutil.Process().memory_info().rss)
print(json.dumps({"before": before, "peak": peak, "largest": largest, "entries": len(tier), "put": number}))
"""

MEBIBYTE = 1 << 20


@pytest.mark.parametrize("mebibytes", [16, 64])
@pytest.mark.process
def test_resident_memory_stays_below_twice_the_bound_and_64_mebibytes(mebibytes: int) -> None:
    """The whole process, with everything that `serve` imports, while the tier is filled ten times over."""
    bound = mebibytes * MEBIBYTE
    done = subprocess.run(
        [sys.executable, "-c", FILLING, str(bound), "8"], check=True, capture_output=True, text=True, timeout=60
    )
    took = json.loads(done.stdout)
    print({name: f"{value / MEBIBYTE:.1f} MiB" for name, value in took.items() if name not in ("entries", "put")})

    assert took["largest"] <= bound
    assert took["peak"] < 2 * bound + 64 * MEBIBYTE
