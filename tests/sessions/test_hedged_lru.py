"""The memory tier's mapping: its bound, what it keeps under every order of calls, and what it is chosen for."""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_node.sessions import hedged_lru
from cache_node.sessions.hedged_lru import KEY_BYTES, MOST_MOVED, TRIAL_STAKE, HedgedLru, Node, _Ghosts


class Value(Node, gc=False):
    value: object
    size: int


class Values:
    """Of values that say themselves what they take."""

    def __init__(self, max_bytes: int) -> None:
        self.lru: HedgedLru[Value] = HedgedLru(max_bytes, lambda value: value.size, 2 * max_bytes)
        self.discard, self.clear = self.lru.discard, self.lru.clear

    def __len__(self) -> int:
        return len(self.lru)

    @property
    def size_bytes(self) -> int:
        return self.lru.size_bytes

    @property
    def evictions(self) -> int:
        return self.lru.evictions

    def get(self, key: bytes) -> object:
        found = self.lru.get(key)
        return None if found is None else found.value

    def put(self, key: bytes, value: object, size: int) -> bool:
        return self.lru.put(key, Value(value, size))

    def ask(self, key: bytes) -> bool:
        """As a cache is: whether it was there; it is then, and takes one byte."""
        return self.get(key) is not None or not self.put(key, key, 1)

    def queues(self) -> Iterator[list[Value]]:
        """What each holds, from the oldest, with both directions of the list and the count compared."""
        lru = self.lru
        by_turn = [*lru._unused._queues.values(), *lru._used._queues.values()]
        for queue in (*by_turn, lru._overtime, lru._overtime_looked_at):
            found, node, older = [], queue.oldest, None
            while node is not None:
                assert (node.queue, node.older) == (queue, older)
                found.append(node)
                node, older = cast(Value | None, node.newer), node
            assert (queue.newest, queue.count) == (older, len(found))
            yield found


def key_of(number: int) -> bytes:
    """A key as they are: hashes."""
    return hashlib.sha256(b"%d" % number).digest()


Step = tuple[Literal["get", "put", "discard"], bytes, int]
keys = st.integers(0, 29).map(key_of)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "discard"]), keys, st.integers(0, 40)), max_size=200
)


@given(steps)
@settings(max_examples=300)
def test_what_is_there_is_what_was_put_last_and_the_bound_holds(taken: list[Step]) -> None:
    """At every step: the index, the queues and the sizes agree, and what was put a moment ago is there."""
    values = Values(100)
    put: dict[bytes, tuple[int, int]] = {}
    for number, (what, key, size) in enumerate(taken):
        if what == "put":
            assert values.put(key, number, size)
            put[key] = number, size
            assert values.get(key) == number
        elif what == "get":
            assert values.get(key) in (None, put.get(key, (None, 0))[0])
        else:
            values.discard(key)
            put.pop(key, None)
            assert values.get(key) is None
        kept = [node for queue in values.queues() for node in queue]
        assert {node.key: node.value for node in kept} == {
            key[:KEY_BYTES]: put[key][0] for key in put if values.lru._shards[key[0]].get(key[:KEY_BYTES])
        }
        assert values.size_bytes == sum(node.size for node in kept) <= 100
        assert len(values) == len(kept)
    evicted = values.evictions
    values.clear()
    assert (len(values), values.size_bytes, values.evictions) == (0, 0, evicted)


def names(values: Values, count: int) -> list[int]:
    """Which of the values 0 to `count` are there."""
    return [number for number in range(count) if values.get(b"%d" % number) is not None]


def filled(count: int) -> Values:
    """With the values 0 to `count`, of one byte each, and room for no more."""
    values = Values(count)
    for number in range(count):
        values.put(b"%d" % number, number, 1)
    return values


def test_without_a_use_the_oldest_goes_first() -> None:
    """As in LRU."""
    values = filled(4)
    values.put(b"new", -1, 1)

    assert names(values, 4) == [1, 2, 3]


def test_what_was_used_outlives_what_was_not() -> None:
    """However long ago that was, there is something that is worth less."""
    values = filled(64)
    used = range(0, 64, 2)
    for number in used:
        values.get(b"%d" % number)
    for number in range(32):
        values.put(b"new-%d" % number, -1, 1)

    assert names(values, 64) == [*used]


def test_all_in_use_is_no_deadlock() -> None:
    """One of them goes."""
    values = filled(4)
    assert names(values, 4) == [0, 1, 2, 3]
    values.put(b"new", -1, 1)

    assert len(names(values, 4)) == 3
    assert values.get(b"new") == -1


def test_a_value_that_is_replaced_was_in_use() -> None:
    """A session that changed is read again, and keeps the place that its readers gave it."""
    values = filled(8)
    values.put(b"0", -1, 1)
    for number in range(7):
        values.put(b"new-%d" % number, -1, 1)

    assert values.get(b"0") == -1


def test_a_scan_does_not_push_out_what_is_in_use() -> None:
    """A thousand keys that are each asked for once, as made-up tokens would be, cost the popular ones nothing."""
    values = Values(100)
    popular = [b"popular-%d" % number for number in range(80)]
    for key in popular:
        values.put(key, 0, 1)
    for number in range(1000):
        values.put(b"scan-%d" % number, 1, 1)
        for step in range(8):
            values.get(popular[(8 * number + step) % len(popular)])

    assert all(values.get(key) is not None for key in popular)


ROOM = 1000


def hits(trace: Iterator[bytes]) -> tuple[int, int, Values]:
    """Of the mapping and of LRU, with room for as many; and the mapping."""
    values, lru = Values(ROOM), OrderedDict[bytes, None]()
    own = others = 0
    for key in trace:
        own += values.ask(key)
        others += key in lru
        lru[key] = None
        lru.move_to_end(key)
        if len(lru) > ROOM:
            lru.popitem(last=False)
    return own, others, values


