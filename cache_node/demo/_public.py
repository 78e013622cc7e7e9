"""What the public port of the demo origin answers: login, logout and, exactly as Kratos v1.3.1 does, whoami."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response

from cache_node.demo._login import Flows
from cache_node.demo._ports import Answer, Port, page_not_found, read_form, redirect
from cache_node.demo.accounts import Accounts, Session
from cache_node.demo.api import COOKIE_NAME
from cache_node.demo.cookies import CookieContent, CookieError, SessionCookies
from cache_node.demo.wire import Headers, Refusal, WireResponse, bad_request, unauthorized

Changed = Callable[[str, str | None, str | None], Awaitable[None]]

_WHOAMI_METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE"


class PublicEndpoints:
    """The endpoints of the public port; `changed` is awaited after what whoami answers has changed."""

    def __init__(self, port: Port, accounts: Accounts, lifespan_seconds: int, changed: Changed) -> None:
        self._port = port
        self._accounts = accounts
        self._cookies = SessionCookies(lifespan_seconds)
        self._flows = Flows()
        self._changed = changed
        port.add("/sessions/whoami", _WHOAMI_METHODS, self.whoami, survives_outage=True)
        port.add("/sessions/whoami/", "GET HEAD", self.trailing_slash, survives_outage=True)
        port.add("/self-service/login/api", "GET", self.start_api_login)
        port.add("/self-service/login/browser", "GET", self.start_browser_login)
        port.add("/self-service/login", "POST", self.log_in)
        port.add("/self-service/logout/api", "DELETE", self.log_out)
        port.add("/health/ready", "GET HEAD", self.ready, survives_outage=True)
        port.add("/health/alive", "GET HEAD", self.alive, survives_outage=True)
        port.add("/{path:path}", "GET HEAD", self.nothing, survives_outage=True)

    async def whoami(self, request: Request) -> Answer:
        """`/sessions/whoami`: every method the same, the body ignored, only `tokenize_as` read of the query."""
        session = self._session(request)
        if session is None or not self._port.is_ready:
            raise unauthorized()
        if session.aal == "aal1" and session.identity.available_aal == "aal2":
            raise self._second_factor_required()
        template = next(iter(request.query_params.getlist("tokenize_as")), "")
        if template:  # this origin has none
            raise bad_request(f'Unable to find tokenizer template "{template}".')
        headers: Headers = [("X-Kratos-Authenticated-Identity-Id", session.identity.id)]
        try:
            known = self._cookies.find(request.headers.getlist("cookie"))
        except CookieError as error:
            raise Refusal(500, str(error), headers=headers) from None
        if known is not None and known.expires_at < session.expires_at:
            headers.append(self._set_cookie(session))
        return Answer(200, self._accounts.show_session(session), headers)

    def _session(self, request: Request) -> Session | None:
        """By `X-Session-Token`, else a cookie that can be read, else the bearer token; a wrong one has no fallback."""
        token = _first(request, "x-session-token")
        if not token:
            try:
                known = self._cookies.find(request.headers.getlist("cookie"))
            except CookieError:
                known = None
            token = known.session_token if known is not None else _bearer(request)
        session = self._accounts.session_by_token(token)
        return session if session is not None and session.is_valid() else None

    def _second_factor_required(self) -> Refusal:
        url = f"{self._accounts.public_url}/self-service/login/browser?aal=aal2"
        return Refusal(
            403,
            "Session does not fulfill the requested Authenticator Assurance Level",
            reason="An active session was found but it does not fulfill the requested Authenticator Assurance Level. "
            "Please verify yourself with a second factor to resolve this issue.",
            error_id="session_aal2_required",
            details={"redirect_browser_to": url},
            redirect_browser_to=url,
            echoes_request_id=False,
        )

    async def trailing_slash(self, request: Request) -> Response:
        """The redirect of v1.3.1; newer versions say 404."""
        del request
        headers = [("Vary", "Origin"), ("Vary", "Cookie"), self._csrf_cookie(secrets.token_urlsafe(32))]
        return redirect(301, "/sessions/whoami", "Moved Permanently", headers)

    async def start_api_login(self, request: Request) -> Answer:
        """A login flow for an app."""
        del request
        return Answer(200, self._flows.start("api").show(self._accounts.public_url))

    async def start_browser_login(self, request: Request) -> Answer:
        """A login flow for a browser; always JSON, as Kratos answers to `Accept: application/json`."""
        del request
        flow = self._flows.start("browser")
        return Answer(200, flow.show(self._accounts.public_url), [self._csrf_cookie(flow.csrf_token)])

    async def log_in(self, request: Request) -> Answer:
        """The end of both flows: a session token or a session cookie."""
        flow = self._flows.get(request.query_params.get("flow", ""))
        form = await read_form(request)
        if flow.kind == "browser" and not self._is_same_site(request, flow.csrf_token, form.get("csrf_token")):
            reason = "Please retry the flow and optionally clear your cookies."
            raise Refusal(403, "the request was rejected", reason=reason, error_id="security_csrf_violation")
        identifier = str(form.get("identifier", ""))
        client = request.client
        device = {
            "ip_address": f"{client.host}:{client.port}" if client else "",
            "user_agent": request.headers.get("user-agent", ""),
        }
        session = self._accounts.log_in(identifier, str(form.get("password", "")), device)
        if session is None:
            return Answer(400, flow.show(self._accounts.public_url, identifier=identifier, is_refused=True))
        shown = self._accounts.show_session(session)
        if flow.kind == "api":
            return Answer(200, {"session_token": session.token, "session": shown, "continue_with": None})
        go_on = [{"action": "redirect_browser_to", "redirect_browser_to": f"{self._accounts.public_url}/"}]
        cookies = [self._csrf_cookie(secrets.token_urlsafe(32)), self._set_cookie(session)]
        return Answer(200, {"session": shown, "continue_with": go_on}, cookies)

    async def log_out(self, request: Request) -> Answer:
        """Logout of an app; harmless when repeated."""
        token = (await read_form(request)).get("session_token")
        session = self._accounts.session_by_token(token) if isinstance(token, str) else None
        if session is None:
            reason = "The provided Ory Session Token could not be found, is invalid, or otherwise malformed."
            raise Refusal(403, "The requested action was forbidden", reason=reason)
        self._accounts.revoke_session(session.id)
        await self._changed("session.revoked", session.id, session.identity.id)
        return Answer(204)

    async def ready(self, request: Request) -> Response:
        """200, or 503 while the database is said to be away."""
        del request
        return _health(is_ready=self._port.is_ready)

    async def alive(self, request: Request) -> Response:
        """200."""
        del request
        return _health(is_ready=True)

    async def nothing(self, request: Request) -> Response:
        """The 404 of Go's router."""
        del request
        return page_not_found([("Vary", "Origin"), ("Vary", "Cookie"), self._csrf_cookie(secrets.token_urlsafe(32))])

    def _set_cookie(self, session: Session) -> tuple[str, str]:
        value = self._cookies.mint(CookieContent(session.token, session.expires_at))
        seconds = (session.expires_at - time.time_ns()) // 1_000_000_000
        expires = formatdate(int(time.time()) + seconds, usegmt=True)
        attributes = f"Path=/; Expires={expires}; Max-Age={seconds}; HttpOnly; SameSite=Lax"
        return "Set-Cookie", f"{COOKIE_NAME}={value}; {attributes}"

    def _csrf_name(self) -> str:
        return "csrf_token_" + hashlib.sha256(self._accounts.public_url.encode()).hexdigest()

    def _csrf_cookie(self, value: str) -> tuple[str, str]:
        return "Set-Cookie", f"{self._csrf_name()}={value}; Path=/; Max-Age=31536000; HttpOnly; SameSite=Lax"

    def _is_same_site(self, request: Request, expected: str, given: object) -> bool:
        return given == expected == request.cookies.get(self._csrf_name())


def _first(request: Request, name: str) -> str:
    """The first value of a header, without the blanks around it: Go trims them, uvicorn only those before it."""
    return next(iter(request.headers.getlist(name)), "").strip(" \t")


def _bearer(request: Request) -> str:
    """The token, if the first `Authorization` splits at single spaces into exactly two parts."""
    parts = _first(request, "authorization").split(" ")
    return parts[1] if len(parts) == 2 and parts[0].lower() == "bearer" else ""


def _health(*, is_ready: bool) -> Response:
    vary = [("Vary", "Origin")]
    if is_ready:
        return WireResponse(200, [("Content-Type", "application/json; charset=utf-8"), *vary], b'{"status":"ok"}\n')
    refusal = Refusal(500, "error may contain sensitive information and was obfuscated")
    return WireResponse(503, [("Content-Type", "application/json"), *vary], refusal.body(None))
