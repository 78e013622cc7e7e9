"""What a benchmark makes of its figures; and whole runs of those that need nothing but Python."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as bench
from benchmarks import beside_kratos, feed, invalidate, memory, miss, report
from benchmarks.asking import Asker
from benchmarks.beside_kratos import Beside
from benchmarks.hit import PROMISES, Round, Rounds, judge, rows
from benchmarks.latency import Points, is_late, plot
from benchmarks.latency import rows as latency_rows
from benchmarks.load import Load
from benchmarks.servers import node, origin_count, pinned_valkey, python_app
from benchmarks.sessions import token_of
from cache_node.errors import CacheNodeError

pytestmark = pytest.mark.process


def rounds(**cpu_us: float) -> Rounds:
    load = Load(requests=100, seconds=1.0, p50=0.001, p99=0.002, p999=0.003, max=0.004)
    return {name: [Round(each * busy, load) for busy in (1.0, 3.0, 1.1)] for name, each in cpu_us.items()}


def test_a_promise_is_judged_round_by_round() -> None:
    """A round in which all were three times slower changes no ratio."""
    kept = {case: rounds(node=1.0, floor=1.0, nginx=2.0) for case in ("one", "trace", "thousand")}
    assert [holds for _, holds in judge(kept)] == [True] * len(PROMISES)
    dear = {case: rounds(node=1.7, floor=1.0, nginx=2.0) for case in ("one", "trace", "thousand")}
    assert [text for text, holds in judge(dear) if not holds] == [
        "one: 1.700 × floor, at most 1.6",
        "one: 0.850 × nginx, at most 0.65",
        "trace: 0.850 × nginx, at most 0.8",
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge({"one": rounds(node=1.0), "cookie": rounds(node=9.0, floor=1.0, nginx=1.0)}) == []


def test_the_table_of_hits_has_medians_and_where_the_rounds_lay() -> None:
    node = rows(rounds(node=2.0, floor=1.0))[1]
    assert node == ["node", "2.2 (2-6)", "2 (2-2)", "-", "100", "1", "2", "3"]


def test_a_table_is_markdown() -> None:
    assert report.table("title", [["a", "bcd"], ["ef", 1]]).splitlines() == [
        "",
        "title",
        "",
        "| a  | bcd |",
        "|----|-----|",
        "| ef | 1   |",
    ]


def test_a_server_is_late_when_its_last_answers_are() -> None:
    assert is_late([0.001] * 90 + [0.3] * 10)
    assert is_late([0.001] * 90 + [float("inf")] * 10)
    assert not is_late([0.3] * 90 + [0.001] * 10), "it was held up once, and followed"


POINTS: dict[str, Points] = {
    "node": {1000: {"p50": [0.001, 0.002], "p99": [0.002, 0.003]}, 2000: {"p50": [0.1], "p99": [float("inf")]}},
    "redis": {1000: {"p50": [0.3], "p99": [0.4]}},
}


def test_who_cannot_follow_has_no_more_figures() -> None:
    made = latency_rows(POINTS, {"redis": 1000})
    assert made[1] == ["1000", "1.5 (1-2)", "2.5 (2-3)", "late", ""]
    assert made[2] == ["2000", "100", "inf", "", ""]


def test_the_plot_is_a_file_of_its_own_and_has_a_line_for_each() -> None:
    svg = ElementTree.fromstring(plot(POINTS))  # noqa: S314  # ours
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg.findall("{*}path[@class='line']")) == 4
    assert "2 k/s" in [text.text for text in svg.findall("{*}text")]


def test_an_answer_that_never_came_is_null_in_the_results(tmp_path: Path) -> None:
    """JSON has no infinity, and strict readers refuse the whole file."""
    report.write(tmp_path, "latency", {"seconds": POINTS, "waits": (0.5, float("inf"))})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((tmp_path / "latency.json").read_text(), parse_constant=refuse)["results"]
    assert found["seconds"]["node"]["2000"] == {"p50": [0.1], "p99": [None]}
    assert found["waits"] == [0.5, None]


def test_the_machine_is_described_and_not_named() -> None:
    facts = report.machine()
    assert {"cores", "cpu", "kernel", "python", "commit", "versions"} <= facts.keys()
    assert not {"host", "node", "path", "user"} & facts.keys()
    assert str(Path.cwd()) not in json.dumps(facts)


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["hits"]) == 2
    assert "hit latency miss" in capsys.readouterr().err


def test_options_come_after_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--rounds", "1"]) == 2
    assert "a name must come before --rounds, one of: hit latency miss" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_the_usage_says_what_each_measures(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([option]) == 0
    said = capsys.readouterr().out
    assert "  hit           what a hit costs, beside what else could answer it.\n" in said
    measures = [line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  ")]
    assert [name for name, _ in measures] == list(bench.NAMES)


@pytest.mark.parametrize(("load", "of_time", "is_said"), [(1.0, True, False), (1.01, True, True), (9.0, False, False)])
def test_verdicts_of_a_busy_machine_are_said_to_be_so(
    load: float, of_time: bool, is_said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before they are read; hits in a trace are the same on any."""
    monkeypatch.setattr(report, "machine", lambda: {"load_average": load})
    assert report.judged([("fast", False)], of_time=of_time) == 1
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1] == "FAIL fast"
    assert ["busy" in line for line in lines[:-1]] == [True] * is_said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("hit --rounds 0", "--rounds: must be a whole number, at least 1, not '0'"),
        ("hit --rounds two", "--rounds: must be a whole number, at least 1, not 'two'"),
        ("miss --seconds 0", "--seconds: must be a number above 0, not '0'"),
        ("miss --seconds nan", "--seconds: must be a number above 0, not 'nan'"),
        ("latency --rates 500 0", "--rates: must be a whole number, at least 1, not '0'"),
        ("invalidate --rates 0", "--rates: must be a whole number"),
        ("invalidate --nodes 0", "--nodes: must be a whole number"),
        ("feed --nodes 0", "--nodes: must be a whole number"),
        ("feed --rate 0", "--rate: must be a whole number"),
        ("feed --events 10 --cases apply", "--events: must be a multiple of 1000, at least 1000, not '10'"),
        ("feed --events 1500", "--events: must be a multiple of 1000, at least 1000, not '1500'"),
        ("feed --results /proc/nope", "--results: is no folder to write to: No such file or directory, '/proc/nope'"),
        ("evict --reads 0", "--reads: must be a whole number"),
        ("memory --entries 0", "--entries: must be a whole number"),
        ("memory --fill 0", "--fill: must be a whole number"),
        ("slow_clients --requests 3", "--requests: must be a whole number, at least 4, not '3'"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started, with words that say which would."""
    with pytest.raises(SystemExit) as ended:
        bench.main(arguments.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_all_run_though_some_fail_or_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in its turn, with its defaults; the worst of their statuses is that of all."""
    asked: list[tuple[str, Sequence[str]]] = []

    def module(name: str) -> SimpleNamespace:
        async def give_up() -> int:
            raise CacheNodeError("no machine for it")

        def main(arguments: Sequence[str]) -> int:
            asked.append((name, arguments))
            return report.run(give_up()) if name.endswith("miss") else int(name.endswith("hit"))

        return SimpleNamespace(main=main)

    monkeypatch.setattr(bench, "import_module", module)
    assert bench.main([]) == 2
    assert asked == [(f"benchmarks.{name}", ()) for name in bench.NAMES]
    assert bench.main(["hit", "--rounds", "1"]) == 1
    assert asked[-1] == ("benchmarks.hit", ["--rounds", "1"])


async def test_invalidation_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seconds", "0.2", "--rounds", "1", "--nodes", "2", "--rates", "50"]
    parsed = invalidate.parser().parse_args([*options, "--results", str(tmp_path)])
    assert await invalidate.bench(parsed) == 0
    assert "the last old answer of 2 nodes" in capsys.readouterr().out
    found = json.loads((tmp_path / "invalidate.json").read_text())["results"]["rates"]["50"]
    assert found["watched"]
    for one in found["watched"]:
        assert 0 < one["publish"] < 10
        assert 0 <= one["last_old"] <= one["denied"] < 10
    assert found["overslept"]


async def test_the_feed_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each case looks at what it measured; how fast that was on this machine is no matter here."""
    options = ["--seconds", "0.2", "--rounds", "1", "--nodes", "1", "--rate", "50", "--events", "2000"]
    assert await feed.bench(feed.parser().parse_args([*options, "--results", str(tmp_path)])) in (0, 1)
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "feed.json").read_text())["results"]["figures"]
    # What is left is seen from outside, in steps of 10 ms: of a fifth of a second that may be nothing.
    own = [figure for figure in figures if figure["what"].startswith(("apply", "admit", "a publish", "an identity"))]
    assert len(own) > 3
    assert all(value > 0 for figure in own for value in figure["values"]), own
    assert {figure["what"].partition(",")[0] for figure in figures} >= {"apply", "replay", "a confirm", "a publish"}
    assert printed.count("PASS") + printed.count("FAIL") == sum(figure["at_most"] is not None for figure in figures)


def test_a_figure_is_judged_by_its_median() -> None:
    assert feed.Figure("it", "µs", [1.0, 9.0, 2.0], at_most=2.0).holds
    assert not feed.Figure("it", "µs", [1.0, 9.0, 3.0], at_most=2.0).holds
    assert feed.Figure("it", "µs", [9.0]).holds, "nothing is promised"


@pytest.mark.parametrize(
    ("slow_of_100", "verdicts"), [(0, [True, True]), (2, [True, False]), (50, [True, False]), (51, [False, False])]
)
def test_a_revocation_is_judged_by_its_last_old_answers(slow_of_100: int, verdicts: list[bool]) -> None:
    """However long the publish calls took, and the questions after."""
    watched = [invalidate.Watched(1.0, 0.016 if number < slow_of_100 else 0.005, 1.0) for number in range(100)]
    found = invalidate.Found(watched, [0.001], [100.0])
    assert [holds for _, holds in invalidate.judge({1: found, 100: found}, 8)] == verdicts
    assert invalidate.judge({1: found, 1000: found}, 8) == []


def cost(node_us: float, valkey_us: float) -> miss.Cost:
    return miss.Cost(node_us, valkey_us, Load(requests=100, seconds=1.0, p50=0.001, p99=0.002, p999=0.003, max=0.004))


def costs(node_us: float, valkey_us: float) -> dict[str, list[miss.Compared]]:
    """Of redis hits, and of one that is beyond all, beside memory hits of 5 µs."""
    memory = cost(5.0, 0.0)
    return {"redis": [miss.Compared(cost(*one), memory) for one in ((node_us, valkey_us), (1.0, 0.0), (1000.0, 0.0))]}


@pytest.mark.parametrize(
    ("node_us", "valkey_us", "through_ms", "asked", "broken"),
    [
        (30.0, 10.0, 4.8, 1, []),
        (30.0, 10.1, 4.8, 1, ["redis hit"]),
        (30.0, 10.0, 4.81, 1, ["cold read"]),
        (30.0, 10.0, 4.8, 2, ["1000 cold readers"]),
    ],
)
def test_a_miss_is_judged_with_all_that_it_costs(
    node_us: float, valkey_us: float, through_ms: float, asked: int, broken: list[str]
) -> None:
    beside = [Beside([0.001, through_ms / 1000, 0.1], [0.001, 0.004, 0.1], False)] * 3
    beside += [Beside([0.009], [0.004], True)] * 3  # which is no promise
    verdicts = miss.judge(costs(node_us, valkey_us), beside, [1, asked, 1])
    assert len(verdicts) == 3
    assert [text.partition(":")[0].partition(" at ")[0] for text, holds in verdicts if not holds] == broken


def test_of_a_miss_that_is_judged_which_was_measured() -> None:
    beside = [Beside([0.001, 0.004], [0.001, 0.004], False)]
    cases = [
        miss.judge(costs(30.0, 1.0), [], []),
        miss.judge({}, beside, []),
        miss.judge({}, [], [1]),
        miss.judge({}, [], []),
    ]
    assert [[text.split()[0] for text, _ in verdicts] for verdicts in cases] == [["redis"], ["cold"], ["1000"], []]


async def test_the_crowd_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a Kratos, that is."""
    options = miss.parser().parse_args(["--cases", "crowd", "--rounds", "1", "--results", str(tmp_path)])
    assert await miss.bench(options) == 0
    assert "PASS 1000 cold readers at 4 nodes: 1 requests" in capsys.readouterr().out
    found = json.loads((tmp_path / "miss.json").read_text())["results"]
    assert (found["costs"], found["beside_kratos"], len(found["crowds"])) == ({}, [], 1)


async def test_without_a_kratos_the_rest_is_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find() -> Path:
        raise CacheNodeError("no Postgres")

    monkeypatch.setattr(beside_kratos, "find_installation", find)
    assert await miss.measure_beside_kratos(argparse.Namespace(rounds=1)) == []
    assert capsys.readouterr().out == "not measured beside a real Kratos: no Postgres\n"
    verdicts = miss.judge(costs(30.0, 1.0), [], [1])
    assert [holds for _, holds in verdicts] == [True, True]


async def test_a_filled_tier_costs_more_than_its_bodies() -> None:
    assert 100 < await memory.filled_elsewhere(5000) < 350


def waits(latest_hit: float, latest_answer: float, usual: float = 0.001) -> memory.Waits:
    made = memory.Waits()
    made.add(1000, [usual] * 999 + [latest_hit], [0.001] * 999 + [latest_answer], [0.001])
    made.add(1000, [usual] * 1000, [0.001] * 999 + [5.0], [0.001])
    return made


def test_many_entries_are_judged_by_what_they_take_and_make_wait() -> None:
    """The latest of any turn counts, and the machine's own lateness in that turn does not."""
    few = [waits(0.05, 0.05)] * 2
    kept = memory.judge([350.0, 350.0], few, [waits(0.0299, 0.02, 0.002), waits(0.109, 0.1)], 5000)
    assert [holds for _, holds in kept] == [True, True, True]
    dear = memory.judge([351.0, 351.0], few, [waits(0.02, 0.02), waits(0.111, 0.1)], 5000)
    assert [holds for _, holds in dear] == [False, False, True]
    slow = memory.judge([100.0, 100.0], few, [waits(0.02, 0.02, 0.0021)] * 2, 5000)
    assert [holds for _, holds in slow] == [True, True, False]


async def test_what_is_written_into_valkey_is_found_there_by_a_node() -> None:
    """Or the benchmark would insert nothing."""
    async with python_app("origin") as origin:
        with pinned_valkey() as valkey:
            await memory.write_sealed(valkey, 3)
            async with node(origin, valkey.url) as server:
                with contextlib.closing(Asker(server.url)) as asker:
                    heads = [await asker.ask(token_of(number)) for number in (1, 3, 1)]
        assert origin_count(origin) == 0
    assert [head.rpartition(b"detail=")[2].partition(b"\r\n")[0] for head in heads] == [b"redis", b"redis", b"memory"]


async def test_more_entries_than_there_is_memory_for_are_refused() -> None:
    with pytest.raises(CacheNodeError, match=r"need 5632\.0 GB of memory"):
        await memory.measure_waits(memory.parser().parse_args(["--entries", str(10**9)]))
