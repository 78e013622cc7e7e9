from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cache_node.demo.api import COOKIE_NAME
from cache_node.demo.kratos_build import build_kratos
from cache_node.demo.kratos_server import CORS_ORIGIN, TOKENIZER_TEMPLATE, KratosServer
from cache_node.demo.postgres_server import StopMode
from cache_node.errors import CacheNodeError
from tests.demo.exchanges import load
from tests.demo.scenario import RECORDING, Outage, Scenario
from tests.waiting import eventually, eventually_blocking

PASSWORD = "correct horse battery"

_numbers = itertools.count()


async def log_in(kratos: KratosServer) -> tuple[str, str, str, str]:
    """A new identity's email and id, a token and the token's session id."""
    email = f"person{next(_numbers)}@example.test"
    identity = await kratos.create_identity(email, PASSWORD)
    token, session = await kratos.login_token(email, PASSWORD)
    return email, identity, token, session["id"]


async def status(kratos: KratosServer, token: str) -> int:
    return (await kratos.whoami({"X-Session-Token": token})).status


async def test_token_bearer_and_cookie_answer_200(kratos: KratosServer) -> None:
    email, identity, token, _ = await log_in(kratos)
    cookie = await kratos.login_cookie(email, PASSWORD)
    for headers in (
        {"X-Session-Token": token},
        {"Authorization": f"Bearer {token}"},
        {"Cookie": f"{COOKIE_NAME}={cookie}"},
    ):
        answer = await kratos.whoami(headers)
        assert answer.status == 200
        assert answer.values("X-Kratos-Authenticated-Identity-Id") == [identity]


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill"])
async def test_a_stopped_database_makes_401_and_503_until_it_is_back(kratos: KratosServer, mode: StopMode) -> None:
    _, _, token, _ = await log_in(kratos)
    await kratos.stop_database(mode)
    assert await status(kratos, token) == 401
    assert not await kratos.is_ready()
    await kratos.start_database()
    await kratos.wait_ready()
    assert await status(kratos, token) == 200


async def test_every_end_of_a_session_makes_401(kratos: KratosServer) -> None:
    for end in ("revoke", "logout", "delete sessions", "delete identity"):
        _, identity, token, session = await log_in(kratos)
        assert await status(kratos, token) == 200
        match end:
            case "revoke":
                await kratos.revoke_session(session)
            case "logout":
                await kratos.logout_token(token)
            case "delete sessions":
                await kratos.delete_identity_sessions(identity)
            case _:
                await kratos.delete_identity(identity)
        assert await status(kratos, token) == 401, end


async def test_disabled_identity_answers_401_and_enabled_again_200(kratos: KratosServer) -> None:
    _, identity, token, _ = await log_in(kratos)
    await kratos.disable_identity(identity)
    assert await status(kratos, token) == 401
    await kratos.enable_identity(identity)
    assert await status(kratos, token) == 200


async def test_extended_session_sets_the_cookie_again(kratos: KratosServer) -> None:
    email, _, _, _ = await log_in(kratos)
    headers = {"Cookie": f"{COOKIE_NAME}={await kratos.login_cookie(email, PASSWORD)}"}
    before = await kratos.whoami(headers)
    session = before.body.partition(b'"id":"')[2].partition(b'"')[0].decode()
    await kratos.extend_session(session)
    after = await kratos.whoami(headers)
    assert before.values("Set-Cookie") == []
    assert after.values("Set-Cookie")[0].startswith(f"{COOKIE_NAME}=")


async def test_second_factor_tokenizer_and_cors_are_configured(kratos: KratosServer) -> None:
    email, _, token, _ = await log_in(kratos)
    other, _ = await kratos.login_token(email, PASSWORD)
    tokenized = await kratos.whoami({"X-Session-Token": token}, query=f"tokenize_as={TOKENIZER_TEMPLATE}")
    assert b'"tokenized":"' in tokenized.body
    await kratos.add_second_factor(token)
    assert await status(kratos, token) == 200
    assert await status(kratos, other) == 403
    answer = await kratos.whoami({"Origin": CORS_ORIGIN})
    assert answer.values("Access-Control-Allow-Origin") == [CORS_ORIGIN]


