"""The users: they sign in, ask whose session it is, change sessions and identities, and revoke sessions.

locust runs them as greenlets of one thread, and has patched the standard library when this is imported: `time.sleep`
and threads here let the others go on.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

from locust import FastHttpUser, between, task
from locust.contrib.fasthttp import ErrorResponse

from cache_node.errors import CacheNodeError
from loadtest.region import Region, Service
from loadtest.results import UNAVAILABLE, Answer, Denial, Results, WrongAnswer, says_something, tier_of
from loadtest.truth import Change, History, Person, Session, Truth
from loadtest.verdict import Limits

SHARE_OF_RECEIPTS = 0.5
"""How many publishes wait for a receipt; the others give the nodes `max_staleness`."""
NODE_FAILED_SECONDS = 1.0
_PAUSE_SECONDS = 0.05
_FIRST_DENY_PAUSE_SECONDS, _LONGEST_DENY_PAUSE_SECONDS = 0.005, 0.1
_GREENLETS = 2000


class Balancer:
    """Which node to ask: one at random of those that nobody has failed to reach within the last second."""

    def __init__(self, nodes: Sequence[Service], rng: random.Random) -> None:
        self._nodes = nodes
        self._rng = rng
        self._failed_at: dict[Service, float] = {}

    def pick(self) -> Service:
        """A node; any of them if all have failed."""
        now = time.monotonic()
        up = [n for n in self._nodes if self._failed_at.get(n, -NODE_FAILED_SECONDS) + NODE_FAILED_SECONDS <= now]
        return self._rng.choice(up or self._nodes)

    def failed(self, node: Service) -> None:
        """A connection to it broke or was refused."""
        self._failed_at[node] = time.monotonic()


class Run:
    """What all users of a run share."""

    def __init__(self, region: Region, limits: Limits, max_staleness_seconds: float, seed: int) -> None:
        self.region = region
        self.limits = limits
        self.max_staleness_seconds = max_staleness_seconds
        self.rng = random.Random(seed)
        self.truth = Truth(self.rng)
        self.balancer = Balancer(region.nodes, self.rng)
        self.results = Results()
        self.password = secrets.token_urlsafe(24)
        self.trouble: list[str] = []
        """Why the run means nothing, if anything."""
        self.has_ended = False
        self.greenlets = ThreadPoolExecutor(_GREENLETS)

    def soon(self, user: Member, event: dict[str, str], change: Change[Any]) -> None:
        """Publish `event` while the user goes on."""
        self.greenlets.submit(user.publish, event, change).add_done_callback(self._note)

    def break_things(self, seconds: float) -> None:
        """What a run of `seconds` breaks; in a run of 0 nothing."""
        try:
            if seconds:
                self.region.break_things(self.results, seconds)
        except CacheNodeError as error:
            self.trouble.append(str(error))

    def close(self) -> None:
        """Wait for the publishes under way."""
        self.has_ended = True
        self.greenlets.shutdown()

    def note_error(self, exception: BaseException, **_: object) -> None:
        """A user could not go on; listens to locust's `user_error`."""
        self.trouble.append(str(exception))

    def _note(self, publish: Future[None]) -> None:
        error = publish.exception()
        if error is not None:
            self.trouble.append(str(error))


