"""A Redis server in process, as far as the feed goes: its keys, a few of its commands, and the real Lua scripts.

tests/feed/test_scripted_server.py asks it and a real Valkey the same.  Two things only are its own: `time_us` stands
still until it is moved, and a trimming that may be approximate is exact, the worst that may be.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
from lupa.lua51 import LuaError, LuaRuntime, lua_type
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

Id = tuple[int, int]
Fields = dict[bytes, bytes]
Row = tuple[Id, Fields]

_NEWEST: Id = (2**64 - 1, 2**64 - 1)
_WRITING = frozenset((b"DEL", b"FLUSHALL", b"HSET", b"HDEL", b"XADD", b"XDEL", b"XTRIM"))


@dataclass
class Stream:
    """Entries by rising id, and the highest id that there ever was."""

    rows: list[Row] = field(default_factory=list)
    last: Id = (0, 0)


class Keyspace:
    """`execute()` is a command, a script or one that a script calls; the state may be looked at and spoilt."""

    def __init__(self) -> None:
        self.time_us = 1_800_000_000_000_000
        self.begin_history()
        self.available = True
        """Whether those who are connected to it reach it."""
        self.writes = True
        """False: a replica, or a primary that was cut off in time; it refuses to write, and can still be read."""
        self.hashes: dict[bytes, Fields] = {}
        self.streams: dict[bytes, Stream] = {}
        self.scripts: dict[bytes, bytes] = {}

    def flushall(self) -> None:
        """Everything is gone, the server's identity stays."""
        self.hashes, self.streams = {}, {}

    def restart_empty(self) -> None:
        """A new process without data."""
        self.flushall()
        self.scripts = {}
        self.begin_history()

    def begin_history(self) -> None:
        """What a server does that starts, or becomes a primary."""
        self.replid = secrets.token_hex(20)

    def execute(self, *command: bytes | str | int) -> Any:
        """The reply, as bytes, ints, None and lists of these; raises RedisError."""
        name, *args = [part if isinstance(part, bytes) else str(part).encode() for part in command]
        if name in _WRITING and not self.writes:
            raise ReadOnlyError("the scripted server may not write")
        return getattr(self, f"_{name.decode().lower()}")(*args)

    # Scripts --------------------------------------------------------------------------------------------------------

    def _script(self, what: bytes, text: bytes = b"") -> bytes | None:
        if what == b"FLUSH":
            self.scripts = {}
            return None
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()
        self.scripts[sha] = text
        return sha

    def _eval(self, text: bytes, count: bytes, *args: bytes) -> Any:
        return self._evalsha(self._script(b"LOAD", text) or b"", count, *args)

    def _evalsha(self, sha: bytes, count: bytes, *args: bytes) -> Any:
        if sha not in self.scripts:
            raise NoScriptError("No matching script")
        keys, argv = args[: int(count)], args[int(count) :]
        redis = _LUA.table_from({b"call": self._call, b"pcall": self._pcall})
        try:
            return _from_lua(_compiled(self.scripts[sha])(redis, _CMSGPACK, _to_lua(keys), _to_lua(argv)))
        except LuaError as exc:
            raise ResponseError(str(exc)) from None

    def _call(self, *command: Any) -> Any:
        return _to_lua(self.execute(*command))

    def _pcall(self, *command: Any) -> Any:
        try:
            return self._call(*command)
        except RedisError as exc:
            code = b"READONLY" if isinstance(exc, ReadOnlyError) else b"ERR"
            return _LUA.table_from({b"err": code + b" " + str(exc).encode()})

    # The server -----------------------------------------------------------------------------------------------------

    def _info(self, section: bytes) -> bytes:
        return f"# Replication\r\nrole:master\r\nmaster_replid:{self.replid}\r\n".encode()

    def _time(self) -> list[bytes]:
        return [str(part).encode() for part in divmod(self.time_us, 1_000_000)]

    def _flushall(self) -> None:
        self.flushall()

    def _del(self, *keys: bytes) -> int:
        kept = (self.hashes, self.streams)
        return sum(of_a_kind.pop(key, None) is not None for key in keys for of_a_kind in kept)

    # Hashes ---------------------------------------------------------------------------------------------------------

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        fields = self.hashes.setdefault(key, {})
        before = len(fields)
        fields.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(fields) - before

    def _hget(self, key: bytes, name: bytes) -> bytes | None:
        return self.hashes.get(key, {}).get(name)

    def _hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        return [self._hget(key, name) for name in names]

    def _hgetall(self, key: bytes) -> list[bytes]:
        return [part for row in self.hashes.get(key, {}).items() for part in row]

    def _hlen(self, key: bytes) -> int:
        return len(self.hashes.get(key, {}))

    def _hdel(self, key: bytes, *names: bytes) -> int:
        fields = self.hashes.get(key, {})
        return sum(fields.pop(name, None) is not None for name in names)

    # Streams --------------------------------------------------------------------------------------------------------

    def _xadd(self, key: bytes, id_: bytes, *pairs: bytes) -> bytes:
        stream = self.streams.get(key, Stream())
        added = _id(id_)
        if added <= stream.last:
            raise ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
        stream.rows.append((added, dict(zip(pairs[::2], pairs[1::2], strict=True))))
        stream.last = added
        self.streams[key] = stream
        return id_

    def _xdel(self, key: bytes, *ids: bytes) -> int:
        stream = self.streams.get(key, Stream())
        before = len(stream.rows)
        stream.rows[:] = [row for row in stream.rows if row[0] not in {_id(id_) for id_ in ids}]
        return before - len(stream.rows)

    def _xtrim(self, key: bytes, by: bytes, *how_and_id: bytes) -> int:
        stream = self.streams.get(key, Stream())
        before = len(stream.rows)
        stream.rows[:] = [row for row in stream.rows if row[0] >= _id(how_and_id[-1])]
        return before - len(stream.rows)

    def _xrange(self, key: bytes, first: bytes, last: bytes, *count: bytes) -> list[Any]:
        return [_flat(row) for row in self._between(key, first, last)[: int(count[1]) if count else None]]

    def _xrevrange(self, key: bytes, last: bytes, first: bytes, *count: bytes) -> list[Any]:
        return [_flat(row) for row in self._between(key, first, last)[::-1][: int(count[1]) if count else None]]

    def _between(self, key: bytes, first: bytes, last: bytes) -> list[Row]:
        rows = self.streams.get(key, Stream()).rows
        begin = (bisect_right if first.startswith(b"(") else bisect_left)(rows, _id(first), key=_id_of)
        return rows[begin : bisect_right(rows, _id(last), key=_id_of)]

    def _xinfo(self, what: bytes, key: bytes) -> list[Any]:
        if key not in self.streams:
            raise ResponseError("no such key")
        return [b"length", len(self.streams[key].rows), b"last-generated-id", b"%d-%d" % self.streams[key].last]


