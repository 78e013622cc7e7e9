"""The fence: units, and whatever happens to it against a plain dictionary that never forgets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache_node.feed.events import Event, EventType
from cache_node.feed.fence import BUCKETS, SWEPT_IDS, Fence
from cache_node.feed.ids import pack_id
from cache_node.feed.position import Position
from tests.fakes import ManualClock, changed, flush, identity_changed, revoked

GENERATION = 7
WINDOW_SECONDS = 160.0
BUCKET_SECONDS = WINDOW_SECONDS / BUCKETS


@dataclass
class Kept:
    """A cached answer, as far as the fence looks at it."""

    number: int
    session_id: str = "session-1"
    identity_id: str = "identity-1"
    generation: int = GENERATION
    admitted_version: int = -1

    @property
    def session(self) -> bytes:
        return pack_id(self.session_id)

    @property
    def identity(self) -> bytes:
        return pack_id(self.identity_id)


def at(number: int) -> Position:
    return Position(GENERATION, number)


def fence_at(number: int, *, clock: ManualClock | None = None, max_ids: int = 1000) -> Fence:
    fence = Fence(clock or ManualClock(), window_seconds=WINDOW_SECONDS, max_ids=max_ids)
    fence.reset(at(number))
    return fence


# Asking ---------------------------------------------------------------------------------------------------------------


def test_a_fence_without_a_position_admits_nothing() -> None:
    """Unknown is never treated as fine: before the first confirm there is nothing to compare with."""
    fence = Fence(ManualClock(), window_seconds=WINDOW_SECONDS, max_ids=1000)
    assert fence.position is None
    assert not fence.admits(Kept(5))
    assert not fence.admits_negative(at(5))
    assert not fence.has_applied(at(0))


@pytest.mark.parametrize("event", [revoked(), changed(), identity_changed()], ids=lambda e: e[0].type.value)
def test_an_event_rejects_what_is_older_and_nothing_else(event: list[Event]) -> None:
    """Older than the event and named by it: rejected.  Read after it, or about somebody else: admitted."""
    fence = fence_at(5)
    fence.apply(at(6), event)
    assert not fence.admits(Kept(5))
    assert fence.admits(Kept(6))
    assert fence.admits(Kept(5, "session-2", "identity-2"))


def test_a_session_event_names_its_session_only() -> None:
    """Whatever identity id it carries: other sessions of that identity go on."""
    fence = fence_at(5)
    fence.apply(at(6), [Event(EventType.SESSION_REVOKED, "session-1", "identity-1")])
    assert fence.admits(Kept(5, "session-2", "identity-1"))


def test_an_identity_event_names_all_its_sessions() -> None:
    """Whatever session id it carries."""
    fence = fence_at(5)
    fence.apply(at(6), [Event(EventType.IDENTITY_DELETED, "session-9", "identity-1")])
    assert not fence.admits(Kept(5, "session-2", "identity-1"))
    assert fence.admits(Kept(5, "session-9", "identity-2"))


@pytest.mark.parametrize(
    "events",
    [flush(), None, [Event(EventType.SESSION_CHANGED)], [Event(EventType.IDENTITY_CHANGED, "session-1")]],
    ids=["flush", "unreadable", "names no session", "names no identity"],
)
def test_what_might_name_anything_raises_the_floor(events: list[Event] | None) -> None:
    """A flush, an entry that cannot be read, an event that fails to name anything: everything older is rejected."""
    fence = fence_at(5)
    fence.apply(at(6), events)
    assert fence.floor == 6
    assert not fence.admits(Kept(5, "session-2", "identity-2"))
    assert fence.admits(Kept(6, "session-2", "identity-2"))


@pytest.mark.parametrize("generation", [GENERATION - 1, GENERATION + 1])
def test_another_generation_is_rejected(generation: int) -> None:
    """Lower or higher, and whatever its number."""
    fence = fence_at(5)
    assert not fence.admits(Kept(99, generation=generation))
    assert not fence.admits_negative(Position(generation, 99))
    assert not fence.has_applied(Position(generation, 1))


def test_admitting_stamps_forward_to_the_applied_position() -> None:
    """Proven unchanged up to there, and no further: what was only heard of may not be all there is."""
    fence = fence_at(5)
    fence.apply(at(6), changed("session-2"))
    fence.add(9, changed("session-2"))
    kept = Kept(5)
    assert fence.admits(kept)
    assert kept.number == 6
    fence.apply(at(7), revoked())
    assert not fence.admits(kept)


def test_admitting_never_stamps_backwards() -> None:
    """An entry of a neighbour that is ahead keeps its own `as_of`."""
    fence = fence_at(5)
    kept = Kept(8)
    assert fence.admits(kept)
    assert kept.number == 8


def test_a_refusal_stands_until_something_is_valid_again() -> None:
    """A 401 does not turn into a 200 by a revocation; any other event may do that."""
    fence = fence_at(5)
    fence.apply(at(6), revoked("session-2"))
    assert fence.admits_negative(at(5))
    fence.add(9, changed("session-2"))
    assert not fence.admits_negative(at(5))
    assert not fence.admits_negative(at(8))
    assert fence.admits_negative(at(9))


def test_a_refusal_falls_with_the_floor() -> None:
    """What may have been forgotten, or cannot be read, might have made the session valid."""
    fence = fence_at(5)
    fence.apply(at(6), None)
    assert not fence.admits_negative(at(5))
    assert fence.admits_negative(at(6))


def test_has_applied_counts_what_is_applied_not_what_was_heard() -> None:
    """A caller who wants to read its own write waits for the confirm."""
    fence = fence_at(5)
    fence.add(6, changed())
    assert not fence.has_applied(at(6))
    fence.apply(at(6), changed())
    assert fence.has_applied(at(6))
    assert fence.has_applied(at(5))


# Changing -------------------------------------------------------------------------------------------------------------


def test_reset_voids_everything() -> None:
    """Whatever was known, cached or under way; the floor is the feed's end."""
    fence = fence_at(5)
    kept = Kept(5)
    assert fence.admits(kept)
    fence.add(9, revoked("session-2"))
    fence.reset(Position(GENERATION + 1, 2))
    assert (fence.floor, len(fence), fence.position) == (2, 0, Position(GENERATION + 1, 2))
    assert not fence.admits(kept)
    assert not fence.admits(Kept(1, generation=GENERATION + 1))
    assert fence.admits(Kept(2, generation=GENERATION + 1))


