"""`cache-node check-config`: tries everything that a node needs of its surroundings, and says what is wrong.

Nothing is left behind, and no node notices: commands that write go to names that nobody has, or change nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from cache_node.config import MIN_SECRET_CHARACTERS, NodeSettings, load
from cache_node.environment import variable
from cache_node.errors import ConfigurationError, FeedUnavailableError
from cache_node.feed.log import RedisLog
from cache_node.feed.names import RedisNames
from cache_node.feed.redis_client import REDIS_ERRORS, build_client, feed_unavailable
from cache_node.sessions.origin import WHOAMI_PATH

TIMEOUT_SECONDS = 5.0
TOTAL_SECONDS = 20.0
"""For all that is asked of one server."""
OLDEST_SERVER = (6, 2)
"""The first with `XTRIM MINID`."""
EVICTING_THE_FEED = "allkeys-"
_REFUSED_COMMAND = re.compile(r"'([\w|]+)' command")
_MENDED = {variable("origin_url"): "http://127.0.0.1:1", variable("secrets"): "s" * MIN_SECRET_CHARACTERS}


def check(environ: Mapping[str, str], config_path: str | None) -> tuple[int, list[str]]:
    """Exit status and problems: 2 for wrong settings, 1 for surroundings that do not fit them, else 0 and none."""
    wrong = list(wrong_settings(environ, config_path))
    if wrong:
        return 2, wrong
    found = asyncio.run(wrong_surroundings(load(environ, config_path)))
    return (1 if found else 0), found


def wrong_settings(environ: Mapping[str, str], config_path: str | None) -> Iterator[str]:
    """One line for each setting that a node would refuse; none if `load` succeeds."""
    given = dict(environ)
    while True:
        try:
            load(given, config_path)
            return
        except ConfigurationError as error:
            yield str(error)
            name = str(error).partition(" ")[0].strip("'")
            # With it mended, what else is wrong shows; what stands in the file alone cannot be mended here.
            if given.pop(name, None) is None and name not in _MENDED:
                return
            if name in _MENDED:
                given[name] = _MENDED[name]


async def wrong_surroundings(settings: NodeSettings) -> list[str]:
    """One line for each connection, right or setting of a server that a node would suffer from."""
    found = await asyncio.gather(_wrong_redis(settings), _wrong_origin(settings))
    return [line for lines in found for line in lines]


async def _wrong_redis(settings: NodeSettings) -> list[str]:
    if settings.redis_url is None:
        return []
    name = variable("redis_url")
    client = build_client(settings.redis_url, timeout_seconds=TIMEOUT_SECONDS)
    names = RedisNames(settings.key_prefix)
    try:
        async with asyncio.timeout(TOTAL_SECONDS):
            with contextlib.suppress(NoPermissionError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await client.ping()
            info: dict[str, Any] = {}
            problems = list(dict.fromkeys([line async for line in _missing_rights(client, names, info)]))
            if not problems:
                problems = [*_unfit_server(info), *await _disagreeing_nodes(settings, names)]
        return [f"{name}: {problem}" for problem in problems]
    except AuthenticationError:
        return [f"{name}: the server refuses this user or password"]
    except REDIS_ERRORS as exc:
        return [f"{name}: {feed_unavailable('connecting', exc)}"]
    except (AttributeError, LookupError, TypeError, ValueError):  # redis-py's, of an answer of another type
        return [f"{name}: what answers there is no Redis: its answers have other types"]
    finally:
        await client.aclose()


async def _missing_rights(client: Redis, names: RedisNames, info: dict[str, Any]) -> AsyncIterator[str]:
    """Each command that feed and redis tier use, on names of its own; `info` is filled with the server's answer."""
    nobody = secrets.token_hex(8)
    feed, generation = f"{names.feed}:{nobody}", f"{names.generation}:{nobody}"
    entry = names.entry(secrets.token_bytes(32))

    async def ask() -> None:
        info.update(await client.info())

    async def transaction() -> None:
        async with client.pipeline(transaction=True) as pipe:
            _ = pipe.ping()
            await pipe.execute()

    tried: dict[str, Callable[[], Awaitable[Any]]] = {
        "PING": client.ping,
        "INFO": ask,
        "MULTI": transaction,
        "EVAL": lambda: client.eval("return redis.call('TIME')", 0),
        "EVALSHA": lambda: client.evalsha("0" * 40, 0),
        "SCRIPT LOAD": lambda: client.script_load("return 1"),
        "XADD": lambda: client.xadd(feed, {"e": b""}, nomkstream=True),
        "XRANGE": lambda: client.xrange(feed),
        "XREVRANGE": lambda: client.xrevrange(feed, count=1),
        "XREAD": lambda: client.xread({feed: "0"}),
        "XTRIM": lambda: client.xtrim(feed, minid="0"),
        "XINFO STREAM": lambda: client.xinfo_stream(feed),
        "DEL": lambda: client.delete(feed),
        "HSET": lambda: client.eval("return redis.call('HSET', KEYS[1], 'a', 'b')", 1, generation),
        "HGET": lambda: client.hget(generation, "a"),
        "HMGET": lambda: client.hmget(generation, ["a"]),
        "HGETALL": lambda: client.hgetall(generation),
        "HLEN": lambda: client.hlen(generation),
        "HDEL": lambda: client.hdel(generation, "a"),
        "SET": lambda: client.set(entry, b"", px=1000),
        "MGET": lambda: client.mget([entry]),
        "UNLINK": lambda: client.unlink(entry),
    }
    for command, attempt in tried.items():
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await attempt()
        except ResponseError as exc:
            if named := _REFUSED_COMMAND.search(str(exc)):  # not always the one that was sent: a script holds others
                yield f"this user may not use this command: {named[1].replace('|', ' ').upper()}"
            elif isinstance(exc, NoPermissionError):
                yield f"this user may not use these keys: {command} on {names.prefix}:* and {{{names.prefix}}}:*"
            elif "without MULTI" in str(exc):  # the refusal of EXEC, which is heard of first
                yield f"this user may not use this command: {command}"
            elif "NOPERM" in str(exc).upper() or "acl" in str(exc).lower():
                yield f"this user may not use this command, or not in a script: {command}"
            elif not _is_expected(command, exc):
                yield str(feed_unavailable(command, exc))
        except REDIS_ERRORS as exc:
            yield str(feed_unavailable(command, exc))


