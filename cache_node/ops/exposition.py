"""A node's figures as Prometheus reads them: the text format, version 0.0.4, every name beginning with `cache_node_`.

An unknown figure has no sample, so that no alert takes it for 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_node import __version__
from cache_node.feed.follower import FeedState
from cache_node.ops.components import Components
from cache_node.ops.metrics import BUCKETS_SECONDS, OTHER, TIERS, Histogram

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_BOUNDS = [*(str(bound) for bound in BUCKETS_SECONDS), "+Inf"]

_FEED_COUNTS = {
    "confirms": "Confirms that the feed answered.",
    "failures": "Confirms that failed.",
    "events": "Events applied.",
    "early_entries": "Feed entries added to the fence before their confirm.",
}
_RESETS = ("generation", "ahead", "gap")
_REDIS_COUNTS = {
    "reads": "Keys read from the redis tier.",
    "round_trips": "Commands sent to the redis tier.",
    "failures": "Commands that the redis tier did not answer in time.",
    "unreadable": "Values that no key of ours unsealed.",
    "writes": "Entries written to the redis tier, or taken away, and locks given back.",
    "dropped_writes": "Writes given up.",
    "lock_waits": "Pauses of fills that another node of the region was at.",
}
_READER_COUNTS = {
    "rejected_fills": "Answers of the origin not kept, because fence or lease did not admit them.",
    "missed_events": "Entries that the feed called unchanged and that the origin refused twice.",
    "shared_again": "Waiters that had to join another read.",
}


class Exposition:
    """The figures of one node, with a registry of its own: several nodes live in one process."""

    def __init__(self, components: Components) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_NodeCollector(components))
        ProcessCollector(namespace="cache_node", registry=self._registry)

    def render(self) -> bytes:
        """All figures as they are now, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _NodeCollector(Collector):
    def __init__(self, components: Components) -> None:
        self._components = components

    def collect(self) -> Iterable[Metric]:
        components = self._components
        yield from _node(components)
        yield from _requests(components)
        yield from _feed(components)
        yield from _fence(components)
        yield from _tiers(components)
        yield from _origin(components)
        yield from _publishing(components)


def _node(components: Components) -> Iterator[Metric]:
    settings = components.settings
    info = GaugeMetricFamily("cache_node_info", "Always 1.", labels=("node", "region", "version"))
    info.add_metric((settings.node_id, settings.region, __version__), 1)
    yield info
    yield _gauge("draining", "1 while the node ends.", components.is_draining())


def _requests(components: Components) -> Iterator[Metric]:
    stats = components.stats
    tiers = {tier: stats.requests_of(tier) for tier in sorted(TIERS | {OTHER})}
    yield _counters("requests", "Answers to whoami by the tier they came from.", "tier", tiers)
    yield _counters("misses", "Answers that no tier gave, by why.", "reason", stats.misses)
    yield _histograms("hit_seconds", "Time to answer a plain hit in memory: a random sample.", (), [((), stats.hit)])
    lag = "How late the event loop came to what was due."
    yield _histograms("loop_lag_seconds", lag, (), [((), stats.loop_lag)])
    latency = "Time to answer whoami, but for plain hits in memory."
    yield _histograms("request_seconds", latency, ("tier", "outcome"), stats.requests.items())
    yield from _each("", _READER_COUNTS, components.reader.counts)


def _feed(components: Components) -> Iterator[Metric]:
    follower = components.follower
    yield _gauge("fresh", "1 while answers from the tiers may be given.", follower.is_fresh)
    state = GaugeMetricFamily("cache_node_state", "1 for the state that the node is in.", labels=("state",))
    for known in FeedState:
        state.add_metric((known.value,), float(known is follower.state))
    yield state
    yield _gauge("lease_seconds", "What is left of the lease.", components.lease.seconds_left())
    age = "Age of the newest feed state that was confirmed complete."
    yield _gauge("freshness_seconds", age, follower.seconds_since_confirmed)
    lag = "From the writing of a feed entry to its confirmation here, by the feed server's clock."
    yield _histograms("feed_lag_seconds", lag, (), [((), components.stats.lag)])
    position = components.fence.position
    number = None if position is None else position.number
    yield _gauge("feed_number", "Number of the last event applied, in its generation.", number)
    yield from _each("feed_", _FEED_COUNTS, follower.counts)
    resets = {why: follower.counts[f"resets_{why}"] for why in _RESETS}
    yield _counters("feed_resets", "Times that everything cached became void.", "reason", resets)


