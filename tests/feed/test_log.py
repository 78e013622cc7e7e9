"""The feed's commands and scripts, against a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgpack
import pytest
import uvloop
from redis.exceptions import ResponseError

from cache_node import AsyncPublisher
from cache_node.embedded import EmbeddedValkey
from cache_node.errors import FeedUnavailableError
from cache_node.feed import scripts
from cache_node.feed.events import ENTRY_EVENTS, ENTRY_FIELD, Event, EventType, FeedEntry, decode, encode, pack
from cache_node.feed.log import PAGE_ENTRIES, PAGE_EVENTS, WAKE_ENTRIES, Confirmation, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.position import Position
from tests.fakes import changed, flush, identity_changed, revoked
from tests.feed.conftest import commanding, connected, frozen, in_step
from tests.proxy import Proxy
from tests.waiting import eventually

NODE_ENTRIES = 100
"""stream-node-max-entries: entries that a lazy trim may leave beyond what it was asked to keep."""


async def append(log: RedisLog, events: list[Event] | None = None, shown: int = 0, retain: int = 1_000_000) -> Position:
    rows = [pack(event) for event in events or changed()]
    return await log.append(rows, source="test", shown_generation=shown, retain=retain)


async def confirm(log: RedisLog, applied: Position | None = None, shown: int = 0, followed_us: int = 0) -> Confirmation:
    generation, number = (applied.generation, applied.number) if applied else (0, 0)
    record = f"{generation} {number} 2000000 1 default"
    return await log.confirm(applied, shown, "node a1", record, followed_us)


async def numbers(redis: Any, names: RedisNames) -> list[int]:
    return [Position.parse(id_).number for id_, _ in await redis.xrange(names.feed)]


CALLS: dict[str, Callable[[RedisLog], Awaitable[object]]] = {
    "append": append,
    "confirm": lambda log: confirm(log, Position(1, 1)),
    "ask_registry": lambda log: log.ask_registry(0),
    "forget": lambda log: log.forget(b"node a1", b"record"),
}
READS: dict[str, Callable[[RedisLog], Awaitable[object]]] = {
    **CALLS,
    "wake_up": lambda log: log.wake_up(Position(2**62, 1), 0.01),
    "read_back": lambda log: log.read_back(Position(2**62, 1), 10),
}
each_writing_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
each_call = pytest.mark.parametrize("call", READS.values(), ids=READS)


# Append ---------------------------------------------------------------------------------------------------------------


async def test_the_position_is_the_stream_id(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Number counts events, not entries, and `generation-number` is the id of the entry in the stream."""
    positions = [await append(log, events) for events in (changed(), changed() * 3, flush())]
    assert [position.number for position in positions] == [1, 4, 5]
    assert len({position.generation for position in positions}) == 1
    ids = [id_.decode() for id_, _ in await redis.xrange(names.feed)]
    assert ids == [str(position) for position in positions]


