"""`python -m benchmarks.watching SECONDS PORT …`: when did each of these nodes give an old answer last?

Reads a session token, asks the nodes until all know it, says "known", and asks each again a millisecond after its
answer, until that came from elsewhere than memory.  Then says when the last answer from memory was received whole, and
when the last of the questions was sent that first got another, in seconds of CLOCK_MONOTONIC; the end of the old
answers lies between.  Then reads the next token.  A process of its own with plain sockets, so that asking keeps nobody
from publishing.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence

from benchmarks.load import BadAnswerError
from benchmarks.servers import Server, beside_the_load
from cache_node.sessions.origin import WHOAMI_PATH

PAUSE_SECONDS = 0.001


class Watcher:
    """Such a process; `known` and `ended` are asked in turn, once for each token."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def known(self, token: str) -> None:
        """Returns once all nodes know this session and are being asked.  Raises BadAnswerError, as `ended` does."""
        if self._process.stdin is not None:
            self._process.stdin.write(f"{token}\n".encode())
        await self._line()

    async def ended(self) -> tuple[float, float]:
        """When the last old answer had come, and from when on no question got it; once that is so."""
        last_old, denied = map(float, (await self._line()).split())
        return last_old, denied

    async def _line(self) -> bytes:
        line = await self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            error = await self._process.stderr.read() if self._process.stderr is not None else b""
            raise BadAnswerError(error.decode(errors="replace").strip().rpartition("\n")[2] or "nobody watches")
        return line


@contextlib.asynccontextmanager
async def watcher(nodes: Sequence[Server], *, give_up_seconds: float = 10.0) -> AsyncIterator[Watcher]:
    """One that asks these nodes, on the core of the load; a token is given up after so long."""
    pipe = asyncio.subprocess.PIPE
    command = ["-m", "benchmarks.watching", str(give_up_seconds), *(str(node.port) for node in nodes)]
    async with beside_the_load(sys.executable, *command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield Watcher(process)


class _Node:
    """A connection to one; `fileno` is what select() wants."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = b""

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes) -> None:
        self._answer = b""
        self._socket.sendall(request)

    def receive(self) -> bytes:
        """The head of the answer, or nothing while that is not whole."""
        got = self._socket.recv(1 << 16)
        if not got:
            raise BadAnswerError("a node hung up")
        self._answer += got
        head, _, body = self._answer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head if length and len(body) == int(length) else b""


def watch(nodes: Sequence[_Node], request: bytes, give_up_seconds: float) -> tuple[float, float]:
    """When the last old answer had come, and from when on no question got it.  Says so when all know the session."""
    deadline = time.monotonic() + give_up_seconds
    unknown, due, asked = set(nodes), dict.fromkeys(nodes, 0.0), dict[_Node, float]()
    last_old = denied = 0.0
    while due or asked:
        now = time.monotonic()
        if now > deadline:
            missing = f"{len(unknown)} nodes do not know the session" if unknown else "a node gives the old answer"
            raise BadAnswerError(f"after {give_up_seconds:g} s {missing}")
        for node in [node for node, at in due.items() if at <= now]:
            del due[node]
            asked[node] = time.monotonic()
            node.send(request)
        pause = min(due.values(), default=deadline) - time.monotonic()
        for node in select.select(asked, [], [], max(0.0, pause))[0]:
            head = node.receive()
            if not head:
                continue
            sent, now = asked.pop(node), time.monotonic()
            if b"detail=memory" in head:
                last_old = now
                if node in unknown:
                    unknown.remove(node)
                    if not unknown:
                        print("known", flush=True)
            elif not unknown:
                denied = max(denied, sent)
                continue
            due[node] = now + PAUSE_SECONDS
    return last_old, denied


def main() -> None:
    """Until there are no more tokens; with connections of its own for each, as nodes hang up on the idle."""
    for token in sys.stdin:
        request = f"GET {WHOAMI_PATH} HTTP/1.1\r\nHost: node\r\nX-Session-Token: {token.strip()}\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(contextlib.closing(_Node(int(port)))) for port in sys.argv[2:]]
            print(*watch(nodes, request, float(sys.argv[1])), flush=True)


if __name__ == "__main__":
    main()
