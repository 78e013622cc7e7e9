"""Fills against events: whatever order they arrive in, what was read before an event is never given after it."""

from __future__ import annotations

import asyncio

from tests.fakes import Gate, LogServer, ManualClock, ScriptedNode, ScriptedOrigin, changed, version_of


async def test_fill_race_on_one_node() -> None:
    """Read the old state, revoke, apply the event, and only then does the old answer arrive: it must not be kept."""
    clock, server = ManualClock(), LogServer()
    origin = ScriptedOrigin(clock)
    session = origin.add("token")
    node = ScriptedNode(server, origin, clock)
    await node.follow()

    origin.gate = Gate()
    reader_a = asyncio.create_task(node.read("token"))
    await origin.gate.arrived()  # the origin has been read: version 0
    session.version = 1
    server.append(changed())
    await node.follow()  # the event is applied here
    origin.gate.open()

    assert version_of(await reader_a) == 0, "A's request began before the change"
    origin.gate = None
    after = await node.read("token")
    assert (version_of(after), after.tier) == (1, "origin")
    assert (await node.read("token")).tier == "memory", "what was read after the event is kept"
