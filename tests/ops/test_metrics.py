from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache_node.demo.origin import DemoOrigin
from cache_node.ops.metrics import BUCKETS_SECONDS, MISS_REASONS, Histogram, Metrics
from tests.ops.conftest import MakeNode
from tests.ops.ports import FLUSH, ask, eventually, following, metrics_of, sample, status_of

# Counting -------------------------------------------------------------------------------------------------------------


def test_a_duration_is_counted_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram()
    for seconds in (0.0, BUCKETS_SECONDS[0], 0.000051, 5.0, 5.1, 1000.0):
        histogram.observe(seconds)
    assert histogram.counts[:2] == [2, 1]
    assert histogram.counts[-2:] == [1, 2]
    assert histogram.count == 6
    assert histogram.sum_seconds == pytest.approx(1010.100101)


def test_labels_are_bounded_whatever_comes() -> None:
    metrics = Metrics()
    for n in range(2000):
        metrics.observe_request(f"tier-{n}", n, f"reason-{n}", 0.1)
        metrics.observe_request("origin", n - 1000, f"reason-{n}", 0.1)
        metrics.observe_origin(f"{n}", 0.1)
        metrics.observe_origin(f"cause-{n}", 0.1)
    assert len(metrics.requests) <= 2 * 20
    assert len(metrics.origin) <= 20
    assert set(metrics.misses) == {"other"}
    assert metrics.requests_of("other") == 2000


def test_only_what_no_tier_answered_is_a_miss() -> None:
    metrics = Metrics()
    for tier in ("memory", "redis", "negative"):
        metrics.observe_request(tier, 200, tier, 0.1)
    assert not metrics.misses
    for tier, detail in [("origin", "cold"), ("bypass", "mixed"), ("stale", "stale-if-error"), ("origin", "timeout")]:
        metrics.observe_request(tier, 200, detail, 0.1)
        assert detail in MISS_REASONS
    assert metrics.misses == {"cold": 1, "mixed": 1, "stale-if-error": 1, "timeout": 1}


def test_every_word_that_the_read_path_uses_is_known() -> None:
    """The words of reader.py, whoami.py and origin.py, which a new one must be added to."""
    words = "cold anonymous expired ttl fenced no-lease no-cache max-age min-position origin-error stale-if-error"
    words += " mixed method body origin-header tokenize refused timeout unreachable garbage unready busy open"
    assert set(words.split()) <= MISS_REASONS


# What Prometheus reads ------------------------------------------------------------------------------------------------

NAMES = {
    *("hit_seconds", "loop_lag_seconds", "origin_open"),
    *("requests", "request_seconds", "misses", "rejected_fills", "missed_events", "shared_again"),
    *(
        "fresh",
        "state",
        "lease_seconds",
        "feed_lag_seconds",
        "freshness_seconds",
        "feed_number",
        "feed_events",
        "feed_resets",
    ),
    *("feed_confirms", "feed_failures", "feed_early_entries"),
    *("fence_ids", "fence_ids_limit", "fence_floor_raises", "fence_resets"),
    *("memory_bytes", "memory_limit_bytes", "memory_entries", "memory_evictions"),
    *(
        "redis_reads",
        "redis_round_trips",
        "redis_failures",
        "redis_unreadable",
        "redis_writes",
        "redis_dropped_writes",
        "redis_lock_waits",
    ),
    *("origin_requests", "origin_seconds", "origin_unbelieved"),
    *("publishes", "published_events", "receipt_seconds", "info", "draining"),
    *("process_resident_memory_bytes", "process_cpu_seconds", "process_open_fds"),
}


