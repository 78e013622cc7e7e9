"""The guards' own guard: what counts as caught, what is an error, and what is missing."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from typing import Literal

import pytest

from tests.guards import __main__ as commands
from tests.guards.histories import UNNOTICED, is_of_the_world
from tests.guards.patch import Patch, PatchError, read_patch, renew_patch, why_stale
from tests.guards.races import RACES, Guarantee, read_guarantees, uncovered_guarantees, uncovered_races
from tests.guards.run import Outcome, run_unpatched, run_without
from tests.guards.verdict import judge
from tests.waiting import NotInTimeError

FOLDER = Path(__file__).parent

ANSWER = """def answer(age: int) -> str:
    if age > 2:
        return "origin"
    return "memory"
"""

TESTS = """import pytest
from cache_node.answer import answer

def test_old_is_not_served():
    assert answer(3) == "origin"

def test_young_is_served():
    assert answer(1) == "memory"

def test_breaks():
    assert answer(3).startswith("o")

def test_never_comes():
    from tests.waiting import eventually_blocking
    eventually_blocking(lambda: answer(3) == "origin", timeout_seconds=0.01)

@pytest.fixture
def broken():
    assert answer(3) == "origin"

def test_with_fixture(broken):
    pass

def test_fails_anyhow():
    assert answer(3) == "Origin"
"""

UNGUARDED = """\
@@ -1,4 +1,2 @@
 def answer(age: int) -> str:
-    if age > 2:
-        return "origin"
     return "memory"
"""

RETURNS_NONE = """\
@@ -1,4 +1,4 @@
 def answer(age: int) -> str:
     if age > 2:
