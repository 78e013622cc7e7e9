"""The shape of the code: rooms, arrows, docstrings, and how far a request travels."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cache_node.http.whoami import Whoami
from tests.fakes import LogServer, ManualClock, ScriptedNode, ScriptedOrigin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cache_node"
MODULES = sorted(PACKAGE.rglob("*.py"))
LOADTEST_MODULES = sorted((ROOT / "loadtest").glob("*.py"))
BENCHMARK_MODULES = sorted((ROOT / "benchmarks").glob("*.py"))

# Room -> the rooms that it may import from, besides itself and the leaf modules.
ARROWS = {
    "feed": set(),
    "sources": {"feed"},
    "sessions": {"feed"},
    "http": {"sessions", "feed"},
    "ops": {"http", "sessions", "sources", "feed"},
}
LEAVES = {"errors", "environment", "config", ""}  # the last one is the package itself, for its version


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cache_node"):
            names = {_name(module) for module in MODULES}
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cache_node"))


def test_imports_have_no_cycle() -> None:
    """Module-level or not, no module reaches itself through its imports."""
    graph = {_name(path): set(_imports(path)) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for imported in graph.get(name, set()):
            visit(imported, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("room", ARROWS)
def test_arrows_between_rooms_go_one_way(room: str) -> None:
    """http, ops -> sessions -> feed <- sources; app.py composes, nothing imports it but the commands."""
    for path in (PACKAGE / room).rglob("*.py"):
        for imported in _imports(path):
            target = imported.split(".")[1] if "." in imported else ""
            assert target in ARROWS[room] | {room} | LEAVES, f"{_name(path)} imports {imported}"


def test_only_the_app_knows_concrete_tiers() -> None:
    """The reader is given its shared tier and its origin; app.py alone chooses them (ops looks at what it chose)."""
    text = (PACKAGE / "sessions" / "reader.py").read_text()
    assert "RedisTier" not in text
    assert "import Origin\n" not in text


def _undocumented(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    if ast.get_docstring(tree) is None:
        yield _name(path)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{_name(path)}.{node.name}"
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(inner) is None:
                yield f"{_name(path)}.{node.name}.{inner.name}"


def _promised_elsewhere() -> set[str]:
    """Methods whose promise stands in a Protocol of ours, a base class of ours, or uvicorn's protocol class."""
    documented = set(dir(HttpToolsProtocol))
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                inner = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
                documented |= {method.name for method in inner if ast.get_docstring(method) is not None}
    return documented


def test_public_names_have_docstrings() -> None:
    """Every public module, class, function and method says what it promises, here or where it is declared."""
    elsewhere = _promised_elsewhere()
    missing = [
        name
        for path in (*MODULES, *LOADTEST_MODULES, *BENCHMARK_MODULES)
        for name in _undocumented(path)
        if not (last := name.rpartition(".")[2]).startswith("_") and last not in elsewhere
    ]
    assert not missing


@pytest.mark.process
def test_base_install_imports_nothing_of_the_node() -> None:
    """Importing the publisher loads no web server, no client, no settings library."""
    code = "import sys, cache_node; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"starlette", "uvicorn", "aiohttp", "pydantic", "msgspec", "orjson", "prometheus_client", "rich", "uvloop"}
    assert not heavy & set(loaded)


def test_a_test_that_is_not_marked_so_starts_no_process() -> None:
    """Else `make unit` would lose what it promises, one test at a time."""
    with pytest.raises(pytest.fail.Exception, match=r"^subprocess.Popen: .*@pytest.mark.process"):
        subprocess.Popen([sys.executable, "-c", ""])
    with pytest.raises(pytest.fail.Exception, match=r"^os.fork: "):
        os.fork()


@pytest.mark.process
def test_what_judges_a_load_test_imports_no_locust() -> None:
    """locust patches the standard library of the process that imports it: `users` and `__main__` alone do."""
    names = [_name(path) for path in LOADTEST_MODULES if path.stem not in ("users", "__main__")]
    code = f"import sys, {', '.join(names)}; print('locust' in sys.modules, 'gevent' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


class _NoObserver:
    def observe_request(self, tier: str, status: int, detail: str, seconds: float) -> None:
        pass


async def _files_on_the_deepest_stack(app: Whoami) -> int:
    deepest = 0

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal deepest
        if event == "call":
            files = set()
            current: FrameType | None = frame
            while current is not None:
                if str(PACKAGE) in current.f_code.co_filename:
                    files.add(current.f_code.co_filename)
                current = current.f_back
            deepest = max(deepest, len(files))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/sessions/whoami",
        "query_string": b"",
        "headers": [(b"host", b"node"), (b"x-session-token", b"token")],
    }
    sys.setprofile(profile)
    try:
        await app(scope, receive, send)
    finally:
        sys.setprofile(None)
    return deepest


async def test_how_many_files_a_request_crosses() -> None:
    """From the edge down, a memory hit crosses at most 4 files and a cold miss at most 8."""
    clock = ManualClock()
    origin = ScriptedOrigin(clock)
    origin.add("token")
    node = ScriptedNode(LogServer(), origin, clock)
    await node.follow()

    async def otherwise(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("not asked for")

    app = Whoami(node.reader, _NoObserver(), "ory_kratos_session", otherwise)
    assert await _files_on_the_deepest_stack(app) <= 8
    assert await _files_on_the_deepest_stack(app) <= 4
    assert origin.reads == 1
