"""The lease: unknown is over, and it ends by itself."""

from __future__ import annotations

from cache_node.feed.lease import Lease
from tests.fakes import ManualClock


def test_a_lease_never_granted_does_not_hold() -> None:
    """A node that has confirmed nothing answers nothing from its tiers."""
    lease = Lease(ManualClock())
    assert not lease.holds()
    assert lease.seconds_left() is None


def test_it_ends_by_itself_and_exactly() -> None:
    """At the moment that it was granted until, it is over; nobody needs to end it."""
    clock = ManualClock()
    lease = Lease(clock)
    lease.extend_to(clock.steady() + 2.0)
    assert lease.seconds_left() == 2.0
    clock.advance(1.999)
    assert lease.holds()
    clock.advance(0.001)
    assert not lease.holds()
    assert lease.seconds_left() is None


def test_an_earlier_end_shortens_nothing() -> None:
    """The reply to an older confirm arriving late takes nothing away from what a newer one has proven."""
    clock = ManualClock()
    lease = Lease(clock)
    lease.extend_to(clock.steady() + 2.0)
    lease.extend_to(clock.steady() + 1.0)
    assert lease.seconds_left() == 2.0


def test_ending_it_is_final_until_the_next_grant() -> None:
    """After a reset nothing that was granted before counts, however long it would have lasted."""
    clock = ManualClock()
    lease = Lease(clock)
    lease.extend_to(clock.steady() + 2.0)
    lease.end()
    assert not lease.holds()
    lease.extend_to(clock.steady() + 1.0)
    assert lease.seconds_left() == 1.0


def test_it_follows_the_clock_that_counts_suspended_time_alone() -> None:
    """A wall clock that steps neither prolongs nor ends it."""
    clock = ManualClock()
    lease = Lease(clock)
    lease.extend_to(clock.steady() + 2.0)
    clock.wall_now += 1e6
    assert lease.holds()
    clock.wall_now -= 2e6
    clock.steady_now += 3.0
    assert not lease.holds()
