"""Whether a run was good, and the exit status that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.results import Results, percentile

GOOD, BAD, COULD_NOT_RUN = 0, 1, 2

LEAST_SHARE_OF_REVOCATIONS = 0.5
"""A run with fewer than this of the revocations it was asked for has shown nothing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too slow.  Generous: the machine is shared by the users, the nodes and the origin."""

    hit_p99_seconds: float = 0.25
    """99 % of the answers from memory."""
    answer_seconds: float = 6.0
    """Any answer: a node gives up on its origin after 5 s."""
    some_node_seconds: float = 5.0
    """Until some node has answered, for somebody whom a balancer sends from one to the other.  A 401 whose reason a
    node does not know takes a second; by design three for who joins it late, and whose own run then waits for the
    other node, which asks for the same and keeps nothing in Redis [3.05 s, seen once]."""
    deny_seconds: float = 10.0
    """From a revocation at the origin until every node denies the session, the feed's outage included."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` are why a run was not good, a line each; none if it was."""

    exit_status: int
    reasons: tuple[str, ...]


def judge(results: Results, limits: Limits, revocations_per_second: float) -> Verdict:
    """The verdict on a run: wrong or slow answers are bad, too little to judge by is no run."""
    reasons = list(_why_bad(results, limits))
    if reasons:
        return Verdict(BAD, tuple(reasons))
    reasons = list(_why_nothing_was_shown(results, revocations_per_second))
    return Verdict(COULD_NOT_RUN if reasons else GOOD, tuple(reasons))


def _why_bad(results: Results, limits: Limits) -> list[str]:
    slowest = max((answer.seconds for answer in results.answers), default=0.0)
    p99 = percentile(results.seconds_of("memory"), 0.99)
    undenied = sum(denial.seconds is None for denial in results.denials)
    broken = {
        f"{len(results.wrong)} wrong answers": bool(results.wrong),
        f"{results.late} had no answer from any node within {limits.some_node_seconds:g} s": results.late > 0,
        f"{undenied} revoked sessions were not denied within {limits.deny_seconds:g} s": undenied > 0,
        f"p99 of memory hits is {_milliseconds(p99)}": p99 > limits.hit_p99_seconds,
        f"the slowest answer took {_milliseconds(slowest)}": slowest > limits.answer_seconds,
    }
    return [reason for reason, is_so in broken.items() if is_so]


def _why_nothing_was_shown(results: Results, revocations_per_second: float) -> list[str]:
    wanted = revocations_per_second * (results.ended_at - results.begun_at)
    least = math.ceil(wanted * LEAST_SHARE_OF_REVOCATIONS)
    missing = {
        f"only {len(results.denials)} of {wanted:.0f} revocations were made": len(results.denials) < least,
        "no answer came from memory": not results.tiers["memory"],
    }
    return [reason for reason, is_so in missing.items() if is_so]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
