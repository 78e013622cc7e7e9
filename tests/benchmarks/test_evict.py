"""The rules that the memory tier is compared with are what they say, on traces small enough for brute force."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest

from benchmarks.evict import TRACES, hits_of_belady, hits_of_lru, hits_of_memory_tier, judge, main

pytestmark = pytest.mark.process


def brute_lru(trace: list[int], capacity: int) -> int:
    """A read is a hit if fewer than `capacity` others were read since the last one of the same session."""
    hits = 0
    for at, number in enumerate(trace):
        if number in trace[:at]:
            last = at - 1 - trace[:at][::-1].index(number)
            hits += len(set(trace[last + 1 : at])) < capacity
    return hits


def brute_best(trace: list[int], capacity: int) -> int:
    """The most hits of all ways to evict."""

    @cache
    def most(at: int, kept: frozenset[int]) -> int:
        if at == len(trace):
            return 0
        number = trace[at]
        if number in kept:
            return 1 + most(at + 1, kept)
        offered = kept | {number}
        ways = [offered] if len(offered) <= capacity else [offered - {victim} for victim in offered]
        return max(most(at + 1, way) for way in ways)

    return most(0, frozenset())


@pytest.mark.parametrize("seed", range(20))
def test_lru_and_the_best_agree_with_brute_force(seed: int) -> None:
    dice = random.Random(seed)
    trace = [min(dice.randrange(8), dice.randrange(8)) for _ in range(30)]
    for capacity in (1, 2, 3, 5):
        assert hits_of_lru(trace, capacity) == brute_lru(trace, capacity)
        assert hits_of_belady(trace, capacity) == brute_best(trace, capacity)


@pytest.mark.parametrize("capacity", [50, 200, 4000])
def test_the_memory_tier_has_room_for_as_many_as_the_others(capacity: int) -> None:
    """So many are all there when they are read again, and one more is not."""
    assert hits_of_memory_tier([*range(capacity)] * 2, capacity) == capacity
    assert hits_of_memory_tier([*range(capacity + 1)] * 2, capacity) < capacity + 1


@pytest.mark.parametrize("name", TRACES)
def test_no_rule_is_better_than_the_best(name: str) -> None:
    trace = TRACES[name](random.Random(1), 5000)
    best = hits_of_belady(trace, 400)
    assert 0 < hits_of_memory_tier(trace, 400) <= best
    assert 0 < hits_of_lru(trace, 400) <= best


def test_a_trace_is_the_same_for_the_same_seed() -> None:
    for generate in TRACES.values():
        assert generate(random.Random(3), 500) == generate(random.Random(3), 500)
        assert generate(random.Random(3), 500) != generate(random.Random(4), 500)


def test_the_table_has_a_row_for_each_trace_and_room(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status = main(["--rounds", "2", "--reads", "2000", "--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert said.count("| zipf ") == 3
    assert (said.count("PASS") + said.count("FAIL"), status) == (3 * len(TRACES), int("FAIL" in said))


@pytest.mark.parametrize("name", TRACES)
def test_the_memory_tier_is_not_below_lru(name: str) -> None:
    """And above it where there are scans."""
    trace = TRACES[name](random.Random(2), 60_000)
    ratios = {"memory tier": [hits_of_memory_tier(trace, 1000) / 60_000], "LRU": [hits_of_lru(trace, 1000) / 60_000]}
    text, holds = judge(name, 0.05, ratios)
    assert holds, text


def test_the_verdict_is_about_the_rounds_median() -> None:
    """At or above, but for what must be seen first; with scans, above."""
    assert judge("drift", 0.1, {"memory tier": [0.5, 0.5, 0.1], "LRU": [0.5004, 0.5, 0.9]})[1]
    text, holds = judge("drift", 0.1, {"memory tier": [0.5], "LRU": [0.501]})
    assert (text, holds) == ("drift, room for 10%: at or above LRU, to 0.05 points: -0.100", False)
    assert not judge("scan", 0.1, {"memory tier": [0.5], "LRU": [0.5]})[1]
