"""`python -m benchmarks.evict`: how many reads the memory tier answers, beside LRU and the best that is possible.

Traces of session reads by a seeded generator: `zipf`, few sessions asked for often; `scan`, the same with a walk over
sessions that are asked for once each (a crawler, a job over all tokens); `drift`, favourites that change, as people
come and go.  Belady's rule evicts what is asked for latest again, which takes knowing the future.  All entries have one
size, so that capacities are counts.  Exact and repeatable: no clock, no server.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from benchmarks import report
from cache_node.sessions.memory_tier import REFUSAL_SHARE, SUBJECT_SHARE, MemoryTier
from tests.contract.test_tiers import entry

SESSIONS = 20_000
SKEW = 0.9
"""Of the Zipf distribution."""
SCAN_SHARE = 0.2
"""Of the reads of `scan` that belong to the walk."""
DRIFTS = 20
"""So many times `drift` has other favourites."""
CAPACITY_SHARES = (0.02, 0.1, 0.3)
"""Entries that fit, by sessions that there are."""

Trace = Sequence[int]


def zipf(dice: random.Random, reads: int) -> list[int]:
    """Session numbers, 0 the most frequent."""
    weights = list(itertools.accumulate(1 / rank**SKEW for rank in range(1, SESSIONS + 1)))
    return dice.choices(range(SESSIONS), cum_weights=weights, k=reads)


def scan(dice: random.Random, reads: int) -> list[int]:
    """`zipf`, and among it a walk over sessions of its own."""
    walk = itertools.count(SESSIONS)
    return [next(walk) if dice.random() < SCAN_SHARE else number for number in zipf(dice, reads)]


def drift(dice: random.Random, reads: int) -> list[int]:
    """`zipf`, whose numbers belong to other sessions as time goes on."""
    shift = SESSIONS // DRIFTS
    return [(number + at * DRIFTS // reads * shift) % SESSIONS for at, number in enumerate(zipf(dice, reads))]


TRACES: dict[str, Callable[[random.Random, int], list[int]]] = {"zipf": zipf, "scan": scan, "drift": drift}


def hits_of_memory_tier(trace: Trace, capacity: int) -> int:
    """By the tier itself, with room for so many entries, or the one more that rounding may leave room for."""
    tier = MemoryTier(_bytes_for(capacity))
    hits = 0
    for number in trace:
        name = number.to_bytes(32, "little")
        if tier.get(name) is None:
            tier.put(name, entry())
        else:
            hits += 1
    tier.clear()
    return hits


def _bytes_for(entries: int) -> int:
    """What a tier must be given so that so many entries fit into the share that is theirs.

    An entry's size may depend on what else is kept, so it is taken between the hundredth and the thousandth.
    """
    tier = MemoryTier(1 << 40)
    sizes = []
    for number in range(1000):
        tier.put(number.to_bytes(32, "little"), entry())
        sizes.append(tier.size_bytes)
    tier.clear()
    each = (sizes[999] - sizes[99]) / 900
    once = sizes[0] - each
    return int((once + (entries + 0.5) * each) / (1 - REFUSAL_SHARE - SUBJECT_SHARE))


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


def bench(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    found = list(measure(options.seed, options.rounds, options.reads))
    made = [["trace", "room for", *RULES]]
    for name, share, ratios in found:
        made.append(
            [name, f"{share:.0%}", *(report.spread([100 * ratio for ratio in each]) for each in ratios.values())]
        )
    print(report.table(f"reads that are hits, in %, of {options.reads} on {SESSIONS} sessions", made))
    shown = [{"trace": name, "room": share, "hit_ratios": ratios} for name, share, ratios in found]
    report.write(options.results, "evict", shown)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = report.parser("evict", __doc__)
    parser.add_argument(
        "--reads", type=int, default=200_000, help="of a trace (default: 200,000); --seconds has no part"
    )
    parser.add_argument("--seed", type=int, default=1)
    return bench(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