def test_reset_to_an_earlier_end_voids_what_was_stamped_later() -> None:
    """The history that gave those numbers is lost, and others will be given them."""
    fence = fence_at(5)
    kept = Kept(5)
    assert fence.admits(kept)
    fence.reset(at(3))
    assert fence.position == at(3)
    assert not fence.admits(kept)
    fence.apply(at(4), revoked())
    fence.apply(at(5), changed("session-2"))
    assert not fence.admits(kept)


def test_an_id_in_a_younger_bucket_survives_the_older_one() -> None:
    """Named again, it is remembered as long as its newest event, and the floor covers only what goes."""
    clock = ManualClock()
    fence = fence_at(5, clock=clock)
    fence.apply(at(6), changed("session-1"))
    clock.advance(BUCKET_SECONDS)
    fence.apply(at(7), changed("session-1"))
    clock.advance(WINDOW_SECONDS + BUCKET_SECONDS / 2)
    fence.forget_old()
    assert fence.floor == 6
    assert not fence.admits(Kept(6))
    assert fence.admits(Kept(6, "session-2", "identity-2"))
    clock.advance(2 * WINDOW_SECONDS)
    fence.forget_old()
    assert (len(fence), fence.floor) == (0, 7), "forgotten with its newest bucket"


def test_nothing_is_forgotten_before_the_window_has_passed() -> None:
    """An id stays at least as long as the window says, so that idle entries live that long."""
    clock = ManualClock()
    fence = fence_at(5, clock=clock)
    fence.apply(at(6), changed("session-1"))
    clock.advance(BUCKET_SECONDS * 0.9)
    fence.apply(at(7), changed("session-2"))  # into the same bucket
    clock.advance(WINDOW_SECONDS)
    fence.forget_old()
    assert (fence.floor, len(fence)) == (5, 2)
    clock.advance(BUCKET_SECONDS * 0.2)
    fence.forget_old()
    assert (fence.floor, len(fence)) == (7, 0)


