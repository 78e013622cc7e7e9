"""Session and identity ids in few bytes: a UUID takes 16, any other text its own and a few more.

Millions of entries and hundreds of thousands of remembered ids make the difference: a UUID as text is an object of 96
bytes, packed one of 64, and two of them in one object are 96.
"""

from __future__ import annotations

from binascii import hexlify

UUID_BYTES = 16
_TEXT, _TEXT_OF_15 = b"\0", b"\1\1"  # so that no text becomes as long as a UUID


def pack_id(value: str) -> bytes:
    """Of a normalised id (see `events.normalise_id`); different ids have different bytes."""
    if len(value) == 36 and value[8] == value[13] == value[18] == value[23] == "-":
        digits = value.replace("-", "")
        try:
            packed = bytes.fromhex(digits)
        except ValueError:
            packed = b""
        if len(packed) == UUID_BYTES and packed.hex() == digits:
            return packed
    text = value.encode()
    return (_TEXT_OF_15 if len(text) == UUID_BYTES - 1 else _TEXT) + text


def unpack_id(packed: bytes) -> str:
    """The id that was packed."""
    if len(packed) == UUID_BYTES:
        return _text_of(packed).decode()
    return packed[2 if packed[:1] == _TEXT_OF_15[:1] else 1 :].decode()


def pack_ids(session_id: str, identity_id: str) -> bytes:
    """Both, so that `split_ids` finds them whatever is behind them."""
    session, identity = pack_id(session_id), pack_id(identity_id)
    if len(session) == len(identity) == UUID_BYTES:
        return b"\0" + session + identity
    return bytes([len(session), len(identity)]) + session + identity


def split_ids(facts: bytes) -> tuple[bytes, bytes]:
    """Session and identity id, packed, at the beginning of `facts`."""
    if facts[0] == 0:
        return facts[1:17], facts[17:33]
    end = 2 + facts[0]
    return facts[2:end], facts[end : end + facts[1]]


def text_of_identity(facts: bytes) -> bytes:
    """The identity's id, unpacked and encoded; a UUID's, which each redis hit writes, without a detour."""
    return unpack_id(split_ids(facts)[1]).encode() if facts[0] else _text_of(facts[17:33])


def _text_of(packed: bytes) -> bytes:
    digits = hexlify(packed)
    return b"%b-%b-%b-%b-%b" % (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
