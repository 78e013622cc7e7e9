"""SIEVE against a plain implementation of itself, its bound, and what it is chosen for."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from cache_node.sessions.sieve import KEY_BYTES, MOST_SPARED, Node, Sieve


class Value(Node, gc=False):
    value: object
    size: int


class Values:
    """A sieve of values that say themselves what they take."""

    def __init__(self, max_bytes: int) -> None:
        self.sieve: Sieve[Value] = Sieve(max_bytes, lambda value: value.size)
        self.discard, self.clear = self.sieve.discard, self.sieve.clear

    def __len__(self) -> int:
        return len(self.sieve)

    @property
    def size_bytes(self) -> int:
        return self.sieve.size_bytes

    @property
    def evictions(self) -> int:
        return self.sieve.evictions

    def get(self, key: bytes) -> object:
        found = self.sieve.get(key)
        return None if found is None else found.value

    def put(self, key: bytes, value: object, size: int) -> bool:
        return self.sieve.put(key, Value(value, size))


@dataclass
class _Known:
    key: bytes
    value: int
    size: int
    visited: bool = False


class PlainSieve:
    """The algorithm as its paper tells it: a list from the oldest to the newest, and a hand that is an index of it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.known: list[_Known] = []
        self.hand = 0
        self.evictions = 0

    @property
    def size_bytes(self) -> int:
        return sum(each.size for each in self.known)

    def index(self, key: bytes) -> int | None:
        return next((i for i, each in enumerate(self.known) if each.key == key), None)

    def get(self, key: bytes) -> int | None:
        index = self.index(key)
        if index is None:
            return None
        self.known[index].visited = True
        return self.known[index].value

    def discard(self, key: bytes) -> None:
        index = self.index(key)
        if index is not None:
            self._take_out(index)

    def put(self, key: bytes, value: int, size: int) -> bool:
        self.discard(key)
        if size > self.max_bytes:
            return False
        while self.size_bytes + size > self.max_bytes:
            while self.known[self.hand].visited:
                self.known[self.hand].visited = False
                self.hand = (self.hand + 1) % len(self.known)
            self._take_out(self.hand)
            self.evictions += 1
        self.known.append(_Known(key, value, size))
        return True

    def _take_out(self, index: int) -> None:
        del self.known[index]
        if index < self.hand:
            self.hand -= 1
        if self.hand >= len(self.known):
            self.hand = 0


Step = tuple[Literal["get", "put", "discard"], bytes, int]
keys = st.integers(0, 11).map(lambda number: b"key-%d" % number)
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "discard"]), keys, st.integers(0, 120)), max_size=120
)


@given(steps)
@settings(max_examples=300)
def test_it_evicts_what_the_plain_implementation_evicts(taken: list[Step]) -> None:
    """Whatever is asked, put and discarded: same answers, same evictions, same size, and the bound at every step."""
    sieve = Values(100)
    plain = PlainSieve(100)
    for number, (what, key, size) in enumerate(taken):
        if what == "put":
            assert sieve.put(key, number, size) == plain.put(key, number, size)
        elif what == "get":
            assert sieve.get(key) == plain.get(key)
        else:
            sieve.discard(key)
            plain.discard(key)
        assert sieve.size_bytes == plain.size_bytes <= 100
        assert (len(sieve), sieve.evictions) == (len(plain.known), plain.evictions)
    # `get` marks, so the whole content is compared last.
    assert [sieve.get(each.key) for each in plain.known] == [each.value for each in plain.known]


def names(sieve: Values, count: int) -> list[int]:
    """Which of the values 0 to `count` are there."""
    return [number for number in range(count) if sieve.get(b"%d" % number) is not None]


def filled(count: int) -> Values:
    """With the values 0 to `count`, of one byte each, and room for no more."""
    sieve = Values(count)
    for number in range(count):
        sieve.put(b"%d" % number, number, 1)
    return sieve


def test_without_a_visit_the_oldest_goes_first() -> None:
    """The hand begins at the tail."""
    sieve = filled(4)
    sieve.put(b"new", -1, 1)

    assert names(sieve, 4) == [1, 2, 3]


