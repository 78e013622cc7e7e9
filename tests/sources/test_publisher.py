"""Publishers, against a real Valkey: what they write, when they give up, and what threads and forks do to them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from cache_node import AsyncPublisher, Position, Publisher, Receipt
from cache_node.embedded import EmbeddedValkey
from cache_node.environment import PublisherSettings
from cache_node.errors import ConfigurationError, FeedUnavailableError, InvalidEventError
from cache_node.feed.events import ENTRY_EVENTS, MAX_EVENTS, Event, EventType
from cache_node.feed.follower import FeedState
from cache_node.feed.log import CONNECTIONS, RedisLog
from cache_node.feed.names import RedisNames
from cache_node.sources import publisher as publisher_module
from cache_node.sources.turns import ROWS_TOGETHER
from tests.fakes import Gate, changed, revoked
from tests.feed.conftest import commanding, connected, frozen
from tests.feed.test_follower import running
from tests.proxy import Proxy
from tests.waiting import eventually, eventually_blocking

CHECKOUT = Path(__file__).parents[2]
ALLOWED_SECONDS = 5.0
"""Within which a publisher says that the feed cannot be written."""


def settings(url: str, names: RedisNames, *, max_staleness: float = 0.5, retain: int = 1_000_000) -> PublisherSettings:
    return PublisherSettings(
        redis_url=url, key_prefix=names.prefix, max_staleness_seconds=max_staleness, feed_events=retain
    )


async def entries(log: RedisLog) -> list[tuple[Event, ...] | None]:
    """All of the feed, oldest first."""
    reading = await log.ask_registry(0)
    back = await log.read_back(Position(reading.generation, reading.number), 10_000)
    return [entry.events for entry in reversed(back)]


# What it writes -------------------------------------------------------------------------------------------------------


async def test_each_call_is_one_event(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """Named as in `POST /invalidations`, with ids normalised, and each at the position that the call returned."""
    upper = "0F8FAD5B-D9CB-469F-A165-70867728950E"
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        positions = [
            await publisher.session_revoked(upper),
            await publisher.session_changed("s", "i"),
            await publisher.identity_changed(upper),
            await publisher.identity_deleted("i"),
            await publisher.flush(),
            await publisher.publish([*revoked(), *changed()]),
        ]
    assert [position.number for position in positions] == [1, 2, 3, 4, 5, 7]
    assert await entries(log) == [
        (Event(EventType.SESSION_REVOKED, upper.lower()),),
        (Event(EventType.SESSION_CHANGED, "s", "i"),),
        (Event(EventType.IDENTITY_CHANGED, None, upper.lower()),),
        (Event(EventType.IDENTITY_DELETED, None, "i"),),
        (Event(EventType.FLUSH),),
        (*revoked(), *changed()),
    ]


def test_the_blocking_one_writes_the_same(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Code without an event loop has the same calls."""
    with Publisher(valkey.url, names.prefix) as publisher:
        positions = [
            publisher.session_revoked("s"),
            publisher.session_changed("s", "i"),
            publisher.identity_changed("i"),
            publisher.identity_deleted("i"),
            publisher.flush(),
            publisher.publish([*revoked(), *changed()]),
        ]
        assert publisher.region_status() == {
            "generation": positions[0].generation,
            "position": str(positions[-1]),
            "nodes": [],
        }
    assert [position.number for position in positions] == [1, 2, 3, 4, 5, 7]


