"""Events: what a publisher may say, and that whatever cannot be read says so."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_node.errors import InvalidEventError
from cache_node.feed.events import MAX_ID_BYTES, VERSION, Event, EventType, decode, encode, normalise_id, read_entry

UPPER = "0F8FAD5B-D9CB-469F-A165-70867728950E"


def is_id(text: str) -> bool:
    """Hypothesis also draws texts that it finds in our code, the beginning of a token among them."""
    return len(text.encode()) <= MAX_ID_BYTES and not text.lower().startswith("ory_")


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(is_id)


@st.composite
def checked_events(draw: st.DrawFn) -> Event:
    event_type = draw(st.sampled_from(EventType))
    takes_ids = event_type is not EventType.FLUSH
    session = draw(ids if event_type.names_session else st.none() | ids) if takes_ids else None
    identity = draw(ids if event_type.names_identity else st.none() | ids) if takes_ids else None
    return Event.checked(event_type, session, identity)


def framed(payload: bytes, version: object = VERSION) -> bytes:
    """A feed entry's field, as the append script puts it together."""
    packed: bytes = b"\x94" + msgpack.packb(version) + msgpack.packb(1_800_000_000_000_000) + payload
    return packed


def field(rows: object, version: object = VERSION, written_us: object = 1_800_000_000_000_000) -> bytes:
    packed: bytes = msgpack.packb([version, written_us, "source", rows])
    return packed


@given(st.lists(checked_events(), min_size=1, max_size=20), st.text(max_size=20))
def test_events_survive_the_feed(events: list[Event], source: str) -> None:
    """1 to n events come out of the feed as they went in, in their order."""
    assert decode(framed(encode(source, events))) == tuple(events)


def test_batch_of_ten_thousand_survives_the_feed() -> None:
    """As many as one publish call may bring fit one entry."""
    events = [Event(EventType.SESSION_REVOKED, f"session-{n}", f"identity-{n}") for n in range(10_000)]
    assert decode(framed(encode("source", events))) == tuple(events)


@pytest.mark.parametrize(
    "event",
    [
        Event(EventType.SESSION_REVOKED),
        Event(EventType.SESSION_CHANGED, None, "i"),
        Event(EventType.IDENTITY_CHANGED, "s"),
        Event(EventType.IDENTITY_DELETED, "s", ""),
    ],
)
def test_an_event_that_names_nothing_is_not_written(event: Event) -> None:
    """Nobody could read it, so that it would void the caches of a whole region."""
    with pytest.raises(InvalidEventError, match="names nothing"):
        encode("s", [Event(EventType.FLUSH), event])