async def test_format_and_names(make_node: MakeNode) -> None:
    node = await make_node(node_id='n"1\\', region="here")
    await following(node)
    reply = await ask("GET", f"{node.admin_url}/metrics")
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = list(text_string_to_metric_families(reply.body.decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(name.startswith("cache_node_") for name in names)
    assert {f"cache_node_{name}" for name in NAMES} <= set(names)
    assert all(family.documentation for family in families)
    (info,) = [family for family in families if family.name == "cache_node_info"]
    assert info.samples[0].labels["node"] == 'n"1\\'


async def test_a_reading_of_one_session_in_figures(make_node: MakeNode, origin: DemoOrigin) -> None:
    node, neighbour = await make_node(node_id="n1"), await make_node(node_id="n2")
    await following(node)
    await following(neighbour)
    await origin.create_identity("a@example.test", "correct horse battery")
    token, _ = await origin.login_token("a@example.test", "correct horse battery")
    headers = {"X-Session-Token": token}
    for _ in range(4):
        assert (await ask("GET", f"{node.public_url}/sessions/whoami", headers=headers)).status == 200
    figures = await metrics_of(node)
    assert figures[sample("requests_total", tier="origin")] == 1
    assert figures[sample("requests_total", tier="memory")] == 3
    assert figures[sample("requests_total", tier="redis")] == 0
    assert figures[sample("misses_total", reason="cold")] == 1
    assert figures[sample("request_seconds_count", tier="memory", outcome="200")] == 3
    assert figures[sample("request_seconds_bucket", tier="memory", outcome="200", le="+Inf")] == 3
    assert 0 < figures[sample("request_seconds_sum", tier="memory", outcome="200")] < 1
    assert figures[sample("origin_requests_total", outcome="200")] == 1
    assert figures[sample("origin_seconds_count", outcome="200")] == 1
    assert figures[sample("memory_entries")] == 1
    assert 0 < figures[sample("memory_bytes")] <= figures[sample("memory_limit_bytes")] == 268435456
    assert figures[sample("process_resident_memory_bytes")] > 1e7

    async def ask_neighbour() -> float:
        assert (await ask("GET", f"{neighbour.public_url}/sessions/whoami", headers=headers)).status == 200
        return (await metrics_of(neighbour))[sample("requests_total", tier="redis")]

    # What one node counts is not the other's, although both live in this process.
    assert (await metrics_of(neighbour))[sample("requests_total", tier="memory")] == 0
    assert await ask_neighbour() == 1
    assert (await metrics_of(node))[sample("requests_total", tier="redis")] == 0


async def test_a_node_that_follows(make_node: MakeNode) -> None:
    node = await make_node()
    await following(node)
    reply = await ask("POST", f"{node.admin_url}/invalidations?wait=true", [FLUSH, {"type": "no"}])
    assert reply.status == 400
    reply = await ask("POST", f"{node.admin_url}/invalidations?wait=true", [FLUSH])
    assert reply.json["receipt"]["dead_everywhere"] is True
    await eventually(lambda: status_of(node), lambda seen: seen["position"] == reply.json["position"])
    figures = await metrics_of(node)
    assert figures[sample("fresh")] == 1
    assert figures[sample("state", state="FOLLOWING")] == 1
    assert figures[sample("state", state="LOST")] == 0
    assert 0 < figures[sample("lease_seconds")] <= 0.5
    assert 0 <= figures[sample("freshness_seconds")] < 0.5
    assert figures[sample("feed_lag_seconds_count")] == 1
    assert figures[sample("feed_number")] == 1
    assert figures[sample("feed_events_total")] == 1
    assert figures[sample("fence_floor_raises_total")] == 1
    assert figures[sample("publishes_total", outcome="published")] == 1
    assert figures[sample("published_events_total", type="flush")] == 1
    assert figures[sample("receipt_seconds_count", outcome="dead_everywhere")] == 1


async def test_what_a_node_without_feed_does_not_know_has_no_sample(make_node: MakeNode, unreachable_url: str) -> None:
    node = await make_node(redis_url=unreachable_url)
    figures = await metrics_of(node)
    for unknown in ("freshness_seconds", "lease_seconds", "feed_number"):
        assert sample(unknown) not in figures
    assert figures[sample("fresh")] == 0
    assert figures[sample("state", state="BOOTSTRAPPING")] == 1
    reply = await ask("POST", f"{node.admin_url}/flush")
    assert reply.status == 503
    figures = await metrics_of(node)
    assert figures[sample("feed_failures_total")] > 0
    assert figures[sample("publishes_total", outcome="unavailable")] == 1
    assert figures[sample("publishes_total", outcome="published")] == 0
