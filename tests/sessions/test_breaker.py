"""The breaker: when nobody is let through but trials, and how all come back."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.sessions import breaker as breaker_module
from cache_node.sessions import origin as origin_module
from cache_node.sessions.breaker import FAILURES, Breaker, Turn
from cache_node.sessions.complaints import QUIET_SECONDS
from cache_node.sessions.credential import Credential
from cache_node.sessions.origin import Origin
from tests.fakes import Gate, ManualClock
from tests.raw_origin import OK, REFUSED, Peer, RawOrigin, Reply, gated, http, silence
from tests.sessions.asking import cause, origin_to, outcome, read
from tests.waiting import eventually

READY, NOT_READY = http(200, b'{"status":"ok"}'), http(503)


@pytest.fixture
def no_more_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """One trial follows an opening at once; this takes all further ones away."""
    monkeypatch.setattr(breaker_module, "TRIAL_SECONDS", 3600.0)


@pytest.fixture
def quick_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred a second, for tests that would wait for nothing else."""
    monkeypatch.setattr(breaker_module, "TRIAL_SECONDS", 0.01)
    monkeypatch.setattr(breaker_module, "TRIALS_AT_ONCE", 1000)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a turn waits for as long as it takes on a busy machine."""
    monkeypatch.setattr(origin_module, "QUEUE_SECONDS", 60.0)
    monkeypatch.setattr(breaker_module, "OPEN_WAIT_SECONDS", 60.0)


async def reset_at_once(peer: Peer) -> None:
    peer.reset()


_numbers = itertools.count()


async def fail(origin: Origin, times: int = FAILURES) -> None:
    """So many reads in a row, each for somebody else, without an answer that may be believed."""
    for _ in range(times):
        try:
            answer = await read(origin, Credential("token", b"failing-%d" % next(_numbers)))
        except OriginUnavailableError:
            continue
        assert answer.is_failure


async def _all_is_confirmed(origin: Origin) -> None:
    """A probe that was sent because of failures has answered."""
    if origin._looking is not None:
        await origin._looking


async def opened(origin: Origin) -> None:
    """Failures until the breaker is open, and the one trial that follows at once."""
    await fail(origin)
    await _all_is_confirmed(origin)
    assert origin.is_open
    await fail(origin, 1)


# When it opens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "probe"),
    [
        (reset_at_once, READY),
        (silence, READY),
        (REFUSED, NOT_READY),
        (http(500), NOT_READY),
        (http(503), reset_at_once),
        (b"garbage\r\n\r\n", NOT_READY),
    ],
    ids=["reset", "silence", "refusals in an outage", "500", "503", "garbage"],
)
async def test_it_opens_after_failures_in_a_row(
    server: RawOrigin, reply: Reply, probe: Reply, no_more_trials: None
) -> None:
    """And then the origin is left alone, whatever is wanted of it."""
    server.replies, server.probes = [reply], [probe]
    async with origin_to(server, timeout_seconds=0.05) as origin:
        await fail(origin, FAILURES - 1)
        assert not origin.is_open
        await fail(origin, 1)
        await _all_is_confirmed(origin)
        await fail(origin, 1)
        asked = len(server.requests)

        assert {await outcome(origin, patient=False) for _ in range(20)} == {"open"}
        assert len(server.requests) == asked
        assert asked <= (FAILURES + 1) * (2 if reply is reset_at_once else 1), (
            "what is idempotent is sent once more after a reset"
        )


async def test_an_answer_in_between_starts_the_count_anew(server: RawOrigin) -> None:
    server.replies = [*[http(502)] * (FAILURES - 1), OK] * 4
    async with origin_to(server, ready_path="") as origin:
        for _ in range(3):
            await fail(origin, FAILURES - 1)
            assert not origin.is_open
            assert (await read(origin)).status == 200


@pytest.mark.parametrize(
    ("reply", "seen"),
    [(http(500, b"poison"), "poison"), (reset_at_once, "unreachable"), (silence, "timeout"), (b"?\r\n\r\n", "garbage")],
    ids=["500", "reset", "silence", "garbage"],
)
async def test_what_one_credential_gets_keeps_no_other_out(server: RawOrigin, reply: Reply, seen: str) -> None:
    """An origin that says ready goes on being asked."""
    server.by_token = {b"poison": reply}
    poison = Credential("token", b"poison")
    async with origin_to(server, timeout_seconds=0.02 if reply is silence else 5) as origin:
        for _ in range(4):
            assert [await outcome(origin, poison) for _ in range(FAILURES)] == [seen] * FAILURES
            await _all_is_confirmed(origin)
        assert await outcome(origin, patient=False) == "good"
        assert not origin.is_open
        assert 1 <= server.probed <= 4


async def test_without_readiness_a_5xx_is_a_failure_like_others(server: RawOrigin, no_more_trials: None) -> None:
    server.replies = [http(502)]
    async with origin_to(server, ready_path="") as origin:
        await opened(origin)
        assert await cause(origin, patient=False) == "open"


async def test_a_429_opens_nothing(server: RawOrigin) -> None:
    """It is passed on."""
    server.replies = [http(429)]
    server.probes = [NOT_READY]
    async with origin_to(server) as origin:
        assert {(await read(origin)).status for _ in range(3 * FAILURES)} == {429}
        assert not origin.is_open


@pytest.mark.parametrize("reply", [http(429), http(500), REFUSED], ids=["429", "somebody's 500", "the anonymous 401"])
@pytest.mark.usefixtures("quick_trials")
async def test_an_answer_that_proves_nothing_closes_it_if_a_probe_says_ready(server: RawOrigin, reply: Reply) -> None:
    """Traffic that gets nothing else must not keep the others out."""
    server.replies, server.probes = [reset_at_once], [NOT_READY]

    async def ask() -> None:
        if reply is REFUSED:
            assert (await origin.read_anonymous()).status == 401
        else:
            assert (await read(origin)).is_failure
        await _all_is_confirmed(origin)

    async with origin_to(server) as origin:
        await opened(origin)
        server.replies = [reply]
        await ask()
        assert origin.is_open
        server.probes = [READY]
        await ask()
        assert not origin.is_open


async def test_reads_that_were_cancelled_count_for_nothing(server: RawOrigin) -> None:
    gate = Gate()
    server.replies = [gated(gate, OK)]
    async with origin_to(server) as origin:
        reads = [asyncio.create_task(read(origin)) for _ in range(3 * FAILURES)]
        await gate.arrived()
        for task in reads:
            task.cancel()
        await asyncio.wait(reads)
        gate.open()
        assert not origin.is_open
        assert (await read(origin)).status == 200


@pytest.mark.usefixtures("quick_trials")
async def test_the_log_says_it_once_and_says_the_end(server: RawOrigin, caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts, and however many ask."""
    caplog.set_level(logging.INFO)
    server.replies = [reset_at_once]
    clock = ManualClock()
    async with origin_to(server, clock=clock) as origin:
        for _ in range(2):
            server.replies = [reset_at_once]
            await opened(origin)
            for _ in range(50):
                await cause(origin, patient=False)
            server.replies = [OK]
            for seconds in (QUIET_SECONDS - 1, 1):
                assert (await read(origin)).status == 200
                clock.advance(seconds)
            assert (await read(origin)).status == 200

    said = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert (
        said
        == [
            "no answer from the origin: ServerDisconnectedError; 503 for credentials that no entry answers",
            "5 failures in a row; a read now and then until it works",
            "answering again",
            "it works again, and is asked more with each answer",
        ]
        * 2
    )


