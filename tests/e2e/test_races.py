"""Forced races over real connections: a receipt that says dead everywhere is kept by every node."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from cache_node.demo.origin import DemoOrigin
from cache_node.embedded import EmbeddedValkey
from tests.e2e.region import Region, Seen
from tests.proxy import Proxy

ROUNDS = 200


async def test_nothing_old_after_a_receipt(
    valkey: EmbeddedValkey, origin: DemoOrigin, client: aiohttp.ClientSession
) -> None:
    """200 rounds: a revocation while fills are under way, joined and cached; after the receipt nobody gets the old
    answer, neither those who ask then nor those who then join a fill that began before."""
    chance = random.Random(20261124)
    async with (
        Proxy(origin.public_url) as link_a,
        Proxy(origin.public_url) as link_b,
        Region(valkey.url, origin, client, origin_urls=(link_a.url, link_b.url)) as region,
    ):
        await region.until_receipts_are_quick()
        early_old = 0
        for round_number in range(ROUNDS):
            early_old += await _round(region, chance, link_a, link_b, round_number)
        assert early_old > ROUNDS / 4, "the races were not forced: hardly any fill was under way"


async def _round(region: Region, chance: random.Random, link_a: Proxy, link_b: Proxy, number: int) -> int:
    token, session = await region.sign_in()
    links = dict(zip(region.nodes, (link_a, link_b), strict=True))
    for node in region.nodes:
        if chance.random() < 0.98:  # a node that never saw the token good takes a second to believe the 401
            await region.ask(node, token)
    held = [node for node in region.nodes if chance.random() < 0.7]
    early: list[asyncio.Task[Seen]] = []
    for node in held:
        links[node].hold_replies()
        # no-cache, so that a fill is under way also where an entry is cached
        early.append(asyncio.create_task(region.ask(node, token, Cache_Control="no-cache")))
    for node in held:
        async with asyncio.timeout(5):
            await links[node].held.wait()  # the origin has said the old state

    await region.origin.revoke_session(session["id"])
    event = {"type": "session.revoked", "session_id": session["id"]}
    status, reply = await region.publish(chance.choice(region.nodes), event, wait=True)
    assert status == 200, reply
    assert reply["receipt"]["dead_everywhere"], reply

    late = [asyncio.create_task(region.ask(node, token)) for node in region.nodes for _ in range(2)]
    await asyncio.sleep(0)
    for link in links.values():
        link.release_replies()
    old = [seen for seen in await asyncio.gather(*late) if seen.status != 401]
    assert not old, f"round {number}: an old answer after the receipt: {old}"
    after = [await region.ask(node, token) for node in region.nodes]
    assert [seen.status for seen in after] == [401, 401], f"round {number}: {after}"
    return sum(seen.status == 200 for seen in await asyncio.gather(*early))


async def test_a_thousand_cold_readers_cost_the_origin_one_request(region: Region) -> None:
    """Readers of one credential who come at once share one fill."""
    token, _ = await region.sign_in()
    region.origin.requests.clear()
    answers = await asyncio.gather(*(region.ask(region.a, token) for _ in range(1000)))
    assert {seen.status for seen in answers} == {200}
    assert region.origin.requests["/sessions/whoami"] == 1