-        return "origin"
+        return None
     return "memory"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small one, with its own `cache_node`, and our plugin."""
    for name, text in {
        "cache_node/__init__.py": "",
        "cache_node/answer.py": ANSWER,
        "tests/__init__.py": "",
        "tests/guards/__init__.py": "",
        "tests/test_answer.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
    }.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    shutil.copy(FOLDER / "verdict.py", tmp_path / "checkout/tests/guards")
    shutil.copy(FOLDER.parent / "waiting.py", tmp_path / "checkout/tests")
    return tmp_path / "checkout"


def write_patch(checkout: Path, test: str, diff: str = UNGUARDED) -> Patch:
    path = checkout / "one.patch"
    head = f"Guard: too old\nRace: {RACES[0]}\nTest: tests/test_answer.py::{test}\n"
    path.write_text(f"{head}--- a/cache_node/answer.py\n+++ b/cache_node/answer.py\n{diff}")
    return read_patch(path)


# What becomes of a removed guard --------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_test_that_fails_has_noticed(checkout: Path) -> None:
    """An assertion that does not hold without the guard: caught, in a copy, and the checkout stays as it was."""
    outcome = run_without(write_patch(checkout, "test_old_is_not_served"), checkout)
    assert (outcome.kind, "'memory' == 'origin'" in outcome.words) == ("caught", True)
    assert (checkout / "cache_node/answer.py").read_text() == ANSWER


@pytest.mark.process
def test_a_test_that_passes_has_not(checkout: Path) -> None:
    """The guard may go, as far as this test can tell."""
    outcome = run_without(write_patch(checkout, "test_young_is_served"), checkout)
    assert (outcome.kind, outcome.words) == ("MISSED", "too old")


@pytest.mark.parametrize(
    ("test", "diff", "words"),
    [
        ("test_breaks", RETURNS_NONE, "AttributeError"),
        ("test_with_fixture", UNGUARDED, "setup: AssertionError"),
        ("test_never_comes", UNGUARDED, "NotInTimeError"),
        ("test_that_is_not_there", UNGUARDED, "not found"),
        ("test_old_is_not_served", UNGUARDED.replace("> 2:", ">= 2:"), "must be renewed"),
        ("test_old_is_not_served", RETURNS_NONE.replace("+        return None", "+        return ("), "SyntaxError"),
    ],
    ids=["another exception", "a fixture", "too late", "no such test", "does not apply", "breaks the import"],
)
@pytest.mark.process
def test_everything_else_is_an_error(checkout: Path, test: str, diff: str, words: str) -> None:
    """A test that broke, hung or did not run says nothing about the guard, and neither does an old patch."""
    outcome = run_without(write_patch(checkout, test, diff), checkout)
    assert outcome.kind == "ERROR"
    assert words in outcome.words


@pytest.mark.process
def test_tests_must_pass_with_all_guards(checkout: Path) -> None:
    """One that fails anyhow would notice everything."""
    good = write_patch(checkout, "test_old_is_not_served")
    bad = write_patch(checkout, "test_fails_anyhow")
    assert run_unpatched([good], checkout) == []
    (line,) = run_unpatched([good, bad], checkout)
    assert "tests/test_answer.py::test_fails_anyhow fails: call: AssertionError" in line


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (AssertionError("no"), "assertion"),
        (pytest.fail.Exception("DID NOT RAISE <class 'ValueError'>"), "assertion"),
        (pytest.fail.Exception("Timeout (>120.0s) from pytest-timeout."), "other"),
        (NotInTimeError("no"), "other"),
        (TimeoutError(), "other"),
        (asyncio.CancelledError(), "other"),
        (NameError("x"), "other"),
        (ExceptionGroup("two", [AssertionError(), AssertionError()]), "other"),
    ],
)
def test_what_is_an_assertion(error: BaseException, ending: str) -> None:
    """Only what the test itself holds to be wrong."""
    assert judge(error) == ending


@pytest.mark.process
def test_a_patch_whose_surroundings_changed_is_written_anew(checkout: Path) -> None:
    """With the same three lines; the guard itself must be where it was, or somebody has to look for it."""
    patch = write_patch(checkout, "test_old_is_not_served")
    assert not renew_patch(patch, checkout)
    source = checkout / "cache_node/answer.py"
    moved = "import math\n\n" + ANSWER.replace("age: int", "age: float").replace('"memory"', '"memory"  # fast')
    source.write_text(moved)
    assert run_without(patch, checkout).kind == "ERROR"
    assert renew_patch(patch, checkout)
    source.write_text(moved)
    renewed = read_patch(patch.path)
    assert (renewed.guard, renewed.race, renewed.test) == (patch.guard, patch.race, patch.test)
    assert run_without(renewed, checkout).kind == "caught"
    source.write_text(ANSWER.replace("> 2", ">= 2"))
    with pytest.raises(PatchError, match="not there any more"):
        renew_patch(patch, checkout)


# What a patch must say ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["Guard", "Race", "Test"])
def test_a_patch_says_what_it_is_about(checkout: Path, line: str) -> None:
    """Without one of its three lines it is refused."""
    path = write_patch(checkout, "test_old_is_not_served").path
    path.write_text(re.sub(f"^{line}: .*\n", "", path.read_text(), flags=re.MULTILINE))
    with pytest.raises(PatchError, match=f"no line `{line}: "):
        read_patch(path)


def test_a_patch_changes_the_product_only(checkout: Path) -> None:
    """A test that was changed notices whatever it likes."""
    path = write_patch(checkout, "test_old_is_not_served").path
    path.write_text(path.read_text().replace("cache_node/answer.py", "tests/test_answer.py"))
    with pytest.raises(PatchError, match="below cache_node/"):
        read_patch(path)


def test_every_patch_here_can_be_read() -> None:
    """Names a race of the list, or a guarantee, and changes the product."""
    patches = [read_patch(path) for path in FOLDER.glob("*.patch")]
    assert uncovered_races(patches) == []
    guarantees = read_guarantees((FOLDER.parents[1] / "README.md").read_text())
    assert guarantees
    assert uncovered_guarantees(guarantees, patches) == []


@pytest.mark.process
def test_every_patch_here_applies() -> None:
    """Else what it removes has moved: `python -m tests.guards --renew` writes it anew, or says what is gone."""
    patches = [read_patch(path) for path in sorted(FOLDER.glob("*.patch"))]
    stale = {patch.name: words for patch in patches if (words := why_stale(patch, FOLDER.parents[1]))}
    assert stale == {}


# What random histories must notice ------------------------------------------------------------------------------------


def test_what_histories_cannot_notice_is_theirs_and_said_once() -> None:
    """A declaration for a patch that nobody would play, or a second one, says nothing."""
    names = [name for names in UNNOTICED.values() for name in names]
    played = {patch.path.stem for path in FOLDER.glob("*.patch") if is_of_the_world(patch := read_patch(path))}
    assert len(names) == len(set(names))
    assert set(names) <= played


@pytest.mark.parametrize(
    ("name", "kind", "passes"),
    [
        ("feed-flush", "caught", True),
        ("feed-flush", "MISSED", False),
        ("feed-flush", "ERROR", False),
        ("feed-trim", "MISSED", True),
        ("feed-trim", "caught", False),
        ("feed-trim", "ERROR", False),
    ],
)
def test_histories_must_notice_what_is_not_declared_and_nothing_else(
    name: str, kind: Literal["caught", "MISSED", "ERROR"], passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard that is found though it is declared makes the declaration a lie."""
    monkeypatch.setattr(commands, "play_without", lambda patch, checkout: Outcome(kind, 1.0, "words"))
    assert commands.main(["--histories", f"{name}.patch"]) == (0 if passes else 1)


