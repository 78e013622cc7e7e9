"""Entries as Redis holds them: AES-256-GCM under a key that only the credential gives, with the key's name bound to it.

Format: version byte, nonce of 12 random bytes, then the ciphertext of msgpack `[body, head, session, identity,
expires_at, fetched_at, generation, number]`, as an entry has them: head is header lines, the ids are packed.
"""

from __future__ import annotations

import os

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key

VERSION = b"\x04"
_NONCE_BYTES = 12
_HEAD = len(VERSION) + _NONCE_BYTES
_NONCE = slice(len(VERSION), _HEAD)

_Row = tuple[bytes, bytes, bytes, bytes, float, float, int, int]
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Row)


def seal(key: Key, entry: Entry) -> bytes:
    """The value to store under `key.name`."""
    row: _Row = (
        entry.body,
        entry.head,
        entry.session,
        entry.identity,
        entry.expires_at,
        entry.fetched_at,
        entry.generation,
        entry.number,
    )
    nonce = os.urandom(_NONCE_BYTES)
    return VERSION + nonce + AESGCM(key.sealing).encrypt(nonce, _encoder.encode(row), key.name)


def unseal(key: Key, value: bytes) -> Entry | None:
    """The entry, or None if the value is not one that was sealed under exactly this key."""
    if len(value) <= _HEAD or not value.startswith(VERSION):
        return None
    try:
        plain = AESGCM(key.sealing).decrypt(value[_NONCE], memoryview(value)[_HEAD:], key.name)
        return Entry(*_decoder.decode(plain))
    except (InvalidTag, msgspec.DecodeError, ValueError):
        return None
