"""The redis tier against a real Valkey: how few round trips it takes, and that no trouble with it is ever an error."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis

from cache_node.embedded import EmbeddedValkey
from cache_node.feed.names import RedisNames
from cache_node.sessions import redis_tier, round_trips
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.redis_tier import FEW_READS, MAX_KEYS_A_READ, MAX_KEYS_A_WRITE, MAX_PENDING_WRITES, RedisTier
from cache_node.sessions.round_trips import TIMEOUT_SECONDS
from cache_node.sessions.sealing import seal
from tests.proxy import Proxy
from tests.waiting import eventually

NAMES = RedisNames("prefix")
MAX_PENDING_BYTES = 1_000_000
LOCK_SECONDS = 0.3


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def server(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    """Another client of the same server, which is empty; its counters begin at 0."""
    with redis.Redis(port=valkey.port, socket_timeout=5) as client:
        client.flushall()
        client.config_resetstat()
        yield client


@asynccontextmanager
async def tier_on(url: str, lifetime_seconds: float = 60.0) -> AsyncIterator[RedisTier]:
    tier = RedisTier(
        url, NAMES, lifetime_seconds=lifetime_seconds, max_pending_bytes=MAX_PENDING_BYTES, lock_seconds=LOCK_SECONDS
    )
    try:
        yield tier
    finally:
        await tier.aclose()


@pytest.fixture
async def tier(valkey: EmbeddedValkey) -> AsyncIterator[RedisTier]:
    async with tier_on(valkey.url) as built:
        yield built


def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"), bytes(32))


def entry(number: int = 0) -> Entry:
    return Entry.of(b"body %d" % number, ((b"vary", b"Cookie"),), "s", "i", 2e9, 1.8e9, 1, number)


def calls(server: redis.Redis, command: str) -> int:
    """How often the server has executed it since its counters began."""
    counted: int = server.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]
    return counted


def value_of(server: redis.Redis, number: int) -> bytes | None:
    return server.get(NAMES.entry(key(number).name))  # type: ignore[return-value]


@contextmanager
def stopped(valkey: EmbeddedValkey) -> Iterator[None]:
    """The server stands still."""
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


@contextmanager
def without_memory(server: redis.Redis) -> Iterator[None]:
    """The server takes nothing more."""
    before = {name: value or "" for name, value in server.config_get("maxmemory*").items()}
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("maxmemory", 1)
    try:
        yield
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            server.config_set(name, before[name])


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "commands"),
    [(1, 1), (50, 1), (MAX_KEYS_A_READ, 1), (MAX_KEYS_A_READ + 1, 2), (3 * MAX_KEYS_A_READ, 3)],
)
async def test_all_reads_of_one_turn_are_one_command(
    tier: RedisTier, server: redis.Redis, reads: int, commands: int
) -> None:
    """Of at most 128 keys each: 10,000 in one would hold the server for 9 ms."""
    await asyncio.gather(*(tier.get([key(number)]) for number in range(reads)))

    assert calls(server, "mget") == commands
    assert tier.counts["round_trips"] == commands


async def test_reads_of_two_turns_are_two_commands(tier: RedisTier, server: redis.Redis) -> None:
    """Nobody waits for others that may come."""
    first = asyncio.create_task(tier.get([key(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(tier.get([key(2)]))
    await asyncio.gather(first, second)

    assert calls(server, "mget") == 2


async def ask_in_turns(tier: RedisTier, *asking: int) -> list[asyncio.Task[Entry | None]]:
    """So many reads in each turn of the loop."""
    asked = []
    for number, reads in enumerate(asking):
        asked += [asyncio.create_task(tier.get([key(100 * number + one)])) for one in range(reads)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return asked


@pytest.mark.parametrize(("under_way", "round_trips"), [(FEW_READS, 3), (FEW_READS + 1, 2)])
async def test_while_many_reads_are_under_way_others_are_gathered(
    tier: RedisTier, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, under_way: int, round_trips: int
) -> None:
    """Until the first have their reply; nobody waits for few."""
    monkeypatch.setattr(redis_tier, "GATHER_SECONDS", 60.0)
    assert await tier.get([key(0)]) is None
    tier.counts.clear()
    with stopped(valkey):
        asked = await ask_in_turns(tier, under_way, 1, 1, 1)
    assert await asyncio.gather(*asked) == [None] * (under_way + 3)

    assert (tier.counts["round_trips"], tier.counts["failures"]) == (round_trips, 0)


async def test_reads_are_gathered_for_a_moment_only(
    tier: RedisTier, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that does not come keeps nobody else's question back."""
    monkeypatch.setattr(round_trips, "TIMEOUT_SECONDS", 5.0)
    with stopped(valkey):
        asked = await ask_in_turns(tier, FEW_READS + 1, 1)
        await eventually(lambda: tier.counts["round_trips"] == 2, lambda: dict(tier.counts), 2.0)
        assert not any(reading.done() for reading in asked)
    assert await asyncio.gather(*asked) == [None] * (FEW_READS + 2)


