"""What every session may answer just now, by what was done to it and when that was acknowledged.

All times are readings of one monotonic clock, taken so that a doubt favours the node: a request begins before it is
sent, an acknowledgement counts from when it arrived.  So nothing here is called wrong that was right; an old answer
that came within the time of a message's way may be missed.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

CHANGED_LATELY = 50
SHARE_OF_CHANGED_LATELY = 1 / 3

_T = TypeVar("_T")


class Wrong(StrEnum):
    """How an answer can be wrong."""

    REVOKED = "the answer of a revoked session"
    OLD = "an answer from before a change"
    FOREIGN = "another's session"
    DENIED = "a refusal of a live session"


@dataclass(slots=True)
class Change(Generic[_T]):
    """One value of a fact, known to the origin from `begun_at` on at the earliest; None: any, it is not known yet."""

    value: _T | None
    begun_at: float
    older_are_wrong_after: float = math.inf
    """No request that begins later may get an older value."""

    def acknowledged(self, at: float, max_staleness_seconds: float) -> None:
        """The publish of this change was acknowledged: older answers have `max_staleness` left."""
        self.older_are_wrong_after = min(self.older_are_wrong_after, at + max_staleness_seconds)

    def receipted(self, at: float) -> None:
        """A receipt says that older answers are dead everywhere."""
        self.older_are_wrong_after = min(self.older_are_wrong_after, at)


class History(Generic[_T]):
    """One fact about a session or a person, with all its values; changed by one at a time."""

    def __init__(self, value: _T, at: float) -> None:
        self._changes = [Change(value, at)]

    def change(self, value: _T | None, at: float) -> Change[_T]:
        """The origin is about to be told a new value."""
        self._changes.append(Change(value, at))
        return self._changes[-1]

    def allows(self, value: _T, begun_at: float, ended_at: float) -> bool:
        """Whether a request of that time may have been answered so."""
        return any(allowed is None or allowed == value for allowed in self._allowed(begun_at, ended_at))

    def _allowed(self, begun_at: float, ended_at: float) -> Iterator[_T | None]:
        for change in reversed(self._changes):
            if change.begun_at <= ended_at:
                yield change.value
                if change.older_are_wrong_after < begun_at:
                    return


@dataclass(eq=False, slots=True)
class Person:
    """An identity; `first_name` is the trait that changes.  One at a time changes it or its sessions."""

    id: str
    email: str
    first_name: History[str]
    is_being_changed: bool = False


@dataclass(eq=False, slots=True)
class Session:
    """A session of a person and its credential, which is never shown."""

    id: str
    token: str = field(repr=False)
    person: Person
    is_active: History[bool]
    expires_at: History[str]

    def judge(self, status: int, body: bytes, begun_at: float, ended_at: float) -> Wrong | None:
        """What is wrong with an answer to the session's credential, if something is.

        Not for answers that say nothing about the session (429 and 5xx).
        """
        if status != 200:
            return None if self.is_active.allows(False, begun_at, ended_at) else Wrong.DENIED
        shown = Shown.read(body)
        if shown is None or (shown.session_id, shown.identity_id) != (self.id, self.person.id):
            return Wrong.FOREIGN
        if not self.is_active.allows(True, begun_at, ended_at):
            return Wrong.REVOKED
        is_current = self.expires_at.allows(shown.expires_at, begun_at, ended_at)
        is_current = is_current and self.person.first_name.allows(shown.first_name, begun_at, ended_at)
        return None if is_current else Wrong.OLD


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a session's body is compared."""

    session_id: str
    identity_id: str
    expires_at: str
    first_name: str

    @classmethod
    def read(cls, body: bytes) -> Shown | None:
        """The body of a 200; None if it is no active session."""
        try:
            content = json.loads(body)
            identity = content["identity"]
            shown = cls(content["id"], identity["id"], content["expires_at"], identity["traits"]["name"]["first"])
            return shown if content["active"] is True else None
        except (ValueError, KeyError, TypeError):
            return None


class Truth:
    """All sessions that there ever were, by their id."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.sessions: dict[str, Session] = {}
        self._live: list[Session] = []
        self._changed_lately: deque[Session] = deque(maxlen=CHANGED_LATELY)

    def signed_in(self, session: Session) -> None:
        """There is a new session."""
        self.sessions[session.id] = session
        self._live.append(session)

    def to_ask_about(self) -> Session | None:
        """A live session, or, in a third of the cases, one changed or revoked lately; None if there is none."""
        lately = self._changed_lately and self._rng.random() < SHARE_OF_CHANGED_LATELY
        choices = self._changed_lately if lately else self._live
        return self._rng.choice(choices) if choices else None

    def take(self) -> Session | None:
        """A live session to change, with its person the caller's alone until it is given back; None if none is free."""
        free = [session for session in self._live if not session.person.is_being_changed]
        if not free:
            return None
        session = self._rng.choice(free)
        session.person.is_being_changed = True
        self._changed_lately.append(session)
        return session

    def give_back(self, session: Session, *, is_revoked: bool = False) -> None:
        """The origin has changed it."""
        session.person.is_being_changed = False
        if is_revoked:
            self._live.remove(session)
