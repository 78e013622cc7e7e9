"""What the admin port of the demo origin answers: identities and sessions, and their changes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from cache_node.demo._ports import CACHE_CONTROL, Answer, Port, page_not_found, read_form, read_json, redirect
from cache_node.demo._public import Changed
from cache_node.demo.accounts import Accounts
from cache_node.demo.wire import JSON_TYPE, Refusal


class AdminEndpoints:
    """The endpoints of the admin port; `changed` is awaited after each commit, before the answer."""

    def __init__(self, port: Port, accounts: Accounts, changed: Changed) -> None:
        self._port = port
        self._accounts = accounts
        self._changed = changed
        self.admin_url = ""
        port.add("/admin/identities", "POST", self.create_identity)
        port.add("/admin/identities/{id}", "GET", self.get_identity)
        port.add("/admin/identities/{id}", "PATCH", self.patch_identity)
        port.add("/admin/identities/{id}", "DELETE", self.delete_identity)
        port.add("/admin/identities/{id}/sessions", "DELETE", self.delete_sessions)
        port.add("/admin/sessions/whoami", "GET", self.whoami, survives_outage=True)
        port.add("/admin/sessions/{id}", "GET", self.get_session)
        port.add("/admin/sessions/{id}", "DELETE", self.revoke_session)
        port.add("/admin/sessions/{id}/extend", "PATCH", self.extend_session)
        port.add("/admin/health/ready", "GET", self.ready, survives_outage=True)
        port.add("/admin/health/alive", "GET", self.alive, survives_outage=True)
        port.add("/health/ready", "GET", self.moved, survives_outage=True)
        port.add("/health/alive", "GET", self.moved, survives_outage=True)
        port.add("/{path:path}", "GET HEAD", self.nothing, survives_outage=True)

    async def create_identity(self, request: Request) -> Answer:
        """201 with the new identity."""
        identity = self._accounts.create_identity(await read_form(request))
        location = ("Location", f"{self.admin_url}/identities/{identity.id}")
        return Answer(201, self._accounts.show_identity_to_admin(identity), [location])

    async def get_identity(self, request: Request) -> Answer:
        """200 with the identity."""
        identity = self._accounts.identity(request.path_params["id"])
        return Answer(200, self._accounts.show_identity_to_admin(identity))

    async def patch_identity(self, request: Request) -> Answer:
        """200 with the patched identity."""
        identity = self._accounts.patch_identity(request.path_params["id"], await read_json(request))
        await self._changed("identity.changed", None, identity.id)
        return Answer(200, self._accounts.show_identity_to_admin(identity))

    async def delete_identity(self, request: Request) -> Answer:
        """204."""
        identity_id = request.path_params["id"]
        self._accounts.delete_identity(identity_id)
        await self._changed("identity.deleted", None, identity_id)
        return Answer(204)

    async def delete_sessions(self, request: Request) -> Answer:
        """204, or 404 when the identity has no session."""
        for session in self._accounts.delete_sessions(request.path_params["id"]):
            await self._changed("session.revoked", session.id, session.identity.id)
        return Answer(204)

    async def whoami(self, request: Request) -> Response:
        """Kratos sends whoami to its public port."""
        del request
        return redirect(307, f"{self._accounts.public_url}/sessions/whoami", "Temporary Redirect", [CACHE_CONTROL])

    async def get_session(self, request: Request) -> Answer:
        """200 with the session; `expand=identity` and `expand=devices` show these too."""
        session = self._accounts.session(request.path_params["id"])
        expand = request.query_params.getlist("expand")
        shown = self._accounts.show_session(session, identity="identity" in expand, devices="devices" in expand)
        return Answer(200, shown)

    async def revoke_session(self, request: Request) -> Answer:
        """204; harmless when repeated."""
        session = self._accounts.revoke_session(request.path_params["id"])
        await self._changed("session.revoked", session.id, session.identity.id)
        return Answer(204, headers=[("Content-Type", JSON_TYPE)])  # of no content; so does Kratos

    async def extend_session(self, request: Request) -> Answer:
        """200 with the session."""
        session = self._accounts.extend_session(request.path_params["id"])
        await self._changed("session.changed", session.id, session.identity.id)
        return Answer(200, self._accounts.show_session(session, devices=False))

    async def ready(self, request: Request) -> Answer:
        """200, or 503 while the database is said to be away."""
        del request
        if not self._port.is_ready:
            raise Refusal(503, "error may contain sensitive information and was obfuscated")
        return Answer(200, {"status": "ok"})

    async def alive(self, request: Request) -> Answer:
        """200."""
        del request
        return Answer(200, {"status": "ok"})

    async def nothing(self, request: Request) -> Response:
        """The 404 of Go's router."""
        del request
        return page_not_found()

    async def moved(self, request: Request) -> Response:
        """Kratos has everything of this port below /admin."""
        return redirect(307, f"/admin{request.url.path}", "Temporary Redirect")
