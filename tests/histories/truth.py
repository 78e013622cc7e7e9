"""The plain truth about one session, and what an answer must show of it.

The truth is a list: which version of the session was committed, published, acknowledged and receipted when.  The
promises are those of the protocol's model, and of README.md:

1. a cached answer shows every change that was acknowledged max_staleness ago, and every one whose event is applied or
   was heard of;
2. after a receipt no request gets an older answer, nor does one that demands the position of a publish;
3. any other answer is the origin's, read after the request began;
4. no cached answer is given past its session's end, its TTL, the age that was demanded, or to anybody where the origin
   set a cookie with it; none brings back what the origin has refused;
5. a server that can be reached takes every event, an origin that is well has an answer for everybody, and is asked by
   one node for one credential once at a time; a fence keeps to its cap.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from cache_node.errors import OriginUnavailableError
from cache_node.feed.events import Event
from cache_node.feed.position import Position
from cache_node.sessions.answer import Answer
from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import CLOCK_TOLERANCE_SECONDS
from cache_node.sessions.reader import REFUSAL_SECONDS
from cache_node.sources.receipt import ReceiptWait
from tests.fakes import MAX_STALENESS_SECONDS, ManualClock, ScriptedNode, version_of

CREDENTIAL = Credential("token", b"token")
TTL_SECONDS = 12.0
STALE_IF_ERROR_SECONDS = 3600.0


class Kind(Enum):
    """How a change is committed and told."""

    SESSION = "session.changed"
    IDENTITY = "identity.changed"
    REVOKE = "session.revoked"
    EVERYTHING = "flush"


class Demand(Enum):
    """What a request wants."""

    PLAIN = "plain"
    NO_CACHE = "no-cache"
    MAX_AGE = "max-age=1"
    MIN_POSITION = "the position of the last publish"


class Told(Enum):
    """How the event of a change is written."""

    PLAINLY = "as this version does"
    BY_ANOTHER_VERSION = "so that this one would take it for an event of strangers"
    IN_CAPITALS = "by a publisher of another make, which leaves ids as they are"


class Mood(Enum):
    """What the origin does."""

    WELL = "it answers"
    DOWN = "it cannot be reached"
    FAILING = "it answers 500"
    NO_SESSION = "its 200 is an error page of something in between"
    SETTING_COOKIES = "its answers set one"


class Fault(Enum):
    """What happens to the feed's servers."""

    FLUSHALL = "everything is gone, the server's identity stays"
    RESTART_EMPTY = "a new process without data"
    CUT = "the primary does not answer, until it is cut again"
    TRIM = "all but the last entry is trimmed away"
    HOLE = "the last entry but one is deleted"
    REPLICATE = "there is a replica, which hears nothing more from now on; it can be read"
    PROMOTE = "the primary may write no more, and that replica is the primary now"
    FAIL_BACK = "the old primary is the primary again"
    CLOCK_BACK = "the server's clock steps back by an hour"
    LOSE_REGISTRY = "the nodes registry is deleted"
    LOSE_GENERATION = "what is stored of the generation is deleted"
    LOSE_NUMBER = "the feed is deleted, and of the generation its number"
    FOREIGN = "somebody puts an entry behind the last by hand"
    BEYOND = "the same, with an id of which Lua cannot count on"


@dataclass
class Read:
    """What the origin was asked, and when by the wall clock."""

    at: float
    sets_cookie: bool
    came: float = 0.0
    """When the answer was here, by the steady clock."""


@dataclass
class Change:
    """Version `version` of the session, and what became of its event."""

    version: int
    is_valid: bool
    events: list[Event]
    position: Position | None = None
    acknowledged_at: float = 0.0
    waiting: ReceiptWait | None = None
    is_receipted: bool = False


@dataclass
class Request:
    """One request under way; the versions are of its beginning: what an answer must show, and one from an outage."""

    node: ScriptedNode
    task: asyncio.Task[Answer]
    demand: Demand
    committed: int
    demanded: int
    demanded_in_outage: int
    may_fail: bool