def test_the_cap_bounds_the_ids() -> None:
    """However many events come, and however they are batched; what goes raises the floor."""
    fence = fence_at(0, max_ids=64)
    number = 0
    for size in (1, 5, 70, 1, 200, 3) * 20:
        number += size
        fence.apply(at(number), [Event(EventType.SESSION_CHANGED, f"s-{number}-{n}") for n in range(size)])
        assert len(fence) <= 64
    assert fence.floor_raises > 0
    assert not fence.admits(Kept(fence.floor - 1, "unknown", "unknown"))


def test_a_hot_id_costs_one_place_a_bucket() -> None:
    """A session that changes all the time does not push the others out."""
    fence = fence_at(0, max_ids=64)
    fence.apply(at(1), changed("another"))
    for number in range(2, 2000):
        fence.apply(at(number), changed("hot"))
    assert len(fence) == 2
    assert fence.floor == 0


def test_dropping_a_bucket_with_heard_events_covers_them_too() -> None:
    """The floor goes to the newest position that the bucket holds, though it is not applied yet."""
    clock = ManualClock()
    fence = fence_at(5, clock=clock)
    fence.add(9, revoked())
    clock.advance(2 * WINDOW_SECONDS)
    fence.forget_old()
    assert (fence.floor, len(fence)) == (9, 0)
    assert not fence.admits(Kept(8))


@pytest.mark.parametrize("heard_first", [True, False])
def test_hearing_and_applying_commute(heard_first: bool) -> None:
    """Entries may be added early in any order, and once more by their confirm: the outcome is the same."""
    fence = fence_at(5)
    entries = [(6, revoked("session-1")), (7, identity_changed("identity-2")), (8, changed("session-1"))]
    if heard_first:
        for number, events in reversed(entries):
            fence.add(number, events)
    for number, events in entries:
        fence.apply(at(number), events)
    assert (len(fence), fence.floor, fence.position) == (2, 5, at(8))
    assert [fence.admits(Kept(n)) for n in (5, 6, 7, 8)] == [False, False, False, True]
    assert [fence.admits(Kept(n, "x", "identity-2")) for n in (6, 7)] == [False, True]


def test_every_change_changes_the_version() -> None:
    """An entry admitted under a version is not looked at again while it stands, so nothing may change under it."""
    clock = ManualClock()
    fence = fence_at(5, clock=clock)
    versions = [fence.version]
    token = fence.begin_replay()
    fence.replay(token, 5, changed("session-5"))
    versions.append(fence.version)
    fence.add(7, revoked())
    versions.append(fence.version)
    fence.apply(at(6), changed("session-2"))
    versions.append(fence.version)
    fence.add(8, flush())
    versions.append(fence.version)
    fence.add(9, None)
    versions.append(fence.version)
    clock.advance(2 * WINDOW_SECONDS)
    fence.forget_old()
    versions.append(fence.version)
    fence.reset(at(9))
    versions.append(fence.version)
    assert versions == sorted(set(versions))


def test_forgotten_ids_are_removed_step_by_step() -> None:
    """However many there are: no confirm takes long."""
    fence = _forgetful()
    assert (fence.floor, len(fence)) == (SWEPT_IDS + 2, 2)
    fence.forget_old()
    assert (fence.floor, len(fence)) == (SWEPT_IDS + 2, 0)


def test_new_events_remove_forgotten_ids_too() -> None:
    """Wake-ups alone must not let them pile up, should no confirm come through."""
    fence = _forgetful()
    fence.add(SWEPT_IDS + 3, changed("another"))
    assert len(fence) == 1


