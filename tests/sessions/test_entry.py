"""Entries: what is read of a session, when an entry has ended, and how old it is."""

from __future__ import annotations

import base64
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_node.feed.events import MAX_ID_BYTES
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import (
    CLOCK_TOLERANCE_SECONDS,
    EXPIRY_MARGIN_SECONDS,
    Entry,
    SessionFacts,
    credential_ends_at,
    parse_session,
    read_session,
)

# Bodies as recorded from Kratos (v1.3.1, and its master of July 2026), shortened in the middle.
V1_3_1 = (
    b'{"id":"227acb06-4539-4896-a221-db29fbd352e8","active":true,"expires_at":"2026-11-25T12:23:08.684829Z",'
    b'"authenticated_at":"2026-11-24T12:23:08.684829Z","authenticator_assurance_level":"aal1",'
    b'"authentication_methods":[{"method":"password","aal":"aal1","completed_at":"2026-11-24T12:23:08.684823267Z"}],'
    b'"issued_at":"2026-11-24T12:23:08.684829Z","identity":{"id":"b7353567-b616-473e-ac8a-c8e6bd858b0f",'
    b'"schema_id":"default","state":"active","traits":{"name":{"last":"O\'Neil \\u0026 S\xc3\xb6hne",'
    b'"first":"Zo\xc3\xab \\u003cb\\u003e"}},"metadata_public":{"zeta":1},"organization_id":null},'
    b'"devices":[{"id":"07908d69-3bb5-4ac7-a235-4cb1e8983d11","user_agent":"python-httpx/0.28.1"}]}\n'
)
MASTER = (
    b'{"id":"372fe002-d1e5-4916-a7a7-013443e5f11b","active":true,"expires_at":"2026-11-25T12:20:30.59032Z",'
    b'"authenticated_at":"2026-11-24T12:20:30.59032Z","authenticator_assurance_level":"aal1",'
    b'"authentication_methods":[{"method":"password","aal":"aal1","completed_at":"2026-11-24T12:20:30.590275032Z"}],'
    b'"issued_at":"2026-11-24T12:20:30.59032Z","identity":{"id":"c04ac0c7-6eb0-4d90-bed3-d368676fc840",'
    b'"schema_id":"default","state":"active","traits":{"email":"u662da1b03d@example.test"},"metadata_public":null,'
    b'"organization_id":null},"devices":[{"id":"2936ee76-d8b7-450b-b8ac-ccfe045f7a59","ip_address":"127.0.0.1:41952"}]}\n'
)


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        (
            V1_3_1,
            SessionFacts(
                "227acb06-4539-4896-a221-db29fbd352e8", "b7353567-b616-473e-ac8a-c8e6bd858b0f", 1795609388.684829
            ),
        ),
        (
            MASTER,
            SessionFacts(
                "372fe002-d1e5-4916-a7a7-013443e5f11b", "c04ac0c7-6eb0-4d90-bed3-d368676fc840", 1795609230.59032
            ),
        ),
    ],
)
def test_recorded_sessions(body: bytes, facts: SessionFacts) -> None:
    """What both versions of Kratos said."""
    assert facts_in(body) == facts


def facts_in(body: bytes) -> SessionFacts | None:
    parsed = parse_session(body)
    return None if parsed is None else read_session(parsed)


def session(**fields: Any) -> bytes:
    """A session with some fields of another kind."""
    plain = {"id": "s", "active": True, "expires_at": "2026-11-25T12:00:00Z", "identity": {"id": "i"}}
    return orjson.dumps(plain | fields)


