"""The nodes registry: who may be answering from a cache, up to where it has applied the feed, and until when.

A record is `generation number max_staleness_µs count region`, under the field `node_id incarnation`.  The incarnation
is new for every process, so that two processes that were given one node id by mistake do not hide each other.  `count`
rises with every confirm: a record that stands still for `max_staleness` by the *reader's* monotonic clock has no lease
any more, whatever the clocks of servers and nodes say.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cache_node.feed.position import Position

FORGET_AFTER_SECONDS = 3600.0
"""A record is removed this long after its lease ended."""


@dataclass(slots=True)
class Membership:
    """What one process writes about itself; owned by its follower."""

    node_id: str
    region: str
    max_staleness_seconds: float
    incarnation: str = field(default_factory=lambda: secrets.token_hex(8))
    count: int = 0

    @property
    def field_name(self) -> str:
        """The field of the registry that is this process's own."""
        return f"{self.node_id} {self.incarnation}"

    def next_record(self, applied: Position | None) -> str:
        """The record for the next confirm."""
        self.count += 1
        position = applied or Position(0, 0)
        staleness_us = round(self.max_staleness_seconds * 1e6)
        return f"{position.generation} {position.number} {staleness_us} {self.count} {self.region}"


@dataclass(frozen=True, slots=True)
class Record:
    """One process as the registry shows it; `field_name` and `raw` are as stored."""

    field_name: bytes
    raw: bytes
    node_id: str
    region: str
    applied: Position
    max_staleness_seconds: float

    @classmethod
    def parse(cls, field_name: bytes, raw: bytes) -> Record | None:
        """None if it was not written by `Membership` of a version like this."""
        try:
            node_id, _incarnation = field_name.decode().rsplit(" ", 1)
            generation, number, staleness_us, _count, region = raw.decode().split(" ", 4)
            applied = Position(int(generation), int(number))
            max_staleness = int(staleness_us) / 1e6
        except (ValueError, OverflowError):
            return None
        is_plausible = 0 < max_staleness <= FORGET_AFTER_SECONDS
        return cls(field_name, raw, node_id, region, applied, max_staleness) if is_plausible else None


@dataclass(frozen=True, slots=True)
class RegistryReading:
    """The registry at one moment; `followed_seconds`: some node has followed `generation` for that long by its own
    clock, so the generation is at least that old.  `unreadable`: records this version cannot read, by field."""

    generation: int
    number: int
    followed_seconds: float
    records: tuple[Record, ...]
    unreadable: Mapping[bytes, bytes] = field(default_factory=dict)

    @classmethod
    def parse(
        cls, generation: bytes, number: bytes, followed_us: bytes, rows: Mapping[bytes, bytes]
    ) -> RegistryReading:
        parsed = {name: Record.parse(name, raw) for name, raw in rows.items()}
        return cls(
            generation=int(generation),
            number=int(number),
            followed_seconds=int(followed_us) / 1e6,
            records=tuple(record for record in parsed.values() if record is not None),
            unreadable={name: rows[name] for name, record in parsed.items() if record is None},
        )

    @property
    def rows(self) -> dict[bytes, bytes]:
        """All records as they are stored, by field."""
        return {record.field_name: record.raw for record in self.records} | dict(self.unreadable)


class RegistryWatch:
    """Since when, by the watcher's own monotonic clock, each record has stood still.  Kept from reading to reading."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[bytes, float]] = {}
        self.longest_lease_seconds = 0.0
        """Of the records in the last reading."""

    def observe(self, reading: RegistryReading, sent: float, received: float) -> dict[bytes, float]:
        """Seconds for which each record is known to have stood still when the reading was *sent*, by field.

        A lease was granted by a confirm that the server handled before it showed the record, so a record unchanged for
        `max_staleness` from a reply to a later request has none.
        """
        seen = {}
        still = {}
        for name, raw in reading.rows.items():
            before, since = self._seen.get(name, (None, received))
            if before != raw:
                since = received
            seen[name] = (raw, since)
            still[name] = max(0.0, sent - since)
        self._seen = seen
        self.longest_lease_seconds = max((record.max_staleness_seconds for record in reading.records), default=0.0)
        return still