class Member(FastHttpUser):
    """What all users can do.  `shared` is set before the first of them is made."""

    abstract = True
    shared: ClassVar[Run]
    connection_timeout = 2.0
    network_timeout = 15.0  # a publish that waits for its receipt takes up to 9 s

    def check(self, url: str) -> None:
        """Ask there once, before everybody does; raises CacheNodeError if nothing answers, whatever it says."""
        response = self.client.get(f"{url}/health/alive", name="check")
        if isinstance(response, ErrorResponse):
            raise CacheNodeError(f"nothing answers at {url}: {response.error}")

    def ask(self, session: Session) -> None:
        """Ask one node after the other until one answers, as a balancer does for its clients."""
        run = self.shared
        deadline = time.monotonic() + run.limits.some_node_seconds
        while not says_something(self.whoami(run.balancer.pick(), session)) and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        run.results.late += time.monotonic() > deadline

    def whoami(self, node: Service, session: Session) -> int:
        """Ask one node and compare its answer with the truth; the status, 0 if the connection was refused or broke."""
        run = self.shared
        begun_at = time.monotonic()
        response = self.client.get(
            f"{node.public_url}/sessions/whoami", headers={"X-Session-Token": session.token}, name="whoami"
        )
        ended_at = time.monotonic()
        status = response.status_code
        cache_status = str(response.headers.get("cache-status", "")) if response.headers else ""
        tier = tier_of(status, cache_status)
        run.results.answers.append(Answer(ended_at, ended_at - begun_at, tier))
        if tier == UNAVAILABLE:
            run.results.counts[f"status {status}" if status else "broken connections"] += 1
        elif how := session.judge(status, response.content, begun_at, ended_at):
            wrong = WrongAnswer(ended_at, how, node.public_url, session.id, status, cache_status)
            run.results.wrong.append(wrong)
        if status == 0:
            run.balancer.failed(node)
        return status

    def sign_in(self, person: Person) -> None:
        """A new session of this person, which others may ask about and change from now on."""
        flow = self.origin("GET", "/self-service/login/api", is_public=True)
        form = {"method": "password", "identifier": person.email, "password": self.shared.password}
        done = self._json("POST", flow["ui"]["action"], form)
        session, now = done["session"], time.monotonic()
        is_active, expires_at = History(True, now), History(session["expires_at"], now)
        self.shared.truth.signed_in(Session(session["id"], done["session_token"], person, is_active, expires_at))

    def sign_up(self) -> Person:
        """A new person."""
        email, first_name = f"{secrets.token_hex(8)}@example.test", "Ada"
        identity = {
            "schema_id": "default",
            "traits": {"email": email, "name": {"first": first_name}},
            "credentials": {"password": {"config": {"password": self.shared.password}}},
        }
        created = self.origin("POST", "/admin/identities", identity)
        return Person(created["id"], email, History(first_name, time.monotonic()))

    def publish(self, event: dict[str, str], change: Change[Any]) -> None:
        """Say what changed until a node acknowledges it, one after the other."""
        run = self.shared
        asks_receipt = run.rng.random() < SHARE_OF_RECEIPTS
        while not run.has_ended:
            node = run.balancer.pick()
            url = f"{node.admin_url}/invalidations" + ("?wait=true" if asks_receipt else "")
            response = self.client.request("POST", url, json=event, headers=_admin_headers(), name="publish")
            now = time.monotonic()
            if response.status_code == 200:
                change.acknowledged(now, run.max_staleness_seconds)
                if asks_receipt:
                    is_dead = json.loads(response.content)["receipt"]["dead_everywhere"]
                    if is_dead:
                        change.receipted(now)
                    run.results.counts["receipts" if is_dead else "receipts not in time"] += 1
                return
            if response.status_code not in (0, 503):
                raise CacheNodeError(f"a node answered {response.status_code} to an invalidation")
            if response.status_code == 0:
                run.balancer.failed(node)
            run.results.counts["publishes repeated"] += 1
            time.sleep(_PAUSE_SECONDS)

    def origin(self, method: str, path: str, body: object = None, *, is_public: bool = False) -> Any:
        """A call of Kratos' session API and what it answers; raises CacheNodeError if it is refused."""
        origin = self.shared.region.origin
        return self._json(method, (origin.public_url if is_public else origin.admin_url) + path, body)

    def _json(self, method: str, url: str, body: object) -> Any:
        response = self.client.request(
            method, url, json=body, headers={"Accept": "application/json"}, name=f"{method} at the origin"
        )
        if not 200 <= response.status_code < 300:
            raise CacheNodeError(f"the origin answered {response.status_code} to a {method}")
        return json.loads(response.content) if response.content else None


