"""`python -m loadtest.origin`: the demo origin as a process of its own; prints its two URLs when it listens."""

from __future__ import annotations

import asyncio

import click
import uvloop

from cache_node.demo.origin import DemoOrigin


async def serve() -> None:
    """Until the process is killed."""
    async with DemoOrigin() as origin:
        click.echo(f"listening on {origin.public_url} admin {origin.admin_url}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())
