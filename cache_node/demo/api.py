"""A client of Kratos' session API, as far as demo and tests need it: log in, look, revoke, change.

The same calls work against the real Kratos and the demo origin.  Nothing is kept between calls (no connection, no
cookie), so an object may be used from several event loops.
"""

from __future__ import annotations

import json as _stdlib_json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from cache_node.errors import CacheNodeError

COOKIE_NAME = "ory_kratos_session"

Json = dict[str, Any]

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)


class ApiError(CacheNodeError):
    """The origin answered a call with another status than the one that means success."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Answer(NamedTuple):
    """One HTTP answer: `headers` in wire order, names as sent; `body` as received."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def values(self, name: str) -> list[str]:
        """All values of a header, by its name in any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


class SessionApi(ABC):
    """Kratos' session API at `public_url` and `admin_url`; each call has 10 s and raises ApiError if it is refused."""

    @property
    @abstractmethod
    def public_url(self) -> str:
        """Base URL of the public port, without a trailing slash."""

    @property
    @abstractmethod
    def admin_url(self) -> str:
        """Base URL of the admin port, without a trailing slash."""

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        json: object | None = None,
    ) -> Answer:
        """Send one request to `url` (its path taken literally) on a connection of its own; follow no redirect."""
        # A JSON body that is None is none at all; headers may repeat a name.
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as client,
            client.request(method, URL(url, encoded=True), headers=pairs, json=json, allow_redirects=False) as answer,
        ):
            body = await answer.read()
            raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
            return Answer(answer.status, raw, body)

    async def whoami(
        self, headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), *, method: str = "GET", query: str = ""
    ) -> Answer:
        """Ask `/sessions/whoami`; every status is an answer.  `query` goes after the `?` as it is."""
        url = f"{self.public_url}/sessions/whoami" + (f"?{query}" if query else "")
        return await self.request(method, url, headers=headers)

    async def is_ready(self) -> bool:
        """Whether `/health/ready` says 200; False as well when nobody answers."""
        try:
            return (await self.request("GET", f"{self.public_url}/health/ready")).status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def create_identity(
        self, email: str, password: str, *, traits: Mapping[str, object] | None = None, metadata_public: object = None
    ) -> str:
        """Create an identity that can log in with `password`; return its id."""
        body: Json = {
            "schema_id": "default",
            "traits": {"email": email, **(traits or {})},
            "credentials": {"password": {"config": {"password": password}}},
        }
        if metadata_public is not None:
            body["metadata_public"] = metadata_public
        created = await self._json("POST", f"{self.admin_url}/admin/identities", 201, json=body)
        return str(created["id"])

    async def login_token(self, email: str, password: str) -> tuple[str, Json]:
        """Log in as an app does; return the session token and the session."""
        flow = await self._json("GET", f"{self.public_url}/self-service/login/api", 200)
        form = {"method": "password", "identifier": email, "password": password}
        done = await self._json(flow["ui"]["method"], flow["ui"]["action"], 200, json=form)
        return str(done["session_token"]), done["session"]

    async def login_cookie(self, email: str, password: str) -> str:
        """Log in as a browser does; return the value of the session cookie."""
        json_only = {"Accept": "application/json"}
        start = await self.request("GET", f"{self.public_url}/self-service/login/browser", headers=json_only)
        flow = _parsed(start, "GET /self-service/login/browser", 200)
        csrf = next(
            node["attributes"]["value"] for node in flow["ui"]["nodes"] if node["attributes"]["name"] == "csrf_token"
        )
        form = {"method": "password", "identifier": email, "password": password, "csrf_token": csrf}
        cookies = "; ".join(value.split(";", 1)[0] for value in start.values("Set-Cookie"))
        done = await self.request("POST", flow["ui"]["action"], headers={**json_only, "Cookie": cookies}, json=form)
        _parsed(done, "POST /self-service/login", 200)
        for value in done.values("Set-Cookie"):
            name, _, rest = value.partition("=")
            if name == COOKIE_NAME:
                return rest.split(";", 1)[0]
        raise ApiError("the login answered without a session cookie", done.status)

    async def logout_token(self, token: str) -> None:
        """End the session of `token`, as an app does."""
        url = f"{self.public_url}/self-service/logout/api"
        await self._json("DELETE", url, 204, json={"session_token": token})

    async def get_identity(self, identity_id: str) -> Json:
        """The identity as the admin API shows it."""
        return await self._json("GET", f"{self.admin_url}/admin/identities/{identity_id}", 200)

    async def patch_identity(self, identity_id: str, operations: list[Json]) -> Json:
        """Apply JSON Patch (RFC 6902) operations such as `{"op": "replace", "path": "/traits/email", "value": …}`."""
        return await self._json("PATCH", f"{self.admin_url}/admin/identities/{identity_id}", 200, json=operations)

    async def disable_identity(self, identity_id: str) -> None:
        """Set the state to inactive: its sessions answer 401 and stay what they are."""
        await self.patch_identity(identity_id, [{"op": "replace", "path": "/state", "value": "inactive"}])

    async def enable_identity(self, identity_id: str) -> None:
        """Set the state to active: its sessions answer again."""
        await self.patch_identity(identity_id, [{"op": "replace", "path": "/state", "value": "active"}])

    async def delete_identity(self, identity_id: str) -> None:
        """Delete the identity and with it its sessions."""
        await self._json("DELETE", f"{self.admin_url}/admin/identities/{identity_id}", 204)

    async def delete_identity_sessions(self, identity_id: str) -> None:
        """Delete all sessions of the identity."""
        await self._json("DELETE", f"{self.admin_url}/admin/identities/{identity_id}/sessions", 204)

    async def get_session(self, session_id: str) -> Json:
        """The session as the admin API shows it, without its identity."""
        return await self._json("GET", f"{self.admin_url}/admin/sessions/{session_id}", 200)

    async def revoke_session(self, session_id: str) -> None:
        """Deactivate one session."""
        await self._json("DELETE", f"{self.admin_url}/admin/sessions/{session_id}", 204)

    async def extend_session(self, session_id: str) -> None:
        """Let the session live a whole lifespan from now on."""
        # 204 with `feature_flags.faster_session_extend`, which newer versions turn on.
        await self._json("PATCH", f"{self.admin_url}/admin/sessions/{session_id}/extend", 200, 204)

    async def _json(self, method: str, url: str, *expected: int, json: object | None = None) -> Json:
        answer = await self.request(method, url, headers={"Accept": "application/json"}, json=json)
        return _parsed(answer, f"{method} {URL(url).path}", *expected)


def _parsed(answer: Answer, what: str, *expected: int) -> Json:
    if answer.status not in expected:
        raise ApiError(f"{what} answered {answer.status} instead of {expected[0]}", answer.status)
    parsed: Json = _stdlib_json.loads(answer.body) if answer.body else {}
    return parsed
