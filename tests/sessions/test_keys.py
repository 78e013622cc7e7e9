"""Keys: one credential, one name; two credentials never share one, and nothing leads back."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache_node.sessions.credential import Credential
from cache_node.sessions.keys import Key, KeyRing

SECRET = "a secret of at least thirty-two characters"
OTHER = "another secret of at least thirty-two characters"

kinds = st.sampled_from(["token", "cookie"])
credentials = st.builds(Credential, kinds, st.binary(max_size=64), st.booleans(), st.sampled_from(["", "name"]))


def derive(credential: Credential, *secrets: str) -> tuple[Key, ...]:
    return KeyRing(secrets or [SECRET]).derive(credential)


def test_the_format_is_the_documented_one() -> None:
    """Entries of nodes of other versions are found: BLAKE2b-512 over length-prefixed kind and value, keyed."""
    hashing_key = blake2b(SECRET.encode(), digest_size=32, person=b"cache-node").digest()
    digest = blake2b(b"\0\0\0\x05token\0\0\0\x03abc", key=hashing_key, digest_size=64).digest()

    assert derive(Credential("token", b"abc")) == (Key(digest[:32], digest[32:]),)


@given(credentials, credentials)
@example(Credential("token", b"x"), Credential("cookie", b"x"))
def test_two_credentials_never_share_a_key(one: Credential, other: Credential) -> None:
    """The lengths before kind and value keep them apart; how a token was presented makes no difference."""
    is_same = (one.kind, one.value) == (other.kind, other.value)

    assert (derive(one) == derive(other)) is is_same
    assert (derive(one)[0].name == derive(other)[0].name) is is_same
    assert (derive(one)[0].sealing == derive(other)[0].sealing) is is_same


@given(st.text(min_size=32, max_size=200), st.text(min_size=32, max_size=200))
@example("x" * 64, "x" * 65)
@example("x" * 32, "x" * 64)
@example("\x00" * 32, "\x00" * 33)
def test_secrets_of_any_length_and_alphabet_differ(one: str, other: str) -> None:
    """BLAKE2b takes 64 bytes at most: nothing of a longer secret is cut off, and no padding makes two of them one."""
    credential = Credential("token", b"abc")

    assert (derive(credential, one) == derive(credential, other)) is (one == other)


def test_a_secret_of_a_megabyte_is_one() -> None:
    """The last character counts, too."""
    credential = Credential("token", b"abc")

    assert derive(credential, "x" * (1 << 20)) != derive(credential, "x" * ((1 << 20) - 1) + "y")


def test_the_first_secret_writes_and_all_read() -> None:
    """Rotation: the new one is put before the old one, and what the old one wrote is still found."""
    credential = Credential("token", b"abc")
    before, during = derive(credential, SECRET), derive(credential, OTHER, SECRET)

    assert during == (*derive(credential, OTHER), *before)


@given(credentials)
def test_name_and_sealing_key_say_nothing_of_each_other(credential: Credential) -> None:
    """Both have 32 bytes, and who reads the name in Redis has nothing of the key."""
    (key,) = derive(credential)

    assert (len(key.name), len(key.sealing)) == (32, 32)
    assert key.name != key.sealing


@pytest.mark.parametrize("value", [b"", b"x", b"x" * 4096])
def test_a_value_of_any_length_has_a_key(value: bytes) -> None:
    """The longest credential is 4 KiB."""
    assert len(derive(Credential("token", value))) == 1