async def test_a_tier_that_ends_tells_those_who_were_gathered(valkey: EmbeddedValkey) -> None:
    """Their question goes out before the connections end."""
    async with tier_on(valkey.url) as tier:
        tier.put(key(100), entry(100))
        await tier.settle()
        asked = await ask_in_turns(tier, FEW_READS + 1, 1)
    assert await asyncio.wait_for(asked[-1], 5.0) == entry(100)


async def test_a_reader_that_fails_keeps_nothing_from_the_others(tier: RedisTier) -> None:
    """Its failure is the loop's to report."""
    tier.put(key(1), entry(1))
    await tier.settle()
    reported: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    failure = RuntimeError("of this reader")

    def fail(_: Entry | None) -> None:
        raise failure

    tier.look_up([key(1)], fail)
    assert await tier.get([key(1)]) == entry(1)
    assert reported == [failure]


async def test_the_keys_of_one_reader_are_one_command(tier: RedisTier, server: redis.Redis) -> None:
    """While secrets rotate there are two; the first that has an entry wins."""
    tier.put(key(1), entry(1))
    tier.put(key(2), entry(2))
    await tier.settle()

    assert await tier.get([key(0), key(2), key(1)]) == entry(2)
    assert calls(server, "mget") == 1


async def test_readers_of_one_key_in_one_turn_are_one_command(tier: RedisTier, server: redis.Redis) -> None:
    """And one that goes away does not take the other's answer with it."""
    tier.put(key(1), entry(1))
    await tier.settle()
    readers = [asyncio.create_task(tier.get([key(1)])) for _ in range(3)]
    await asyncio.sleep(0)
    readers[0].cancel()

    assert await asyncio.gather(*readers[1:]) == [entry(1)] * 2
    assert calls(server, "mget") == 1


async def test_all_writes_of_one_turn_are_one_round_trip(tier: RedisTier, server: redis.Redis) -> None:
    """Puts and discards; the last one of a key counts."""
    for number in range(100):
        tier.put(key(number), entry(number))
    tier.put(key(7), entry(70))
    tier.discard(key(8))
    await tier.settle()

    assert tier.counts["round_trips"] == 1
    assert calls(server, "set") == 99
    assert await tier.get([key(7)]) == entry(70)
    assert value_of(server, 8) is None


# What lies in Redis ---------------------------------------------------------------------------------------------------


async def test_entries_have_a_lifetime(valkey: EmbeddedValkey, server: redis.Redis) -> None:
    """The server forgets them by itself, and evicts them before it refuses an event of the feed."""
    async with tier_on(valkey.url, lifetime_seconds=12.5) as tier:
        tier.put(key(1), entry(1))
        await tier.settle()

    assert 11_000 < server.pttl(NAMES.entry(key(1).name)) <= 12_500