def test_a_replay_stays_above_ids_that_are_still_to_be_removed() -> None:
    """They are in no bucket any more: what lowered the floor below them would forget them for nothing."""
    fence = _forgetful()
    token = fence.begin_replay()
    for number in range(SWEPT_IDS + 2, 0, -1):
        fence.replay(token, number, changed(f"session-{number}"))
    fence.forget_old()
    admitted = [n for n in range(1, SWEPT_IDS + 3) if fence.admits(Kept(n - 1, f"session-{n}"))]
    assert admitted == []


def _forgetful() -> Fence:
    """One that has forgotten two ids more than a confirm removes."""
    clock = ManualClock()
    fence = fence_at(0, clock=clock, max_ids=10 * SWEPT_IDS)
    for number in range(1, SWEPT_IDS + 3):
        fence.apply(at(number), changed(f"session-{number}"))
    clock.advance(2 * WINDOW_SECONDS)
    fence.forget_old()
    return fence


# Replaying backwards --------------------------------------------------------------------------------------------------


def test_replay_lowers_the_floor_step_by_step() -> None:
    """Down to the entry that was read, whole, and not to the one before it."""
    fence = fence_at(5)
    token = fence.begin_replay()
    assert fence.floor == 5
    assert fence.replay(token, 5, changed("session-5"))
    assert fence.floor == 5
    assert fence.replay(token, 4, [*changed("session-4"), *changed("session-3")])
    assert fence.floor == 4
    assert fence.replay(token, 2, changed())
    assert fence.floor == 2
    assert fence.admits(Kept(2))
    assert not fence.admits(Kept(1))
    assert not fence.admits(Kept(3, "session-4"))


@pytest.mark.parametrize("events", [flush(), [*changed(), *flush()], None])
def test_replay_ends_at_what_voids_everything_older(events: list[Event] | None) -> None:
    """The floor stays above a flush and above what cannot be read."""
    fence = fence_at(5)
    token = fence.begin_replay()
    fence.replay(token, 5, changed("session-5"))
    assert not fence.replay(token, 4, events)
    assert fence.floor == 5


def test_replay_of_another_life_changes_nothing() -> None:
    """After a reset the token is worth nothing, though another replay may have begun."""
    fence = fence_at(5)
    token = fence.begin_replay()
    fence.reset(Position(GENERATION + 1, 8))
    version = fence.version
    assert not fence.replay(token, 5, changed())
    assert fence.begin_replay() != token
    assert not fence.replay(token, 5, changed())
    assert (fence.floor, fence.version, len(fence)) == (8, version, 0)


def test_floor_raised_by_a_live_event_ends_the_replay() -> None:
    """What was flushed since the replay began is not brought back by reading on."""
    fence = fence_at(5)
    token = fence.begin_replay()
    assert fence.replay(token, 5, changed("session-5"))
    fence.apply(at(6), flush())
    assert not fence.replay(token, 4, changed("session-4"))
    assert fence.floor == 6


def test_replayed_ids_are_forgotten_under_the_floor() -> None:
    """Dropping the bucket that holds them raises the floor as for any other."""
    clock = ManualClock()
    fence = fence_at(5, clock=clock)
    token = fence.begin_replay()
    for number in (5, 4, 3):
        fence.replay(token, number, changed(f"session-{number}"))
    assert fence.floor == 3
    clock.advance(2 * WINDOW_SECONDS)
    fence.forget_old()
    assert (fence.floor, len(fence)) == (5, 0)
    assert not fence.replay(token, 2, changed("session-2"))
    assert fence.floor == 5


# Against a dictionary that never forgets ------------------------------------------------------------------------------

