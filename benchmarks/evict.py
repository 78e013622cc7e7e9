"""`python -m benchmarks.evict`: how many reads the memory tier answers, beside LRU and the best that is possible.

Traces of session reads by a seeded generator:

- `zipf`: few sessions are asked for often.
- `scan`: the same with a walk over sessions that are asked for once each (a crawler, made-up tokens).
- `sweep`: the same, and now and then a job that asks for the same sessions one after the other.
- `drift`: favourites that change, as people come and go.
- `scan in drift`: both.
- `login`: sessions begin, are asked for often at first and less and less until they end.
- `visits`: a few requests in a short time, then long nothing; many visits at once.

Belady's rule evicts what is asked for latest again, which takes knowing the future.  All entries have one size, so that
capacities are counts.  Exact and repeatable: no clock, no server.  Exit status 1: LRU is better somewhere, by more than
what is observed before it is followed, or as good where there are scans.  Promised of 200,000 --reads, the default: of
20,000 it fails here and there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import heapq
import itertools
import random
import statistics
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from benchmarks import report
from cache_node.sessions.hedged_lru import GHOST_BYTES
from cache_node.sessions.memory_tier import GHOSTS_SHARE, REFUSAL_SHARE, SUBJECT_SHARE, MemoryTier
from tests.command_lines import at_least_one, exit_status
from tests.contract.test_tiers import entry

SESSIONS = 20_000
SKEW = 0.9
"""Of the Zipf distribution."""
SCAN_SHARE = 0.2
"""Of the reads of `scan` that belong to the walk."""
DRIFTS = 20
"""So many times `drift` has other favourites."""
SWEEP_EVERY, SWEEP_READS = 20_000, 5_000
"""Reads from one sweep to the next, and how many of them are its own."""
VISITS_AT_ONCE = 1_000
BEGINNING_SHARE = 0.1
"""Of the reads of `login` that are a session's first."""
TOLERANCE = 0.05
"""Points that LRU may be better: it has to be seen to be better before it is followed."""
CAPACITY_SHARES = (0.02, 0.1, 0.3)
"""Entries that fit, by sessions that there are."""

BODY = bytes(1500)

Trace = Sequence[int]


def zipf(dice: random.Random, reads: int) -> list[int]:
    """Session numbers, 0 the most frequent."""
    weights = list(itertools.accumulate(1 / rank**SKEW for rank in range(1, SESSIONS + 1)))
    return dice.choices(range(SESSIONS), cum_weights=weights, k=reads)


def scan(dice: random.Random, reads: int) -> list[int]:
    """`zipf`, and among it a walk over sessions of its own."""
    return _with_a_walk(dice, zipf(dice, reads))


def _with_a_walk(dice: random.Random, trace: Trace) -> list[int]:
    walk = itertools.count(SESSIONS)
    return [next(walk) if dice.random() < SCAN_SHARE else number for number in trace]


def sweep(dice: random.Random, reads: int) -> list[int]:
    """`zipf`, and from time to time the same sessions in the same order."""
    return [
        SESSIONS + at % SWEEP_READS if at % SWEEP_EVERY >= SWEEP_EVERY - SWEEP_READS else number
        for at, number in enumerate(zipf(dice, reads))
    ]