async def test_names_are_below_the_prefix_and_values_say_nothing(tier: RedisTier, server: redis.Redis) -> None:
    """Several origins share a server by their prefixes; who dumps it learns nothing."""
    tier.put(key(1), entry(1))
    await tier.settle()
    (name,) = server.keys()

    assert name == b"prefix:e:" + key(1).name.hex().encode()
    assert b"body" not in (value_of(server, 1) or b"")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda server, name: server.set(name, b""),
        lambda server, name: server.set(name, b"\x01garbage"),
        lambda server, name: server.set(name, seal(key(2), entry(2))),
        lambda server, name: server.set(name, b"\x01" + seal(key(1), entry(1))[1:]),
        lambda server, name: server.append(name, b"x"),
        lambda server, name: server.setrange(name, 20, b"x"),
    ],
    ids=["empty", "garbage", "another key's", "another version", "longer", "changed"],
)
async def test_what_cannot_be_read_is_a_miss(
    tier: RedisTier, server: redis.Redis, spoil: Callable[[redis.Redis, bytes], object]
) -> None:
    """Counted, and the entries beside it are hits."""
    tier.put(key(1), entry(1))
    tier.put(key(3), entry(3))
    await tier.settle()
    spoil(server, NAMES.entry(key(1).name))

    assert await asyncio.gather(*(tier.get([key(number)]) for number in (1, 3))) == [None, entry(3)]
    assert tier.counts["unreadable"] == 1
    assert tier.counts["failures"] == 0


async def test_a_value_of_another_type_is_a_miss_and_is_written_over(tier: RedisTier, server: redis.Redis) -> None:
    """MGET says nothing of it, and SET replaces it."""
    server.lpush(NAMES.entry(key(1).name), b"x")
    assert await tier.get([key(1)]) is None
    tier.put(key(1), entry(1))
    await tier.settle()

    assert await tier.get([key(1)]) == entry(1)


# Trouble --------------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_a_miss() -> None:
    """And writes are dropped; both are counted."""
    async with tier_on("redis://127.0.0.1:1") as tier:
        tier.put(key(1), entry(1))
        assert await tier.get([key(1)]) is None
        await tier.settle()
        assert tier.counts["dropped_writes"] == 1
        assert tier.counts["failures"] == 2


