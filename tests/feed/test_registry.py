"""The nodes registry: what a process writes, what a reader makes of it, and since when a record stands still."""

from __future__ import annotations

import pytest

from cache_node.feed.position import Position
from cache_node.feed.registry import Membership, Record, RegistryReading, RegistryWatch


def reading(rows: dict[bytes, bytes], generation: int = 7) -> RegistryReading:
    return RegistryReading.parse(str(generation).encode(), b"3", b"2500000", rows)


def row(count: int, field: bytes = b"node-1 a1") -> dict[bytes, bytes]:
    return {field: b"7 3 2000000 %d default" % count}


def test_record_and_back() -> None:
    """A reader gets node, region, position and bound as the process wrote them."""
    member = Membership("node 1/2", "eu west", 2.5)
    field, raw = member.field_name.encode(), member.next_record(Position(7, 3)).encode()
    assert Record.parse(field, raw) == Record(field, raw, "node 1/2", "eu west", Position(7, 3), 2.5)


def test_every_record_differs_from_the_one_before() -> None:
    """A confirm that applies nothing shows all the same that the process is alive."""
    member = Membership("node", "default", 2.0)
    assert member.next_record(Position(7, 3)) != member.next_record(Position(7, 3))


def test_a_process_that_has_applied_nothing_says_so() -> None:
    """Generation 0 is none: no receipt takes it for a node that has applied something."""
    record = Record.parse(b"n i", Membership("n", "default", 2.0).next_record(None).encode())
    assert record is not None
    assert record.applied == Position(0, 0)


def test_two_processes_of_one_node_id_do_not_hide_each_other() -> None:
    """The incarnation is new for every process, so that each has a record of its own."""
    assert Membership("node", "default", 2.0).field_name != Membership("node", "default", 2.0).field_name


@pytest.mark.parametrize(
    ("field", "raw"),
    [
        (b"node", b"7 3 2000000 1 default"),
        (b"node a1", b""),
        (b"node a1", b"7 3 2000000 1"),
        (b"node a1", b"seven 3 2000000 1 default"),
        (b"node a1", b"7 3 2.5 1 default"),
        (b"node a1", b"\xff 3 2000000 1 default"),
        (b"\xff a1", b"7 3 2000000 1 default"),
        (b"node a1", b'{"version": 2}'),
        (b"node a1", b"7 3 0 1 default"),
        (b"node a1", b"7 3 -2000000 1 default"),
        (b"node a1", b"7 3 3600000001 1 default"),
        (b"node a1", b"7 3 " + b"9" * 400 + b" 1 default"),
    ],
)
def test_records_of_another_version_are_unreadable_not_absent(field: bytes, raw: bytes) -> None:
    """A process that may be answering must not be overlooked because its record looks strange."""
    found = reading({field: raw, **row(1, b"node-2 b2")})
    assert [record.node_id for record in found.records] == ["node-2"]
    assert len(found.unreadable) == 1


def test_reading_of_the_registry() -> None:
    """Generation, last number, and for how long some node has followed it, in seconds."""
    found = reading(row(1))
    assert (found.generation, found.number, found.followed_seconds, found.unreadable) == (7, 3, 2.5, {})


def test_a_record_stands_still_from_its_first_reply_to_the_sending_of_the_last() -> None:
    """Only what lies between both is proven: the confirm behind the record came before the first reply."""
    watch = RegistryWatch()
    assert watch.observe(reading(row(1)), sent=10.0, received=10.5) == {b"node-1 a1": 0.0}
    assert watch.observe(reading(row(1)), sent=12.0, received=14.0) == {b"node-1 a1": 1.5}
    assert watch.observe(reading(row(1)), sent=15.0, received=15.1) == {b"node-1 a1": 4.5}


def test_a_new_record_starts_anew() -> None:
    """A confirm since the last look has granted a lease, so nothing is known to stand still."""
    watch = RegistryWatch()
    watch.observe(reading(row(1)), 10.0, 10.0)
    assert watch.observe(reading(row(2)), 13.0, 13.0) == {b"node-1 a1": 0.0}
    assert watch.observe(reading(row(2)), 14.0, 14.0) == {b"node-1 a1": 1.0}


def test_a_record_that_was_gone_starts_anew() -> None:
    """What was not seen in between may have confirmed in between."""
    watch = RegistryWatch()
    watch.observe(reading(row(1)), 10.0, 10.0)
    watch.observe(reading({}), 11.0, 11.0)
    assert watch.observe(reading(row(1)), 13.0, 13.0) == {b"node-1 a1": 0.0}


def test_each_record_stands_still_for_itself() -> None:
    """One process that goes on does not make another one live."""
    watch = RegistryWatch()
    watch.observe(reading(row(1) | row(1, b"node-2 b2")), 10.0, 10.0)
    still = watch.observe(reading(row(1) | row(2, b"node-2 b2")), 12.0, 12.0)
    assert still == {b"node-1 a1": 2.0, b"node-2 b2": 0.0}