# While it is open -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_trials")
async def test_one_read_at_a_time_sees_whether_it_answers_again(server: RawOrigin, patience: None) -> None:
    """A hundred wait, and all get their answer when the first trial after the outage has one."""
    server.replies = [reset_at_once]
    async with origin_to(server, timeout_seconds=30) as origin:
        await opened(origin)
        server.replies = [OK]
        answers = await asyncio.gather(*(read(origin, Credential("token", b"t%d" % n)) for n in range(100)))

        assert {answer.status for answer in answers} == {200}
        assert not origin.is_open


@pytest.mark.usefixtures("quick_trials")
async def test_trials_do_not_wait_for_one_that_hangs(server: RawOrigin) -> None:
    """The origin answers again while the last trial still hangs: the next one finds out."""
    gate = Gate()
    server.replies = [*[http(502)] * FAILURES, gated(gate, OK), OK]
    async with origin_to(server, ready_path="") as origin:
        await fail(origin)
        hanging = asyncio.create_task(read(origin))
        await gate.arrived()
        assert (await read(origin)).status == 200
        assert not origin.is_open
        assert not hanging.done()
        gate.open()
        assert (await hanging).status == 200


async def test_who_has_another_answer_does_not_wait(server: RawOrigin, no_more_trials: None) -> None:
    """And who waits for its turn already when it opens is told then."""
    gate = Gate()
    server.replies = [*[http(502)] * (FAILURES - 1), gated(gate, http(502)), silence]
    async with origin_to(server, concurrency=1, timeout_seconds=60, ready_path="") as origin:
        await fail(origin, FAILURES - 1)
        failing = asyncio.create_task(read(origin))
        await gate.arrived()
        first = asyncio.create_task(read(origin))
        waiting = [asyncio.create_task(cause(origin, patient=False)) for _ in range(3)]
        await asyncio.sleep(0)  # one turn of the loop, in which they begin
        gate.open()

        assert await asyncio.gather(*waiting) == ["open"] * 3
        assert (await failing).status == 502
        assert not first.done(), "it is patient, and now the trial"
        first.cancel()
        await asyncio.wait([first])


