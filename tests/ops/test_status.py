from __future__ import annotations

import os

import cache_node
from cache_node.demo.origin import DemoOrigin
from cache_node.feed.position import Position
from tests.ops.conftest import MakeNode
from tests.ops.ports import REVOKED, ask, eventually, following, status_of

STABLE = {"node", "region", "state", "position", "freshness_seconds", "lease_seconds", "tiers", "sources", "workers"}


async def test_a_node_that_follows(make_node: MakeNode) -> None:
    node = await make_node(node_id="n1", region="here")
    seen = await following(node)
    assert set(seen) >= STABLE
    assert (seen["node"], seen["region"], seen["state"]) == ("n1", "here", "FOLLOWING")
    assert seen["version"] == cache_node.__version__
    assert 0 <= seen["freshness_seconds"] < 0.5
    assert 0 < seen["lease_seconds"] <= 0.5
    assert seen["sources"] == []
    assert seen["workers"] == [{"id": "n1", "pid": os.getpid()}]
    assert seen["wait_replicas"] == 0
    position = Position.parse(seen["position"])
    assert seen["generation"] == position.generation
    assert Position.parse(seen["floor"]).generation == position.generation
    assert (seen["fresh"], seen["draining"], seen["replay_done"]) == (True, False, True)
    assert seen["replay"] == {"events_read": 0, "share": 1.0}
    assert seen["events_behind"] == 0


async def test_tiers_count_their_hits(make_node: MakeNode, origin: DemoOrigin) -> None:
    node, neighbour = await make_node(node_id="n1"), await make_node(node_id="n2")
    await following(node)
    await following(neighbour)
    assert (await status_of(node))["tiers"]["memory"]["hits"] == 0
    await origin.create_identity("a@example.test", "correct horse battery")
    token, _ = await origin.login_token("a@example.test", "correct horse battery")
    for asked in (node, node, node, neighbour, neighbour):
        await ask("GET", f"{asked.public_url}/sessions/whoami", headers={"X-Session-Token": token})
    tiers = (await status_of(node))["tiers"]
    assert tiers["memory"]["entries"] == 1
    assert 1000 < tiers["memory"]["bytes"] <= tiers["memory"]["limit_bytes"]
    assert (tiers["memory"]["hits"], tiers["redis"]["hits"]) == (2, 0)
    tiers = (await status_of(neighbour))["tiers"]
    assert (tiers["memory"]["hits"], tiers["redis"]["hits"]) == (1, 1)
    for _ in range(3):
        await ask("GET", f"{node.public_url}/sessions/whoami", headers={"X-Session-Token": "made-up"})
    assert (await status_of(node))["tiers"]["memory"]["negative_hits"] == 2


async def test_the_fence_shows_what_it_remembers(make_node: MakeNode) -> None:
    node = await make_node()
    await following(node)
    reply = await ask(
        "POST", f"{node.admin_url}/invalidations", [REVOKED, {"type": "identity.deleted", "identity_id": "i"}]
    )
    seen = await eventually(lambda: status_of(node), lambda now: now["position"] == reply.json["position"])
    assert seen["fence_ids"] == 2
    assert seen["published"] == {"events": 2, "failures": 0}


async def test_what_a_node_without_feed_does_not_know_is_null(make_node: MakeNode, unreachable_url: str) -> None:
    node = await make_node(redis_url=unreachable_url)
    seen = await status_of(node)
    for unknown in ("position", "generation", "floor", "freshness_seconds", "lease_seconds", "replay"):
        assert seen[unknown] is None
    assert (seen["state"], seen["fresh"], seen["replay_done"]) == ("BOOTSTRAPPING", False, False)