class Asker(Member):
    """Somebody with two devices, and an app that asks whose sessions those and others are."""

    wait_time = between(0.1, 0.3)

    def on_start(self) -> None:
        """Sign in twice."""
        person = self.sign_up()
        for _ in range(2):
            self.sign_in(person)

    @task
    def ask_about_a_session(self) -> None:
        """Any session, those that were changed lately more often."""
        session = self.shared.truth.to_ask_about()
        if session is not None:
            self.ask(session)


class Changer(Member):
    """Changes a trait of an identity, or extends a session, and publishes that."""

    wait_time = between(0.5, 1.5)

    @task
    def change(self) -> None:
        """One change of one session or of its person."""
        run = self.shared
        session = run.truth.take()
        if session is None:
            return
        if run.rng.random() < 0.5:
            self._rename(session.person)
        else:
            self._extend(session)
        run.truth.give_back(session)
        run.results.counts["changes"] += 1

    def _rename(self, person: Person) -> None:
        name = secrets.token_hex(4)
        change = person.first_name.change(name, time.monotonic())
        operation = {"op": "replace", "path": "/traits/name/first", "value": name}
        self.origin("PATCH", f"/admin/identities/{person.id}", [operation])
        self.shared.soon(self, {"type": "identity.changed", "identity_id": person.id}, change)

    def _extend(self, session: Session) -> None:
        change = session.expires_at.change(None, time.monotonic())
        self.origin("PATCH", f"/admin/sessions/{session.id}/extend")
        change.value = self.origin("GET", f"/admin/sessions/{session.id}")["expires_at"]
        self.shared.soon(self, {"type": "session.changed", "session_id": session.id}, change)


class Revoker(Member):
    """Revokes sessions, publishes that, and asks every node until it says so; their persons sign in again."""

    period_seconds: ClassVar[float]

    def on_start(self) -> None:
        """Not all at once: locust's own pacing counts from when users were made, which is in batches."""
        time.sleep(self.shared.rng.uniform(0.0, self.period_seconds))
        self._due_at = time.monotonic()

    def wait_time(self) -> float:
        """Until a period after the last one was due; what took longer is made up for."""
        self._due_at += self.period_seconds
        return max(0.0, self._due_at - time.monotonic())

    @task
    def revoke(self) -> None:
        """One session's end."""
        run = self.shared
        session = run.truth.take()
        if session is None:
            return
        for node in run.region.nodes:  # a session in use: a node that never knew it good takes a second for its 401
            self.whoami(node, session)
        change = session.is_active.change(False, time.monotonic())
        self.origin("DELETE", f"/admin/sessions/{session.id}")
        revoked_at = time.monotonic()
        run.soon(self, {"type": "session.revoked", "session_id": session.id}, change)
        deadline = revoked_at + run.limits.deny_seconds
        is_denied = all(run.greenlets.map(lambda node: self._is_denied(node, session, deadline), run.region.nodes))
        run.results.denials.append(Denial(revoked_at, time.monotonic() - revoked_at if is_denied else None))
        self.sign_in(session.person)
        run.truth.give_back(session, is_revoked=True)

    def _is_denied(self, node: Service, session: Session, deadline: float) -> bool:
        """Ask until the node denies the session or is gone, or the deadline has passed."""
        pause = _FIRST_DENY_PAUSE_SECONDS
        while self.whoami(node, session) not in (0, 401):
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_DENY_PAUSE_SECONDS)
        return True


def users_of(run: Run, users: int, revocations_per_second: float) -> list[type[Member]]:
    """The classes of a run, each told how many there are: revokers so many that each may wait 4 s for the nodes."""
    Member.shared = run
    Member.host = run.region.nodes[0].public_url  # locust wants one; all that is asked for is a whole URL
    Revoker.fixed_count = max(1, min(round(revocations_per_second * 4), users // 2))
    Revoker.period_seconds = Revoker.fixed_count / revocations_per_second
    Changer.fixed_count = max(1, users // 20)
    Asker.fixed_count = max(1, users - Revoker.fixed_count - Changer.fixed_count)
    return [Asker, Changer, Revoker]


def _admin_headers() -> dict[str, str]:
    token = os.environ.get("CACHE_NODE_ADMIN_TOKEN", "")
    return {"Authorization": f"Bearer {token}"} if token else {}
