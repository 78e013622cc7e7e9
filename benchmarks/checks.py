"""Whether a server answers rightly and from its cache, which must be so before anything of it is timed."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from benchmarks.load import BadAnswerError
from benchmarks.servers import Server, origin_count
from cache_node.sessions.origin import WHOAMI_PATH


async def check(name: str, server: Server, origin: Server, requests: Mapping[str, bytes]) -> None:
    """All credentials get the right body, and then get it without the origin.  Raises BadAnswerError."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:

        async def ask(line: str) -> str:
            header, _, value = line.partition(": ")
            async with client.get(server.url + WHOAMI_PATH, headers={header: value}) as answer:
                body = await answer.read()
                right = name == "floor" or body == requests[line]
                if answer.status != 200 or not right:
                    raise BadAnswerError(
                        f"{name} answers {answer.status} with {len(body)} bytes that are not the session's"
                    )
                return answer.headers.get("Cache-Status", "")

        for line in requests:
            await ask(line)
        before = origin_count(origin)
        for line in list(requests)[:: max(1, len(requests) // 10)]:
            said = await ask(line)
            if name == "node" and not said.endswith("detail=memory"):
                raise BadAnswerError(f"the node answers from elsewhere: {said}")
        if origin_count(origin) != before:
            raise BadAnswerError(f"{name} asks the origin each time")