async def test_a_wrong_event_is_not_written(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """Refused before anything is sent: ids that name nothing, no event at all, and more than one call may bring."""
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        with pytest.raises(InvalidEventError, match="session_id"):
            await publisher.session_revoked("")
        with pytest.raises(InvalidEventError, match="identity_id"):
            await publisher.identity_deleted("x" * 129)
        for count in (0, MAX_EVENTS + 1):
            with pytest.raises(InvalidEventError, match="1 to 10000 events"):
                await publisher.publish(changed() * count)
        assert (await publisher.publish(changed() * MAX_EVENTS)).number == MAX_EVENTS
    assert len(await entries(log)) == MAX_EVENTS / ENTRY_EVENTS


async def test_it_trims_to_what_the_settings_retain(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """All who append should agree on it; each applies its own."""
    async with AsyncPublisher(settings=settings(valkey.url, names, retain=10)) as publisher:
        for _ in range(250):
            await publisher.publish(changed())
    assert 10 <= len(await entries(log)) <= 111


@pytest.mark.parametrize("kind", [AsyncPublisher, Publisher])
async def test_without_arguments_it_reads_the_environment(
    valkey: EmbeddedValkey, names: RedisNames, monkeypatch: pytest.MonkeyPatch, kind: type[AsyncPublisher | Publisher]
) -> None:
    """`CACHE_NODE_REDIS_URL` and `CACHE_NODE_KEY_PREFIX`; without a URL it says which variable is missing."""
    with pytest.raises(ConfigurationError, match="CACHE_NODE_REDIS_URL is required"):
        kind()
    monkeypatch.setenv("CACHE_NODE_REDIS_URL", valkey.url)
    monkeypatch.setenv("CACHE_NODE_KEY_PREFIX", names.prefix)
    publisher = kind()
    if isinstance(publisher, Publisher):
        assert (await asyncio.to_thread(publisher.flush)).number == 1
        await asyncio.to_thread(publisher.close)
    else:
        assert (await publisher.flush()).number == 1
        await publisher.aclose()


async def test_many_calls_at_once_all_succeed(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """They wait for a connection rather than fail: a burst of logouts is no outage."""
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        positions = await asyncio.gather(*(publisher.session_revoked(f"s{n}") for n in range(500)))
    assert sorted(position.number for position in positions) == list(range(1, 501))


async def test_an_attempt_begins_when_its_turn_has_come(
    valkey: EmbeddedValkey, names: RedisNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits uses up no attempt: thousands at once would all give up, begin again, and give up again."""
    at_once: list[int] = []
    append, under_way = RedisLog.append, Counter[str]()

    async def counted(log: RedisLog, *args: Any, **options: Any) -> Position:
        under_way["now"] += 1
        at_once.append(under_way["now"])
        try:
            return await append(log, *args, **options)
        finally:
            under_way["now"] -= 1

    monkeypatch.setattr(RedisLog, "append", counted)
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        await asyncio.gather(*(publisher.publish(changed() * ROWS_TOGETHER) for _ in range(20)))
    assert max(at_once) == CONNECTIONS - 1
    assert len(at_once) == 20


def gate_before_appends(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Where each append stops before it is sent."""
    gate = Gate()
    append = RedisLog.append

    async def gated(log: RedisLog, *args: Any, **options: Any) -> Position:
        await gate.passed()
        return await append(log, *args, **options)

    monkeypatch.setattr(RedisLog, "append", gated)
    return gate


async def test_a_publish_whose_turn_does_not_come_fails(
    valkey: EmbeddedValkey, names: RedisNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time, and saying why."""
    gate = gate_before_appends(monkeypatch)
    monkeypatch.setattr(publisher_module, "PUBLISH_DEADLINE_SECONDS", publisher_module.ATTEMPT_SECONDS + 0.1)
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        whole_turns = [changed() * ROWS_TOGETHER] * (CONNECTIONS - 1)
        first = [asyncio.create_task(publisher.publish(events)) for events in whole_turns]
        await gate.arrived()
        with pytest.raises(FeedUnavailableError, match="too many publishes wait"):
            await publisher.flush()
        gate.open()
        await asyncio.gather(*first)


async def test_publishes_at_once_share_an_append_and_each_has_its_own_position(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events end there, in the order of the calls: a round trip for each would be a thirtieth of the speed."""
    appended: list[int] = []
    append = RedisLog.append

    async def counted(log: RedisLog, rows: Sequence[bytes], **options: Any) -> Position:
        appended.append(len(rows))
        return await append(log, rows, **options)

    monkeypatch.setattr(RedisLog, "append", counted)
    batches = [changed(f"s{n}") * (n % 3 + 1) for n in range(200)]
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        positions = await asyncio.gather(*(publisher.publish(batch) for batch in batches))
    assert appended == [399]
    written = [event for events in await entries(log) for event in events or ()]
    assert written == [event for batch in batches for event in batch]
    assert [position.number for position in positions] == list(accumulate(map(len, batches)))


async def test_what_is_wrong_with_one_publish_is_no_others_error(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog
) -> None:
    """An event that cannot be written fails for whoever brought it, and who goes away before the turn writes none."""
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        odd: Any = object()
        wrong = [Event(EventType.SESSION_REVOKED), Event(EventType.SESSION_REVOKED, odd)]
        publishing = [asyncio.create_task(publisher.publish([event])) for event in [*changed(), *wrong, *revoked()]]
        gone = asyncio.create_task(publisher.flush())
        await asyncio.sleep(0)  # all are waiting for the turn that begins now
        gone.cancel()
        results = await asyncio.gather(*publishing, gone, return_exceptions=True)
    assert [type(result) for result in results] == [
        Position,
        InvalidEventError,
        TypeError,
        Position,
        asyncio.CancelledError,
    ]
    assert await entries(log) == [(*changed(), *revoked())]


async def test_who_goes_away_during_the_append_takes_nobody_along(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event may be in the feed, the others' is, and they have their positions."""
    gate = gate_before_appends(monkeypatch)
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        first, second, third = [asyncio.create_task(publisher.session_changed(f"s{n}")) for n in range(3)]
        await gate.arrived()
        first.cancel()
        gate.open()
        assert [(await second).number, (await third).number] == [2, 3]
        assert first.cancelled()
    assert await entries(log) == [(*changed("s0"), *changed("s1"), *changed("s2"))]


async def test_an_append_that_failed_is_repeated_by_each(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each within its own deadline; the error that one is given in the end is no other's object."""
    failures = 1
    append = RedisLog.append

    async def failing(log: RedisLog, *args: Any, **options: Any) -> Position:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise FeedUnavailableError("publishing failed: made to")
        return await append(log, *args, **options)

    monkeypatch.setattr(RedisLog, "append", failing)
    async with AsyncPublisher(valkey.url, names.prefix) as publisher:
        positions = await asyncio.gather(*(publisher.session_revoked(f"s{n}") for n in range(10)))
        assert sorted(position.number for position in positions) == list(range(1, 11))
        failures = 100
        monkeypatch.setattr(publisher_module, "PUBLISH_DEADLINE_SECONDS", publisher_module.ATTEMPT_SECONDS)
        errors = await asyncio.gather(*(publisher.flush() for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["publishing failed: made to"] * 3
    assert len({id(error) for error in errors}) == 3
    assert len([event for events in await entries(log) for event in events or ()]) == 10


async def test_it_shows_the_newest_generation_that_it_knows(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """An emptied server with a slow clock does not give the generation of before again."""
    async with commanding(own_valkey) as redis, AsyncPublisher(own_valkey.url, names.prefix) as publisher:
        future = int(time.time() * 1e6) + 3_600_000_000
        await redis.xadd(names.feed, {"e": b""}, f"{future}-1")
        before = await publisher.flush()
        assert before.generation > future
        await redis.flushall()
        assert (await publisher.flush()).generation > before.generation


# Receipts -------------------------------------------------------------------------------------------------------------


async def test_wait_returns_when_the_old_answer_is_dead(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """In a young generation after the longest lease, later as soon as each node has applied it."""
    async with (
        running(valkey, names, max_staleness=0.5) as node,
        AsyncPublisher(settings=settings(valkey.url, names)) as publisher,
    ):
        await node.reaches(FeedState.FOLLOWING)
        for _ in range(20):
            receipt = await publisher.session_revoked("s", wait=True)
            assert receipt.dead_everywhere
            assert node.fence.has_applied(receipt.position)
            assert [(n.node_id, n.region, n.state) for n in receipt.nodes] == [("node", "default", "applied")]
        assert await publisher.followed_seconds() >= 0.5
        status = await publisher.region_status()
        assert status["nodes"] == [
            {"node_id": "node", "region": "default", "position": status["position"], "state": "applied"}
        ]


async def test_wait_outlasts_a_dead_node(valkey: EmbeddedValkey, names: RedisNames, log: RedisLog) -> None:
    """Its record stands still; once its lease must be over the receipt says so, and the next one need not wait."""
    async with (
        running(valkey, names, max_staleness=0.5) as node,
        AsyncPublisher(settings=settings(valkey.url, names)) as publisher,
    ):
        await node.reaches(FeedState.FOLLOWING)
        await log.confirm(None, 0, "dead a1", "0 0 500000 1 default", 0)
        await eventually_followed(publisher, 0.5)
        receipt = await publisher.session_revoked("s", wait=True)
        assert receipt.dead_everywhere
        assert {n.node_id: n.state for n in receipt.nodes} == {"node": "applied", "dead": "lease_expired"}
        assert 0.3 < receipt.elapsed_seconds < 2.0
        again = await publisher.session_revoked("s", wait=True)
        assert again.dead_everywhere
        assert again.elapsed_seconds < receipt.elapsed_seconds


async def eventually_followed(publisher: AsyncPublisher, seconds: float) -> None:
    async def is_so() -> bool:
        seen.append(await publisher.followed_seconds())
        return seen[-1] >= seconds

    seen: list[float] = []
    await eventually(is_so, lambda: seen[-1])


async def test_wait_without_any_node_takes_the_longest_lease(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A registry that knows nobody proves nothing; whoever was forgotten has no lease any more by then."""
    async with AsyncPublisher(settings=settings(valkey.url, names, max_staleness=0.2)) as publisher:
        receipt = await publisher.flush(wait=True)
        assert receipt.dead_everywhere
        assert receipt.nodes == ()
        assert receipt.elapsed_seconds >= 0.2
        short = await publisher.publish_and_wait(changed(), timeout_seconds=0.05)
        assert not short.dead_everywhere


def test_the_blocking_one_waits_too(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """`wait=True` gives a receipt instead of a position."""
    with Publisher(settings=settings(valkey.url, names, max_staleness=0.1)) as publisher:
        got = publisher.session_revoked("s", wait=True)
    assert isinstance(got, Receipt)
    assert got.dead_everywhere


# A feed that cannot be written ----------------------------------------------------------------------------------------


@pytest.mark.process
async def test_it_gives_up_in_time(names: RedisNames) -> None:
    """A closed or a frozen server: FeedUnavailableError within 5 s, from both publishers, without the URL in it."""

    async def refused(call: Callable[[], Awaitable[object]]) -> str:
        started = time.monotonic()
        with pytest.raises(FeedUnavailableError) as failed:
            await call()
        assert time.monotonic() - started < ALLOWED_SECONDS
        return str(failed.value)

    def url_of(server: EmbeddedValkey) -> str:
        return server.url.replace("redis://", "redis://:a-secret@")

    with EmbeddedValkey() as away, EmbeddedValkey() as asleep:
        urls = [url_of(away), url_of(asleep)]
        away.stop()
        with frozen(asleep):
            publishers = [AsyncPublisher(url, names.prefix) for url in urls]
            blocking = [Publisher(url, names.prefix) for url in urls]
            calls: list[Callable[[], Awaitable[object]]] = [
                *(publisher.flush for publisher in publishers),
                *((lambda p=publisher: asyncio.to_thread(p.flush)) for publisher in blocking),
            ]
            texts = await asyncio.gather(*(refused(call) for call in calls))
        for publisher in publishers:
            await publisher.aclose()
        for sync in blocking:
            await asyncio.to_thread(sync.close)
    assert all("a-secret" not in text and "redis://" not in text and "\n" not in text for text in texts)


async def test_a_stall_costs_time_and_no_event(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A server that is away for less than the deadline is asked again: the call succeeds, and its position is true."""
    async with AsyncPublisher(own_valkey.url, names.prefix) as publisher, connected(own_valkey, names) as log:
        await publisher.session_changed("before")
        with frozen(own_valkey):
            publishing = asyncio.create_task(publisher.session_revoked("s"))
            done, _ = await asyncio.wait({publishing}, timeout=1.2)
            assert not done
        position = await publishing
        written = await log.read_back(position, 1)
        assert written[0].number == position.number
        assert written[0].events == tuple(revoked("s"))


async def test_a_lost_reply_means_twice_never_not_at_all(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog
) -> None:
    """The event is in the feed, its reply is not here: it is written again, and the position is that of the second."""
    async with Proxy(valkey.url) as proxy, AsyncPublisher(proxy.url, names.prefix) as publisher:
        await publisher.session_changed("before")
        proxy.hold_replies()
        publishing = asyncio.create_task(publisher.session_revoked("s"))

        async def is_written() -> bool:
            return len(await entries(log)) > 1

        await eventually(is_written, lambda: publishing)
        proxy.cut()
        proxy.release_replies()
        proxy.mend()
        position = await publishing
    assert await entries(log) == [tuple(changed("before")), tuple(revoked("s")), tuple(revoked("s"))]
    assert position.number == 3


# Threads --------------------------------------------------------------------------------------------------------------


def threads_of_publishers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "cache-node-publisher"]


def test_any_thread_may_publish(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Together they use one background thread, which ends with `close`."""
    with Publisher(valkey.url, names.prefix) as publisher:
        assert threads_of_publishers() == []
        with ThreadPoolExecutor(16) as pool:
            positions = list(pool.map(lambda n: publisher.session_revoked(f"s{n}"), range(200)))
        assert len(threads_of_publishers()) == 1
    assert sorted(position.number for position in positions) == list(range(1, 201))
    assert threads_of_publishers() == []


def test_closed_is_not_the_end(valkey: EmbeddedValkey, names: RedisNames) -> None:
    """Closing twice is fine, and the next call begins anew."""
    publisher = Publisher(valkey.url, names.prefix)
    publisher.close()
    assert publisher.flush().number == 1
    publisher.close()
    publisher.close()
    assert publisher.flush().number == 2
    publisher.close()
    assert threads_of_publishers() == []


def test_closing_lets_calls_of_other_threads_end(own_valkey: EmbeddedValkey, names: RedisNames) -> None:
    """A call under way gets its answer, or its error in time; it is not left waiting for a loop that has stopped."""
    publisher = Publisher(own_valkey.url, names.prefix)
    publisher.flush()
    with ThreadPoolExecutor(1) as pool:
        with frozen(own_valkey):
            under_way = pool.submit(publisher.flush)
            eventually_blocking(under_way.running, lambda: under_way)
            closing = threading.Thread(target=publisher.close)
            closing.start()
        assert under_way.result(timeout=ALLOWED_SECONDS).number >= 2
        closing.join(ALLOWED_SECONDS)
        assert not closing.is_alive()


# Forks ----------------------------------------------------------------------------------------------------------------

FORKING = """
import asyncio, gc, os, sys, threading
from cache_node import Publisher

publisher = Publisher(sys.argv[1], sys.argv[2])
publisher.session_revoked("parent-1")
if sys.argv[3] == "lock held":  # by a thread that the child does not have
    threading.Thread(target=publisher._lock.acquire).start()
pid = os.fork()
if pid == 0:
    publisher.session_revoked("child-1")
    # What it inherited is garbage now, which a running loop may collect.
    asyncio.run_coroutine_threadsafe(asyncio.to_thread(gc.collect), publisher._running._loop).result()

    async def collect():
        gc.collect()

    asyncio.run_coroutine_threadsafe(collect(), publisher._running._loop).result()
    asyncio.run(collect())
    publisher.session_revoked("child-2")
    publisher.close()
    os._exit(0)
if sys.argv[3] == "lock held":
    publisher._lock.release()
status = os.waitpid(pid, 0)[1]
for number in range(2, 5):
    publisher.session_revoked(f"parent-{number}")
publisher.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("case", ["plain", "lock held"])
async def test_a_forked_child_publishes_and_so_does_its_parent(
    valkey: EmbeddedValkey, names: RedisNames, log: RedisLog, case: str
) -> None:
    """Each process has connections of its own; whatever the child does with what it inherited, the parent goes on.

    An event that is there twice would tell of a connection that stopped answering.
    """
    done = await asyncio.to_thread(run_python, FORKING, valkey.url, names.prefix, case)
    assert (done.returncode, done.stderr) == (0, "")
    published = [events[0].session_id for events in await entries(log) if events]
    assert published == ["parent-1", "child-1", "child-2", "parent-2", "parent-3", "parent-4"]


# What importing it loads ----------------------------------------------------------------------------------------------

IMPORTING = """
import sys
import msgpack, redis.asyncio  # which load cryptography where it is installed
own = set(sys.modules)
from cache_node import AsyncPublisher, Position, Publisher, Receipt, ReceiptNode
loaded = set(sys.modules) - own
print(*sorted({".".join(name.split(".")[:2]) for name in loaded if name.startswith("cache_node.")}))
print(*sorted({name.partition(".")[0] for name in loaded} - sys.stdlib_module_names - {"cache_node"}))
"""


@pytest.mark.process
def test_importing_the_publisher_loads_nothing_of_the_node() -> None:
    """An origin service gets redis and msgpack with it, and no web server, whatever else is installed."""
    done = run_python(IMPORTING)
    assert (done.returncode, done.stderr) == (0, "")
    ours, others = done.stdout.splitlines()
    assert set(ours.split()) <= {f"cache_node.{room}" for room in ("environment", "errors", "feed", "sources")}
    assert others == ""


def test_creating_a_publisher_connects_to_nothing() -> None:
    """It may be made at import time of a service, before the feed is there."""
    publisher = Publisher("redis://127.0.0.1:1")
    assert threads_of_publishers() == []
    publisher.close()


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CACHE_NODE_")}
    command: list[Any] = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *arguments]
    return subprocess.run(command, cwd=CHECKOUT, env=environ, capture_output=True, text=True, timeout=30, check=False)