class Truth:
    """What happened, as far as an answer is judged by it; `check` judges."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.changes: list[Change] = []
        self.reads: list[Read] = []
        self.requests: list[Request] = []
        self.heard: defaultdict[ScriptedNode, set[Position]] = defaultdict(set)
        self.refused: dict[ScriptedNode, int] = {}
        """The read by which the origin refused a node the session, and the node may not bring it back; 0 if it may."""
        self.everybody: list[ScriptedNode] = []
        self.is_redis_away = False
        self.counts: Counter[str] = Counter()

    # What must hold ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises AssertionError for whatever breaks a promise."""
        for node in self.everybody:
            assert len(node.fence) <= node.fence._max_ids, "a fence is above its cap"
        for request in [request for request in self.requests if request.task.done()]:
            self.requests.remove(request)
            error = request.task.exception()
            if error is None:
                self._judge(request, request.task.result())
            else:
                assert isinstance(error, OriginUnavailableError), error
                # What the application says whose request is cancelled; the origins here have no deadline.
                assert error.cause != "timeout", "a client that went away took the answer of another one with it"
                assert request.may_fail, f"an origin that was well: {error}"
                self.counts["no answer"] += 1

    def _judge(self, request: Request, answer: Answer) -> None:
        self.counts[answer.tier] += 1
        if answer.status == 500:
            assert request.may_fail, "a 500 of an origin that was well"
            assert answer.detail == "origin-error", "a 500 was taken for an answer"
            return
        version = self._newest_shown(answer)
        # no-cache in an outage gets what the feed proves unchanged
        demanded = request.demanded_in_outage if answer.tier == "stale" else request.demanded
        assert version >= demanded, f"{answer.tier} gave {version}, {demanded} was promised"
        if answer.tier != "origin":
            self._judge_read(request, answer)
        else:
            if answer.status == 401:
                self._note_refusal(request.node, json.loads(answer.body)["read"])
            if version >= request.committed:
                return  # its own answer; an older one of a flight that it joined is judged as a cached one
        now = self.clock.steady()
        for change in self.changes:
            if change.position is not None and version < change.version:
                is_due = change.acknowledged_at + MAX_STALENESS_SECONDS <= now
                assert not is_due, f"{answer.tier} gave {version}, {change} was acknowledged long ago"
                is_applied = request.node.fence.has_applied(change.position)
                assert not is_applied, f"{answer.tier} gave {version}, {change} is applied"
                is_heard = change.position in self.heard[request.node]
                assert not is_heard, f"{answer.tier} gave {version}, {change} was heard of"

    def _newest_shown(self, answer: Answer) -> int:
        """Of a 200 its version, which must have been valid; of a 401 the newest version that was not."""
        if answer.status == 200:
            assert answer.body.startswith(b"{"), "an error page was taken for a session"
            version = version_of(answer)
            assert version == 0 or self.changes[version - 1].is_valid, f"a 200 of {self.changes[version - 1]}"
            return version
        assert answer.status == 401, answer
        refused = [change.version for change in self.changes if not change.is_valid]
        assert refused, "a 401 of a session that was never revoked"
        return refused[-1]

    def _note_refusal(self, node: ScriptedNode, read: int) -> None:
        """What is still in Redis, or comes there, is not asked while the refusal is kept; else it was taken away."""
        is_kept = node.memory.get_refusal(node.reader._keys.derive(CREDENTIAL)[0].name) is not None
        may_come_back = self.is_redis_away or any(has_a_run(other) for other in self.everybody)
        self.refused[node] = read if is_kept or not may_come_back else 0

    def _judge_read(self, request: Request, answer: Answer) -> None:
        assert b"x-request-id" not in dict(answer.headers), f"{answer.tier} gave what was of one request"
        body = json.loads(answer.body)
        read = self.reads[body["read"] - 1]
        if answer.status == 200:
            refused = self.refused.get(request.node, 0)
            assert body["read"] > refused, f"{answer.tier} brought back what the origin has refused"
        assert not read.sets_cookie, f"{answer.tier} gave what set a cookie"
        if answer.tier == "negative":
            assert self.clock.steady() - read.came <= REFUSAL_SECONDS + 0.1, "a 401 was kept for long"
            return
        ends_at = datetime.fromisoformat(body["expires_at"]).timestamp()
        assert self.clock.wall() < ends_at, f"{answer.tier} gave a session that is over"
        limit = TTL_SECONDS + (STALE_IF_ERROR_SECONDS if answer.tier == "stale" else 0.0)
        if request.demand is Demand.MAX_AGE and answer.tier != "stale":
            limit = 1.0
        age = self.clock.wall() - read.at
        assert -CLOCK_TOLERANCE_SECONDS <= age <= limit, f"{answer.tier} gave what was read {age} s ago"


def has_a_run(node: ScriptedNode) -> bool:
    """Whether a fill is under way."""
    return any(not flight.task.done() for flight in node.reader._flights._flights.values())
