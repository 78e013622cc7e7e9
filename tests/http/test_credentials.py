from __future__ import annotations

import base64
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache_node.http.credentials import ANONYMOUS, MIXED, NoCredential, extract
from cache_node.sessions.credential import Credential, cookie_minted_at

NAME = "ory_kratos_session"
TOKEN = "ory_st_yALyanH2R4rWIrsdHzLrwG2ms4pf4YGE"
COOKIE = (
    "MTc5NTUyMjk4OHwyYVZvRzZlLVR3d0s0R3ltMjV4QWpwb2VfZUwzdWtqU2sxSndSaldybDdvaXNDaHRUMGttSmxNTEg4aTNXT1laZWE5T3kyQ0ZfUz"
    "czYU1ZdG5GTGtTQ2V6dEs1NlpCUWZkbEJmWlpPV3F2OC1oTlZYdC1Tc0duWGNlMmFDeFQzeVFtMnlyVXYycUgxR3BDOG41RGdHdUJLOWNlbVJSazV2"
    "VWZ4b09TZzZXTW5OZlpMZzlUckxmMEVyZkpDNExGVFVydEtEYkgtd3FPMTJPdC1fOHpRNlAyRmFNOGprMVN2bTcyQjdpb014U1JZWU93QTN5N0hnUH"
    "ZoTnhNT2lEU3VLQU9rbTc1ZWoxd2ZRSW10RlhEbjN8NBsJo3iTzSNUgvUaF2Z3qxebzU48A36KKbdVi9fVQ7Q="
)
AAL1_COOKIE = (
    "MTc5NTUyMjk4OXxaRXJZc1NrVTNMaFRHaUpVdFMwRjBlcnVqaGQtWk9lU2FlbV84QjVia2tGTXNLWHNPRUNQNWFMd25Jd2FhZ2hjOHRLRTJqLVk5OF"
    "NFLXgxekdHM0ZJcDNMZHVubjRNWkNZVm03U1poSlFKUGpsVXRPeVNfVy1LZXNYNmZwMU0wOEFDYVYydE9jTTBJSnpCQWtDOHp0elk5N05YbnE2VklzN"
    "196c0FicVZuLXJYbHR4YXVVRkpVenluYVZYdGd1NEhqUkZuNk9sQXJMdEZBUTFiUTVzdndfRTdmMzFZc2hYd0dONi1ZbjNEMWdzTXRXcU5rZHBmN2dJ"
    "LTR2VWRLaXpuVVRrZ3ppMmdYejRyb2pmbVFuOTl8n046opJibASRb54aCwMvC2V8ARwThjAJMYo5BKhKsIQ="
)

Headers = list[tuple[str, str]]


def presented(headers: Headers) -> Credential | NoCredential:
    """What `extract` says of headers as a client sends them."""
    return extract([(name.lower().encode(), value.encode("latin-1")) for name, value in headers], NAME.encode())


def token(value: str = TOKEN) -> Credential:
    return Credential("token", value.encode())


def bearer(value: str = TOKEN) -> Credential:
    return Credential("token", value.encode(), bearer=True)


def cookie(value: str = COOKIE) -> Credential:
    return Credential("cookie", value.encode(), cookie_name=NAME)


# Name of the recording, request headers, what they present, and the status Kratos gave (v1.3.1 and 2026-07 agree).
RECORDINGS: list[tuple[str, Headers, Credential | NoCredential, int]] = [
    ("no-credential-GET", [], ANONYMOUS, 401),
    ("no-credential-request-id", [("X-Request-ID", "req-42")], ANONYMOUS, 401),
    ("cors-allowed-origin-401", [("Origin", "http://app.example.test")], ANONYMOUS, 401),
    ("unknown-token", [("X-Session-Token", "ory_st_doesnotexist")], token("ory_st_doesnotexist"), 401),
    ("unknown-bearer", [("Authorization", "Bearer ory_st_doesnotexist")], bearer("ory_st_doesnotexist"), 401),
    ("undecodable-cookie", [("Cookie", f"{NAME}=garbage")], cookie("garbage"), 401),
    ("token-GET", [("X-Session-Token", TOKEN)], token(), 200),
    ("token-request-id", [("X-Session-Token", TOKEN), ("X-Request-ID", "req-42")], token(), 200),
    ("x-token-padded", [("X-Session-Token", f"  {TOKEN}  ")], token(), 200),
    ("bearer", [("Authorization", f"Bearer {TOKEN}")], bearer(), 200),
    ("bearer-lowercase", [("authorization", f"bearer {TOKEN}")], bearer(), 200),
    ("bearer-double-space", [("Authorization", f"Bearer  {TOKEN}")], ANONYMOUS, 401),
    ("cookie", [("Cookie", f"{NAME}={COOKIE}")], cookie(), 200),
    ("aal1-cookie-of-aal2-identity", [("Cookie", f"{NAME}={AAL1_COOKIE}")], cookie(AAL1_COOKIE), 403),
    ("cookie-quoted", [("Cookie", f'{NAME}="{COOKIE}"')], cookie(), 200),
    ("cookie-among-others", [("Cookie", f"a=b; {NAME}={COOKIE}; c=d")], cookie(), 200),
    ("cookie-two-headers", [("Cookie", "a=b"), ("Cookie", f"{NAME}={COOKIE}")], cookie(), 200),
    ("cookie-twice-first-bad", [("Cookie", f"{NAME}=bad; {NAME}={COOKIE}")], MIXED, 200),
    ("cookie-urlencoded", [("Cookie", f"{NAME}={COOKIE[:-1]}%3D")], cookie(f"{COOKIE[:-1]}%3D"), 401),
    ("cors-allowed-origin", [("Cookie", f"{NAME}={COOKIE}"), ("Origin", "http://app.example.test")], cookie(), 200),
    ("bad-x-token-good-cookie", [("X-Session-Token", "nope"), ("Cookie", f"{NAME}={COOKIE}")], MIXED, 401),
    ("empty-x-token-good-cookie", [("X-Session-Token", ""), ("Cookie", f"{NAME}={COOKIE}")], cookie(), 200),
    ("good-x-token-bad-cookie", [("X-Session-Token", TOKEN), ("Cookie", f"{NAME}=garbage")], MIXED, 500),
    ("good-bearer-bad-cookie", [("Authorization", f"Bearer {TOKEN}"), ("Cookie", f"{NAME}=garbage")], MIXED, 500),
    ("bad-bearer-good-cookie", [("Authorization", "Bearer nope"), ("Cookie", f"{NAME}={COOKIE}")], MIXED, 200),
    ("repeated-x-token-first-good", [("X-Session-Token", TOKEN), ("X-Session-Token", "nope")], MIXED, 200),
    ("repeated-x-token-first-bad", [("X-Session-Token", "nope"), ("X-Session-Token", TOKEN)], MIXED, 401),
    ("conditional", [("X-Session-Token", TOKEN), ("If-None-Match", '"x"')], token(), 200),
    ("accept-gzip", [("X-Session-Token", TOKEN), ("Accept-Encoding", "gzip")], token(), 200),
]


@pytest.mark.parametrize(
    ("headers", "expected"), [case[1:3] for case in RECORDINGS], ids=[case[0] for case in RECORDINGS]
)
def test_recorded_requests(headers: Headers, expected: Credential | NoCredential) -> None:
    assert presented(headers) == expected


@pytest.mark.parametrize(("name", "headers", "expected", "status"), RECORDINGS, ids=[case[0] for case in RECORDINGS])
def test_an_anonymous_request_is_one_that_kratos_refused(
    name: str, headers: Headers, expected: Credential | NoCredential, status: int
) -> None:
    if expected is ANONYMOUS:
        assert status == 401


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param([("X-Session-Token", " \t ")], ANONYMOUS, id="blank token"),
        pytest.param([("X-Session-Token", ""), ("Authorization", f"Bearer {TOKEN}")], bearer(), id="empty and bearer"),
        pytest.param([("X-Session-Token", TOKEN), ("X-Session-Token", TOKEN)], MIXED, id="token twice"),
        pytest.param([("X-Session-Token", ""), ("X-Session-Token", TOKEN)], MIXED, id="empty token first"),
        pytest.param([("X-Session-Token", TOKEN), ("Authorization", f"Bearer {TOKEN}")], MIXED, id="token and bearer"),
        pytest.param([("X-Session-Token", TOKEN), ("Authorization", "Basic YTpi")], token(), id="token and basic"),
        pytest.param([("X-Session-Token", f"{TOKEN}, {TOKEN}")], MIXED, id="joined tokens"),
        pytest.param([("X-Session-Token", "a b")], MIXED, id="space in token"),
        pytest.param([("X-Session-Token", "a\tb")], MIXED, id="tab in token"),
        pytest.param([("X-Session-Token", "a\xff")], MIXED, id="latin-1 token"),
        pytest.param([("X-Session-Token", "a\x7f")], MIXED, id="control in token"),
        pytest.param([("X-Session-Token", "t" * 4096)], token("t" * 4096), id="longest token"),
        pytest.param([("X-Session-Token", "t" * 4097)], MIXED, id="too long a token"),
        pytest.param([("X-Session-Cookie", COOKIE)], MIXED, id="header of older versions"),
        pytest.param([("X-Session-Cookie", ""), ("X-Session-Token", TOKEN)], MIXED, id="the same beside a token"),
        pytest.param([("Authorization", f"BEARER {TOKEN}")], bearer(), id="upper-case scheme"),
        pytest.param([("Authorization", f"  Bearer {TOKEN}\t")], bearer(), id="padded bearer"),
        pytest.param([("Authorization", "Bearer")], ANONYMOUS, id="scheme only"),
        pytest.param([("Authorization", "Bearer ")], ANONYMOUS, id="scheme and space"),
        pytest.param([("Authorization", f"Bearer\t{TOKEN}")], ANONYMOUS, id="tab behind scheme"),
        pytest.param([("Authorization", "Bearer a b")], ANONYMOUS, id="three parts"),
        pytest.param([("Authorization", "Bearer a\tb")], MIXED, id="tab in bearer"),
        pytest.param([("Authorization", TOKEN)], ANONYMOUS, id="no scheme"),
        pytest.param([("Authorization", "Basic YTpi")], ANONYMOUS, id="basic"),
        pytest.param([("Authorization", f"Bearer {TOKEN}")] * 2, MIXED, id="bearer twice"),
        pytest.param([("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Basic YTpi")], MIXED, id="two schemes"),
        pytest.param([("Cookie", f"{NAME}={COOKIE}")] * 2, MIXED, id="cookie twice"),
        pytest.param([("Cookie", f"{NAME}=a; {NAME}=a")], MIXED, id="cookie twice in one header"),
        pytest.param([("Cookie", f"{NAME.upper()}={COOKIE}")], ANONYMOUS, id="name in upper case"),
        pytest.param([("Cookie", f"x{NAME}={COOKIE}; {NAME}x=y")], ANONYMOUS, id="longer names"),
        pytest.param([("Cookie", f"a={NAME}={COOKIE}")], ANONYMOUS, id="name in a value"),
        pytest.param([("Cookie", f"{NAME}=")], MIXED, id="empty cookie"),
        pytest.param([("Cookie", NAME)], MIXED, id="bare name"),
        pytest.param([("Cookie", f'{NAME}=""')], MIXED, id="empty quotes"),
        pytest.param([("Cookie", f'{NAME}="')], MIXED, id="one quote"),
        pytest.param([("Cookie", f'{NAME}="a')], MIXED, id="unclosed quotes"),
        pytest.param([("Cookie", f'{NAME}="a;b"')], MIXED, id="semicolon in quotes"),
        pytest.param([("Cookie", f"{NAME}=a=b")], cookie("a=b"), id="equals sign in value"),
        pytest.param([("Cookie", f"{NAME}= a")], MIXED, id="space before value"),
        pytest.param([("Cookie", f" {NAME} =a ;")], cookie("a"), id="padded pair"),
        pytest.param([("Cookie", f"{NAME}=a b")], MIXED, id="space in value"),
        pytest.param([("Cookie", f"{NAME}=a,b")], MIXED, id="comma in value"),
        pytest.param([("Cookie", f"{NAME}=a\\b")], MIXED, id="backslash in value"),
        pytest.param([("Cookie", f"{NAME}=a\xff")], MIXED, id="latin-1 value"),
        pytest.param([("Cookie", f"{NAME}={'v' * 4096}")], cookie("v" * 4096), id="longest value"),
        pytest.param([("Cookie", f"{NAME}={'v' * 4097}")], MIXED, id="too long a value"),
        pytest.param([("Cookie", "a=b;" * 3000 + f"{NAME}=v")], MIXED, id="more cookies than Go takes"),
        pytest.param([("Cookie", "a=b;" * 3000), ("X-Session-Token", TOKEN)], token(), id="token beside many cookies"),
        pytest.param([("Cookie", "a=b"), ("X-Session-Token", TOKEN)], token(), id="token beside another cookie"),
        pytest.param([("Cookie", f"{NAME}=a\x0b")], MIXED, id="vertical tab is no padding"),
        pytest.param([("Cookie", f"\x0b{NAME}=a")], ANONYMOUS, id="a name that Go skips"),
        pytest.param([("Cookie", "; ;;")], ANONYMOUS, id="empty pairs"),
    ],
)
def test_rare_requests(headers: Headers, expected: Credential | NoCredential) -> None:
    assert presented(headers) == expected


def kratos_reads(headers: Headers) -> set[tuple[str, str]]:
    """Every credential that Kratos could read, whatever it would make of each: an oracle written after its source."""
    found = set()
    for name, value in headers:
        trimmed = value.strip(" \t")
        if name == "X-Session-Token" and trimmed:
            found.add(("token", trimmed))
        if name == "Authorization" and re.fullmatch(r"(?i:bearer) [^ ]+", trimmed):
            found.add(("token", trimmed[7:]))
        if name == "Cookie":
            for pair in trimmed.split(";"):
                key, _, raw = pair.strip(" \t\r\n").partition("=")
                unquoted = raw[1:-1] if len(raw) > 1 and raw.startswith('"') and raw.endswith('"') else raw
                if key.strip(" \t\r\n") == NAME and re.fullmatch(r"[\x20-\x7e]*", unquoted):
                    found.add(("cookie", unquoted))
    return found


values = st.sampled_from(["", "a", "b", "a=b", "a%3D", "ä", '"a"', '"', "a b", "a,b", "a\\", " a ", "\ta", "a\x7f"])
values |= st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=6)
pads = st.sampled_from(["", " ", "  ", "\t"])
cookie_names = st.sampled_from([NAME, NAME.upper(), "a", NAME + " ", " " + NAME, ""])
pairs = st.builds(lambda name, sign, value: name + sign + value, cookie_names, st.sampled_from(["=", ""]), values)
schemes = st.sampled_from(["Bearer ", "bearer ", "Bearer", "Bearer  ", "Basic ", ""])
header_lists = st.lists(
    st.one_of(
        st.tuples(st.just("X-Session-Token"), st.tuples(pads, values, pads).map("".join)),
        st.tuples(st.just("Authorization"), st.tuples(pads, schemes, values).map("".join)),
        st.tuples(st.just("Cookie"), st.lists(pairs, max_size=3).map("; ".join)),
        st.tuples(st.sampled_from(["Accept", "X-Request-ID"]), values),
    ),
    max_size=4,
)


@given(header_lists)
@example([("Cookie", f"{NAME}=a"), ("Cookie", f"{NAME}=b")])
@example([("X-Session-Token", "a"), ("Authorization", "Bearer b")])
@example([("Authorization", "Bearer a"), ("Authorization", "Bearer b")])
@example([("Authorization", "Bearer a"), ("Cookie", f"{NAME}=b")])
@example([("X-Session-Token", "a"), ("Cookie", f"{NAME}=b")])
def test_two_different_credentials_never_make_one(headers: Headers) -> None:
    if len(kratos_reads(headers)) > 1:
        assert presented(headers) is MIXED


@given(header_lists)
def test_a_credential_is_what_kratos_reads_and_sent_alone_reads_the_same(headers: Headers) -> None:
    found = presented(headers)
    if isinstance(found, Credential):
        assert kratos_reads(headers) == {(found.kind, found.value.decode())}
        name, value = found.header()
        assert extract([(name.lower(), value)], NAME.encode()) == found
    elif found is ANONYMOUS:
        assert kratos_reads(headers) == set()


@given(
    st.lists(st.tuples(st.sampled_from([b"x-session-token", b"cookie", b"authorization"]), st.binary()), max_size=5),
    st.binary(min_size=1),
)
def test_no_bytes_break_it(headers: list[tuple[bytes, bytes]], session_cookie: bytes) -> None:
    assert isinstance(extract(headers, session_cookie), Credential | NoCredential)


def test_each_kind_goes_to_the_origin_by_its_own_header() -> None:
    assert token("a").header() == (b"X-Session-Token", b"a")
    assert bearer("a").header() == (b"Authorization", b"Bearer a")
    assert Credential("cookie", b"a", cookie_name="mine").header() == (b"Cookie", b"mine=a")
    with pytest.raises(ValueError, match="cookie_name"):
        Credential("cookie", b"a").header()


def test_repr_shows_no_value() -> None:
    for credential in (token(), bearer(), cookie()):
        assert credential.value.decode() not in f"{credential!r} {credential}"
        assert credential.kind in repr(credential)


def test_a_cookie_tells_when_it_was_minted() -> None:
    assert cookie_minted_at(COOKIE.encode()) == 1795522988
    assert cookie_minted_at(AAL1_COOKIE.encode()) == 1795522989


def minted(decoded: bytes) -> int | None:
    return cookie_minted_at(base64.urlsafe_b64encode(decoded))


def test_a_mint_date_that_cannot_be_read_is_none() -> None:
    assert minted(b"1795522988|payload|mac|with|bars") == 1795522988
    for decoded in (b"", b"1795522988", b"1795522988|payload", b"|payload|mac", b"-1|payload|mac", b"+1|payload|mac"):
        assert minted(decoded) is None, decoded
    for decoded in (b"1_0|payload|mac", b" 1|payload|mac", b"\xb2|payload|mac", b"9" * 13 + b"|payload|mac"):
        assert minted(decoded) is None, decoded


@pytest.mark.parametrize("value", [b"garbage", b"%3D", b"", b"MTc5", COOKIE[:-1].encode(), COOKIE.encode() + b"%3D"])
def test_a_value_that_is_no_base64_has_no_mint_date(value: bytes) -> None:
    assert cookie_minted_at(value) is None


def test_the_standard_alphabet_is_not_securecookies() -> None:
    url_safe = base64.urlsafe_b64encode(b"1795522988|\xfb\xff\xfe|\xfb\xff\xfe")
    assert set(b"_-") <= set(url_safe)
    assert cookie_minted_at(url_safe) == 1795522988
    assert cookie_minted_at(url_safe.replace(b"-", b"+").replace(b"_", b"/")) is None


@given(st.binary(max_size=64))
def test_any_bytes_have_a_date_or_none(value: bytes) -> None:
    assert cookie_minted_at(value) is None or isinstance(cookie_minted_at(value), int)