def test_an_entry_tells_when_it_was_written() -> None:
    """In the server's µs, for the lag; None where the entry cannot be read."""
    entry = read_entry(7, field([[5, None, None, 0]]))
    assert (entry.number, entry.events, entry.published_us) == (7, (Event(EventType.FLUSH),), 1_800_000_000_000_000)
    unreadable = read_entry(7, b"")
    assert (unreadable.number, unreadable.events, unreadable.published_us) == (7, None, None)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(framed(encode("s", [Event(EventType.FLUSH)]), version=2), id="newer version"),
        pytest.param(framed(encode("s", [Event(EventType.FLUSH)]), version="1"), id="version of another kind"),
        pytest.param(field([[6, "s", None, 0]]), id="unknown type"),
        pytest.param(field([[1, "s", None, 0], [99, "s", None, 0]]), id="one unknown type of two"),
        pytest.param(field([[1, "s", None, 500]]), id="settle time, of a later version"),
        pytest.param(field([[1, "s", None, 0, "more"]]), id="more columns"),
        pytest.param(field([[1, "s", None]]), id="fewer columns"),
        pytest.param(field([[1, None, "i", 0]]), id="session event without a session"),
        pytest.param(field([[3, "s", None, 0]]), id="identity event without an identity"),
        pytest.param(field([[1, b"s", None, 0]]), id="id of bytes"),
        pytest.param(field([[1, "s" * 129, None, 0]]), id="id too long"),
        pytest.param(field([[[], "s", None, 0]]), id="type that is no number"),
        pytest.param(field([[1, "s", None, 0]], written_us=float("inf")), id="written at no time"),
        pytest.param(field([]), id="no events"),
        pytest.param(field(None), id="nothing for events"),
        pytest.param(field({"a": 1}), id="a map for events"),
        pytest.param(field("abcd"), id="a text for events"),
        pytest.param(field(4), id="a number for events"),
        pytest.param(msgpack.packb([VERSION, 0, "s"]), id="three parts"),
        pytest.param(msgpack.packb([VERSION, 0, "s", [[1, "s", None, 0]], 0]), id="five parts"),
        pytest.param(msgpack.packb(7), id="a number"),
        pytest.param(field([[1, "s", None, 0]]) + b"\x00", id="something behind it"),
        pytest.param(field([[1, "s", None, 0]])[:-1], id="cut off"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a list of four thousand million"),
        pytest.param(b"\xc1", id="no msgpack"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_cannot_be_read_is_none(payload: bytes) -> None:
    """None, not an error and not an empty list: the fence takes it for an event that might name anything."""
    assert decode(payload) is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=8,
)
rows = st.lists(st.tuples(st.integers(0, 7), st.none() | ids, st.none() | ids, st.integers(0, 1)) | anything)


def names_what_it_should(event: Event) -> bool:
    ids = event.session_id, event.identity_id
    is_named = bool(ids[0]) or not event.type.names_session, bool(ids[1]) or not event.type.names_identity
    return all(is_named) and all(id_ is None or normalise_id(id_) == id_ for id_ in ids)


@given(
    st.binary()
    | st.builds(lambda value: bytes(msgpack.packb(value)), anything)
    | st.builds(field, rows | anything, st.just(VERSION) | anything)
    | st.builds(field, st.just([[5, None, None, 0]]), st.just(VERSION), anything)
)
def test_reading_never_fails(payload: bytes) -> None:
    """Whatever bytes stand in the feed, a node gets events that name something, or None."""
    events = decode(payload)
    assert events is None or (events and all(names_what_it_should(event) for event in events))


def test_uuids_are_lower_cased_at_every_entrance() -> None:
    """An upper-case revoke would kill nothing, so neither publishing nor reading lets one through."""
    event = Event.checked("session.revoked", UPPER, UPPER)
    assert (event.session_id, event.identity_id) == (UPPER.lower(), UPPER.lower())
    raw = Event(EventType.SESSION_REVOKED, UPPER)
    assert decode(framed(encode("s", [raw]))) == (Event(EventType.SESSION_REVOKED, UPPER.lower()),)


@pytest.mark.parametrize("opaque", ["Session-A", UPPER + "0", UPPER.replace("-", ""), f"{{{UPPER}}}", UPPER[:-1] + "G"])
def test_other_ids_are_opaque(opaque: str) -> None:
    """What is no UUID is another id in another case."""
    assert normalise_id(opaque) == opaque


@pytest.mark.parametrize(
    ("type_", "session_id", "identity_id", "words"),
    [
        ("session.gone", "s", None, "type must be one of session.revoked, session.changed, "),
        (None, "s", None, "type must be one of"),
        (["flush"], None, None, "type must be one of"),
        ("session.revoked", None, "i", "session.revoked needs session_id"),
        ("session.changed", None, None, "session.changed needs session_id"),
        ("identity.changed", "s", None, "identity.changed needs identity_id"),
        ("identity.deleted", None, None, "identity.deleted needs identity_id"),
        ("session.revoked", "", None, "session_id must be a text that is not empty"),
        ("session.revoked", 7, None, "session_id must be a text that is not empty"),
        ("session.revoked", "s", "", "identity_id must be a text that is not empty"),
        ("session.revoked", "ä" * 65, None, "session_id must be at most 128 bytes"),
        ("session.revoked", "\ud800", None, "session_id must be valid Unicode"),
    ],
)
def test_events_from_outside_are_checked(type_: object, session_id: Any, identity_id: Any, words: str) -> None:
    """A wrong event is refused in one line that says what is wrong with it."""
    with pytest.raises(InvalidEventError, match=words) as refused:
        Event.checked(type_, session_id, identity_id)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("event_type", EventType)
def test_each_type_names_one_kind_of_id_or_everything(event_type: EventType) -> None:
    """A session event names its session only, an identity event its identity, a flush everything."""
    kind = event_type.value.split(".")[0]
    assert (event_type.names_session, event_type.names_identity) == (kind == "session", kind == "identity")