def drift(dice: random.Random, reads: int) -> list[int]:
    """`zipf`, whose numbers belong to other sessions as time goes on."""
    shift = SESSIONS // DRIFTS
    return [(number + at * DRIFTS // reads * shift) % SESSIONS for at, number in enumerate(zipf(dice, reads))]


def scan_in_drift(dice: random.Random, reads: int) -> list[int]:
    """`drift`, and among it a walk over sessions of its own."""
    return _with_a_walk(dice, drift(dice, reads))


def login(dice: random.Random, reads: int) -> list[int]:
    """The youngest sessions are asked for most; as many are alive as there are sessions elsewhere."""
    begun = SESSIONS
    trace: list[int] = []
    for _ in range(reads):
        if dice.random() < BEGINNING_SHARE:
            trace.append(begun)
            begun += 1
        else:
            trace.append(begun - 1 - int(SESSIONS ** dice.random()) % SESSIONS)
    return trace


def visits(dice: random.Random, reads: int) -> list[int]:
    """Which sessions come is by `zipf`; each visit is two to eight reads, among those of all the others."""
    comers = iter(zipf(dice, reads + VISITS_AT_ONCE))
    there = [(next(comers), dice.randint(2, 8)) for _ in range(VISITS_AT_ONCE)]
    trace: list[int] = []
    while len(trace) < reads:
        at = dice.randrange(VISITS_AT_ONCE)
        number, left = there[at]
        trace.append(number)
        there[at] = (number, left - 1) if left > 1 else (next(comers), dice.randint(2, 8))
    return trace


TRACES: dict[str, Callable[[random.Random, int], list[int]]] = {
    "zipf": zipf,
    "scan": scan,
    "sweep": sweep,
    "drift": drift,
    "scan in drift": scan_in_drift,
    "login": login,
    "visits": visits,
}
WITH_SCANS = frozenset(("scan", "sweep", "scan in drift"))


def hits_of_memory_tier(trace: Trace, capacity: int) -> int:
    """By the tier itself, with room for so many entries, or the one more that rounding may leave room for."""
    tier = MemoryTier(_bytes_for(capacity))
    hits = 0
    for number in trace:
        name = _name(number)
        if tier.get(name) is None:
            tier.put(name, entry(BODY))
        else:
            hits += 1
    tier.clear()
    return hits


@functools.cache
def _name(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8)).digest()


def _bytes_for(entries: int) -> int:
    """What a tier must be given so that so many entries fit into the share that is theirs.

    An entry's size may depend on what else is kept, so it is taken between the hundredth and the thousandth.
    """
    tier = MemoryTier(1 << 30)
    sizes = []
    for number in range(1000):
        tier.put(_name(number), entry(BODY))
        sizes.append(tier.size_bytes)
    tier.clear()
    each = (sizes[999] - sizes[99]) / 900
    once = sizes[0] - each
    return int((once + (entries + 0.5) * each) / (1 - REFUSAL_SHARE - SUBJECT_SHARE - GHOSTS_SHARE)) + GHOST_BYTES


def hits_of_lru(trace: Trace, capacity: int) -> int:
    """Evicting what was asked for longest ago."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number in trace:
        if number in kept:
            hits += 1
            kept.move_to_end(number)
        else:
            kept[number] = None
            if len(kept) > capacity:
                kept.popitem(last=False)
    return hits


def hits_of_belady(trace: Trace, capacity: int) -> int:
    """Evicting what is asked for latest again, or never."""
    never = len(trace)
    again = [never] * len(trace)
    seen: dict[int, int] = {}
    for at in reversed(range(len(trace))):
        again[at] = seen.get(trace[at], never)
        seen[trace[at]] = at
    kept: dict[int, int] = {}  # session -> when it is asked for again
    latest: list[tuple[int, int]] = []  # the same as a heap, with outdated items among them
    hits = 0
    for at, number in enumerate(trace):
        hits += number in kept
        kept[number] = again[at]
        heapq.heappush(latest, (-again[at], number))
        while len(kept) > capacity:
            next_use, victim = heapq.heappop(latest)
            if kept.get(victim) == -next_use:
                del kept[victim]
    return hits


RULES = {"memory tier": hits_of_memory_tier, "LRU": hits_of_lru, "best possible": hits_of_belady}


def measure(seed: int, rounds: int, reads: int) -> Iterator[tuple[str, float, dict[str, list[float]]]]:
    """Trace, capacity by sessions, and by each rule the hit ratios of so many traces."""
    for name, generate in TRACES.items():
        traces = [generate(random.Random(seed + number), reads) for number in range(rounds)]  # noqa: S311  # repeatable
        for share in CAPACITY_SHARES:
            capacity = int(SESSIONS * share)
            yield (
                name,
                share,
                {rule: [hits(trace, capacity) / reads for trace in traces] for rule, hits in RULES.items()},
            )
            report.progress(f"{name}, room for {share:.0%} of the sessions")


def judge(trace: str, room: float, ratios: dict[str, list[float]]) -> tuple[str, bool]:
    """What is promised of the trace with that room, and whether it holds."""
    ahead = 100 * statistics.median(tier - lru for tier, lru in zip(ratios["memory tier"], ratios["LRU"], strict=True))
    if trace in WITH_SCANS:
        promise, holds = "above LRU, in points", ahead > 0
    else:
        promise, holds = f"at or above LRU, to {TOLERANCE:g} points", ahead >= -TOLERANCE
    return f"{trace}, room for {room:.0%}: {promise}: {ahead:+.3f}", holds


def bench(options: argparse.Namespace) -> int:
    """Measure, print, write, and judge; returns the exit status."""
    found = list(measure(options.seed, options.rounds, options.reads))
    made = [["trace", "room for", *RULES]]
    for name, share, ratios in found:
        made.append(
            [name, f"{share:.0%}", *(report.spread([100 * ratio for ratio in each]) for each in ratios.values())]
        )
    print(report.table(f"reads that are hits, in %, of {options.reads} on {SESSIONS} sessions", made))
    verdicts = [judge(*each) for each in found]
    traces = [{"trace": name, "room": share, "hit_ratios": ratios} for name, share, ratios in found]
    report.write(options.results, "evict", {"traces": traces, "promises": report.shown(verdicts)})
    return report.judged(verdicts, of_time=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = report.parser("evict", __doc__)
    parser.add_argument(
        "--reads", type=at_least_one, default=200_000, help="of a trace (default: 200,000); --seconds has no part"
    )
    parser.add_argument("--seed", type=int, default=1)
    return bench(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(exit_status(main))