SESSIONS = [f"s{n}" for n in range(6)]
IDENTITIES = [f"i{n}" for n in range(3)]
EVENTS = st.lists(
    st.builds(Event, st.just(EventType.SESSION_REVOKED), st.sampled_from(SESSIONS))
    | st.builds(Event, st.just(EventType.SESSION_CHANGED), st.sampled_from(SESSIONS), st.sampled_from(IDENTITIES))
    | st.builds(Event, st.just(EventType.IDENTITY_CHANGED), st.none(), st.sampled_from(IDENTITIES))
    | st.builds(Event, st.just(EventType.SESSION_CHANGED), st.integers(0, 200).map("other-{}".format)),
    min_size=1,
    max_size=4,
)
RARE = st.sampled_from([0] * 30 + [1, 2])


class FenceMachine(RuleBasedStateMachine):
    """The fence of one node through confirms, early additions, forgetting, replay and resets.

    The model knows every event that the fence was ever told of, by number, and forgets none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.settings = pytest.MonkeyPatch()
        self.clock = ManualClock()
        self.max_ids = 64
        self.generation = GENERATION
        self.history: list[tuple[int, list[Event] | None]] = []
        """The feed: entries by number, without gaps; None is one that this version cannot read."""
        self.known: set[int] = set()
        """Numbers that the fence was told of."""
        self.start = 0
        """Where the fence began in this generation; less once a replay has read further back."""
        self.applied = 0
        self.kept: list[tuple[Kept, int]] = []
        """Entries, and the `as_of` that they began with."""

    @initialize(
        max_ids=st.sampled_from([16, 64, 1000]),
        swept=st.sampled_from([0, 1, 1000]),
        past=st.lists(EVENTS, max_size=12),
    )
    def begin(self, max_ids: int, swept: int, past: list[list[Event]]) -> None:
        self.settings.setattr("cache_node.feed.fence.SWEPT_IDS", swept)
        self.max_ids = max_ids
        self.fence = Fence(self.clock, window_seconds=WINDOW_SECONDS, max_ids=max_ids)
        for events in past:
            self._publish(events)
        self._start()
        self.token = self.fence.begin_replay()
        self.unread = list(reversed(self.history))

    def _publish(self, events: list[Event] | None) -> None:
        count = 1 if events is None else len(events)
        self.history.append((self._end + count, events))

    def _tell(self, number: int, events: list[Event] | None) -> None:
        self.known.add(number)
        self.told += len(events or ())

    @property
    def _end(self) -> int:
        return self.history[-1][0] if self.history else 0

    def _start(self) -> None:
        self.fence.reset(Position(self.generation, self._end))
        self.start = self.applied = self._end
        self.known = set()
        self.unread = []
        self.told = 0
        self.started_at = self.clock.steady()

    @rule(events=EVENTS, rare=RARE)
    def publish(self, events: list[Event], rare: int) -> None:
        self._publish([events, [*events, *flush()], None][rare])

    @rule(count=st.integers(1, 5))
    def confirm(self, count: int) -> None:
        for number, events in [entry for entry in self.history if entry[0] > self.applied][:count]:
            self.fence.apply(Position(self.generation, number), events)
            self._tell(number, events)
            self.applied = number
        self.fence.forget_old()

    @rule(data=st.data())
    def hear(self, data: st.DataObject) -> None:
        ahead = [entry for entry in self.history if entry[0] > self.applied]
        if ahead:
            number, events = data.draw(st.sampled_from(ahead))
            self.fence.add(number, events)
            self._tell(number, events)

    def teardown(self) -> None:
        self.settings.undo()

    @rule(seconds=st.sampled_from([1.0, 5.0, 10.0, 40.0, 170.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.unread)
    @rule()
    def replay(self) -> None:
        number, events = self.unread.pop(0)
        if self.fence.replay(self.token, number, events):
            self._tell(number, events)
            self.start = min(self.start, number)
        else:
            self.unread = []

    @rule()
    def replay_again(self) -> None:
        """As a follower does that failed and runs again."""
        self.token = self.fence.begin_replay()
        self.unread = [entry for entry in reversed(self.history) if entry[0] <= self.applied]

    @precondition(lambda self: self.applied > 0)
    @rule(rare=st.integers(0, 9))
    def another_generation(self, rare: int) -> None:
        if rare == 0:
            self.generation += 1
            self.history = []
            self._start()

    @rule(session=st.sampled_from(SESSIONS), identity=st.sampled_from(IDENTITIES), back=st.integers(0, 9))
    def keep(self, session: str, identity: str, back: int) -> None:
        """A fill of this node, or of a neighbour that is behind it or ahead."""
        number = max(0, self._end - back)
        self.kept.append((Kept(number, session, identity, self.generation), number))
        del self.kept[:-30]

    def _model_admits(self, entry: Kept, as_of: int) -> bool:
        """By everything that the fence was told of, from the `as_of` that the entry began with."""
        if entry.generation != self.generation or as_of < self.start:
            return False
        for number, events in self.history:
            if number in self.known and number > as_of:
                for event in events or flush():
                    if event.type is EventType.FLUSH or event.session_id == entry.session_id:
                        return False
                    if event.type.names_identity and event.identity_id == entry.identity_id:
                        return False
        return True

    @invariant()
    def admits_what_the_model_admits_or_less(self) -> None:
        for entry, as_of in self.kept:
            is_above_floor = entry.number >= self.fence.floor
            expected = self._model_admits(entry, as_of)
            unseen = replace(entry, admitted_version=-1)
            admitted = self.fence.admits(entry)
            assert admitted == self.fence.admits(unseen), "the version stood still though the answer changed"
            assert admitted <= expected, f"{entry} is admitted"
            assert admitted == (expected and is_above_floor), f"{entry} is rejected by more than the floor"
            if entry.generation == self.generation:
                assert entry.number <= max(as_of, self.applied), "stamped beyond what is applied"

    @invariant()
    def forgets_only_under_the_floor(self) -> None:
        newest_flush = max(
            (
                n
                for n, e in self.history
                if n in self.known and (e is None or any(v.type is EventType.FLUSH for v in e))
            ),
            default=0,
        )
        never_dropped = max(self.start, newest_flush)
        assert self.fence.floor >= never_dropped
        named = {
            (event.type.names_session, event.session_id if event.type.names_session else event.identity_id)
            for number, events in self.history
            if number in self.known
            for event in events or ()
            if event.type is not EventType.FLUSH
        }
        if self.told <= self.max_ids and self.clock.steady() - self.started_at < WINDOW_SECONDS:
            assert len(self.fence) == len(named)
            assert self.fence.floor == never_dropped, "nothing is forgotten, and the floor is higher all the same"

    @invariant()
    def stays_below_the_cap(self) -> None:
        assert len(self.fence) <= self.max_ids


FenceMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
TestFenceAgainstModel = FenceMachine.TestCase


def test_what_is_gone_is_known_until_it_is_forgotten() -> None:
    """The newest event that names an id says whether it is gone; a forgotten one is unknown."""
    clock = ManualClock()
    fence = Fence(clock, window_seconds=16.0, max_ids=1000)
    fence.reset(Position(1, 0))
    assert not fence.is_gone(Kept(0, "s", "i"))
    fence.add(1, [Event(EventType.SESSION_REVOKED, "s")])
    assert fence.is_gone(Kept(0, "s", "i"))
    fence.add(2, [Event(EventType.SESSION_CHANGED, "s")])
    assert not fence.is_gone(Kept(0, "s", "i"))
    fence.add(3, [Event(EventType.IDENTITY_CHANGED, None, "i")])
    assert not fence.is_gone(Kept(0, "s", "i"))
    fence.add(4, [Event(EventType.IDENTITY_DELETED, None, "i")])
    assert fence.is_gone(Kept(0, "s", "i"))
    fence.add(5, [Event(EventType.SESSION_REVOKED, "t")])
    assert fence.is_gone(Kept(0, "t", "j"))
    fence.add(6, [Event(EventType.IDENTITY_CHANGED, None, "j")])
    assert not fence.is_gone(Kept(0, "t", "j")), "all sessions of it answer differently now"
    clock.advance(40.0)
    fence.forget_old()
    assert not fence.is_gone(Kept(0, "s", "i"))