async def test_kratos_still_answers_as_recorded(kratos: KratosServer) -> None:
    """What the demo origin is compared with, in tests/demo, is what Kratos says."""
    async with KratosServer() as fresh:
        answered = await Scenario(fresh).run()
        _, _, token, _ = await log_in(fresh)
        await fresh.stop_database()
        answered += await Outage(fresh, token).run()
    assert {each.name: each.masked() for each in answered} == {each.name: each.masked() for each in load(RECORDING)}


async def test_the_binary_is_built_once(kratos: KratosServer) -> None:
    lines: list[str] = []
    binary = await build_kratos(progress=lines.append)
    assert binary.exists()
    assert lines == []


async def test_without_go_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CacheNodeError, match=r"^a real Kratos is built with Go, which is missing: install .*$"):
        await build_kratos(tmp_path)


async def test_a_failed_build_is_one_line_and_leaves_nothing_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho 'go: module lookup disabled' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(CacheNodeError, match=r"^building Kratos failed: go: module lookup disabled; .*build\.log$"):
        await build_kratos(tmp_path / "build", progress=lambda line: None)
    assert [name for name in os.listdir(tmp_path / "build") if name.startswith("kratos-")] == []


def test_a_build_is_as_nice_as_its_caller_and_ends_with_sigterm(tmp_path: Path) -> None:
    """In the session of its caller, for Linux may share the cores between sessions, whatever the niceness in each."""
    go, said = tmp_path / "go", tmp_path / "said"
    go.write_text(f"#!/bin/sh\necho $$ >{said}\nexec sleep 600\n")
    go.chmod(0o755)
    building = subprocess.Popen(
        [sys.executable, "-m", "cache_node.demo.kratos_build"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    try:
        eventually_blocking(lambda: said.exists() and said.read_text().endswith("\n"), timeout_seconds=30.0)
        child = psutil.Process(int(said.read_text()))
        assert os.getsid(child.pid) == os.getsid(0)
    finally:
        building.terminate()
        _, errors = building.communicate(timeout=30)
    assert (building.returncode, errors.splitlines()[-1]) == (1, b"building Kratos: ended")
    assert psutil.wait_procs([child], timeout=10.0)[1] == []


async def test_nothing_is_left_after_a_stop(kratos: KratosServer) -> None:
    server = KratosServer()
    await server.start()
    directory = server.jwks_path.parent
    assert processes_below(directory)
    await server.stop()
    assert not directory.exists()
    assert processes_below(directory) == []


KILLED = """
import asyncio, os, signal, sys
from cache_node.demo.kratos_server import KratosServer

async def main():
    server = KratosServer()
    await server.start()
    print(server.jwks_path.parent, flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["killed", "left without a stop"])
async def test_servers_end_with_the_process_that_started_them(kratos: KratosServer, how: str) -> None:
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, how], stdout=subprocess.PIPE, timeout=60, check=False
    )
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0)
    directory = Path(done.stdout.decode().strip())
    await eventually(lambda: processes_below(directory) == [], lambda: processes_below(directory), 10.0)
    is_left = await asyncio.to_thread(directory.exists)
    assert is_left == (how == "killed")  # nobody is there to remove it after SIGKILL
    if is_left:
        await asyncio.to_thread(shutil.rmtree, directory)


def processes_below(directory: Path) -> list[str]:
    """The living processes that name `directory` or work in it, as Postgres' backends do."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((process / "cwd").readlink())
        except OSError:
            continue  # ended meanwhile, or a zombie, which has no working directory
        if str(directory) in command or place.startswith(str(directory)):
            found.append(f"{process.name} {command}")
    return found
