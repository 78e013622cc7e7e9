"""What makes a run good, bad or worthless."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from loadtest.results import REFUSAL, UNAVAILABLE, Answer, Denial, Results, WrongAnswer, percentile, tier_of
from loadtest.truth import Wrong
from loadtest.verdict import BAD, COULD_NOT_RUN, GOOD, Limits, judge

LIMITS = Limits(hit_p99_seconds=0.25, answer_seconds=6.0, some_node_seconds=3.0, deny_seconds=10.0)


def good_results() -> Results:
    """Ten seconds, ten revocations a second."""
    return Results(
        begun_at=0.0,
        ended_at=10.0,
        answers=[Answer(i / 100, 0.001, "memory") for i in range(1000)],
        denials=[Denial(i / 10, 0.01) for i in range(100)],
    )


def exit_status(results: Results) -> int:
    return judge(results, LIMITS, revocations_per_second=10.0).exit_status


def test_no_wrong_answer_in_time_is_good() -> None:
    assert exit_status(good_results()) == GOOD == 0
    assert judge(good_results(), LIMITS, 10.0).reasons == ()


def add_wrong(results: Results) -> None:
    results.wrong.append(WrongAnswer(1.0, Wrong.OLD, "http://node", "session-1", 200, "cache-node; hit; detail=memory"))


def add_slow_hits(results: Results) -> None:
    results.answers += [Answer(1.0, 0.3, "memory")] * 20


def add_slow_answer(results: Results) -> None:
    results.answers.append(Answer(1.0, 6.1, "origin"))


def add_late(results: Results) -> None:
    results.late += 1


def add_undenied(results: Results) -> None:
    results.denials.append(Denial(1.0, None))


@pytest.mark.parametrize("spoil", [add_wrong, add_slow_hits, add_slow_answer, add_late, add_undenied])
def test_one_flaw_is_enough_to_be_bad_and_is_named(spoil: Callable[[Results], None]) -> None:
    results = good_results()
    spoil(results)
    verdict = judge(results, LIMITS, revocations_per_second=10.0)
    assert (verdict.exit_status, len(verdict.reasons)) == (BAD, 1)
    assert BAD == 1


def test_answers_that_say_nothing_are_no_wrong_ones() -> None:
    results = good_results()
    results.answers += [Answer(1.0, 1.0, UNAVAILABLE)] * 500
    assert exit_status(results) == GOOD


def test_slow_answers_of_the_origin_within_its_timeout_are_none() -> None:
    results = good_results()
    results.answers += [Answer(1.0, 5.9, "origin")] * 500
    assert exit_status(results) == GOOD


def test_a_run_with_too_few_revocations_has_shown_nothing() -> None:
    results = good_results()
    del results.denials[49:]
    assert exit_status(results) == COULD_NOT_RUN == 2


def test_a_run_without_memory_hits_has_shown_nothing() -> None:
    results = good_results()
    results.answers = [Answer(1.0, 0.001, "origin")] * 1000
    assert exit_status(results) == COULD_NOT_RUN


def test_a_wrong_answer_is_bad_in_the_shortest_run() -> None:
    results = Results(begun_at=0.0, ended_at=10.0)
    add_wrong(results)
    assert exit_status(results) == BAD


@pytest.mark.parametrize(
    ("status", "cache_status", "tier"),
    [
        (200, "cache-node; hit; detail=memory", "memory"),
        (200, "cache-node; hit; detail=redis", "redis"),
        (401, "cache-node; hit; detail=negative", "negative"),
        (200, "cache-node; fwd=miss; detail=cold", "origin"),
        (200, "cache-node; fwd=stale; detail=fenced", "origin"),
        (401, "cache-node; fwd=stale; detail=fenced", REFUSAL),
        (200, "cache-node; fwd=stale; detail=stale-if-error", "stale"),
        (200, "", "origin"),
        (503, "cache-node; fwd=miss; detail=busy", UNAVAILABLE),
        (429, "", UNAVAILABLE),
        (0, "", UNAVAILABLE),
    ],
)
def test_the_tier_of_an_answer(status: int, cache_status: str, tier: str) -> None:
    assert tier_of(status, cache_status) == tier


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, 0.0),
        ([3.0], 0.01, 3.0),
        (range(1, 101), 0.99, 99),
        (range(1, 101), 0.5, 50),
        (range(1, 101), 1.0, 100),
    ],
)
def test_percentiles_are_values_that_were_seen(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected
