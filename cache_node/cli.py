"""The command line `cache-node`: every expected failure is one line on stderr, and stdout is the data's alone.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.  Needs the base install only; a command
imports what its extra brings when it runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import click

from cache_node import Publisher, __version__
from cache_node.environment import check_admin_token, check_http_url, publisher_settings, read_settings, variable
from cache_node.errors import (
    CacheNodeError,
    ConfigurationError,
    FeedUnavailableError,
    InvalidEventError,
    MissingExtraError,
)
from cache_node.feed.events import Event, EventType

NODE_ANSWER_SECONDS = 10.0
"""How long a node may take to answer, beyond the time that it was asked to wait."""

DEFAULT_WAIT_SECONDS = 5.0
MAX_WAIT_SECONDS = 60.0  # as a node's admin port has it
_MAX_ANSWER_BYTES = 16 * 1024 * 1024
INTERRUPTED = 130
"""Exit status, as a shell has it for SIGINT."""
_CHECK_THE_FEED = f"check {variable('redis_url')} and the server"


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: run `arguments` (default: the process's own) and return the exit status."""
    _open_closed_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
        return status
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cache-node"
        return _fail(f"{error.format_message().rstrip('.')} (see {command} --help)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except FeedUnavailableError as error:
        return _fail(f"{error}; {_CHECK_THE_FEED}", 1)
    except CacheNodeError as error:
        return _fail(str(error), 2 if isinstance(error, ConfigurationError) else 1)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # who read our output has left
        return _without_stdout(1)
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        return _without_stdout(_fail(f"cannot write to stdout: {os.strerror(error.errno)}", 1))


_OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _without_stdout(status: int) -> int:
    """Or the interpreter would try to write the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _open_closed_streams() -> None:
    """Started with `>&-` a stream is None, and its number the next socket's."""
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)  # nobody reads it, but the number is taken
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


@dataclass(frozen=True, slots=True)
class _Target:
    """Whom a command speaks to: a node when `admin` is its URL, else the feed."""

    config: str | None
    admin: str | None

    def publish(self, event: Event, wait_seconds: float | None) -> dict[str, Any]:
        """Publish, with `wait_seconds` wait for the receipt: `{"position", "receipt"}` as the Admin HTTP shows it."""
        if self.admin is not None:
            query = {} if wait_seconds is None else {"wait": "true", "timeout_seconds": f"{wait_seconds:.15g}"}
            return self._node().post_event(event, query, NODE_ANSWER_SECONDS + (wait_seconds or 0.0))
        try:
            with self._publisher() as publisher:
                if wait_seconds is not None:
                    return publisher.publish_and_wait([event], timeout_seconds=wait_seconds).to_json()
                return {"position": str(publisher.publish([event]))}
        except FeedUnavailableError as error:
            advice = f"{_CHECK_THE_FEED}, then repeat (an event may be there twice)"
            raise CacheNodeError(f"{error}; {advice}") from None

    def status(self) -> dict[str, Any]:
        """What the node, or the feed and its registry, say about themselves."""
        if self.admin is not None:
            return self._node().get_status()
        with self._publisher() as publisher:
            return publisher.region_status()

    def _publisher(self) -> Publisher:
        return Publisher(settings=publisher_settings(os.environ, self.config))

    def _node(self) -> _Node:
        token = read_settings(os.environ, self.config).get("admin_token")
        return _Node(self.admin or "", None if token is None else check_admin_token("admin_token", token))


@dataclass(frozen=True, slots=True)
class _Node:
    """The admin port of one node."""

    url: str
    token: str | None

    def post_event(self, event: Event, query: Mapping[str, str], timeout_seconds: float) -> dict[str, Any]:
        ids = {"session_id": event.session_id, "identity_id": event.identity_id}
        body = {"type": event.type.value} | {name: value for name, value in ids.items() if value is not None}
        path = "/invalidations" + (f"?{urlencode(query)}" if query else "")
        return self._ask("POST", path, json.dumps(body), timeout_seconds)

    def get_status(self) -> dict[str, Any]:
        return self._ask("GET", "/status", None, NODE_ANSWER_SECONDS)

    def _ask(self, method: str, path: str, body: str | None, timeout_seconds: float) -> dict[str, Any]:
        # http.client follows no redirect and asks no proxy of the environment: the token goes to this node alone.
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        url = urlsplit(self.url)
        connect = HTTPSConnection if url.scheme == "https" else HTTPConnection
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers |= {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        connection = connect(url.hostname or "", url.port, timeout=timeout_seconds)
        try:
            connection.request(method, url.path + path, body, headers)
            response = connection.getresponse()
            return self._read(response.status, response.read(_MAX_ANSWER_BYTES))
        except (OSError, HTTPException, UnicodeError) as error:
            reason = str(error) or type(error).__name__
            raise CacheNodeError(
                f"the node at {self.url} did not answer ({reason}): check --admin, and repeat"
            ) from None
        finally:
            connection.close()

    def _read(self, status: int, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if status == 200 and isinstance(answer, dict):
            return answer
        raise self._refusal(status, answer if isinstance(answer, dict) else {})

    def _refusal(self, status: int, answer: dict[str, Any]) -> Exception:
        errors = answer.get("errors")
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else answer
        said = first.get("error", "no reason given")
        said = str(said.get("message", "no reason given") if isinstance(said, dict) else said)[:300]
        if status == 400:
            return click.UsageError(said)
        if status == 401:
            said = f"{variable('admin_token')} must be the token of that node"
        if status == 404:
            said += "; is that an admin port?"
        if status == 200:
            said = "no JSON object; is that an admin port?"
        return CacheNodeError(f"the node at {self.url} answered {status}: {said}")


@click.group(name="cache-node", no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """A session cache tier: answers GET /sessions/whoami at the edge, and lets a revoked session die everywhere.

    Settings are environment variables CACHE_NODE_*, or the same names in lower case without the prefix in a TOML file.
    """


def _check_admin_url(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else check_http_url("--admin", value)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _check_wait_seconds(_context: click.Context, _option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and 0 < value <= MAX_WAIT_SECONDS):
        raise click.BadParameter(f"must be above 0 and at most {MAX_WAIT_SECONDS:g}")
    return value


_config = click.option("--config", metavar="FILE", help="TOML file with settings; variables win over it.")
_admin = click.option(
    "--admin",
    metavar="URL",
    callback=_check_admin_url,
    help="Ask the node with this admin port, with CACHE_NODE_ADMIN_TOKEN, and not the Redis of CACHE_NODE_REDIS_URL.",
)
_json = click.option("--json", "json_output", is_flag=True, help="Print one JSON object.")
_wait = click.option("--wait", is_flag=True, help="Print the receipt; exit 1 unless it says dead everywhere.")
_timeout = click.option(
    "--timeout-seconds",
    type=float,
    callback=_check_wait_seconds,
    help=f"How long to wait with --wait; {DEFAULT_WAIT_SECONDS:g} by default.",
)
_session = click.option("--session", metavar="ID", help="Id of the session (not its token).")
_identity = click.option("--identity", metavar="ID", help="Id of the identity: all its sessions.")


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator; --help lists them in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_publishing = _options(_wait, _timeout, _json, _config, _admin)


@cli.command()
@_config
def serve(config: str | None) -> int:
    """Run a node.

    Prints one line when it listens.  Without CACHE_NODE_REDIS_URL it runs a Valkey of its own, which ends with it.
    """
    with _needs("node"):
        from cache_node.config import load
    settings = load(os.environ, config)
    with _needs("node"):
        from cache_node.app import serve as run
    return run(settings)


@cli.command("check-config")
@_options(_json, _config)
def check_config(json_output: bool, config: str | None) -> int:
    """Try a node's settings and what they point at.

    One line for each problem: a wrong setting (exit status 2), a connection, a right or a server's setting (1).
    """
    with _needs("node"):
        from cache_node.ops.check_config import check
    status, problems = check(os.environ, config)
    if json_output:
        click.echo(json.dumps({"ok": not problems, "problems": problems}))
    elif not problems:
        click.echo("all is well")
    for problem in problems:
        click.echo(f"cache-node: {problem}", err=True)
    return status


@cli.command()
@click.option("--once", is_flag=True, help="Exit after the tour.")
@_json
@click.option(
    "--origin",
    type=click.Choice(["demo", "kratos"]),
    default="demo",
    show_default=True,
    help="Whom the nodes ask: an origin that plays Kratos, or the real one (needs a Go toolchain).",
)
def demo(once: bool, json_output: bool, origin: str) -> int:
    """Show the tour on two nodes, and stay up.

    A cold read, a redis hit, a memory hit and a revocation, with the curl lines to try them by hand.
    """
    with _needs("node,embedded"):
        from cache_node.demo.tour import run
    return run(once=once, json_output=json_output, origin=origin)


@cli.command()
@_options(_session, _identity, _publishing)
def revoke(session: str | None, identity: str | None, **how: Any) -> int:
    """Say that a session was revoked, or an identity deleted."""
    return _publish(_event(EventType.SESSION_REVOKED, session, EventType.IDENTITY_DELETED, identity), **how)


@cli.command()
@_options(_session, _identity, _publishing)
def change(session: str | None, identity: str | None, **how: Any) -> int:
    """Say that a session or an identity answers differently now."""
    return _publish(_event(EventType.SESSION_CHANGED, session, EventType.IDENTITY_CHANGED, identity), **how)


@cli.command()
@_publishing
def flush(**how: Any) -> int:
    """Void everything cached on every node of the feed."""
    return _publish(Event(EventType.FLUSH), **how)


@cli.command()
@_options(_json, _config, _admin)
def status(json_output: bool, config: str | None, admin: str | None) -> int:
    """Show the feed and who follows it, or one node.

    Without --admin: the feed's end and the nodes registry of CACHE_NODE_REDIS_URL.
    """
    answer = _Target(config, admin).status()
    if json_output:
        click.echo(json.dumps(answer))
    else:
        for name, value in _flat(answer):
            click.echo(f"{name}: {value}")
    return 0


def _event(session_type: EventType, session: str | None, identity_type: EventType, identity: str | None) -> Event:
    if (session is None) == (identity is None):
        raise click.UsageError("give either --session ID or --identity ID")
    event_type = session_type if identity is None else identity_type
    try:
        return Event.checked(event_type, session, identity)
    except InvalidEventError as error:
        raise click.UsageError(str(error)) from None


def _publish(
    event: Event, wait: bool, timeout_seconds: float | None, json_output: bool, config: str | None, admin: str | None
) -> int:
    if timeout_seconds is not None and not wait:
        raise click.UsageError("--timeout-seconds needs --wait")
    wait_seconds = (timeout_seconds or DEFAULT_WAIT_SECONDS) if wait else None
    answer = _Target(config, admin).publish(event, wait_seconds)
    if json_output:
        click.echo(json.dumps(answer))
    else:
        named = event.session_id or event.identity_id or ""
        named = named if named.isprintable() else ascii(named)  # an id is anybody's text, the terminal is ours
        click.echo(f"published {event.type.value}{f' {named}' if named else ''} at position {answer.get('position')}")
    if wait:
        _judge(answer, json_output)
    return 0


def _judge(answer: dict[str, Any], json_output: bool) -> None:
    """Show the receipt; CacheNodeError, hence exit status 1, unless it says dead everywhere."""
    receipt = answer.get("receipt")
    if not isinstance(receipt, dict):
        raise CacheNodeError("no receipt came back: ask a node of this version")
    nodes = [node for node in receipt.get("nodes") or [] if isinstance(node, dict)]
    if not json_output:
        for node in nodes:
            click.echo(f"  {node.get('node_id')} in {node.get('region')}: {node.get('state')}")
    took = f"after {receipt.get('elapsed_seconds')} s"
    if receipt.get("dead_everywhere") is not True:
        pending = ", ".join(str(node.get("node_id")) for node in nodes if node.get("state") == "pending")
        raise CacheNodeError(
            f"not dead everywhere {took}{f', pending: {pending}' if pending else ''}; "
            "repeat with a longer --timeout-seconds (an event that is there twice is harmless)"
        )
    if not json_output:
        click.echo(f"dead everywhere {took}")
    if not nodes:
        hint = "no node follows this feed: are the Redis URL and key prefix those of the nodes?"
        click.echo(f"cache-node: {hint}", err=True)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """`{"tiers": {"memory": {"hits": 3}}}` as `tiers.memory.hits`, `3`, for people; nothing is left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, "unknown" if value is None else str(value)
    elif not value:
        yield name, "none"
    else:
        for key, item in items:
            yield from _flat(item, f"{name}.{key}" if name else str(key))


@contextlib.contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Around imports: a package that is missing is the extra's, unless it is our own."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__:
            raise
        raise MissingExtraError(
            f'this command needs the package {error.name}: pip install "cache-node[{extra}]"'
        ) from None


def _run(arguments: list[str]) -> int:
    # Not cli.main(): that one prints an empty line when it is interrupted.
    try:
        with cli.make_context("cache-node", arguments) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code


def _fail(message: str, status: int) -> int:
    click.echo(f"cache-node: {' '.join(message.split())}", err=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