# What is missing ------------------------------------------------------------------------------------------------------


def patch_for(race: str, test: str = "tests/a.py::t") -> Patch:
    return Patch(Path("x.patch"), "guard", race, test, ("cache_node/x.py",), "")


def test_every_race_needs_a_patch() -> None:
    """And a patch names one that there is."""
    assert len(RACES) == len(set(RACES)) == 14
    assert uncovered_races([patch_for(race) for race in RACES]) == []
    (missing,) = uncovered_races([patch_for(race) for race in RACES[1:]])
    assert RACES[0] in missing
    (unknown,) = uncovered_races([patch_for(race) for race in (*RACES, "Guarantee: x", "a race of tomorrow")])
    assert "a race of tomorrow" in unknown


README = """# cache-node

## Guarantees

What it promises:

- **Never old.** No answer is older
  than it may be. `tests/a.py::test_one`
* Ends with two: `tests/a.py::test_two[x-y]`, `tests/b.py::test_three`.
1. A word about `tests/a.py::test_four` in the middle, and no test at the end

## Limits

- `tests/a.py::test_five`
"""


def test_guarantees_are_read_from_the_readme() -> None:
    """Items of one section, each with the tests that it ends with."""
    assert read_guarantees("# cache-node\n") is None
    assert read_guarantees(README) == [
        Guarantee("**Never old.** No answer is older than it may be. ", ("tests/a.py::test_one",)),
        Guarantee("Ends with two: ", ("tests/a.py::test_two[x-y]", "tests/b.py::test_three")),
        Guarantee("A word about `tests/a.py::test_four` in the middle, and no test at the end", ()),
    ]


def test_every_guarantee_needs_a_test_and_every_test_a_patch() -> None:
    """Otherwise it is a promise and nothing else."""
    tests = "tests/a.py::test_one", "tests/a.py::test_two[x-y]", "tests/b.py::test_three"
    guarantees = read_guarantees(README) or []
    (untested,) = uncovered_guarantees(guarantees, [patch_for("r", test) for test in tests])
    assert untested.startswith("MISSING  a guarantee of README.md ends with no test: A word about")
    lines = uncovered_guarantees(guarantees[:2], [patch_for("r", test) for test in tests[:2]])
    assert [line.partition(",")[0] for line in lines] == ["MISSING  no patch for tests/b.py::test_three"]
    assert uncovered_guarantees([], []) == ["MISSING  README.md has a section Guarantees without items"]
