"""The three health answers: `{"state", "fresh", "reason"}`, where `reason` is null if all is well.

A node without its feed still answers, from the origin: it stays ready, so that an outage of a region's Redis does not
take all its nodes out of the balancer at once.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.requests import Request
from starlette.responses import Response

from cache_node.feed.follower import FeedState, Follower

_DRAINING = "the node is draining"
_NOT_ATTEMPTED = "the feed has not been asked yet"
_WHY_NOT_FRESH = {
    FeedState.FOLLOWING: None,
    FeedState.BOOTSTRAPPING: "no complete feed state was confirmed yet; answers come from the origin",
    FeedState.LOST: "the feed was not confirmed within max_staleness; answers come from the origin",
    FeedState.RESETTING: "the feed began anew and is not confirmed yet; answers come from the origin",
}


class Health:
    """Starlette endpoints for GET and HEAD.  `is_draining` says whether the node has been told to end."""

    def __init__(self, follower: Follower, is_draining: Callable[[], bool]) -> None:
        self._follower = follower
        self._is_draining = is_draining

    async def alive(self, _request: Request) -> Response:
        """200 while the process runs."""
        return self._answer(200, _DRAINING if self._is_draining() else None)

    async def ready(self, _request: Request) -> Response:
        """503 until the first attempt at the feed has succeeded or failed, and while the node drains; else 200."""
        why_not = _DRAINING if self._is_draining() else self._why_not_attempted()
        return self._answer(200 if why_not is None else 503, why_not)

    async def fresh(self, _request: Request) -> Response:
        """200 only while answers from the tiers may be given, by a node that stays; else 503."""
        why_not = _DRAINING if self._is_draining() else _WHY_NOT_FRESH[self._follower.state]
        return self._answer(200 if why_not is None else 503, why_not)

    def _why_not_attempted(self) -> str | None:
        return None if self._follower.attempted.is_set() else _NOT_ATTEMPTED

    def _answer(self, status: int, reason: str | None) -> Response:
        state = self._follower.state
        body = {
            "state": state.value,
            "fresh": state is FeedState.FOLLOWING and not self._is_draining(),
            "reason": reason or _WHY_NOT_FRESH[state],
        }
        return Response(orjson.dumps(body), status, media_type="application/json")
