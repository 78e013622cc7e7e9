"""The login flows of the demo origin: one for apps that ends in a session token, one for browsers with a cookie."""

from __future__ import annotations

import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from cache_node.demo.wire import Json, not_found, timestamp

_LIFETIME = 3600 * 1_000_000_000
_WRONG_CREDENTIALS = {
    "id": 4000006,
    "text": "The provided credentials are invalid, check for spelling mistakes in your password or username, "
    "email address, or phone number.",
    "type": "error",
}


@dataclass(slots=True)
class Flow:
    """One flow: `kind` is `api` or `browser`; only the latter has a token against cross-site requests."""

    kind: str
    csrf_token: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    issued_at: int = field(default_factory=time.time_ns)

    def show(self, public_url: str, *, identifier: str = "", is_refused: bool = False) -> Json:
        """The flow as Kratos shows it, with the error of a refused password when `is_refused`."""
        ui: Json = {
            "action": f"{public_url}/self-service/login?flow={self.id}",
            "method": "POST",
            "nodes": [
                _node("default", {"name": "csrf_token", "type": "hidden", "value": self.csrf_token, "required": True}),
                _node(
                    "default",
                    {"name": "identifier", "type": "text", "value": identifier, "required": True},
                    1070004,
                    "ID",
                ),
                _node(
                    "password",
                    {"name": "password", "type": "password", "required": True, "autocomplete": "current-password"},
                    1070001,
                    "Password",
                ),
                _node(
                    "password",
                    {"name": "method", "type": "submit", "value": "password"},
                    1010022,
                    "Sign in with password",
                ),
            ],
        }
        if is_refused:
            ui["messages"] = [_WRONG_CREDENTIALS]
        return {
            "id": self.id,
            "organization_id": None,
            "type": self.kind,
            "expires_at": timestamp(self.issued_at + _LIFETIME),
            "issued_at": timestamp(self.issued_at),
            "request_url": f"{public_url}/self-service/login/{self.kind}",
            "ui": ui,
            "created_at": timestamp(self.issued_at // 1000 * 1000),
            "updated_at": timestamp(self.issued_at // 1000 * 1000),
            "refresh": False,
            "requested_aal": "aal1",
            "state": "choose_method",
        }


class Flows:
    """The flows of the last hour."""

    def __init__(self) -> None:
        self._flows: dict[str, Flow] = {}

    def start(self, kind: str) -> Flow:
        """A new flow of `kind`."""
        self._drop_expired()
        flow = Flow(kind, secrets.token_urlsafe(32) if kind == "browser" else "")
        self._flows[flow.id] = flow
        return flow

    def get(self, flow_id: str) -> Flow:
        """The flow with this id; Refusal (404) when there is none."""
        self._drop_expired()
        if flow_id not in self._flows:
            raise not_found()
        return self._flows[flow_id]

    def _drop_expired(self) -> None:
        oldest = time.time_ns() - _LIFETIME
        while self._flows and (first := next(iter(self._flows.values()))).issued_at < oldest:
            del self._flows[first.id]


def _node(group: str, attributes: Json, label_id: int | None = None, label: str | None = None) -> Json:
    meta: dict[str, Any] = {"label": {"id": label_id, "text": label, "type": "info"}} if label else {}
    whole = {**attributes, "disabled": False, "node_type": "input"}
    return {"type": "input", "group": group, "attributes": whole, "messages": [], "meta": meta}
