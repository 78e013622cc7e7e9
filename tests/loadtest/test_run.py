"""Whole runs as `make loadtest` has them, only shorter; locust has a process of its own, for it patches the library."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from cache_node.demo.origin import DemoOrigin
from loadtest.truth import Shown
from loadtest.verdict import BAD, COULD_NOT_RUN, GOOD

pytestmark = pytest.mark.process

NOWHERE = "http://127.0.0.1:1"
LONG_AGO_SECONDS = 0.5


class ScriptedService:
    """A node's two ports in one: it asks the origin each time, says it was a hit, and acknowledges what is published.

    `revives` lets it give one session its answer again, some time after its revocation was acknowledged.
    """

    def __init__(self, origin: DemoOrigin, *, revives: bool) -> None:
        self._origin = origin
        self._is_to_revive = revives
        self._bodies: dict[str, bytes] = {}
        self._events: dict[str, float] = {}

    async def whoami(self, request: web.Request) -> web.Response:
        token = request.headers["X-Session-Token"]
        answer = await self._origin.whoami({"X-Session-Token": token})
        status, body = answer.status, answer.body
        if status == 200:
            self._bodies[token] = body
        elif self._is_to_revive and self._was_revoked_long_ago(token):
            self._is_to_revive = False
            status, body = 200, self._bodies[token]
        return web.Response(status=status, body=body, headers={"Cache-Status": "cache-node; hit; detail=memory"})

    async def publish(self, request: web.Request) -> web.Response:
        event: dict[str, Any] = await request.json()
        self._events[event.get("session_id", "")] = time.monotonic()
        return web.json_response({"position": "1-1", "receipt": {"dead_everywhere": True, "nodes": []}})

    def _was_revoked_long_ago(self, token: str) -> bool:
        shown = Shown.read(self._bodies.get(token, b""))
        if shown is None:
            return False
        return time.monotonic() - self._events.get(shown.session_id, time.monotonic()) > LONG_AGO_SECONDS


async def loadtest(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtest", *arguments, stdout=pipe, stderr=pipe, cwd=Path(__file__).parents[2]
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), 60.0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), errors.decode()


@pytest.mark.slow
async def test_a_run_at_the_demo_with_its_faults_has_no_wrong_answer(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    arguments = ("--seconds", "10", "--users", "20", "--revocations-per-second", "4", "--seed", "1")
    status, out, errors = await loadtest(*arguments, "--report", str(report))
    assert status == GOOD, out + errors
    assert " 0 wrong" in out
    page = report.read_text()
    assert "Valkey is away, then empty" in page
    assert "node b is killed, then started" in page
    assert "broken connections" in page, "the node was gone"
    assert "publishes repeated" in page, "so was the feed"
    assert "ory_st_" not in page + out + errors, "no credential is shown"


@pytest.mark.slow
@pytest.mark.parametrize(("revives", "expected"), [(False, GOOD), (True, BAD)], ids=["honest", "revives"])
async def test_one_answer_of_a_revoked_session_is_found(tmp_path: Path, revives: bool, expected: int) -> None:
    """By the same run that finds nothing in an honest node."""
    async with DemoOrigin() as origin:
        service = ScriptedService(origin, revives=revives)
        app = web.Application()
        app.add_routes([web.get("/sessions/whoami", service.whoami), web.post("/invalidations", service.publish)])
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            url = f"http://{host}:{port}"
            urls = ("--node", url, url, "--origin", origin.public_url, origin.admin_url, "--max-staleness", "0.1")
            small = ("--seconds", "4", "--users", "12", "--revocations-per-second", "4")
            status, out, errors = await loadtest(*urls, *small, "--report", str(tmp_path / "report.html"))
        finally:
            await runner.cleanup()
    assert status == expected, out + errors
    assert f" {int(revives)} wrong" in out


@pytest.mark.parametrize("missing", ["origin", "node", "admin port"])
async def test_where_nothing_answers_it_could_not_run(tmp_path: Path, missing: str) -> None:
    """Which is asked before there are users, and said once."""
    report = tmp_path / "report.html"
    async with DemoOrigin() as origin:
        there = origin.public_url
        at_origin = NOWHERE if missing == "origin" else there
        node, admin = NOWHERE if missing == "node" else there, NOWHERE if missing == "admin port" else there
        urls = ("--node", node, admin, "--origin", at_origin, at_origin)
        status, out, errors = await loadtest(*urls, "--users", "3", "--report", str(report))
    assert status == COULD_NOT_RUN, out + errors
    assert f"could not run: nothing answers at {NOWHERE}: " in errors
    assert errors.count("\n") == 1, errors
    assert not report.exists(), "no verdict, no report"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--node", NOWHERE, NOWHERE), "go together"),
        (("--origin", NOWHERE, NOWHERE), "go together"),
        (("--report", "no-such-folder/report.html"), "no folder"),
        (("--report", "loadtest"), "is a folder"),
        (("--seconds", "nan"), "finite"),
        (("--max-staleness", "0"), "not in the range"),
        (("--node", "http://user:secret@127.0.0.1:1", NOWHERE, "--origin", NOWHERE, NOWHERE), "without user name"),
    ],
    ids=[
        "a node without its origin",
        "an origin without nodes",
        "no folder for the report",
        "a folder as report",
        "no number",
        "no time",
        "a password in a URL",
    ],
)
async def test_wrong_usage_is_said_before_anything_starts(arguments: tuple[str, ...], said: str) -> None:
    status, _, errors = await loadtest(*arguments)
    assert status == COULD_NOT_RUN
    assert said in errors