def _is_expected(command: str, exc: Exception) -> bool:
    """There is no such script, and no such stream."""
    return (command, str(exc).partition(" ")[0]) in {("EVALSHA", "NOSCRIPT"), ("EVALSHA", "No")} or (
        command == "XINFO STREAM" and "no such key" in str(exc)
    )


def _unfit_server(info: Mapping[str, Any]) -> Iterator[str]:
    version = str(info.get("valkey_version", info.get("redis_version", "0.0")))
    if tuple(map(int, re.findall(r"\d{1,9}", version)[:2])) < OLDEST_SERVER:
        yield f"the server is of version {version}; {'.'.join(map(str, OLDEST_SERVER))} is needed"
    if info.get("redis_mode", "standalone") != "standalone":
        yield f"the server runs as {info['redis_mode']}; this version needs a standalone one"
    if info.get("role") == "slave":
        yield "the server is a replica, which takes no writes: give the address of its primary"
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith(EVICTING_THE_FEED):
        yield f"maxmemory-policy {policy} may evict the feed: set noeviction, or a volatile-* policy"
    if info.get("connected_slaves", 0) not in (0, "0", ""):
        yield (
            "the server has replicas: after a failover this version cannot tell two primaries apart, "
            "so stop the old one before you promote another"
        )


async def _disagreeing_nodes(settings: NodeSettings, names: RedisNames) -> list[str]:
    log = RedisLog(settings.redis_url or "", names, timeout_seconds=TIMEOUT_SECONDS)
    try:
        reading = await log.ask_registry(0)
    except FeedUnavailableError as error:
        return [str(error)]
    finally:
        await log.aclose()
    others = {record.max_staleness_seconds for record in reading.records} - {settings.max_staleness_seconds}
    return [
        f"{variable('max_staleness_seconds')} is {settings.max_staleness_seconds:g} here and {other:g} on another node"
        for other in sorted(others)
    ]


async def _wrong_origin(settings: NodeSettings) -> list[str]:
    name = variable("origin_url")
    address = urlsplit(settings.origin_url).netloc  # settings refuse one with a user name
    timeout = aiohttp.ClientTimeout(total=settings.origin_timeout_seconds)
    async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:

        async def status_of(path: str) -> int | str:
            try:
                async with session.get(settings.origin_url + path, allow_redirects=False) as answer:
                    return answer.status
            except TimeoutError:
                return f"no answer from {address} within {settings.origin_timeout_seconds:g} s"
            except (aiohttp.ClientError, ValueError) as exc:
                return f"no answer from {address} ({_reason(exc)})"

        whoami = await status_of(WHOAMI_PATH)
        if not isinstance(whoami, int):
            return [f"{name}: {whoami}"]
        problems = []
        if whoami != 401:
            problems.append(
                f"{name}: GET {WHOAMI_PATH} without a credential gives {whoami} and not 401: is it Kratos' public URL?"
            )
        ready = await status_of(settings.origin_ready_path) if settings.origin_ready_path else 200
        if ready != 200:
            problems.append(
                f"{variable('origin_ready_path')}: {settings.origin_ready_path} gives {ready} and not 200: "
                "no 401 would be believed (empty it for an origin without one)"
            )
        return problems


def _reason(exc: Exception) -> str:
    """Never the text of an error that may quote what was sent."""
    if not isinstance(exc, aiohttp.ClientConnectorError):
        return type(exc).__name__
    error = exc.os_error
    # The text of a refused connection names the address alone; numbers of TLS and of names that are unknown are others.
    is_the_system_s = (error.errno or 0) > 0 and not isinstance(error, ssl.SSLError)
    return os.strerror(error.errno or 0) if is_the_system_s else error.strerror or type(exc).__name__
