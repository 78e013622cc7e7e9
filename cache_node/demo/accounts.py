"""Identities and sessions of the demo origin, in memory: what Kratos keeps in Postgres.

No I/O, no clock but the wall clock, no locks: every method runs to its end within one turn of the event loop, so each
is a transaction.  Times are nanoseconds since the epoch, cut to microseconds where a Postgres column would be.
"""

from __future__ import annotations

import copy
import hmac
import secrets
import string
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from cache_node.demo.json_patch import apply_patch
from cache_node.demo.wire import Json, Refusal, bad_request, jsonb, not_found, timestamp

_TOKEN_ALPHABET = string.ascii_letters + string.digits
_PATCHABLE = ("schema_id", "state", "traits", "metadata_public", "metadata_admin")


def _now() -> int:
    return time.time_ns() // 1000 * 1000


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(slots=True)
class Identity:
    """One person; `available_aal` is the assurance level that all credentials together reach."""

    traits: Json
    password: str | None  # as given: throw-away, and nothing here outlives the process
    metadata_public: Any = None
    metadata_admin: Any = None
    id: str = field(default_factory=_new_id)
    state: str = "active"
    available_aal: str = "aal1"
    created_at: int = field(default_factory=_now)
    updated_at: int = field(init=False)
    state_changed_at: int = field(init=False)
    address_ids: tuple[str, str] = field(default_factory=lambda: (_new_id(), _new_id()))
    address_created_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.updated_at = self.state_changed_at = self.address_created_at = self.created_at

    @property
    def email(self) -> str:
        """The identifier it logs in with."""
        return str(self.traits["email"])


@dataclass(slots=True)
class Session:
    """One session; `methods` are its authentication methods as they are shown."""

    identity: Identity
    device: Json
    lifespan: int
    id: str = field(default_factory=_new_id)
    token: str = field(default_factory=lambda: "ory_st_" + "".join(secrets.choice(_TOKEN_ALPHABET) for _ in range(32)))
    active: bool = True
    aal: str = "aal1"
    issued_at: int = field(default_factory=_now)
    expires_at: int = field(init=False)
    methods: list[Json] = field(init=False)

    def __post_init__(self) -> None:
        self.expires_at = self.issued_at + self.lifespan
        self.methods = [{"method": "password", "aal": "aal1", "completed_at": timestamp(time.time_ns())}]

    def is_valid(self) -> bool:
        """Whether whoami answers for it."""
        return self.active and self.identity.state == "active" and self.expires_at > time.time_ns()


