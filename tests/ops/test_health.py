from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from cache_node.errors import FeedUnavailableError
from cache_node.http.health import Health
from cache_node.http.server import HttpServer, bind
from tests.fakes import LogServer, ManualClock, ScriptedNode, ScriptedOrigin, changed
from tests.ops.ports import ask

Answers = dict[str, tuple[int, dict[str, Any]]]


class Port:
    """The three answers of a scripted node on a real port."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.feed = LogServer()
        self.node = ScriptedNode(self.feed, ScriptedOrigin(self.clock), self.clock)
        self.draining = False
        health = Health(self.node.follower, lambda: self.draining)
        endpoints = {"/alive": health.alive, "/ready": health.ready, "/fresh": health.fresh}
        app = Starlette(routes=[Route(path, ask_, methods=["GET", "HEAD"]) for path, ask_ in endpoints.items()])
        self.server = HttpServer(app, bind("127.0.0.1", 0), drain_seconds=1.0)

    async def answers(self) -> Answers:
        found = {}
        for name in ("alive", "ready", "fresh"):
            reply = await ask("GET", f"http://{self.server.address}/{name}")
            head = await ask("HEAD", f"http://{self.server.address}/{name}")
            assert reply.headers["Content-Type"] == "application/json"
            assert (head.status, head.body) == (reply.status, b"")
            assert set(reply.json) == {"state", "fresh", "reason"}
            found[name] = reply.status, reply.json
        return found


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    made = Port()
    await made.server.start()
    yield made
    await made.server.drain()


def statuses(answers: Answers) -> list[int]:
    return [status for status, _ in answers.values()]


async def test_before_the_feed_was_asked_nothing_but_alive(port: Port) -> None:
    answers = await port.answers()
    assert statuses(answers) == [200, 503, 503]
    assert answers["ready"][1]["state"] == "BOOTSTRAPPING"
    assert "not been asked" in answers["ready"][1]["reason"]
    assert answers["fresh"][1]["reason"]


async def test_a_failed_first_attempt_is_enough_to_be_ready(port: Port) -> None:
    port.feed.available = False
    with pytest.raises(FeedUnavailableError):
        await port.node.follower.confirm()
    answers = await port.answers()
    assert statuses(answers) == [200, 200, 503]
    assert not any(body["fresh"] for _, body in answers.values())
    assert all(body["reason"] for _, body in answers.values())


async def test_a_node_that_follows_is_all_three(port: Port) -> None:
    await port.node.follow()
    answers = await port.answers()
    assert statuses(answers) == [200, 200, 200]
    assert all(body == {"state": "FOLLOWING", "fresh": True, "reason": None} for _, body in answers.values())


async def test_without_its_lease_a_node_stays_ready(port: Port) -> None:
    await port.node.follow()
    port.clock.advance(2.0)
    answers = await port.answers()
    assert statuses(answers) == [200, 200, 503]
    assert answers["fresh"][1]["state"] == "LOST"
    assert answers["fresh"][1]["fresh"] is False


async def test_a_node_whose_feed_began_anew_stays_ready(port: Port) -> None:
    await port.node.follow()
    port.feed.flushall()
    port.feed.time_us += 1
    port.feed.append(changed())
    await port.node.follower.confirm()
    answers = await port.answers()
    assert statuses(answers) == [200, 200, 503]
    assert answers["fresh"][1]["state"] == "RESETTING"


async def test_a_node_that_drains_is_alive_and_no_more(port: Port) -> None:
    await port.node.follow()
    port.draining = True
    answers = await port.answers()
    assert statuses(answers) == [200, 503, 503]
    assert all("draining" in body["reason"] and not body["fresh"] for _, body in answers.values())