def test_what_was_asked_for_is_spared_once() -> None:
    """The hand takes the mark away as it comes by, and evicts when it comes by again."""
    sieve = filled(3)
    sieve.get(b"0")
    sieve.put(b"a", -1, 1)
    assert sieve.get(b"1") is None
    sieve.put(b"b", -1, 1)
    sieve.put(b"c", -1, 1)

    assert sieve.get(b"0") is not None, "its turn has not come again"


def test_all_visited_is_no_deadlock() -> None:
    """After one round without a victim, the first one is."""
    sieve = filled(4)
    assert names(sieve, 4) == [0, 1, 2, 3]
    sieve.put(b"new", -1, 1)

    assert names(sieve, 4) == [1, 2, 3]


def test_the_hand_survives_the_discard_of_what_it_points_at() -> None:
    """It moves on towards the head, and from the head to the tail."""
    sieve = filled(4)
    sieve.get(b"0")
    sieve.put(b"4", 4, 1)  # evicts 1, and the hand stands at 2
    sieve.discard(b"2")
    sieve.put(b"5", 5, 1)
    sieve.put(b"6", 6, 1)  # evicts 3

    assert [sieve.get(b"%d" % number) for number in (0, 3, 4)] == [0, None, 4]
    for number in (4, 5, 6):
        sieve.discard(b"%d" % number)
    sieve.put(b"7", 7, 4)
    assert (len(sieve), sieve.get(b"7")) == (1, 7)


def test_a_scan_does_not_push_out_what_is_in_use() -> None:
    """A thousand keys that are each asked for once, as made-up tokens would be, cost the popular ones nothing."""
    sieve = Values(100)
    popular = [b"popular-%d" % number for number in range(80)]
    for key in popular:
        sieve.put(key, 0, 1)
    for number in range(1000):
        sieve.put(b"scan-%d" % number, 1, 1)
        for step in range(8):
            sieve.get(popular[(8 * number + step) % len(popular)])

    assert all(sieve.get(key) is not None for key in popular)


def test_an_insertion_spares_a_bounded_number() -> None:
    """All are in use: after so many the hand takes one all the same, and goes on from there."""
    sieve = filled(3 * MOST_SPARED)
    names(sieve, 3 * MOST_SPARED)
    for number in range(2):
        sieve.put(b"new %d" % number, -1, 1)

    gone = [number for number in range(3 * MOST_SPARED) if sieve.get(b"%d" % number) is None]
    assert gone == [MOST_SPARED, 2 * MOST_SPARED + 1]


def test_keys_are_told_apart_by_their_first_bytes() -> None:
    """They are hashes of 32 bytes: so many are plenty, and take half the room."""
    sieve = Values(10)
    sieve.put(bytes(KEY_BYTES) + b"a", 1, 1)
    assert sieve.get(bytes(KEY_BYTES) + b"a") == 1
    assert sieve.get(bytes(KEY_BYTES - 1) + b"a") is None


def test_a_value_larger_than_the_bound_is_refused_and_the_older_one_is_gone() -> None:
    """Keeping the older one would be keeping what is not true any more."""
    sieve = filled(3)
    assert not sieve.put(b"1", 1, 4)

    assert names(sieve, 3) == [0, 2]
    assert sieve.evictions == 0


def test_clear_forgets_everything() -> None:
    """And it goes on working."""
    sieve = filled(5)
    sieve.clear()
    assert (len(sieve), sieve.size_bytes) == (0, 0)
    sieve.put(b"0", 0, 5)

    assert sieve.get(b"0") == 0


def test_nothing_of_what_was_evicted_stays_in_memory() -> None:
    """The slots are hidden from the garbage collector, so they must not hold each other."""
    value = object()
    before = sys.getrefcount(value)
    sieve = Values(10)
    for number in range(1000):
        sieve.put(b"%d" % number, value, 1)
        sieve.get(b"%d" % (number - 3))
    sieve.clear()

    assert sys.getrefcount(value) == before
