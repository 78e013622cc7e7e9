"""Credentials and the Kratos sessions that they stand for.

Each follows from the credential's number and body size alone, so that origin, servers and whoever checks their answers
agree without talking to each other.
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid

COOKIE_NAME = "ory_kratos_session"
TOKEN = re.compile(r"ory_st_(\d{5})x(\d{19})")
BODY_BYTES = 1536
_MAC = b"m" * 32
# Makes the cookie's value as long as Kratos'.
_PADDING = "p" * 180


def token_of(number: int, body_bytes: int = BODY_BYTES) -> str:
    """A session token as long as Kratos'."""
    return f"ory_st_{body_bytes:05}x{number:019}"


def cookie_of(number: int, body_bytes: int = BODY_BYTES) -> str:
    """A session cookie's value in Kratos' format, base64url("unixdate|payload|mac"), minted now."""
    payload = base64.urlsafe_b64encode((token_of(number, body_bytes) + _PADDING).encode())
    return base64.urlsafe_b64encode(b"|".join((b"%d" % time.time(), payload, _MAC))).decode()


def token_in_cookie(value: str) -> str:
    """The token that a cookie of ours stands for; empty if it is none."""
    try:
        payload = base64.urlsafe_b64decode(base64.urlsafe_b64decode(value).split(b"|")[1]).decode()
    except (ValueError, IndexError):
        return ""
    return payload.removesuffix(_PADDING)


def body_of(token: str) -> bytes | None:
    """The session that Kratos would show, of exactly the size that the token names; None for a strange token."""
    match = TOKEN.fullmatch(token)
    if match is None:
        return None
    whole = _body(token, "")
    return _body(token, "x" * (int(match[1]) - len(whole)))


def ids_of(token: str) -> tuple[str, str]:
    """Session and identity id."""
    return _id("session", token), _id("identity", token)


def _id(kind: str, token: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}:{token}"))


def _body(token: str, filling: str) -> bytes:
    session_id, identity_id = ids_of(token)
    began, ends = "2026-11-24T02:15:05.949817Z", "2099-11-24T02:15:05.949817Z"
    email = f"{identity_id[:8]}@example.test"
    address = {"value": email, "via": "email", "created_at": began, "updated_at": began}
    session = {
        "id": session_id,
        "active": True,
        "expires_at": ends,
        "authenticated_at": began,
        "authenticator_assurance_level": "aal1",
        "authentication_methods": [{"method": "password", "aal": "aal1", "completed_at": began}],
        "issued_at": began,
        "identity": {
            "id": identity_id,
            "schema_id": "default",
            "schema_url": "http://127.0.0.1:4433/schemas/ZGVmYXVsdA",
            "state": "active",
            "state_changed_at": began,
            "traits": {"email": email, "about": filling},
            "verifiable_addresses": [{"id": _id("address", token), "verified": True, "status": "completed"} | address],
            "recovery_addresses": [{"id": _id("recovery", token)} | address],
            "metadata_public": None,
            "created_at": began,
            "updated_at": began,
            "organization_id": None,
        },
        "devices": [{"id": _id("device", token), "ip_address": "127.0.0.1", "user_agent": "bench", "location": ""}],
    }
    return json.dumps(session, separators=(",", ":")).encode() + b"\n"
