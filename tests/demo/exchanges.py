"""Recorded HTTP exchanges with Kratos, and what of them is new at every run and must not be compared."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Headers = list[tuple[str, str]]

_DIRECTORY = Path(__file__).parent
_TIMEOUT_SECONDS = 10.0
_NOT_COMPARED = {"date", "connection", "content-length"}  # the body is, and what frames it depends on its length

# Each makes of what differs between two runs a name that does not.  Order matters: the cookie holds what others match.
_MASKS = [
    (re.compile(r"ory_kratos_session=[\w-]+={0,2}"), "ory_kratos_session=<cookie>"),
    (re.compile(r"csrf_token_[0-9a-f]{64}=[^;\"]+"), "csrf_token_<site>=<csrf>"),
    (re.compile(r'("name":"csrf_token","type":"hidden","value":")[^"]+'), r"\1<csrf>"),
    (re.compile(r"(Expires=)[^;]+(; Max-Age=)\d+"), r"\1<time>\2<seconds>"),
    (re.compile(r"ory_st_\w{32}"), "<token>"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "<time>"),
    (re.compile(r"127\.0\.0\.1:\d+"), "<host>"),
    (re.compile(r'("user_agent":")[^"]+'), r"\1<agent>"),
    (re.compile(r"\w+@example\.test"), "<email>"),
    # Kratos marks an address as `sent` once its courier has tried; the demo origin sends no mail.
    (re.compile(r'"status":"(sent|pending)"'), '"status":"<mail>"'),
]
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Exchange:
    """One request and its answer; `port` is public or admin, `json` the request's body."""

    name: str
    port: str
    method: str
    path: str
    headers: Headers
    json: Any
    status: int
    response_headers: Headers
    body: str

    def masked(self) -> dict[str, Any]:
        """The answer as two runs must agree on it; ids become numbers in the order in which they are named."""
        names: dict[str, str] = {}

        def numbered(match: re.Match[str]) -> str:
            return names.setdefault(match[0], f"<id {len(names)}>")

        def hide(text: str) -> str:
            for pattern, replacement in _MASKS:
                text = pattern.sub(replacement, text)
            return _UUID.sub(numbered, text)

        body = hide(self.body)
        headers = [(name.lower(), value) for name, value in self.response_headers]
        kept = [f"{name}: {hide(value)}" for name, value in headers if name not in _NOT_COMPARED]
        return {"status": self.status, "headers": kept, "body": body}


async def exchange(
    base_url: str, method: str, path: str, headers: Headers, *, name: str = "", port: str = "public", body: Any = None
) -> Exchange:
    """Send exactly these headers (and Host, and what a JSON `body` needs) on a connection of its own."""
    netloc = urlsplit(base_url).netloc
    host, _, number = netloc.partition(":")
    content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {netloc}", *(f"{key}: {value}" for key, value in headers)]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    request = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + content
    async with asyncio.timeout(_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(host, int(number))
        try:
            writer.write(request)
            answer = await reader.read()  # to the end of the connection
        finally:
            writer.close()
            await writer.wait_closed()
    head, _, rest = answer.partition(b"\r\n\r\n")
    status_line, *fields = head.decode("latin-1").split("\r\n")
    pairs = [(key, value.strip()) for key, _, value in (field.partition(":") for field in fields)]
    if ("transfer-encoding", "chunked") in [(key.lower(), value) for key, value in pairs]:
        rest = _unchunked(rest)
    return Exchange(name, port, method, path, headers, body, int(status_line.split()[1]), pairs, rest.decode())


def load(name: str) -> list[Exchange]:
    """The exchanges of a recording; equal bodies are kept once in it."""
    recording = json.loads((_DIRECTORY / name).read_text())
    bodies = recording["bodies"]
    return [
        Exchange(
            **{key: each[key] for key in ("name", "port", "method", "path", "json", "status")},
            headers=[(key, value) for key, value in each["headers"]],
            response_headers=[(key, value) for key, value in each["response_headers"]],
            body=bodies[each["body"]],
        )
        for each in recording["exchanges"]
    ]


def save(name: str, about: str, exchanges: list[Exchange]) -> None:
    """Write a recording, one exchange to a line."""
    bodies = sorted({each.body for each in exchanges})
    lines = [json.dumps({**vars(each), "body": bodies.index(each.body)}, ensure_ascii=False) for each in exchanges]
    texts = [json.dumps(body, ensure_ascii=False) for body in bodies]
    (_DIRECTORY / name).write_text(
        f'{{"about": {json.dumps(about)},\n"exchanges": [\n' + ",\n".join(lines) + '\n],\n"bodies": [\n'
        + ",\n".join(texts) + "\n]}\n"
    )  # fmt: skip


def _unchunked(rest: bytes) -> bytes:
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body
