"""One line for every call that makes something cached void: who asked, for what, and what became of it.

A line is one JSON object in ASCII, with every control character escaped, so that no id can forge a line or a terminal
command.  It never holds a credential: a token sent where an id belongs is no event.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from cache_node.feed.events import Event
from cache_node.feed.position import Position

logger = logging.getLogger("cache_node.audit")
logger.setLevel(logging.INFO)  # whatever the node's own log level is


def audit(events: Sequence[Event], *, outcome: str, position: Position | None, client: str | None) -> None:
    """Write `{"action", "ids", "count", "outcome", "position", "client"}` at level info.

    `action` is the events' type, or `mixed`; `ids` has the ids named, by type; `outcome` is `published`, `unavailable`
    (the feed did not acknowledge it: it may be in there) or `interrupted`; `client` is its address and port.
    """
    ids: dict[str, list[str]] = {}
    for event in events:
        named = (
            event.session_id if event.type.names_session else event.identity_id if event.type.names_identity else None
        )
        ids.setdefault(event.type.value, []).extend(() if named is None else (named,))
    line = {
        "action": next(iter(ids)) if len(ids) == 1 else "mixed",
        "ids": ids,
        "count": len(events),
        "outcome": outcome,
        "position": None if position is None else str(position),
        "client": client,
    }
    logger.info("%s", json.dumps(line))
