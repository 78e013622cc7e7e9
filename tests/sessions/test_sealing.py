"""Sealed entries: what comes out is what went in, under exactly the same key, or nothing at all."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.sealing import VERSION, seal, unseal

KEY = Key(b"n" * 32, b"s" * 32)

numbers = st.integers(0, 2**63 - 1)
times = st.floats(allow_nan=False)
texts = st.text(max_size=32)
header_lines = st.tuples(st.binary(max_size=40), st.binary(max_size=80))
entries = st.builds(
    Entry.of,
    body=st.binary(max_size=2000),
    headers=st.lists(header_lines, max_size=6).map(tuple),
    session_id=texts,
    identity_id=texts,
    expires_at=times,
    fetched_at=times,
    generation=numbers,
    number=numbers,
)
keys = st.builds(Key, st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))


def entry() -> Entry:
    return Entry.of(b'{"id":"1"}\n', ((b"vary", b"Origin"), (b"vary", b"Cookie")), "s", "i", 2e9, 1.8e9, 1800, 42)


@given(entries, keys)
def test_what_comes_out_is_what_went_in(original: Entry, key: Key) -> None:
    """All fields, non-UTF-8 bytes included; but an admission is this node's alone and does not travel."""
    original.admitted_version = 7
    opened = unseal(key, seal(key, original))
    original.admitted_version = -1

    assert opened == original


@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    """Version, nonce, ciphertext and tag: a change of any bit is noticed."""
    value = bytearray(seal(KEY, entry()))
    place = data.draw(st.integers(0, len(value) - 1))
    value[place] ^= data.draw(st.integers(1, 255))

    assert unseal(KEY, bytes(value)) is None


def test_no_byte_can_be_changed_anywhere() -> None:
    """Every byte, one bit of each."""
    value = seal(KEY, entry())
    changed = [value[:i] + bytes([value[i] ^ 1]) + value[i + 1 :] for i in range(len(value))]

    assert {unseal(KEY, each) for each in changed} == {None}


@given(st.integers(min_value=0), st.binary(max_size=20))
def test_a_value_that_is_cut_or_prolonged_is_none(length: int, tail: bytes) -> None:
    """A write of Redis that was cut off, or one that appended."""
    value = seal(KEY, entry())
    changed = value[: length % len(value)] + tail

    assert changed == value or unseal(KEY, changed) is None


@given(st.binary(max_size=200))
def test_garbage_is_none(value: bytes) -> None:
    """Whatever lies in Redis, reading it raises nothing."""
    assert unseal(KEY, value) is None
    assert unseal(KEY, VERSION + value) is None


@given(keys)
def test_another_key_opens_nothing(other: Key) -> None:
    """Neither another sealing key, nor the same one under another name: values cannot be swapped between keys."""
    value = seal(KEY, entry())

    assert unseal(other, value) is None
    assert unseal(Key(other.name, KEY.sealing), value) is None
    assert unseal(Key(KEY.name, other.sealing), value) is None


def test_another_version_is_none() -> None:
    """A later format is not guessed at."""
    value = seal(KEY, entry())

    assert unseal(KEY, b"\x01" + value[1:]) is None


def test_no_nonce_is_used_twice() -> None:
    """Nor is anything of the entry to be read in its value."""
    values = [seal(KEY, entry()) for _ in range(100)]

    assert len({value[1:13] for value in values}) == 100
    assert not any(b'"id"' in value or b"Cookie" in value for value in values)


ROW: list[Any] = [b"body", b"vary: Cookie\r\n", b"\0s", b"\0i", 1.0, 1.0, 1, 1]


def sealed(plain: bytes) -> bytes:
    """As `seal` does it, whatever it is."""
    nonce = os.urandom(12)
    return VERSION + nonce + AESGCM(KEY.sealing).encrypt(nonce, plain, KEY.name)


@pytest.mark.parametrize(
    "row",
    [
        [],
        ROW[:-1],
        [*ROW, 1],
        ["text", *ROW[1:]],
        [b"body", [[b"vary", b"Cookie"]], *ROW[2:]],
        [*ROW[:2], "s", *ROW[3:]],
        [*ROW[:3], None, *ROW[4:]],
        [*ROW[:4], "1", *ROW[5:]],
        [*ROW[:5], None, *ROW[6:]],
        [*ROW[:6], 1.5, 1],
        [*ROW[:7], b"1"],
        {"body": b""},
        None,
        7,
    ],
)
def test_another_shape_under_the_right_key_is_none(row: Any) -> None:
    """A future version that forgot to change the version byte, or a bug: types are checked, not trusted."""
    assert unseal(KEY, sealed(msgspec.msgpack.encode(row))) is None


def test_bytes_behind_the_row_are_none() -> None:
    """Exactly one row, nothing else."""
    row = msgspec.msgpack.encode(ROW)

    assert unseal(KEY, sealed(row)) is not None
    assert unseal(KEY, sealed(row + b"\x00")) is None