async def test_who_has_none_waits_for_a_trial_but_not_for_long(
    server: RawOrigin, no_more_trials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker_module, "OPEN_WAIT_SECONDS", 0.05)
    server.replies = [reset_at_once]
    async with origin_to(server) as origin:
        await opened(origin)
        seen: list[str] = []
        origin.observe = lambda outcome, seconds: seen.append(outcome)
        assert await asyncio.gather(*(cause(origin) for _ in range(10))) == ["open"] * 10
        assert seen == ["open"] * 10
        assert origin.is_open


# How they come back ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_trials")
async def test_a_storm_on_recovery_reaches_the_origin_little_by_little(server: RawOrigin, patience: None) -> None:
    """After n answers there are never more than n + 1 reads at once, up to the limit."""
    answered = running = 0
    excess: list[tuple[int, int]] = []
    widest = 0

    async def serve(peer: Peer) -> None:
        nonlocal answered, running, widest
        running += 1
        widest = max(widest, running)
        if running > answered + 1:
            excess.append((running, answered))
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        answered += 1
        await peer.send(OK)

    server.replies = [reset_at_once]
    async with origin_to(server, concurrency=16, timeout_seconds=30) as origin:
        await opened(origin)
        server.replies = [serve]
        answers = await asyncio.gather(*(read(origin, Credential("token", b"t%d" % n)) for n in range(300)))

    assert {answer.status for answer in answers} == {200}
    assert (excess, answered) == ([], 300)
    assert 4 <= widest <= 16


async def test_reads_that_hang_from_before_take_no_turn_and_open_nothing(server: RawOrigin) -> None:
    """All places were taken by reads that will time out: they keep nobody from an origin that works again."""
    server.replies = [silence]
    async with origin_to(server, concurrency=2 * FAILURES, timeout_seconds=0.3) as origin:
        hanging = [asyncio.create_task(cause(origin)) for _ in range(2 * FAILURES)]
        await eventually(lambda: len(server.requests) == 2 * FAILURES)
        origin._breaker.open()
        server.replies = [OK]
        assert [await outcome(origin) for _ in range(3)] == ["good"] * 3
        assert await asyncio.gather(*hanging) == ["timeout"] * 2 * FAILURES
        assert not origin.is_open
        assert (await read(origin)).status == 200


# Turns ----------------------------------------------------------------------------------------------------------------


async def taken(breaker: Breaker, seconds: float = 1.0, who: str = "somebody") -> Turn:
    return await breaker.take(seconds, who, patient=True)


async def test_a_turn_that_comes_as_its_waiter_is_cancelled_goes_to_the_next() -> None:
    breaker = Breaker(1, 5.0)
    held = await taken(breaker)
    cancelled, next_one = asyncio.create_task(taken(breaker)), asyncio.create_task(taken(breaker))
    await asyncio.sleep(0)  # both wait
    breaker.give_back(held)
    cancelled.cancel()
    await asyncio.wait([cancelled, next_one])
    assert cancelled.cancelled()
    assert next_one.exception() is None
    breaker.give_back(next_one.result())
    breaker.give_back(await taken(breaker))