def favourites(reads: int) -> Iterator[bytes]:
    """Each fifth read is of one of 400, the others are a walk: on average 2,000 are read between two of one."""
    dice = random.Random(5)
    return (key_of(10_000 + at if at % 5 else dice.randrange(400)) for at in range(reads))


def twice(reads: int, first: int = 0) -> Iterator[bytes]:
    """Each key is read two times, about 600 others between."""
    return (key_of(first + (at // 2 if at % 2 else at // 2 + 300)) for at in range(reads))


def test_where_keys_come_back_later_than_lru_waits_they_are_kept() -> None:
    """Among a walk LRU keeps a favourite for half the time that it would need."""
    own, others, values = hits(favourites(60_000))

    assert own > 1.5 * others > 6000
    assert values.lru._stake > TRIAL_STAKE


def test_where_recency_is_all_it_is_lru_but_for_trials() -> None:
    """Of keys that are read two times, LRU has each second read; what a trial keeps is never read again."""
    own, others, values = hits(twice(60_000))

    assert others == 29_700
    assert 0.995 * others < own <= others
    assert values.lru._stake <= TRIAL_STAKE


def test_it_turns_to_lru_when_the_favourites_are_gone() -> None:
    """After a time in which the stake has grown, one of recency: it is gone with a 16th of the room in losses."""
    own, others, values = hits(itertools.chain(favourites(40_000), twice(40_000, first=100_000)))
    before, others_before, _ = hits(favourites(40_000))

    assert values.lru._stake <= TRIAL_STAKE
    assert own - before > 0.98 * (others - others_before)


def test_an_insertion_moves_a_bounded_number() -> None:
    """All are in use: after so many it takes one all the same, and goes on from there."""
    values = filled(3 * MOST_MOVED)
    names(values, 3 * MOST_MOVED)
    for number in range(2):
        values.put(b"new %d" % number, -1, 1)

    gone = [number for number in range(3 * MOST_MOVED) if values.get(b"%d" % number) is None]
    assert gone == [MOST_MOVED, 2 * MOST_MOVED + 1]


def test_no_insertion_moves_more_whatever_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor looks for more once the last move was its own and not that of somebody who looks at the bound."""
    monkeypatch.setattr(hedged_lru, "MOST_MOVED", 8)
    moves: list[int] = []
    move = HedgedLru._move

    def counted(lru: HedgedLru[Value], node: Value, queue: Any) -> None:
        moves[-1] += 1
        move(lru, node, queue)

    monkeypatch.setattr(HedgedLru, "_move", counted)
    dice = random.Random(1)
    values = Values(200)
    for _ in range(300):
        low = dice.randrange(200)
        for number in range(low, low + dice.randrange(200)):
            values.get(key_of(number))
        for number in range(dice.randrange(200)):
            values.discard(key_of(3 * number))
        for number in range(low, low + dice.randrange(200)):
            moves.append(0)
            values.ask(key_of(number))

    assert 8 <= max(moves) <= 8 + 1


def test_ghosts_that_have_all_returned_leave_room_for_others() -> None:
    """As many numbers as there are slots were given, and not one of them is of a ghost any more."""
    ghosts = _Ghosts(64)
    for number in range(100):
        ghosts.add(key_of(number), 1)
        assert ghosts.take(key_of(number))
    ghosts.add(key_of(100), 2)
    ghosts.add(key_of(101), 2)

    assert (ghosts.count, ghosts.take(key_of(100)), ghosts.take(key_of(101)), ghosts.count) == (2, True, True, 0)


def test_an_insertion_forgets_a_bounded_number_of_ghosts() -> None:
    """All that was kept beyond the time of LRU is put anew at once, as after a flush: LRU keeps nothing else now."""
    _, _, values = hits(favourites(60_000))
    lru = values.lru
    for shard in lru._shards:
        for key, value in list(shard.items()):
            values.put(key, value.value, value.size)
    # As many as of a large room: this one is too small to have more.
    lru._ghosts = _Ghosts(10 * MOST_MOVED)
    for number in range(10 * MOST_MOVED):
        lru._ghosts.add(key_of(-number - 1), 1)
    before = lru._ghosts.count
    values.put(key_of(-1_000_000), 0, 1)

    assert before > 5 * MOST_MOVED
    assert before - MOST_MOVED <= lru._ghosts.count < before


def test_keys_are_told_apart_by_their_first_bytes() -> None:
    """They are hashes of 32 bytes: so many are plenty, and take half the room."""
    values = Values(10)
    values.put(bytes(KEY_BYTES) + b"a", 1, 1)
    assert values.get(bytes(KEY_BYTES) + b"a") == 1
    assert values.get(bytes(KEY_BYTES - 1) + b"a") is None


def test_a_value_larger_than_the_bound_is_refused_and_the_older_one_is_gone() -> None:
    """Keeping the older one would be keeping what is not true any more."""
    values = filled(3)
    assert not values.put(b"1", 1, 4)

    assert names(values, 3) == [0, 2]
    assert values.evictions == 0


def test_clear_forgets_everything() -> None:
    """And it goes on working."""
    values = filled(5)
    values.clear()
    assert (len(values), values.size_bytes) == (0, 0)
    values.put(b"0", 0, 5)

    assert values.get(b"0") == 0


def test_nothing_of_what_was_evicted_stays_in_memory() -> None:
    """The slots are hidden from the garbage collector, so they must not hold each other."""
    value = object()
    before = sys.getrefcount(value)
    values = Values(10)
    for number in range(1000):
        values.put(b"%d" % number, value, 1)
        values.get(b"%d" % (number - 3))
    values.clear()

    assert sys.getrefcount(value) == before