def _id_of(row: Row) -> Id:
    return row[0]


def _flat(row: Row) -> list[Any]:
    (generation, number), fields = row
    return [b"%d-%d" % (generation, number), [part for pair in fields.items() for part in pair]]


def _id(text: bytes) -> Id:
    if text in (b"-", b"+"):
        return (0, 0) if text == b"-" else _NEWEST
    generation, _, number = text.removeprefix(b"(").partition(b"-")
    return int(generation), int(number)


# Redis runs its scripts in Lua 5.1, too; one runtime for all servers, of which each script sees its own.
_LUA: Any = LuaRuntime(encoding=None)
_CMSGPACK = _LUA.table_from({b"pack": msgpack.packb})


@functools.cache
def _compiled(text: bytes) -> Any:
    return _LUA.eval(b"function(redis, cmsgpack, KEYS, ARGV)\n" + text + b"\nend")


def _to_lua(value: Any) -> Any:
    if value is None:
        return False  # a script knows no nil in a table
    return _LUA.table_from([_to_lua(one) for one in value]) if isinstance(value, list | tuple) else value


def _from_lua(value: Any) -> Any:
    if lua_type(value) == "table":
        if value[b"err"] is not None:
            code, _, text = value[b"err"].decode().partition(" ")
            raise ReadOnlyError(text) if code == "READONLY" else ResponseError(text)
        return [_from_lua(one) for one in value.values()]
    return None if value is False else int(value) if isinstance(value, float | bool) else value


def reached(server: Keyspace) -> Keyspace:
    """The server, over a connection; raises ConnectionError if there is no way to it."""
    if not server.available:
        raise RedisConnectionError("the scripted server is away")
    return server


class InProcessRedis:
    """What `RedisLog` asks of redis-py and of its lines, of the server that `server()` is then; nothing here waits."""

    def __init__(self, server: Callable[[], Keyspace]) -> None:
        self._server = server

    async def aclose(self) -> None:
        pass

    async def call(self, *command: Any) -> Any:
        server = reached(self._server())
        if command[0] != "XREAD":
            return server.execute(*command)
        key, after = command[-2:]  # whoever waits here has nothing to wait for
        rows = server.execute("XRANGE", key, f"({after}", "+", "COUNT", command[2])
        return [(key, rows)] if rows else None

    async def transaction(self, *commands: Sequence[Any]) -> list[Any]:
        server = reached(self._server())
        return [server.execute(*command) for command in commands]

    async def eval(self, text: str, count: int, *args: Any) -> Any:
        return await self.call("EVAL", text, count, *args)

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any:
        return await self.call("EVALSHA", sha, count, *args)

    async def script_load(self, text: str) -> Any:
        return await self.call("SCRIPT", "LOAD", text)

    async def hdel(self, key: str, name: bytes) -> Any:
        return await self.call("HDEL", key, name)