class Accounts:
    """All identities and sessions.  Methods raise Refusal as Kratos would answer; `public_url` is shown in bodies."""

    def __init__(self, lifespan_seconds: int) -> None:
        self.public_url = ""
        self._lifespan = lifespan_seconds * 1_000_000_000
        self._identities: dict[str, Identity] = {}
        self._by_email: dict[str, Identity] = {}
        self._sessions: dict[str, Session] = {}
        self._by_token: dict[str, Session] = {}

    def create_identity(self, body: Json) -> Identity:
        """Create an identity from the body of `POST /admin/identities`."""
        if body.get("schema_id", "default") != "default":
            raise bad_request(f"Unable to find JSON Schema ID: {body['schema_id']}")
        password = body.get("credentials", {}).get("password", {}).get("config", {}).get("password")
        traits = _checked_traits(body.get("traits"))
        identity = Identity(traits, password, body.get("metadata_public"), body.get("metadata_admin"))
        self._check_free(identity.email, None)
        self._identities[identity.id] = self._by_email[identity.email] = identity
        return identity

    def identity(self, identity_id: str) -> Identity:
        """The identity with this id."""
        try:
            return self._identities[identity_id]
        except KeyError:
            raise not_found() from None

    def patch_identity(self, identity_id: str, operations: Any) -> Identity:
        """Apply JSON Patch operations to what of an identity may be patched, all or none."""
        identity = self.identity(identity_id)
        document = {name: copy.deepcopy(getattr(identity, name, "default")) for name in _PATCHABLE}
        patched = apply_patch(document, operations)
        traits = _checked_traits(patched["traits"])
        state = patched["state"]
        if state not in ("active", "inactive"):
            reason = f"The supplied state ('{state}') was not valid. Valid states are ('active', 'inactive')."
            raise Refusal(400, "identity state is not valid", reason=reason)
        self._check_free(traits["email"], identity)
        if state != identity.state:
            identity.state, identity.state_changed_at = state, _now()
        if traits["email"] != identity.email:
            del self._by_email[identity.email]
            self._by_email[traits["email"]] = identity
            identity.address_ids, identity.address_created_at = (_new_id(), _new_id()), _now()
        identity.traits, identity.updated_at = traits, _now()
        identity.metadata_public, identity.metadata_admin = patched["metadata_public"], patched["metadata_admin"]
        return identity

    def delete_identity(self, identity_id: str) -> None:
        """Delete an identity and its sessions."""
        identity = self.identity(identity_id)
        for session in self._sessions_of(identity):
            self._forget(session)
        del self._identities[identity.id]
        del self._by_email[identity.email]

    def log_in(self, identifier: str, password: str, device: Json) -> Session | None:
        """A new session, or None when the credentials are wrong."""
        identity = self._by_email.get(identifier)
        if identity is None or identity.password is None:
            return None
        if not hmac.compare_digest(identity.password.encode(), password.encode()):
            return None
        if identity.state != "active":
            details = {"identity_id": identity.id}
            raise Refusal(401, "identity is disabled", reason="This account was disabled.", details=details)
        session = Session(identity, {"id": _new_id(), **device, "location": ""}, self._lifespan)
        self._sessions[session.id] = self._by_token[session.token] = session
        return session

    def session(self, session_id: str) -> Session:
        """The session with this id, active or not."""
        try:
            key = str(uuid.UUID(session_id))
        except ValueError:
            message = f'uuid: incorrect UUID length {len(session_id)} in string "{session_id}"'
            raise Refusal(400, message) from None
        if key not in self._sessions:
            raise not_found()
        return self._sessions[key]

    def session_by_token(self, token: str) -> Session | None:
        """The session with this token, active or not."""
        return self._by_token.get(token)

    def revoke_session(self, session_id: str) -> Session:
        """Deactivate a session."""
        session = self.session(session_id)
        session.active = False
        return session

    def extend_session(self, session_id: str) -> Session:
        """Let a session live a whole lifespan from now on."""
        session = self.session(session_id)
        session.expires_at = _now() + self._lifespan
        return session

    def delete_sessions(self, identity_id: str) -> list[Session]:
        """Delete all sessions of an identity and return them."""
        identity = self.identity(identity_id)
        sessions = self._sessions_of(identity)
        if not sessions:
            raise not_found()
        for session in sessions:
            self._forget(session)
        return sessions

    def add_second_factor(self, token: str) -> Session:
        """What Kratos does when TOTP is set up in a session: it becomes aal2, its identity's others must follow."""
        session = self.session_by_token(token)
        if session is None or not session.is_valid():
            raise not_found()
        session.aal = session.identity.available_aal = "aal2"
        session.methods.append({"method": "totp", "aal": "aal2", "completed_at": timestamp(time.time_ns())})
        return session

    def show_identity(self, identity: Identity) -> Json:
        """The identity as whoami and login show it."""
        created = {
            "created_at": timestamp(identity.address_created_at),
            "updated_at": timestamp(identity.address_created_at),
        }
        verifiable, recovery = identity.address_ids
        email = identity.email
        return {
            "id": identity.id,
            "schema_id": "default",
            "schema_url": f"{self.public_url}/schemas/ZGVmYXVsdA",
            "state": identity.state,
            "state_changed_at": timestamp(identity.state_changed_at),
            "traits": identity.traits,
            "verifiable_addresses": [
                {"id": verifiable, "value": email, "verified": False, "via": "email", "status": "pending", **created}
            ],
            "recovery_addresses": [{"id": recovery, "value": email, "via": "email", **created}],
            "metadata_public": identity.metadata_public,
            "created_at": timestamp(identity.created_at),
            "updated_at": timestamp(identity.updated_at),
            "organization_id": None,
        }

    def show_identity_to_admin(self, identity: Identity) -> Json:
        """The identity as the admin API shows it: credentials without their secrets, and the metadata for admins."""
        shown = self.show_identity(identity)
        times = {"created_at": timestamp(identity.created_at), "updated_at": timestamp(identity.updated_at)}
        password = {"type": "password", "identifiers": [identity.email], "version": 0, **times}
        admin: Json = {"id": shown.pop("id")}
        if identity.password is not None:
            admin["credentials"] = {"password": password}
        for name, value in shown.items():
            admin[name] = value
            if name == "metadata_public":
                admin["metadata_admin"] = identity.metadata_admin
        return admin

    def show_session(self, session: Session, *, identity: bool = True, devices: bool = True) -> Json:
        """The session as whoami shows it."""
        return {
            "id": session.id,
            "active": session.active,
            "expires_at": timestamp(session.expires_at),
            "authenticated_at": timestamp(session.issued_at),
            "authenticator_assurance_level": session.aal,
            "authentication_methods": session.methods,
            "issued_at": timestamp(session.issued_at),
            "identity": self.show_identity(session.identity) if identity else None,
            "devices": [session.device] if devices else [],
        }

    def _check_free(self, email: str, owner: Identity | None) -> None:
        if self._by_email.get(email) not in (None, owner):
            reason = "This identity conflicts with another identity that already exists."
            raise Refusal(409, "The resource could not be created due to a conflict", reason=reason)

    def _sessions_of(self, identity: Identity) -> list[Session]:
        return [session for session in self._sessions.values() if session.identity is identity]

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        del self._by_token[session.token]


def _checked_traits(traits: Any) -> Json:
    if not isinstance(traits, dict) or not isinstance(traits.get("email"), str):
        raise bad_request('I[#/traits] S[#/properties/traits/required] missing properties: "email"')
    ordered: Json = jsonb(traits)
    return ordered