async def test_trials_are_for_those_who_have_not_failed(no_more_trials: None) -> None:
    """Two that fail at once and come again would otherwise take every one of them."""
    breaker = Breaker(64, 5.0)
    for who in ("bad", "worse") * FAILURES:
        turn = await taken(breaker, who=who)
        breaker.failed(turn)
        breaker.give_back(turn)
    breaker.open()
    await taken(breaker, who="bad")
    waiting = [asyncio.create_task(taken(breaker, 60, who)) for who in ("bad", "worse", "good", "bad")]
    await asyncio.sleep(0)  # they wait
    breaker._next_trial_at = 0.0
    breaker._hand_out()
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().who for task in done] == ["good"]
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    breaker.close()


async def test_a_read_that_hangs_keeps_nobody_out_of_the_slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one turn at first: after a while it is another's."""
    monkeypatch.setattr(breaker_module, "TRIAL_SECONDS", 0.01)
    breaker = Breaker(64, 5.0)
    breaker.open()
    breaker.answered()
    hanging = await taken(breaker)
    others = await asyncio.gather(*(taken(breaker) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(other, Turn) for other in others)
    breaker.give_back(hanging)


async def test_what_was_sent_before_the_closing_is_no_news_and_takes_no_turn() -> None:
    """Its failures open nothing, and as it took no turn of these, it gives none back."""
    breaker = Breaker(2 * FAILURES, 5.0)
    old = [await taken(breaker) for _ in range(2 * FAILURES)]
    breaker.open()
    breaker.answered()
    for turn in old:
        breaker.failed(turn)
        breaker.give_back(turn)
    assert not breaker.is_suspicious
    turns = await asyncio.gather(*(taken(breaker, 0.01) for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(turn, Turn) for turn in turns) == 1, "the one of the slow start"


async def test_a_waiter_whom_the_closing_finds_there_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had little patience left for an open breaker; the slow start may take longer."""
    monkeypatch.setattr(breaker_module, "OPEN_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(breaker_module, "TRIAL_SECONDS", 3600.0)
    breaker = Breaker(64, 5.0)
    breaker.open()
    trial = await taken(breaker)
    waiting = [asyncio.create_task(taken(breaker, 60)) for _ in range(3)]
    await asyncio.sleep(0)  # they wait
    breaker.answered()
    first, *_ = done = (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[0]
    assert len(done) == 1
    assert not (await asyncio.wait([task for task in waiting if task is not first], timeout=0.1))[0]
    breaker.give_back(first.result())
    breaker.answered()
    await asyncio.wait(waiting)
    assert all(task.exception() is None for task in waiting)
    breaker.give_back(trial)


@pytest.mark.parametrize(("read_seconds", "most"), [(5.0, 20), (60.0, 20), (0.5, 2)])
def test_trials_that_hang_at_once_are_few(read_seconds: float, most: int) -> None:
    """Whatever the deadline of a read."""
    assert read_seconds / Breaker(1, read_seconds)._trial_seconds <= most


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_and_none_is_given_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random takers, of whom some are cancelled and some have little time, while the breaker opens and closes."""
    monkeypatch.setattr(breaker_module, "TRIAL_SECONDS", 0.0005)
    dice = random.Random(seed)
    breaker = Breaker(4, 5.0)
    running: set[Turn] = set()

    async def use() -> None:
        try:
            who = dice.randrange(8)
            turn = await breaker.take(dice.choice([0.0, 0.001, 5.0]), who, patient=dice.random() < 0.8)
        except OriginUnavailableError:
            return
        running.add(turn)
        try:
            if not breaker.is_open:
                assert sum(each.counts and each.era == breaker._era for each in running) <= 4
            await asyncio.sleep(dice.choice([0, 0, 0.0005]))  # its read
            _judge(dice, breaker, turn)
        finally:
            running.discard(turn)
            breaker.give_back(turn)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(400):
        tasks.append(asyncio.create_task(use()))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        if dice.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [task.exception() for task in tasks if not task.cancelled() and task.exception()] == []

    breaker.answered()
    for _ in range(4):
        breaker.answered()
    turns = [await taken(breaker, 0.5) for _ in range(4)]
    assert all(turn.counts for turn in turns), "all turns are there again"
    with pytest.raises(OriginUnavailableError):
        await taken(breaker, 0.0)
    breaker.close()


def _judge(dice: random.Random, breaker: Breaker, turn: Turn) -> None:
    if dice.random() < 0.5:
        breaker.answered()
    else:
        breaker.failed(turn)
        if breaker.is_suspicious:
            breaker.open()