async def test_an_entry_holds_its_events_source_and_time(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """One field of msgpack: version, the server's time in µs, who wrote it, and the events as they were given."""
    events = [*revoked("ä"), *identity_changed("i"), *flush(), Event(EventType.SESSION_CHANGED, "s", "i")]
    before = time.time()
    await append(log, events)
    (_, fields) = (await redis.xrange(names.feed))[0]
    version, written_us, source, _rows = msgpack.unpackb(fields[ENTRY_FIELD])
    assert (version, source) == (1, "test")
    assert before - 1 <= written_us / 1e6 <= time.time() + 1
    assert decode(fields[ENTRY_FIELD]) == tuple(events)


async def test_ten_thousand_events_are_entries_of_a_hundred(log: RedisLog) -> None:
    """As many as one publish call may bring: written at once, in entries that a page can hold some of."""
    at = (await confirm(log)).end
    position = await append(log, [Event(EventType.SESSION_REVOKED, f"{n:0128}") for n in range(9_950)])
    entries: list[FeedEntry] = []
    while at != position:
        reply = await confirm(log, at)
        assert reply.end == position
        entries += reply.entries
        at = Position(at.generation, entries[-1].number)
    assert [entry.number for entry in entries] == [*range(ENTRY_EVENTS, 9_901, ENTRY_EVENTS), 9_950]
    ids = [event.session_id for entry in entries for event in entry.events or ()]
    assert ids == [f"{n:0128}" for n in range(9_950)]


async def test_publishers_at_once_leave_no_gap(valkey: EmbeddedValkey, names: RedisNames, redis: Any) -> None:
    """Each entry's number less its count is the number before it, whoever wrote them and in whatever order."""
    sizes = random.Random(7).choices(range(1, 6), k=200)
    async with connected(valkey, names) as one, connected(valkey, names) as two:
        await asyncio.gather(*(append((one, two)[n % 2], changed() * size) for n, size in enumerate(sizes)))
    last = 0
    for id_, fields in await redis.xrange(names.feed):
        events = decode(fields[ENTRY_FIELD])
        assert events is not None
        assert Position.parse(id_).number - len(events) == last
        last += len(events)
    assert last == sum(sizes)


@pytest.mark.parametrize("size", [1, 7])
async def test_trimming_keeps_what_it_should_and_little_more(
    log: RedisLog, redis: Any, names: RedisNames, size: int
) -> None:
    """At least the last N events stay, and beyond them no more than one node of the stream."""
    for _ in range(600):
        await append(log, changed() * size, retain=100 * size)
    left = await numbers(redis, names)
    last = 600 * size
    assert left[-1] == last
    assert left == list(range(left[0], last + size, size)), "trimmed from the old end only"
    assert left[0] <= last - 100 * size
    assert len(left) <= 101 + NODE_ENTRIES


# Generations ----------------------------------------------------------------------------------------------------------


async def stored(redis: Any, names: RedisNames) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await redis.hgetall(names.generation)
    return found


@pytest.mark.parametrize("publishes_first", [True, False])
async def test_flushall_begins_another_generation(
    own_valkey: EmbeddedValkey, names: RedisNames, publishes_first: bool
) -> None:
    """The server's identity stays, its data does not: whoever comes first, even without having seen the one before."""
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        before = await append(log)
        await redis.flushall()
        after = await append(log) if publishes_first else (await confirm(log)).end
        assert after.generation > before.generation
        assert after.number == (1 if publishes_first else 0)


@pytest.mark.parametrize("publishes_first", [True, False])
@pytest.mark.process
async def test_empty_restart_begins_another_generation(names: RedisNames, publishes_first: bool) -> None:
    """A new process without data on the same address."""
    with EmbeddedValkey() as first:
        port = first.port
        async with connected(first, names) as log:
            before = await append(log)
            first.stop()
            with EmbeddedValkey(port=port):
                with contextlib.suppress(FeedUnavailableError):
                    await log.read_back(before, 1)  # may find out that the connection died
                after = await append(log) if publishes_first else (await confirm(log)).end
            assert after.generation > before.generation
            assert after.number == (1 if publishes_first else 0)


async def test_generations_do_not_count(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A counter that begins anew with every empty server would give the same generation again, to somebody else."""
    seen = []
    began = time.time()
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        for _ in range(5):
            seen.append((await append(log)).generation)
            await redis.flushall()
    assert seen == sorted(set(seen))
    assert seen[0] >= began * 1e6


async def test_promoted_replica_begins_another_generation(
    primary_and_replica: tuple[EmbeddedValkey, EmbeddedValkey], names: RedisNames
) -> None:
    """The numbers that a replica did not get would be given again: its first script, an append here, begins anew."""
    primary, replica = primary_and_replica
    async with (
        connected(primary, names) as old,
        connected(replica, names) as new,
        commanding(primary) as first,
        commanding(replica) as second,
    ):
        await append(old)
        await append(old)
        await in_step(first, second)
        await second.replicaof("NO", "ONE")
        lost = await append(old)  # the node applied it, the replica never got it
        published = await append(new, revoked())
        assert (lost.number, published.number) == (3, 1), "the number of the lost entry was given again"
        assert published.generation > lost.generation
        reply = await confirm(new, lost, lost.generation)
        assert (reply.end, reply.entries) == (published, ())
        assert await numbers(second, names) == [1], "the generation before is gone from the stream"


async def test_promoted_replica_begins_another_generation_at_a_confirm(
    primary_and_replica: tuple[EmbeddedValkey, EmbeddedValkey], names: RedisNames
) -> None:
    """The other order: a node comes first."""
    primary, replica = primary_and_replica
    async with connected(primary, names) as old, connected(replica, names) as new, commanding(replica) as second:
        before = await append(old)
        async with commanding(primary) as first:
            await in_step(first, second)
        await second.replicaof("NO", "ONE")
        reply = await confirm(new, before, before.generation)
        assert reply.end.generation > before.generation
        assert (reply.end.number, reply.entries) == (0, ())
        assert await append(new) == Position(reply.end.generation, 1)


async def test_generation_stays_while_the_server_does(log: RedisLog) -> None:
    """Neither time nor what callers show changes it on a server that has one."""
    first = await append(log)
    assert (await append(log, shown=first.generation + 99)).generation == first.generation
    assert (await confirm(log, first, first.generation + 99)).end == Position(first.generation, 2)
    assert (await log.ask_registry(first.generation + 99)).generation == first.generation


@pytest.mark.parametrize("emptied", [False, True], ids=["with entries", "trimmed to nothing"])
async def test_clock_stepped_back_and_hash_lost(log: RedisLog, redis: Any, names: RedisNames, emptied: bool) -> None:
    """Ids of a stream must rise: what it says itself counts, where neither the hash nor the clock does."""
    future = int(time.time() * 1e6) + 3_600_000_000
    await redis.xadd(names.feed, {"e": b""}, f"{future}-9")
    if emptied:
        await redis.xtrim(names.feed, maxlen=0, approximate=False)
    begun = (await confirm(log)).end
    assert (begun.generation > future, begun.number) == (True, 0)
    assert await append(log) == Position(begun.generation, 1)
    assert await numbers(redis, names) == [1]


async def test_a_caller_may_show_a_generation_from_the_future(log: RedisLog) -> None:
    """A server with a slow clock gives none that some node knows already."""
    future = int(time.time() * 1e6) + 3_600_000_000
    begun = (await confirm(log, shown=future)).end
    assert (begun.generation > future, begun.number) == (True, 0)


@pytest.mark.parametrize("call", ["append", "confirm", "ask_registry"])
async def test_a_server_emptied_twice_with_a_slow_clock_gives_two_generations(
    log: RedisLog, redis: Any, names: RedisNames, call: str
) -> None:
    """Those who were cut off show what those who were not have shown before: the numbers must not be the same again."""
    future = int(time.time() * 1e6) + 3_600_000_000
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "append": lambda: append(log, shown=future),
        "confirm": lambda: confirm(log, shown=future),
        "ask_registry": lambda: log.ask_registry(future),
    }
    seen = set()
    for _ in range(5):
        await calls[call]()
        seen.add((await confirm(log)).end.generation)
        await redis.delete(names.generation, names.feed, names.nodes)
    # Five of 2^20: two are the same once in a hundred thousand runs.
    assert len(seen) == 5


async def test_half_a_hash_is_none(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Whoever deletes a part of what is stored gets a new generation, not a wrong one."""
    for part in ("replid", "generation", "number"):
        before = await append(log)
        await redis.hdel(names.generation, part)
        await redis.xtrim(names.feed, maxlen=0, approximate=False)
        assert (await confirm(log, before, before.generation)).end.generation > before.generation


@pytest.mark.parametrize("garbage", ["garbage", "", "inf", "nan", "9" * 30])
async def test_garbage_in_a_hash_is_nothing(log: RedisLog, redis: Any, names: RedisNames, garbage: str) -> None:
    """It is as good as lost: a new generation, or one that nobody has followed, and no feed that stays away."""
    for part in ("generation", "number", "followed"):
        before = await append(log)
        await redis.xtrim(names.feed, maxlen=0, approximate=False)
        await redis.hset(names.generation, part, garbage)
        assert (await log.ask_registry(before.generation)).followed_seconds == 0.0
        end = (await confirm(log, before, before.generation, 5_000_000)).end
        assert (end.generation > before.generation) is (part != "followed")
        assert await append(log) == Position(end.generation, end.number + 1)
    assert (await log.ask_registry(0)).followed_seconds == 5.0


async def test_how_long_a_generation_was_followed(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """It is as old as the longest that a node says which has applied exactly that one, and starts at nothing."""
    first = (await confirm(log, followed_us=9_000_000)).end
    assert (await log.ask_registry(0)).followed_seconds == 0.0, "nobody can have followed it"
    await confirm(log, first, first.generation, 5_000_000)
    await confirm(log, first, first.generation, 4_000_000)
    await confirm(log, Position(first.generation - 1, 0), first.generation, 8_000_000)
    await confirm(log, Position(first.generation + 1, 0), first.generation + 1, 8_000_000)
    assert (await log.ask_registry(0)).followed_seconds == 5.0
    await redis.delete(names.generation)
    await confirm(log, first, first.generation, 9_000_000)
    assert (await log.ask_registry(0)).followed_seconds == 0.0, "another generation is another one"


# Confirm and read -----------------------------------------------------------------------------------------------------


async def test_confirm_returns_what_comes_after_the_position(log: RedisLog) -> None:
    """The feed's end, and the entries behind the position that was shown, oldest first; none without a position."""
    start = (await confirm(log)).end
    await append(log, changed() * 2)
    await append(log, revoked())
    reply = await confirm(log)
    assert (reply.end, reply.entries) == (Position(start.generation, 3), ())
    reply = await confirm(log, start)
    assert [(entry.number, entry.events) for entry in reply.entries] == [
        (2, tuple(changed() * 2)),
        (3, tuple(revoked())),
    ]
    assert [entry.number for entry in (await confirm(log, Position(start.generation, 2))).entries] == [3]
    assert (await confirm(log, reply.end)).entries == ()


async def test_confirm_returns_a_page_at_most(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """A node that was away for long gets the oldest page first, and the true end with it."""
    start = (await confirm(log)).end
    await append(log)
    [(_, row)] = await redis.xrange(names.feed)
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(2, PAGE_ENTRIES + 11):
            _ = pipe.xadd(names.feed, row, f"{start.generation}-{number}")
        _ = pipe.hset(names.generation, "number", PAGE_ENTRIES + 10)
        await pipe.execute()
    reply = await confirm(log, start)
    assert [entry.number for entry in reply.entries] == list(range(1, PAGE_ENTRIES + 1))
    assert reply.end.number == PAGE_ENTRIES + 10
    rest = await confirm(log, Position(start.generation, PAGE_ENTRIES))
    assert [entry.number for entry in rest.entries] == list(range(PAGE_ENTRIES + 1, PAGE_ENTRIES + 11))


def events_of(entries: Iterable[FeedEntry]) -> int:
    return sum(len(entry.events or ()) for entry in entries)


async def test_no_page_holds_more_events_than_are_applied_in_one_step(log: RedisLog) -> None:
    """Whatever mixture of batches and single events it is, however it is read; and all of it is read."""
    start = end = (await confirm(log)).end
    dice = random.Random(11)
    for _ in range(WAKE_ENTRIES + 2):
        end = await append(log, changed() * dice.choice([1, 30, ENTRY_EVENTS, 5 * ENTRY_EVENTS]))
    applied, heard, back = start, start, end
    while applied != end:
        page = (await confirm(log, applied)).entries
        assert 0 < events_of(page) <= PAGE_EVENTS
        applied = Position(end.generation, page[-1].number)
    while heard != end:
        woken = await log.wake_up(heard, 1.0)
        assert 0 < events_of(entry for _, entry in woken) <= PAGE_EVENTS + ENTRY_EVENTS
        assert woken[0][1].number - events_of([woken[0][1]]) == heard.number
        heard = woken[-1][0]
    while back.number:
        page = await log.read_back(back, PAGE_EVENTS)
        assert 0 < events_of(page) < PAGE_EVENTS + ENTRY_EVENTS
        back = Position(end.generation, back.number - events_of(page))


async def test_an_entry_that_is_larger_than_a_page_is_a_page(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Another version may write such a one; it is no gap."""
    start = await append(log)
    payload = encode("test", changed() * 2 * PAGE_EVENTS)
    number = start.number + 2 * PAGE_EVENTS
    await redis.xadd(names.feed, {ENTRY_FIELD: b"\x94\x01\x00" + payload}, f"{start.generation}-{number}")
    await redis.hset(names.generation, "number", number)
    end = await append(log)
    pages = [(await confirm(log, Position(end.generation, shown))).entries for shown in (start.number, number)]
    assert [[(entry.number, events_of([entry])) for entry in page] for page in pages] == [
        [(number, 2 * PAGE_EVENTS)],
        [(end.number, 1)],
    ]
    assert [at.number for at, _ in await log.wake_up(start, 1.0)] == [number, end.number]
    assert [entry.number for entry in await log.read_back(Position(end.generation, number), PAGE_EVENTS)] == [number]


async def test_a_page_is_empty_only_where_events_are_missing(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """However many: the entry that follows them shows it as well."""
    start = await append(log)
    await append(log, changed() * 2 * PAGE_EVENTS)
    last = await append(log)
    await redis.xtrim(names.feed, minid=str(last), approximate=False)
    assert [entry.number for entry in (await confirm(log, start)).entries] == [last.number]
    await redis.xtrim(names.feed, maxlen=0, approximate=False)
    assert (await confirm(log, start)).entries == ()


async def test_end_and_page_are_of_one_moment(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """However fast publishers are, a page that is not full reaches exactly up to the end that comes with it."""
    async with connected(valkey, names) as node, connected(valkey, names) as publisher:
        start = (await confirm(node)).end
        publishing = [asyncio.create_task(append(publisher, changed() * (n % 3 + 1))) for n in range(PAGE_ENTRIES - 6)]
        seen = 0
        while not all(task.done() for task in publishing):
            reply = await confirm(node, start)
            assert (reply.entries[-1].number if reply.entries else 0) == reply.end.number
            seen += bool(reply.entries)
        assert seen > 2, "nothing was published meanwhile"


async def test_confirm_writes_the_record_and_counts_the_records(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Each confirm replaces the process's record; how many there are sets everybody's pace."""
    assert (await log.confirm(None, 0, "node a1", "0 0 2000000 1 default", 0)).nodes == 1
    assert (await log.confirm(None, 0, "node b2", "0 0 2000000 1 default", 0)).nodes == 2
    assert (await log.confirm(None, 0, "node a1", "0 0 2000000 2 default", 0)).nodes == 2
    assert await redis.hgetall(names.nodes) == {
        b"node a1": b"0 0 2000000 2 default",
        b"node b2": b"0 0 2000000 1 default",
    }


async def test_unreadable_entries_are_returned_as_such(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Another field, or a payload of a later version: the number is known, the events are not."""
    start = (await confirm(log)).end
    await redis.xadd(names.feed, {"x": b"1"}, f"{start.generation}-1")
    await redis.xadd(names.feed, {"e": b"\x94\x02\x00\xa1s\x90"}, f"{start.generation}-2")
    await redis.hset(names.generation, "number", 2)
    entries = (await confirm(log, start)).entries
    assert [(entry.number, entry.events) for entry in entries] == [(1, None), (2, None)]


@pytest.mark.parametrize("publishes_first", [True, False])
async def test_an_entry_of_somebody_else_begins_a_generation(
    log: RedisLog, redis: Any, names: RedisNames, publishes_first: bool
) -> None:
    """An XADD by hand takes a number that no script has given: publishing and confirming go on in a new generation."""
    before = await append(log)
    await redis.xadd(names.feed, {"type": "session.revoked"}, "*")
    after = await append(log) if publishes_first else (await confirm(log, before)).end
    assert (after.generation > before.generation, after.number) == (True, int(publishes_first))
    reply = await confirm(log, after)
    assert (reply.end, reply.entries) == (after, ())


@pytest.mark.parametrize("generation", [None, 9_999_999_999_999_999], ids=["the same generation", "beyond numbers"])
async def test_an_entry_of_somebody_else_that_was_deleted_again_ends_no_publishing(
    log: RedisLog, redis: Any, names: RedisNames, generation: int | None
) -> None:
    """The stream remembers its id: events go on in a new generation, where they would be refused for ever."""
    before = await append(log)
    await redis.xdel(names.feed, await redis.xadd(names.feed, {"e": b"junk"}, f"{generation or before.generation}-99"))
    (after,) = await asyncio.gather(append(log), return_exceptions=True)
    assert isinstance(after, Position), after
    assert (after.generation > before.generation, after.number) == (True, 1)
    reply = await confirm(log, Position(after.generation, 0))
    assert (reply.end, [entry.number for entry in reply.entries]) == (after, [1])
    assert (await append(log)).number == 2


@pytest.mark.parametrize("foreign", ["9999999999999999-1", "18446744073709551615-18446744073709551615"])
async def test_a_foreign_entry_from_beyond_all_numbers_repeats_no_generation(
    log: RedisLog, redis: Any, names: RedisNames, foreign: str
) -> None:
    """Beyond 2^53 one and one more are the same number to Lua: generations must not stand still there."""
    seen = [await append(log)]
    for _ in range(3):
        with contextlib.suppress(ResponseError):  # it would not rise above what is there
            await redis.xadd(names.feed, {"e": b"junk"}, foreign)
        await redis.delete(names.generation)
        seen.append((await confirm(log, None, 9_999_999_999_999_999)).end)
    generations = [position.generation for position in seen]
    assert generations == sorted(set(generations))
    assert generations[-1] < 9_000_000_000_000_000
    assert (await append(log)).number == 1


async def test_a_lost_registry_vouches_for_nobody(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """A caller that has followed for long finds no record of its own: whoever else was there is not known any more."""
    start = (await log.confirm(None, 0, "node a1", "0 0 2000000 1 default", 0)).end
    followed = (start, start.generation, "node a1", "0 0 2000000 2 default", 5_000_000)
    assert not (await log.confirm(*followed)).registry_was_lost
    assert (await log.ask_registry(start.generation)).followed_seconds == 5.0
    await redis.delete(names.nodes)
    assert (await log.confirm(*followed)).registry_was_lost
    assert (await log.ask_registry(start.generation)).followed_seconds == 0.0


async def test_wake_up_waits_for_what_comes(log: RedisLog, valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Nothing new: nothing after the block.  An event: its position and events, of whatever generation."""
    start = await append(log)
    assert await log.wake_up(start, 0.001) == []
    waiting = asyncio.create_task(log.wake_up(start, 5.0))
    async with connected(valkey, names) as publisher:
        position = await append(publisher, revoked())
        heard = await waiting
    assert [(at, entry.number, entry.events) for at, entry in heard] == [(position, 2, tuple(revoked()))]
    assert [at.number for at, _ in await log.wake_up(Position(start.generation - 5, 7), 1.0)] == [1, 2]


async def test_wake_up_brings_one_generation_at_a_time(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """A page's numbers are counted from its first one."""
    start = await append(log)
    end = Position(start.generation + 1, 1)
    await redis.xadd(names.feed, {"e": b""}, str(end))
    pages = [await log.wake_up(Position(start.generation, after), 1.0) for after in (0, 1)]
    assert [[at for at, _ in page] for page in pages] == [[start], [end]]


async def test_wake_up_hears_the_next_generation(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A node that waits behind a position of a server that was emptied is woken by the first event after that."""
    async with connected(own_valkey, names) as node, connected(own_valkey, names) as publisher:
        start = await append(publisher)
        waiting = asyncio.create_task(node.wake_up(start, 5.0))
        async with commanding(own_valkey) as redis:
            await eventually(lambda: is_blocked(redis), lambda: "nobody waits")
            await redis.flushall()
        position = await append(publisher)
        assert [at for at, _ in await waiting] == [position]


async def is_blocked(redis: Any) -> bool:
    return bool((await redis.info("clients"))["blocked_clients"])


async def test_read_back_reads_backwards_within_its_generation(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """Newest first, from the position itself on, and nothing of a generation before."""
    start = await append(log)
    await redis.xadd(names.feed, {"e": b""}, f"{start.generation + 1}-1")
    for number in (2, 3, 4):
        await redis.xadd(names.feed, {"e": b""}, f"{start.generation + 1}-{number}")
    before = Position(start.generation + 1, 3)
    assert [entry.number for entry in await log.read_back(before, 10)] == [3, 2, 1]
    assert [entry.number for entry in await log.read_back(before, 2)] == [3, 2]
    assert [entry.number for entry in await log.read_back(Position(start.generation, 9), 10)] == [1]


async def test_forget_takes_what_was_meant(log: RedisLog, redis: Any, names: RedisNames) -> None:
    """A record that was renewed meanwhile belongs to a living process, and stays."""
    await confirm(log)
    await log.forget(b"node a1", b"an older record")
    assert await redis.hlen(names.nodes) == 1
    await log.forget(b"node a1", b"0 0 2000000 1 default")
    assert await redis.hlen(names.nodes) == 0
    await confirm(log)
    await log.forget(b"node a1")
    await log.forget(b"node a1")
    assert await redis.hlen(names.nodes) == 0


async def test_registry_is_read_whole(log: RedisLog) -> None:
    """Generation, last number, and every process that has ever confirmed and not left."""
    end = await append(log)
    await log.confirm(end, end.generation, "node a1", f"{end.generation} 1 2000000 1 eu west", 0)
    await log.confirm(None, 0, "strange", "a record of another version", 0)
    reading = await log.ask_registry(0)
    assert (reading.generation, reading.number) == (end.generation, 1)
    assert [(r.node_id, r.region, r.applied) for r in reading.records] == [("node", "eu west", end)]
    assert reading.unreadable == {b"strange": b"a record of another version"}


# Servers that refuse, forget, or are late -----------------------------------------------------------------------------


@each_writing_call
async def test_a_server_that_forgot_the_script_is_taught_it(
    own_valkey: EmbeddedValkey, names: RedisNames, call: Callable[[RedisLog], Awaitable[object]]
) -> None:
    """NOSCRIPT comes after every restart and failover: the call succeeds all the same, and the next one is short."""
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        await call(log)
        await redis.script_flush()
        await call(log)
        await call(log)


@each_writing_call
async def test_a_replica_answers_nothing_that_counts(
    lasting_pair: tuple[EmbeddedValkey, EmbeddedValkey],
    names: RedisNames,
    call: Callable[[RedisLog], Awaitable[object]],
) -> None:
    """A server that may not write, though it has all data, confirms nothing, proves nothing and takes nothing."""
    primary, replica = lasting_pair
    async with connected(primary, names) as log, commanding(primary) as first, commanding(replica) as second:
        for script in (scripts.APPEND, scripts.CONFIRM, scripts.ASK_REGISTRY, scripts.FORGET):
            await second.script_load(script.text)
        await append(log)
        await confirm(log)
        await first.hset(names.nodes, "node a1", "record")
        await in_step(first, second)
    async with connected(replica, names) as log:
        with pytest.raises(FeedUnavailableError):
            await call(log)


@pytest.mark.parametrize("key", ["feed", "generation", "nodes"])
@each_writing_call
async def test_keys_of_another_kind(
    log: RedisLog, redis: Any, names: RedisNames, call: Callable[[RedisLog], Awaitable[object]], key: str
) -> None:
    """Somebody else's data under our names is an unavailable feed, and is left alone."""
    await append(log)
    name = getattr(names, key)
    await redis.set(name + "-other", "x")
    await redis.rename(name + "-other", name)
    touched = {
        "feed": ["append", "confirm", "ask_registry"],
        "generation": ["append", "confirm", "ask_registry"],
        "nodes": CALLS,
    }[key]
    if next(n for n, c in CALLS.items() if c is call) in touched and not (key == "nodes" and call is append):
        with pytest.raises(FeedUnavailableError, match="WRONGTYPE"):
            await call(log)
    else:
        await call(log)
    assert await redis.get(name) == b"x"


async def test_a_server_without_memory_refuses(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Nothing is written halfway: no event, and no confirm either, whose record would be missing."""
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        await append(log)
        await redis.config_set("maxmemory", 1)
        for call in CALLS.values():
            if call is CALLS["forget"]:
                continue
            with pytest.raises(FeedUnavailableError, match=r"OOM|OutOfMemory"):
                await call(log)
        await redis.config_set("maxmemory", 0)
        assert (await append(log)).number == 2


@pytest.mark.process
async def test_nobody_listens(names: RedisNames) -> None:
    """A connection refused is an unavailable feed, for every call."""
    with EmbeddedValkey() as server:
        url = server.url
    log = RedisLog(url, names, timeout_seconds=1.0)
    for call in READS.values():
        with pytest.raises(FeedUnavailableError):
            await call(log)
    await log.aclose()


@each_call
async def test_a_late_reply_is_no_reply(
    own_valkey: EmbeddedValkey, names: RedisNames, call: Callable[[RedisLog], Awaitable[object]]
) -> None:
    """Every call ends within its deadline, and what the server says afterwards is never taken for the next answer."""
    async with connected(own_valkey, names, timeout_seconds=0.4) as log, connected(own_valkey, names) as patient:
        first = await append(log)
        await call(log)
        with frozen(own_valkey):
            started = time.monotonic()
            with pytest.raises(FeedUnavailableError):
                await call(log)
            assert time.monotonic() - started < 1.0
        end = await append(patient)  # the server is awake again
        for expected in range(end.number + 1, end.number + 4):
            assert await append(log) == Position(first.generation, expected)
            reply = await confirm(log, Position(first.generation, expected - 1), first.generation)
            assert (reply.end.number, [entry.number for entry in reply.entries]) == (expected, [expected])
            assert (await log.ask_registry(0)).number == expected
            assert [entry.number for entry in await log.read_back(reply.end, 1)] == [expected]


@each_call
async def test_a_connection_that_the_server_has_closed_costs_no_call(
    own_valkey: EmbeddedValkey, names: RedisNames, call: Callable[[RedisLog], Awaitable[object]]
) -> None:
    """Its end is noticed when it comes, and the next call makes another."""
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        await call(log)
        await redis.client_kill_filter(_type="normal", skipme=True)
        for _ in range(3):
            await redis.ping()  # a round trip later the end of the other connections has come
        (said,) = await asyncio.gather(call(log), return_exceptions=True)
        assert not isinstance(said, BaseException), said


async def reset(link: Proxy) -> None:
    """Its connections, while they rest; new ones are made again."""
    link.cut()
    for _ in range(10):  # turns of the loop, for the reset to arrive
        await asyncio.sleep(0)
    link.mend()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_connection_that_was_reset_while_it_rested_costs_one_call_at_most(
    valkey: EmbeddedValkey, names: RedisNames, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """That one says that the feed is unavailable, on any event loop, so that a publisher repeats it."""

    async def scenario() -> None:
        async with (
            Proxy(valkey.url) as link,
            connected(link.url, names) as log,
            AsyncPublisher(link.url, names.prefix) as publisher,
        ):
            for call in (lambda: append(log), lambda: log.ask_registry(0), lambda: log.forget(b"node")):
                await call()
                await reset(link)
                (said,) = await asyncio.gather(call(), return_exceptions=True)
                assert isinstance(said, FeedUnavailableError) or not isinstance(said, BaseException), repr(said)
                await call()
            for _ in range(2):
                await publisher.flush()
                await reset(link)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 20.0))


@each_call
async def test_a_cancelled_call_leaves_nothing_behind(
    own_valkey: EmbeddedValkey, names: RedisNames, call: Callable[[RedisLog], Awaitable[object]]
) -> None:
    """A node that stops, or a client that goes away, cancels calls under way: their replies are nobody's."""
    async with connected(own_valkey, names) as log:
        first = await append(log)
        await call(log)
        with frozen(own_valkey):
            under_way = asyncio.ensure_future(call(log))
            for _ in range(20):
                await asyncio.sleep(0)  # the command leaves; the server is asleep, so no reply comes
            under_way.cancel()
            with pytest.raises(asyncio.CancelledError):
                await under_way
        before = (await log.ask_registry(0)).number
        assert await append(log) == Position(first.generation, before + 1)
        assert (await log.ask_registry(0)).number == before + 1


async def test_a_call_is_sent_once(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A library that repeats by itself writes an event twice, and makes a deadline of its own.

    Who may repeat a call does so itself.
    """
    async with Proxy(own_valkey.url) as proxy, connected(own_valkey, names) as direct:
        start = (await confirm(direct)).end
        async with connected(proxy.url, names) as log:
            await append(log)
            proxy.hold_replies()
            publishing = asyncio.create_task(append(log, revoked()))
            await asyncio.wait_for(proxy.held.wait(), 5.0)
            proxy.cut()
            proxy.release_replies()
            proxy.mend()
            with pytest.raises(FeedUnavailableError):
                await publishing
        assert [entry.number for entry in (await confirm(direct, start)).entries] == [1, 2]


async def test_a_paused_server_costs_one_deadline_and_the_next_call_succeeds(
    own_valkey: EmbeddedValkey, names: RedisNames
) -> None:
    """CLIENT PAUSE, as a failover does it, is a stall like any other."""
    async with connected(own_valkey, names, timeout_seconds=0.3) as log, commanding(own_valkey) as redis:
        end = await append(log)
        await redis.client_pause(600)
        with pytest.raises(FeedUnavailableError, match=r"^publishing failed: \w+"):
            await append(log)

        async def works() -> bool:
            try:
                return (await log.ask_registry(0)).number >= end.number
            except FeedUnavailableError:
                return False

        await eventually(works, lambda: "still paused")


@pytest.mark.process
async def test_a_restarted_server_costs_one_call_at_most(names: RedisNames) -> None:
    """A connection that died is dropped by the call that notices it: the next one is on a new connection."""
    with EmbeddedValkey() as first:
        port = first.port
        async with connected(first, names) as log:
            await append(log)
            first.stop()
            with EmbeddedValkey(port=port):
                with contextlib.suppress(FeedUnavailableError):
                    await confirm(log)
                assert (await confirm(log)).end.number == 0


# What errors say ------------------------------------------------------------------------------------------------------


@each_writing_call
async def test_errors_say_why_and_quote_no_argument(
    own_valkey: EmbeddedValkey, call: Callable[[RedisLog], Awaitable[object]]
) -> None:
    """The server's own words, in one line, without the command that redis-py would put before them."""
    names = RedisNames("p")
    async with connected(own_valkey, names) as log, commanding(own_valkey) as redis:
        await redis.mset({names.feed: "x", names.nodes: "x"})
        with pytest.raises(FeedUnavailableError) as failed:
            await call(log)
    assert re.fullmatch(r"\w[\w ]+ failed: ResponseError \(WRONGTYPE [^()]*\)", str(failed.value))
    assert not re.search(r"EVALSHA|node a1|2000000|\{p\}", str(failed.value))


PASSWORD = "a-secret-of-the-operator"


@pytest.mark.parametrize("case", ["wrong password", "unknown user", "no server", "asleep"])
async def test_errors_never_show_credentials(own_valkey: EmbeddedValkey, names: RedisNames, case: str) -> None:
    """The text goes to logs and to the publisher's caller: one line, without user, password or URL."""
    url = f"redis://operator:{PASSWORD}@127.0.0.1:{own_valkey.port}"
    async with commanding(own_valkey) as redis:
        if case != "unknown user":
            await redis.execute_command("ACL", "SETUSER", "operator", "on", ">another", "~*", "+@all")
    if case == "no server":
        own_valkey.stop()
    log = RedisLog(url, names, timeout_seconds=0.2)
    try:
        if case == "asleep":
            with frozen(own_valkey), pytest.raises(FeedUnavailableError) as failed:
                await append(log)
        else:
            with pytest.raises(FeedUnavailableError) as failed:
                await append(log)
    finally:
        await log.aclose()
    text = repr(failed.value)
    assert PASSWORD not in text
    assert "operator" not in text
    assert "\\n" not in text
    assert failed.value.__suppress_context__


async def test_errors_quote_no_argument_of_a_command_that_the_server_does_not_know(names: RedisNames) -> None:
    """As one where AUTH was renamed: it repeats the password that came with it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(PASSWORD.encode())
        writer.write(f"-ERR unknown command 'AUTH', with args beginning with: '{PASSWORD}' \r\n".encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        log = RedisLog(f"redis://:{PASSWORD}@127.0.0.1:{port}", names, timeout_seconds=1)
        try:
            for call in (append(log), log.confirm(None, 0, "node a1", "0 0 2000000 1 default", 0)):
                with pytest.raises(FeedUnavailableError, match="unknown command 'AUTH'") as failed:
                    await call
                assert PASSWORD not in repr(failed.value)
        finally:
            await log.aclose()


async def test_a_registry_that_holds_a_new_node_alone_vouches_for_nobody(
    log: RedisLog, redis: Any, names: RedisNames
) -> None:
    """It was lost, and the first to confirm after that has never followed: the others may still hold their leases."""
    start = (await log.confirm(None, 0, "node a1", "0 0 2000000 1 default", 0)).end
    await log.confirm(start, start.generation, "node a1", "0 0 2000000 2 default", 5_000_000)
    await redis.delete(names.nodes)
    await log.confirm(None, 0, "node b2", "0 0 2000000 1 default", 0)
    assert (await log.ask_registry(start.generation)).followed_seconds == 0.0