async def test_a_server_that_stands_still_is_a_miss_in_time(
    tier: RedisTier, valkey: EmbeddedValkey, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many round trips wait for it, as if none were gathered: none waits longer."""
    monkeypatch.setattr(redis_tier, "FEW_READS", 1000)
    tier.put(key(1), entry(1))
    await tier.settle()

    async def read() -> float:
        begun = time.monotonic()
        assert await tier.get([key(1)]) is None
        return time.monotonic() - begun

    with stopped(valkey):
        readers = []
        for _ in range(200):
            readers.append(asyncio.create_task(read()))
            await asyncio.sleep(0)
        waited = await asyncio.gather(*readers)
    assert max(waited) < 8 * TIMEOUT_SECONDS, "200 reads over 8 connections, one after another, would take 6 s"
    await eventually(lambda: server.ping() is True)

    assert await tier.get([key(1)]) == entry(1), "and it goes on by itself"


async def test_a_reply_that_comes_too_late_is_nobodys(tier: RedisTier, valkey: EmbeddedValkey) -> None:
    """The server answers after the deadline: what it says then is not taken for the reply to a later read."""
    for number in range(20):
        tier.put(key(number), entry(number))
    await tier.settle()
    with stopped(valkey):
        assert await asyncio.gather(*(tier.get([key(number)]) for number in range(10))) == [None] * 10
    for number in range(10, 20):
        assert await tier.get([key(number)]) == entry(number)
    assert tier.counts["unreadable"] == 0


@pytest.mark.process
async def test_a_server_that_was_restarted_on_its_port() -> None:
    """Its connections are broken, and the next read is a hit all the same."""
    with EmbeddedValkey() as valkey:
        port = valkey.port
        async with tier_on(valkey.url) as tier:
            tier.put(key(1), entry(1))
            await tier.settle()
            assert await tier.get([key(1)]) == entry(1)
            valkey.stop()
            with EmbeddedValkey(port), redis.Redis(port=port) as client:
                client.set(NAMES.entry(key(1).name), seal(key(1), entry(2)))
                assert await tier.get([key(1)]) == entry(2)
                tier.put(key(3), entry(3))
                await tier.settle()
                assert await tier.get([key(3)]) == entry(3)
                assert tier.counts["failures"] == tier.counts["dropped_writes"] == 0


async def test_a_connection_that_breaks_is_tried_once_more(valkey: EmbeddedValkey, server: redis.Redis) -> None:
    """It breaks between command and reply: the read is repeated on a new connection."""
    server.set(NAMES.entry(key(1).name), seal(key(1), entry(1)))
    async with Proxy(valkey.url) as proxy, tier_on(proxy.url) as tier:
        await tier.get([key(2)])
        proxy.hold_replies()
        reading = asyncio.create_task(tier.get([key(1)]))
        await proxy.held.wait()
        proxy.cut()
        proxy.mend()
        proxy.release_replies()

        assert await reading == entry(1)
        assert tier.counts["failures"] == 0
        proxy.cut()
        assert await tier.get([key(1)]) is None, "but not for ever"


async def test_a_server_without_memory_drops_what_is_put(tier: RedisTier, server: redis.Redis) -> None:
    """Reads go on; so do writes, when there is room again."""
    tier.put(key(1), entry(1))
    await tier.settle()
    with without_memory(server):
        tier.put(key(2), entry(2))
        await tier.settle()

    assert tier.counts["dropped_writes"] == 1
    assert await asyncio.gather(*(tier.get([key(number)]) for number in (1, 2))) == [entry(1), None]
    tier.put(key(2), entry(2))
    await tier.settle()
    assert await tier.get([key(2)]) == entry(2)


async def test_a_server_that_refuses_the_client_is_a_miss(valkey: EmbeddedValkey, server: redis.Redis) -> None:
    """Rights are check-config's business; a reader is not told."""
    server.config_set("requirepass", "something")
    try:
        async with tier_on(valkey.url) as tier:
            tier.put(key(1), entry(1))
            await tier.settle()
            assert await tier.get([key(1)]) is None
            assert tier.counts["dropped_writes"] == 1
    finally:
        server.config_set("requirepass", "")


async def test_writes_that_wait_are_bounded(tier: RedisTier, server: redis.Redis) -> None:
    """Those of one turn; what is too much is dropped and counted, and never an error."""
    for number in range(MAX_PENDING_WRITES + 10):
        tier.put(key(number), entry(number))
    await tier.settle()

    assert tier.counts["dropped_writes"] == 10
    assert server.dbsize() == MAX_PENDING_WRITES


async def test_rounds_of_writes_that_wait_are_bounded(tier: RedisTier, valkey: EmbeddedValkey) -> None:
    """A server that stands still must not fill this process' memory."""
    writes = MAX_PENDING_WRITES + MAX_KEYS_A_WRITE + 10
    with stopped(valkey):
        for number in range(writes):
            tier.put(key(number), entry(number))
            await asyncio.sleep(0)
        assert tier.counts["dropped_writes"] >= 10  # a batch at most is on its way, and all that may wait do so
        await tier.settle()
    assert tier.counts["dropped_writes"] == writes


async def test_closing_finishes_the_writes(valkey: EmbeddedValkey, server: redis.Redis) -> None:
    """Those that were put in the very same turn, too."""
    async with tier_on(valkey.url) as tier:
        tier.put(key(1), entry(1))

    assert value_of(server, 1) is not None
    await eventually(lambda: len(server.client_list()) == 1, server.client_list)


async def test_what_was_put_first_never_comes_last(
    valkey: EmbeddedValkey, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A discard right behind a put, on a slow link: over two connections the put would win now and then."""
    monkeypatch.setattr(redis_tier, "WRITE_PAUSE_SECONDS", 0.0)  # which would put both into one batch
    async with Proxy(valkey.url) as link, tier_on(link.url) as tier:
        for number in range(30):
            tier.put(key(number), entry(number))
            await asyncio.sleep(0)
            link.delay_seconds = 0.02 if number % 2 else 0.0
            tier.discard(key(number))
            await asyncio.sleep(0)
        await tier.settle()
        assert tier.counts["dropped_writes"] == 0
    assert server.dbsize() == 0


async def test_a_discard_takes_the_place_of_a_put_that_waits(tier: RedisTier, server: redis.Redis) -> None:
    """However many wait: what the origin contradicts must not be written behind it."""
    for number in range(MAX_PENDING_WRITES):
        tier.put(key(number), entry(number))
    tier.discard(key(7))
    await tier.settle()

    assert (value_of(server, 7), server.dbsize()) == (None, MAX_PENDING_WRITES - 1)


async def test_the_bytes_that_wait_to_be_written_are_bounded(tier: RedisTier, server: redis.Redis) -> None:
    """Bodies of evicted entries would else be kept for as long as Redis stands still, however many and large."""

    def large(number: int, body_bytes: int) -> Entry:
        return Entry.of(bytes(body_bytes), (), "s", "i", 2e9, 1.8e9, 1, number)

    for round_ in range(2):  # what was written waits no more
        for _ in range(3):  # nor does what another of the same turn took the place of
            tier.put(key(0), large(0, 400_000))
        tier.put(key(1), large(1, 400_000))
        tier.put(key(2), large(2, 200_000))
        tier.put(key(3), large(3, 1))
        tier.discard(key(4))
        await tier.settle()
        assert tier.counts["dropped_writes"] == round_ + 1
    tier.put(key(5), large(5, 2 * MAX_PENDING_BYTES))
    await tier.settle()
    assert server.dbsize() == 4, "a single one may be larger"
    assert tier.counts["dropped_writes"] == 2


async def test_a_stall_keeps_no_more_than_may_wait(tier: RedisTier, valkey: EmbeddedValkey) -> None:
    """And once it is over, nothing waits any more."""
    with stopped(valkey):
        for number in range(20):
            tier.put(key(number), Entry.of(bytes(100_000), (), "s", "i", 2e9, 1.8e9, 1, number))
            await asyncio.sleep(0)
        assert tier.counts["dropped_writes"] == 10
        await tier.settle()
        assert tier.counts["dropped_writes"] == 20
    tier.put(key(99), Entry.of(bytes(MAX_PENDING_BYTES), (), "s", "i", 2e9, 1.8e9, 1, 99))
    tier.put(key(98), entry(98))
    await tier.settle()
    assert (tier.counts["writes"], tier.counts["dropped_writes"]) == (1, 21)


# Fill locks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def neighbour(valkey: EmbeddedValkey) -> AsyncIterator[RedisTier]:
    async with tier_on(valkey.url) as built:
        yield built


def lock_of(server: redis.Redis, number: int) -> bytes | None:
    return server.get(NAMES.lock(key(number).name))  # type: ignore[return-value]


async def until_lock(server: redis.Redis, number: int, value: bytes | None) -> None:
    await eventually(lambda: lock_of(server, number) == value, lambda: f"the lock is {lock_of(server, number)!r}", 5.0)


async def test_one_of_two_nodes_has_the_lock(tier: RedisTier, neighbour: RedisTier, server: redis.Redis) -> None:
    """Until it gives it back: then the other one finds what it has put, and takes no lock along for good."""
    assert await tier.get_or_lock([key(1)], 0) == (None, False)
    assert await neighbour.get_or_lock([key(1), key(0)], 0) == (None, True)
    assert await neighbour.get_or_lock([key(2)], 0) == (None, False)
    neighbour.release(key(1), is_kept=False)  # it is not its own
    tier.put(key(1), entry(1))
    tier.release(key(1), is_kept=True)
    await until_lock(server, 1, None)

    assert await neighbour.get_or_lock([key(1)], 1) == (entry(1), False)
    neighbour.release(key(1), is_kept=True)
    await until_lock(server, 1, None)
    assert neighbour.counts["lock_waits"] == 1


async def test_a_lock_and_its_entry_are_one_round_trip(tier: RedisTier, server: redis.Redis) -> None:
    """Of all that are asked for in one turn."""
    await asyncio.gather(*(tier.get_or_lock([key(number)], 0) for number in range(50)), tier.get([key(99)]))

    assert (tier.counts["round_trips"], calls(server, "mget"), calls(server, "set")) == (1, 1, 50)


async def test_after_an_answer_that_nobody_may_keep_nobody_waits(
    tier: RedisTier, neighbour: RedisTier, server: redis.Redis
) -> None:
    """For a while all ask the origin, without a lock; then it is as before."""
    await tier.get_or_lock([key(1)], 0)
    tier.release(key(1), is_kept=False)
    await until_lock(server, 1, b"0")

    assert await neighbour.get_or_lock([key(1)], 0) == (None, False)
    assert await tier.get_or_lock([key(1)], 0) == (None, False)
    neighbour.release(key(1), is_kept=True)
    assert lock_of(server, 1) == b"0"
    await until_lock(server, 1, None)


async def test_the_lock_of_a_dead_node_ends(valkey: EmbeddedValkey, tier: RedisTier) -> None:
    """By itself: who died gives nothing back."""
    async with tier_on(valkey.url) as dying:
        await dying.get_or_lock([key(1)], 0)
    begun = time.monotonic()
    attempt = 0
    while (await tier.get_or_lock([key(1)], attempt))[1]:
        attempt += 1

    assert attempt >= 1
    assert time.monotonic() - begun < LOCK_SECONDS + 2.0


async def test_a_lock_lasts_as_long_as_the_read(tier: RedisTier, server: redis.Redis) -> None:
    """It is renewed while it is held: an origin may be slower than a lock lives."""
    await tier.get_or_lock([key(1)], 0)
    server.pexpire(NAMES.lock(key(1).name), 250)
    left = 250

    def is_renewed() -> bool:
        nonlocal left
        before, left = left, int(str(server.pttl(NAMES.lock(key(1).name))))
        return left > before

    await eventually(is_renewed, lambda: f"{left} ms are left", 5.0)
    tier.release(key(1), is_kept=True)
    await until_lock(server, 1, None)


async def test_who_goes_away_takes_no_lock_along(tier: RedisTier, neighbour: RedisTier, server: redis.Redis) -> None:
    """What nobody will bring is not waited for."""
    reading = asyncio.create_task(tier.get_or_lock([key(1)], 0))
    await asyncio.sleep(0)
    reading.cancel()
    await tier.settle()

    attempt = 0
    while (await neighbour.get_or_lock([key(1)], attempt))[1]:
        attempt += 1
        assert attempt < 200, "it is held for good"


async def test_without_redis_nobody_waits() -> None:
    """There is no lock to be had, so everybody asks the origin."""
    async with tier_on("redis://127.0.0.1:1") as tier:
        assert await tier.get_or_lock([key(1)], 0) == (None, False)


async def test_a_server_without_memory_gives_entries_and_no_locks(tier: RedisTier, server: redis.Redis) -> None:
    """What it still does is enough to find what is there."""
    tier.put(key(1), entry(1))
    await tier.settle()
    with without_memory(server):
        assert await tier.get_or_lock([key(1)], 0) == (entry(1), False)