def _fence(components: Components) -> Iterator[Metric]:
    fence = components.fence
    yield _gauge("fence_ids", "Ids that the fence remembers.", len(fence))
    yield _gauge("fence_ids_limit", "Ids that it may remember.", components.settings.fence_ids)
    yield _counter("fence_floor_raises", "Times that older entries stopped being admitted.", fence.floor_raises)
    yield _counter("fence_resets", "Times that the fence began anew, the first one included.", fence.resets)


def _tiers(components: Components) -> Iterator[Metric]:
    memory = components.memory
    yield _gauge("memory_bytes", "Bodies, headers and overhead of what the memory tier keeps.", memory.size_bytes)
    yield _gauge("memory_limit_bytes", "The memory tier's bound.", memory.max_bytes)
    yield _gauge("memory_entries", "Sessions in the memory tier.", len(memory))
    yield _counter("memory_evictions", "Entries and refusals that had to make room.", memory.evictions)
    yield from _each("redis_", _REDIS_COUNTS, components.redis_tier.counts)


def _origin(components: Components) -> Iterator[Metric]:
    origin = components.stats.origin
    by_outcome = {outcome: histogram.count for outcome, histogram in origin.items()}
    yield _counters("origin_requests", "Requests to the origin by status or cause of failure.", "outcome", by_outcome)
    yield _histograms("origin_seconds", "Time of a request to the origin.", ("outcome",), _one_label(origin))
    unbelieved = components.origin.counts["unbelieved"]
    yield _gauge("origin_open", "1 while the breaker lets through trials only.", components.origin.is_open)
    yield _counter("origin_unbelieved", "401s of an origin that was not ready.", unbelieved)


def _publishing(components: Components) -> Iterator[Metric]:
    stats = components.stats
    calls = {outcome: stats.publishes[outcome] for outcome in ("published", "unavailable", "interrupted")}
    yield _counters("publishes", "Calls of the admin port that published.", "outcome", calls)
    yield _counters("published_events", "Events published by the admin port.", "type", stats.published_events)
    took = "Time until a receipt was complete, or given up."
    yield _histograms("receipt_seconds", took, ("outcome",), _one_label(stats.receipts))


def _gauge(name: str, help_: str, value: float | None) -> Metric:
    gauge = GaugeMetricFamily(f"cache_node_{name}", help_)
    if value is not None:
        gauge.add_metric((), value)
    return gauge


def _counter(name: str, help_: str, value: int) -> Metric:
    return CounterMetricFamily(f"cache_node_{name}", help_, value=value)


def _counters(name: str, help_: str, label: str, values: Mapping[str, int]) -> Metric:
    counter = CounterMetricFamily(f"cache_node_{name}", help_, labels=(label,))
    for value, count in values.items():
        counter.add_metric((value,), count)
    return counter


def _each(prefix: str, helps: Mapping[str, str], counts: Mapping[str, int]) -> Iterator[Metric]:
    for name, help_ in helps.items():
        yield _counter(f"{prefix}{name}", help_, counts.get(name, 0))


def _one_label(histograms: Mapping[str, Histogram]) -> Iterator[tuple[tuple[str], Histogram]]:
    return (((label,), histogram) for label, histogram in histograms.items())


def _histograms(
    name: str, help_: str, labels: tuple[str, ...], histograms: Iterable[tuple[tuple[str, ...], Histogram]]
) -> Metric:
    family = HistogramMetricFamily(f"cache_node_{name}", help_, labels=labels)
    for values, histogram in histograms:
        cumulated = zip(_BOUNDS, accumulate(histogram.counts), strict=True)
        family.add_metric(values, list(cumulated), histogram.sum_seconds)
    return family
