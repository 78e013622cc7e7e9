"""The one credential that a request presents, and what can be read from it without the origin's keys.

Nothing here decides whether a credential is good: only the origin can.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from typing import Literal

# gorilla/securecookie uses the URL alphabet only: what belongs to the standard one is made invalid.
_URL_ALPHABET = bytes.maketrans(b"-_+/", b"+/!!")
# 999,999,999,999 s after 1970 is far beyond any date, and anything longer is not worth an int.
_LONGEST_DATE = 12


@dataclass(frozen=True, slots=True)
class Credential:
    """A session token or the value of a session cookie, as the origin will compare it.

    `value` is printable ASCII, 1 to 4096 bytes, without padding or quotes, and never shown by `repr`.  `bearer` tells
    how a token came and is sent on; it is no part of the key, since both ways present the same token.  `cookie_name`
    is needed for cookies only.
    """

    kind: Literal["token", "cookie"]
    value: bytes = field(repr=False)
    bearer: bool = False
    cookie_name: str = ""

    def header(self) -> tuple[bytes, bytes]:
        """Name and value of the one request header by which it goes to the origin.

        Raises ValueError for a cookie without a name.
        """
        if self.kind == "cookie":
            if not self.cookie_name:
                raise ValueError("a cookie credential needs its cookie_name")
            return b"Cookie", b"%b=%b" % (self.cookie_name.encode(), self.value)
        return (b"Authorization", b"Bearer " + self.value) if self.bearer else (b"X-Session-Token", self.value)


def cookie_minted_at(value: bytes) -> int | None:
    """When Kratos minted this cookie value, in Unix seconds; None if that cannot be read.

    The value is gorilla/securecookie's base64url("date|payload|mac").  The date is believed only beside an answer of
    the origin, which alone can check the mac.
    """
    try:
        decoded = binascii.a2b_base64(value.translate(_URL_ALPHABET), strict_mode=True)
    except binascii.Error:
        return None
    date, *payload_and_mac = decoded.split(b"|", 2)
    if len(payload_and_mac) != 2 or not date.isdigit() or len(date) > _LONGEST_DATE:
        return None
    return int(date)
