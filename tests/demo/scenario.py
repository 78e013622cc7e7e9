"""What login, logout, the admin API and whoami are asked, for a recording and for comparing an origin with it.

`python -m tests.demo.scenario` records it anew from the real Kratos, into recorded-session-api.json.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from cache_node.demo.api import SessionApi
from cache_node.demo.kratos_server import KratosServer
from cache_node.demo.origin import DemoOrigin
from tests.demo.exchanges import Exchange, Headers, exchange, save

RECORDING = "recorded-session-api.json"

_PASSWORD = "correct horse battery"
_NOBODY = "00000000-0000-4000-8000-000000000000"
_JSON_ONLY = ("Accept", "application/json")


class Scenario:
    """Runs against an origin in a fresh state and keeps every exchange."""

    def __init__(self, origin: KratosServer | DemoOrigin) -> None:
        self.origin: SessionApi = origin
        self.exchanges: list[Exchange] = []
        self._add_second_factor = origin.add_second_factor

    async def run(self) -> list[Exchange]:
        """All of it, in order."""
        identity = await self.create()
        await self.identities(identity)
        token, session, cookie = await self.logins()
        await self.cookies(token, cookie)
        await self.whoami(token, cookie)
        await self.sessions(token, session, cookie)
        await self.patches(identity, token)
        await self.second_factor()
        await self.ends(identity, token, session)
        await self.health()
        return self.exchanges

    async def ask(
        self,
        name: str,
        method: str,
        path: str,
        *,
        port: str = "public",
        body: Any = None,
        headers: Headers | None = None,
    ) -> Any:
        """One exchange; the body of its answer, parsed if it is JSON."""
        base = self.origin.public_url if port == "public" else self.origin.admin_url
        sent = [_JSON_ONLY, ("User-Agent", "scenario"), *(headers or [])]
        done = await exchange(base, method, path, sent, name=name, port=port, body=body)
        self.exchanges.append(done)
        return json.loads(done.body) if done.body.startswith("{") else done.body

    async def create(self) -> str:
        body = _identity("a@example.test")
        created = await self.ask("create", "POST", "/admin/identities", port="admin", body=body)
        await self.ask("create-again", "POST", "/admin/identities", port="admin", body=body)
        no_email = {"schema_id": "default", "traits": {"name": {"first": "x"}}}
        await self.ask("create-without-email", "POST", "/admin/identities", port="admin", body=no_email)
        other = {"schema_id": "nope", "traits": {"email": "b@example.test"}}
        await self.ask("create-unknown-schema", "POST", "/admin/identities", port="admin", body=other)
        return str(created["id"])

    async def identities(self, identity: str) -> None:
        for name, key in {"get": identity, "get-unknown": _NOBODY, "get-no-uuid": "nope"}.items():
            await self.ask(f"identity-{name}", "GET", f"/admin/identities/{key}", port="admin")
        asked = [("X-Request-ID", "req-42")]
        await self.ask("identity-request-id", "GET", f"/admin/identities/{_NOBODY}", port="admin", headers=asked)

    async def logins(self) -> tuple[str, str, str]:
        form = {"method": "password", "identifier": "a@example.test", "password": _PASSWORD}
        flow = await self.ask("login-api", "GET", "/self-service/login/api")
        action = f"/self-service/login?flow={flow['id']}"
        await self.ask("login-wrong-password", "POST", action, body={**form, "password": "wrong"})
        await self.ask("login-unknown-person", "POST", action, body={**form, "identifier": "nobody@example.test"})
        done = await self.ask("login-api-done", "POST", action, body=form)
        await self.ask("login-unknown-flow", "POST", f"/self-service/login?flow={_NOBODY}", body=form)
        browser = await self.ask("login-browser", "GET", "/self-service/login/browser")
        csrf = next(n["attributes"]["value"] for n in browser["ui"]["nodes"] if n["attributes"]["name"] == "csrf_token")
        jar = [("Cookie", "; ".join(value.split(";")[0] for value in self.set_cookies()))]
        action = f"/self-service/login?flow={browser['id']}"
        await self.ask("login-browser-done", "POST", action, body={**form, "csrf_token": csrf}, headers=jar)
        cookie = next(value for value in self.set_cookies() if value.startswith("ory_kratos_session=")).split(";")[0]
        return done["session_token"], done["session"]["id"], cookie.partition("=")[2]

    def set_cookies(self) -> list[str]:
        return [value for name, value in self.exchanges[-1].response_headers if name.lower() == "set-cookie"]

    async def cookies(self, token: str, cookie: str) -> None:
        """A good token beside a cookie that cannot be read: 500, and what it says depends on the cookie."""
        bad = {
            "short": "garbage",
            "empty": "",
            "long": "A" * 4097,
            "no-parts": base64.urlsafe_b64encode(b"abcdefghi").decode(),
            "wrong-mac": base64.urlsafe_b64encode(b"1795522988|YWJj|" + b"x" * 32).decode(),
            "percent-encoded": cookie.replace("=", "%3D"),
            "no-padding": cookie.rstrip("="),
            "other-alphabet": "++//",
            "strange-byte": "AB!D",
            "tampered": cookie[:60] + ("A" if cookie[60] != "A" else "B") + cookie[61:],
        }
        for name, value in bad.items():
            headers = [("X-Session-Token", token), ("Cookie", f"ory_kratos_session={value}")]
            await self.ask(f"cookie-{name}", "GET", "/sessions/whoami", headers=headers)
        headers = [("X-Session-Token", token), ("Cookie", "ory_kratos_session=garbage"), ("X-Request-ID", "req-42")]
        await self.ask("cookie-request-id", "GET", "/sessions/whoami", headers=headers)
        pair = [("Cookie", f"ory_kratos_session={cookie}; ory_kratos_session=bad")]
        await self.ask("cookie-good-then-bad", "GET", "/sessions/whoami", headers=pair)

    async def whoami(self, token: str, cookie: str) -> None:
        known = [("X-Session-Token", token)]
        await self.ask("whoami", "GET", "/sessions/whoami", headers=known)
        await self.ask("whoami-body-ignored", "POST", "/sessions/whoami", headers=known, body={"any": "thing"})
        for name, query in {"unknown": "tokenize_as=%3Cb%3E%22", "first-counts": "tokenize_as=&tokenize_as=x"}.items():
            asked = [*known, ("X-Request-ID", "req-42")]
            await self.ask(f"whoami-tokenize-{name}", "GET", f"/sessions/whoami?{query}", headers=asked)
        await self.ask("whoami-trailing-slash", "GET", "/sessions/whoami/", headers=known)
        await self.ask("unknown-path", "GET", "/nope")
        await self.ask("unknown-path-admin", "GET", "/admin/nope", port="admin")
        await self.ask("whoami-admin", "GET", "/admin/sessions/whoami", port="admin")

    async def sessions(self, token: str, session: str, cookie: str) -> None:
        path = f"/admin/sessions/{session}"
        await self.ask("session-get", "GET", path, port="admin")
        await self.ask("session-get-expanded", "GET", f"{path}?expand=identity&expand=devices", port="admin")
        await self.ask("session-get-unknown", "GET", f"/admin/sessions/{_NOBODY}", port="admin")
        headers = [("Cookie", f"ory_kratos_session={cookie}")]
        shown = await self.ask("whoami-before-extend", "GET", "/sessions/whoami", headers=headers)
        await self.ask("session-extend", "PATCH", f"/admin/sessions/{shown['id']}/extend", port="admin")
        await self.ask("session-extend-unknown", "PATCH", f"/admin/sessions/{_NOBODY}/extend", port="admin")
        await self.ask("whoami-after-extend", "GET", "/sessions/whoami", headers=headers)
        both = [("X-Session-Token", token), *headers]
        await self.ask("whoami-token-beside-cookie", "GET", "/sessions/whoami", headers=both)
        await self.ask("session-extend-other", "PATCH", f"{path}/extend", port="admin")
        await self.ask("whoami-cookie-of-shorter-session", "GET", "/sessions/whoami", headers=both)

    async def patches(self, identity: str, token: str) -> None:
        path = f"/admin/identities/{identity}"
        patches: dict[str, Any] = {
            "traits": [
                {"op": "replace", "path": "/traits/name/first", "value": "Zoé"},
                {"op": "add", "path": "/metadata_public", "value": {"plan": "pro"}},
            ],
            "remove": [{"op": "remove", "path": "/traits/name/last"}],
            "email": [{"op": "replace", "path": "/traits/email", "value": "a2@example.test"}],
            "unknown-state": [{"op": "replace", "path": "/state", "value": "nope"}],
            "denied": [{"op": "replace", "path": "/id", "value": "x"}],
            "without-email": [{"op": "remove", "path": "/traits/email"}],
            "other-operation": [{"op": "test", "path": "/state", "value": "inactive"}],
            "no-array": {"op": "replace"},
        }
        for name, operations in patches.items():
            await self.ask(f"patch-{name}", "PATCH", path, port="admin", body=operations)
        disable = [{"op": "replace", "path": "/state", "value": "inactive"}]
        await self.ask("patch-unknown", "PATCH", f"/admin/identities/{_NOBODY}", port="admin", body=disable)
        await self.ask("patch-disable", "PATCH", path, port="admin", body=disable)
        known = [("X-Session-Token", token)]
        await self.ask("whoami-disabled", "GET", "/sessions/whoami", headers=known)
        flow = await self.ask("login-api-2", "GET", "/self-service/login/api")
        form = {"method": "password", "identifier": "a2@example.test", "password": _PASSWORD}
        await self.ask("login-disabled", "POST", f"/self-service/login?flow={flow['id']}", body=form)
        enable = [{"op": "replace", "path": "/state", "value": "active"}]
        await self.ask("patch-enable", "PATCH", path, port="admin", body=enable)
        await self.ask("whoami-enabled", "GET", "/sessions/whoami", headers=known)

    async def second_factor(self) -> None:
        await self.ask("create-2", "POST", "/admin/identities", port="admin", body=_identity("c@example.test"))
        first, _ = await self.origin.login_token("c@example.test", _PASSWORD)
        second, _ = await self.origin.login_token("c@example.test", _PASSWORD)
        await self._add_second_factor(second)
        for name, token in {"aal1": first, "aal2": second}.items():
            asked = [("X-Session-Token", token), ("X-Request-ID", "req-42")]
            await self.ask(f"whoami-{name}", "GET", "/sessions/whoami", headers=asked)

    async def ends(self, identity: str, token: str, session: str) -> None:
        logout = "/self-service/logout/api"
        for name, body in {
            "logout": {"session_token": token},
            "logout-again": {"session_token": token},
            "logout-unknown": {"session_token": "ory_st_doesnotexist"},
            "logout-other-body": {"token": "x"},
            "logout-no-body": None,
        }.items():
            await self.ask(name, "DELETE", logout, body=body)
        await self.ask("session-get-ended", "GET", f"/admin/sessions/{session}", port="admin")
        await self.ask("session-extend-ended", "PATCH", f"/admin/sessions/{session}/extend", port="admin")
        _, other = await self.origin.login_token("a2@example.test", _PASSWORD)
        for name, key in {"": other["id"], "-again": other["id"], "-unknown": _NOBODY, "-no-uuid": "nope"}.items():
            await self.ask(f"revoke{name}", "DELETE", f"/admin/sessions/{key}", port="admin")
        for name, key in {"": identity, "-again": identity, "-unknown": _NOBODY}.items():
            await self.ask(f"delete-sessions{name}", "DELETE", f"/admin/identities/{key}/sessions", port="admin")
        await self.ask("session-get-deleted", "GET", f"/admin/sessions/{session}", port="admin")
        for name in ("", "-again"):
            await self.ask(f"delete-identity{name}", "DELETE", f"/admin/identities/{identity}", port="admin")

    async def health(self) -> None:
        for port, path in (("public", "/health"), ("admin", "/health"), ("admin", "/admin/health")):
            for name in ("ready", "alive"):
                await self.ask(f"{port}{path}/{name}", "GET", f"{path}/{name}", port=port)


class Outage:
    """What is asked while the database is away."""

    def __init__(self, origin: KratosServer | DemoOrigin, token: str) -> None:
        self._scenario = Scenario(origin)
        self._token = token

    async def run(self) -> list[Exchange]:
        ask = self._scenario.ask
        known = [("X-Session-Token", self._token)]
        await ask("outage-whoami", "GET", "/sessions/whoami", headers=known)
        await ask("outage-whoami-request-id", "GET", "/sessions/whoami", headers=[*known, ("X-Request-ID", "req-42")])
        await ask("outage-whoami-anonymous", "GET", "/sessions/whoami")
        await ask("outage-ready", "GET", "/health/ready")
        await ask("outage-alive", "GET", "/health/alive")
        return self._scenario.exchanges


def _identity(email: str) -> dict[str, Any]:
    return {
        "schema_id": "default",
        "traits": {"name": {"last": "O'Neil & Sons", "first": "Zoe <b>"}, "email": email},
        "metadata_public": {"zeta": 1, "alpha": {"b": True}},
        "metadata_admin": {"note": "x"},
        "credentials": {"password": {"config": {"password": _PASSWORD}}},
    }


async def record() -> None:
    """Run all of it against the real Kratos and write the recording."""
    async with KratosServer() as kratos:
        exchanges = await Scenario(kratos).run()
        await kratos.create_identity("z@example.test", _PASSWORD)
        token, _ = await kratos.login_token("z@example.test", _PASSWORD)
        await kratos.stop_database()
        exchanges += await Outage(kratos, token).run()
    save(RECORDING, "Kratos v1.3.1 on Postgres 18; tokens and cookies of a throw-away database", exchanges)


if __name__ == "__main__":
    asyncio.run(record())