def test_uuids_are_lower_cased_and_other_ids_are_not() -> None:
    """As at every entrance: an upper-case revoke must kill what a lower-case body names."""
    upper = "227ACB06-4539-4896-A221-DB29FBD352E8"
    facts = facts_in(session(id=upper, identity={"id": "Ada-227ACB06"}))

    assert facts is not None
    assert (facts.session_id, facts.identity_id) == (upper.lower(), "Ada-227ACB06")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-25T12:00:00Z", 1795608000.0),
        ("2026-11-25T12:00:00.5Z", 1795608000.5),
        ("2026-11-25T12:00:00.123456789Z", 1795608000.123456),
        ("2026-11-25T12:00:00.59032Z", 1795608000.59032),
        ("2026-11-25T13:00:00+01:00", 1795608000.0),
        ("2026-11-25T07:30:00.25-04:30", 1795608000.25),
        ("0001-01-01T00:00:00Z", -62135596800.0),
        ("9999-12-31T23:59:59.999999Z", 253402300799.999999),
    ],
)
def test_times_are_rfc_3339_with_any_precision(text: str, seconds: float) -> None:
    """Go trims trailing zeros and writes up to nanoseconds."""
    facts = facts_in(session(expires_at=text))

    assert facts is not None
    assert facts.expires_at == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"7",
        b'"text"',
        b"[]",
        b"{}",
        b"{",
        b"\xff\xfe",
        b"<html>502</html>",
        b"[" * 10_000,
        session(active=False),
        session(active="true"),
        session(active=1),
        session(active=None),
        session(id=""),
        session(id=None),
        session(id=7),
        session(id="x" * (MAX_ID_BYTES + 1)),
        session(id="ö" * (MAX_ID_BYTES // 2 + 1)),
        session(identity=None),
        session(identity=[]),
        session(identity="i"),
        session(identity={}),
        session(identity={"id": ""}),
        session(expires_at=None),
        session(expires_at=1795608000),
        session(expires_at=""),
        session(expires_at="tomorrow"),
        session(expires_at="2026-11-25"),
        session(expires_at="2026-11-25T12:00:00"),
        session(expires_at="2026-13-25T12:00:00Z"),
        session(expires_at="99999-11-25T12:00:00Z"),
        b'{"id":"\\ud800","active":true,"expires_at":"2026-11-25T12:00:00Z","identity":{"id":"i"}}',
    ],
)
def test_what_is_no_live_session_is_none(body: bytes) -> None:
    """Nothing that cannot be named by an event, or whose end is not known, may be kept."""
    assert facts_in(body) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["id", "active", "expires_at", "identity", "other"]), json_values))
def test_any_json_is_a_session_or_none(value: dict[str, Any]) -> None:
    """Whatever an origin says with status 200, reading it raises nothing."""
    facts_in(orjson.dumps(value))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_session_or_none(body: bytes) -> None:
    """As above, for what is no JSON."""
    facts_in(body)


def entry(expires_at: float = 1000.0, fetched_at: float = 0.0) -> Entry:
    return Entry.of(b"", (), "s", "i", expires_at, fetched_at, 1, 1)


def test_an_entry_ends_a_second_before_its_session() -> None:
    """Clocks of node and origin differ; the end itself is the end."""
    assert EXPIRY_MARGIN_SECONDS == 1.0
    assert not entry().is_expired(998.999)
    assert entry().is_expired(999.0)
    assert entry().is_expired(1000.0)
    assert not entry(math.inf).is_expired(1e12)


def test_age_counts_from_when_the_origin_was_asked() -> None:
    """A neighbour's clock may be a second ahead; more than that is no age at all, and never young enough."""
    assert entry().age_seconds(0.0) == 0.0
    assert entry().age_seconds(12.5) == 12.5
    assert entry().age_seconds(-CLOCK_TOLERANCE_SECONDS) == 0.0
    assert entry().is_younger_than(0.0, -CLOCK_TOLERANCE_SECONDS)
    assert not entry().is_younger_than(math.inf, -CLOCK_TOLERANCE_SECONDS - 0.001)
    assert entry().is_younger_than(12.5, 12.5)
    assert not entry().is_younger_than(12.5, 12.501)
    assert not entry().is_younger_than(math.inf, -2.0)


def test_a_token_has_no_end_of_its_own_and_a_cookie_has_one() -> None:
    """Kratos counts the age of a cookie from its mint date, which is readable."""
    minted = base64.urlsafe_b64encode(b"1795522988|payload|mac")

    assert credential_ends_at(Credential("token", minted), 86_400.0) == math.inf
    assert credential_ends_at(Credential("cookie", minted, cookie_name="c"), 86_400.0) == 1795522988 + 86_400
    assert credential_ends_at(Credential("cookie", b"unreadable", cookie_name="c"), 86_400.0) is None
