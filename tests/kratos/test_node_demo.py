"""`cache-node demo --origin kratos` as a person starts it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

from cache_node.demo.kratos_server import KratosServer


async def test_the_tour_in_front_of_a_real_kratos(kratos: KratosServer) -> None:
    """Cold, from Redis, from memory, revoked: `ok`, with a receipt, and stdout holds the JSON alone."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CACHE_NODE_")}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "cache_node", "demo", "--origin", "kratos", "--once", "--json"],
        capture_output=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    tour = json.loads(done.stdout)
    assert tour["ok"] is True
    assert [(step["name"], step["tier"], step["status"]) for step in tour["steps"]] == [
        ("cold", "origin", 200),
        ("redis", "redis", 200),
        ("memory", "memory", 200),
        ("revoked", "origin", 401),
    ]
    assert tour["revocation"]["receipt"]["dead_everywhere"] is True
    assert tour["revocation"]["seconds"] < 1.0
    assert b"a real Kratos" in done.stderr
