"""What a run says of itself: lines while it goes on, a summary at its end, an HTML page without outer resources."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from loadtest.charts import STYLE, Chart, Series
from loadtest.results import REFUSAL, UNAVAILABLE, Answer, Results, percentile
from loadtest.verdict import GOOD, Verdict

COLOURS = {
    "memory": "#1a7f37",
    "redis": "#0969da",
    "origin": "#bc4c00",
    REFUSAL: "#bf3989",
    "negative": "#8250df",
    "stale": "#bf8700",
    UNAVAILABLE: "#cf222e",
}
SHOWN_WRONG_ANSWERS = 50

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; }
svg { width: 100%; font-size: 11px; }
.good { color: #1a7f37; } .bad { color: #cf222e; }
td, th { text-align: right; padding: 0 1rem 0 0; } td:first-child, th:first-child { text-align: left; }
"""


def progress(results: Results) -> str:
    """One line on how it stands."""
    lately = [answer.seconds for answer in results.answers[-1000:]]
    tiers = ", ".join(f"{tier} {count:,}" for tier, count in results.tiers.most_common())
    faults = [fault.name for fault in results.faults if fault.ended_at == math.inf]
    return (
        f"{time.monotonic() - results.begun_at:4.0f} s  {len(results.answers):,} answers ({tiers})  "
        f"p99 {percentile(sorted(lately), 0.99) * 1000:.0f} ms  {len(results.denials)} revoked  "
        f"{len(results.wrong)} wrong" + "".join(f"  [{name}]" for name in faults)
    )


def summary(results: Results, verdict: Verdict) -> str:
    """The verdict and what it rests on, a line each."""
    denials = _deny_seconds(results)
    counts = ", ".join(f"{count} {name}" for name, count in sorted(results.counts.items()))
    lines = [
        "good" if verdict.exit_status == GOOD else "\n".join(verdict.reasons),
        f"{len(results.answers):,} answers, {len(results.wrong)} wrong, {results.late} asked in vain",
        f"{len(results.denials)} revocations, denied by every node after {_spread(denials)}",
        *(f"{tier}: {len(taken):,} in {_spread(taken)}" for tier, taken in _by_tier(results).items()),
        counts,
    ]
    return "\n".join(lines)


def render(results: Results, verdict: Verdict, title: str) -> str:
    """The page."""
    chart = Chart(results.begun_at, results.ended_at, results.faults)
    denials = [(denial.at, (denial.seconds or 0.0) * 1000) for denial in results.denials]
    plots = [
        chart.draw("Latency per tier in ms, each second's p50 (dashed) and p99", _latencies(results.answers)),
        chart.draw("Answers a second, per tier", _rates(results.answers)),
        chart.draw(
            "From a revocation at the origin until every node denied the session, in ms",
            [Series("revocations", COLOURS["negative"], denials, "dots")],
        ),
    ]
    how = "good" if verdict.exit_status == GOOD else "bad"
    return "".join(
        [
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{how}: {escape(title)}</title>\n',
            f"<style>{_STYLE}{STYLE}</style>\n",
            f'<h1 class="{how}">{escape("; ".join(verdict.reasons) or "Good: no wrong answer")}</h1>\n',
            f"<p>{escape(title)}</p>\n<pre>{escape(summary(results, verdict))}</pre>\n",
            *plots,
            _table(["fault", "from", "to"], _fault_rows(results)),
            _table(["wrong answer", "at", "node", "session", "status", "Cache-Status"], _wrong_rows(results)),
            "</html>\n",
        ]
    )


def _by_tier(results: Results) -> dict[str, list[float]]:
    return {tier: results.seconds_of(tier) for tier in COLOURS if results.tiers[tier]}


def _seconds(answers: Sequence[Answer]) -> dict[str, dict[int, list[float]]]:
    """How long answers took, by tier and second of the clock."""
    taken: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        taken[answer.tier][int(answer.at)].append(answer.seconds)
    return taken


def _latencies(answers: Sequence[Answer]) -> list[Series]:
    lines = []
    for tier, seconds in _in_order(_seconds(answers)).items():
        for name, share, style in ((f"{tier} p99", 0.99, "line"), (f"{tier} p50", 0.5, "dashed")):
            points = [(at + 0.5, percentile(sorted(taken), share) * 1000) for at, taken in sorted(seconds.items())]
            lines.append(Series(name, COLOURS[tier], points, style))
    return lines


def _rates(answers: Sequence[Answer]) -> list[Series]:
    return [
        Series(tier, COLOURS[tier], [(at + 0.5, len(taken)) for at, taken in sorted(seconds.items())])
        for tier, seconds in _in_order(_seconds(answers)).items()
    ]


def _in_order(by_tier: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, list[float]]]:
    return {tier: by_tier[tier] for tier in COLOURS if tier in by_tier}


def _deny_seconds(results: Results) -> list[float]:
    return sorted(denial.seconds for denial in results.denials if denial.seconds is not None)


def _spread(ascending: Sequence[float]) -> str:
    p50, p99, most = (percentile(ascending, share) * 1000 for share in (0.5, 0.99, 1.0))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {most:.1f} ms"


def _fault_rows(results: Results) -> list[list[str]]:
    times = [(fault, fault.begun_at - results.begun_at, fault.ended_at - results.begun_at) for fault in results.faults]
    return [[fault.name, f"{begun:.1f} s", f"{ended:.1f} s"] for fault, begun, ended in times]


def _wrong_rows(results: Results) -> list[list[str]]:
    return [
        [one.how, f"{one.at - results.begun_at:.2f} s", one.node, one.session_id, str(one.status), one.cache_status]
        for one in results.wrong[:SHOWN_WRONG_ANSWERS]
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>\n"
