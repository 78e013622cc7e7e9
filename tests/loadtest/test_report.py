"""The page: complete in itself, marked where things were broken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from loadtest.charts import Chart, Series
from loadtest.report import progress, render, summary
from loadtest.results import Answer, Denial, Fault, Results, WrongAnswer
from loadtest.truth import Wrong
from loadtest.verdict import Limits, judge


@pytest.fixture
def results() -> Results:
    return Results(
        begun_at=100.0,
        ended_at=160.0,
        answers=[Answer(100.0 + i / 10, 0.001, "memory") for i in range(600)] + [Answer(130.0, 2.5, "unavailable")],
        wrong=[
            WrongAnswer(131.0, Wrong.REVOKED, "http://node-b", "session <1>", 200, "cache-node; hit; detail=memory")
        ],
        denials=[Denial(100.0 + i, 0.004) for i in range(60)] + [Denial(150.0, None)],
        faults=[Fault("Valkey is away", 115.0, 120.0), Fault("node b is killed", 130.0, 134.0)],
    )


@pytest.fixture
def page(results: Results) -> str:
    return render(results, judge(results, Limits(), 1.0), "60 s, 200 users")


def test_it_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"\b(src|href|url)\b|@import|<script|<link", page)


def test_its_plots_are_well_formed_and_mark_every_fault_at_its_time(page: str) -> None:
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314  # ours
    assert len(plots) == 3
    for plot in plots:
        bands = [(float(band.attrib["x"]), float(band.attrib["width"])) for band in plot.findall("rect")]
        (valkey, valkey_width), (node, node_width) = bands
        assert valkey_width / node_width == pytest.approx(5 / 4, rel=0.01)
        assert (node - valkey) / valkey_width == pytest.approx(15 / 5, rel=0.01)
        shown = [text.text for text in plot.findall("text")]
        assert {"Valkey is away", "node b is killed"} <= set(shown)


def test_it_shows_what_was_wrong_and_when(page: str) -> None:
    assert "the answer of a revoked session" in page
    assert "31.00 s" in page
    assert "session &lt;1&gt;" in page, "nothing of a node's answer is markup"


def test_the_summary_has_the_figures(results: Results) -> None:
    text = summary(results, judge(results, Limits(), 1.0))
    assert "601 answers, 1 wrong" in text
    assert "memory: 600 in p50 1.0 ms, p99 1.0 ms" in text


def test_progress_says_what_is_broken_just_now(results: Results) -> None:
    assert "[" not in progress(results)
    with results.fault("Valkey is away"):
        assert progress(results).endswith("[Valkey is away]")
    assert "[" not in progress(results)


def test_a_run_without_answers_has_a_page_too() -> None:
    nothing = Results(begun_at=0.0, ended_at=1.0)
    assert "</html>" in render(nothing, judge(nothing, Limits(), 1.0), "nothing")


def drawn(points: Sequence[tuple[float, float]]) -> list[tuple[str, float, float]]:
    """The steps of a line: M or L, x, y."""
    svg = Chart(0.0, 10.0, []).draw("ms", [Series("memory", "#000", points)])
    line = ElementTree.fromstring(svg).find("path[@class='line']")  # noqa: S314  # ours
    assert line is not None
    return [(how, float(x), float(y)) for how, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", line.attrib["d"])]


def test_a_larger_value_is_drawn_higher_and_a_later_one_to_the_right() -> None:
    (_, x1, y1), (_, x2, y2) = drawn([(1.0, 1.0), (2.0, 100.0)])
    assert x1 < x2
    assert y1 > y2


def test_a_line_has_a_gap_where_nothing_was_measured() -> None:
    assert [how for how, _, _ in drawn([(1.0, 1.0), (2.0, 1.0), (5.0, 1.0), (6.0, 1.0)])] == ["M", "L", "M", "L"]
