from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from cache_node.feed.events import MAX_ID_BYTES, Event, EventType
from cache_node.ops.invalidations import BadEventsError, read_events

REVOKED = {"type": "session.revoked", "session_id": "s-1"}
UUID = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"


async def errors_of(content: Any) -> list[tuple[int, str]]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(BadEventsError) as caught:
        await read_events(body)
    return caught.value.errors


async def status_of(body: bytes) -> int:
    with pytest.raises(HTTPException) as caught:
        await read_events(body)
    assert "\n" not in caught.value.detail
    return caught.value.status_code


async def test_one_object_or_an_array() -> None:
    event = Event(EventType.SESSION_REVOKED, "s-1")
    assert await read_events(json.dumps(REVOKED).encode()) == [event]
    assert await read_events(json.dumps([REVOKED, REVOKED]).encode()) == [event, event]


async def test_ids_are_normalised_as_at_every_entrance() -> None:
    (event,) = await read_events(json.dumps({"type": "identity.deleted", "identity_id": UUID}).encode())
    assert event == Event(EventType.IDENTITY_DELETED, None, UUID.lower())


async def test_null_is_as_good_as_absent() -> None:
    body = {"type": "flush", "session_id": None, "identity_id": None}
    assert await read_events(json.dumps(body).encode()) == [Event(EventType.FLUSH)]


@pytest.mark.parametrize(
    ("event", "named"),
    [
        ({}, "type"),
        ({"type": "session.revoked"}, "session_id"),
        ({"type": "session.revoked", "identity_id": "i"}, "session_id"),
        ({"type": "identity.changed", "session_id": "s"}, "identity_id"),
        ({"type": "SESSION.REVOKED", "session_id": "s"}, "type"),
        ({"type": None, "session_id": "s"}, "type"),
        ({"type": ["flush"]}, "type"),
        ({"type": {"flush": 1}}, "type"),
        ({"type": "session.revoked", "session_id": ""}, "session_id"),
        ({"type": "session.revoked", "session_id": 5}, "session_id"),
        ({"type": "session.revoked", "session_id": ["s"]}, "session_id"),
        ({"type": "session.revoked", "session_id": "x" * (MAX_ID_BYTES + 1)}, "session_id"),
        ({"type": "session.revoked", "session_id": "ö" * (MAX_ID_BYTES // 2) + "x"}, "session_id"),
        ({"type": "flush", "settle_seconds": 1}, "settle_seconds"),
        ({"type": "flush", "\n": 1}, "field"),
        ("flush", "object"),
        (["flush"], "object"),
        (None, "object"),
        (1e300, "object"),
    ],
)
async def test_what_is_wrong_with_an_event_is_said_with_its_index(event: object, named: str) -> None:
    ((index, error),) = await errors_of([REVOKED, event, REVOKED])
    assert index == 1
    assert named in error
    assert "\n" not in error


async def test_a_name_that_is_there_twice_is_refused() -> None:
    twice = b'{"type": "session.revoked", "session_id": "a", "session_id": "b"}'
    assert await errors_of(twice) == [(0, "'session_id' is there twice")]
    assert [index for index, _ in await errors_of(b"[%b, %b]" % (json.dumps(REVOKED).encode(), twice))] == [1]
    assert await errors_of(b'[{"type": "flush", "\\u0074ype": "flush"}]') == [(0, "'type' is there twice")]


async def test_an_error_never_grows_with_its_event() -> None:
    ((_, unknown),) = await errors_of({"x" * 100_000: 1, "type": "flush"})
    ((_, wrong),) = await errors_of({"type": "x" * 100_000})
    assert max(len(unknown), len(wrong)) < 200


async def test_every_bad_event_has_its_line_in_order() -> None:
    errors = await errors_of([{"type": "no"} if index % 2 else REVOKED for index in range(10_000)])
    assert [index for index, _ in errors] == list(range(1, 10_000, 2))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"x", b"{", b"[1,]", b"{'type': 'flush'}", b"[NaN]", b"[Infinity]", b"[1e999]", b"[01]"),
        *(b"5", b'"flush"', b"null", b"true", b"[]", b"{}{}"),
        *(b'"\xff"', b'"\\ud800"', b"\xef\xbb\xbf{}", json.dumps(REVOKED).encode("utf-16")),
        *(b"[" * 1000 + b"]" * 1000, b"[" * 1_000_000, b'{"a":' * 200_000, b"[" + b"9" * 100_000 + b"]"),
    ],
    ids=range(24),
)
async def test_what_is_not_json_or_no_event_is_one_error(body: bytes) -> None:
    assert await status_of(body) == 400


async def test_how_many_events_are_too_many() -> None:
    row = b'{"type":"flush"}'
    assert len(await read_events(b"[" + b",".join([row] * 10_000) + b"]")) == 10_000
    assert await status_of(b"[" + b",".join([row] * 10_001) + b"]") == 413
    assert await status_of(b"[" + b",".join([b"0"] * 10_001) + b"]") == 413


async def test_an_object_with_many_names_costs_no_more_than_reading_it() -> None:
    names = ",".join(f'"{n}":0' for n in range(90_000))
    async with asyncio.timeout(5):
        assert await errors_of(b"{%b,%b}" % (names.encode(), b'"89999":0')) == [(0, "'89999' is there twice")]


async def test_sessions_are_answered_while_a_large_batch_is_read() -> None:
    turns = 0
    done = asyncio.Event()

    async def others() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await read_events(json.dumps([REVOKED] * 10_000).encode())
    done.set()
    await other
    assert turns >= 30


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(list(EventType)).map(lambda t: t.value),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "session_id", "identity_id", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
async def test_no_body_is_more_than_read_or_refused(body: bytes) -> None:
    try:
        events = await read_events(body)
    except (HTTPException, BadEventsError) as refused:
        is_right = bool(refused.errors) if isinstance(refused, BadEventsError) else refused.status_code == 400
    else:
        is_right = bool(events) and all(e == Event.checked(e.type, e.session_id, e.identity_id) for e in events)
    assert is_right, body
