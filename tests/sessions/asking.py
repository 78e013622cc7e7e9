"""Asking a scripted origin through the client under test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cache_node.errors import OriginUnavailableError
from cache_node.feed.clock import Clock
from cache_node.sessions.credential import Credential
from cache_node.sessions.origin import Origin, OriginAnswer
from tests.fakes import ManualClock
from tests.raw_origin import READY_PATH, RawOrigin

TOKEN = Credential("token", b"ory_st_secret")


@asynccontextmanager
async def origin_to(
    server: RawOrigin,
    *,
    timeout_seconds: float = 5.0,
    concurrency: int = 64,
    ready_path: str = READY_PATH,
    clock: Clock | None = None,
) -> AsyncIterator[Origin]:
    origin = Origin(
        server.url,
        clock or ManualClock(),
        timeout_seconds=timeout_seconds,
        concurrency=concurrency,
        ready_path=ready_path,
    )
    try:
        yield origin
    finally:
        await origin.aclose()


def never() -> bool:
    """Nobody knows why a 401 is said."""
    return False


def nothing() -> None:
    """Nobody minds when a read begins."""


async def read(
    origin: Origin, credential: Credential = TOKEN, *, expected: bool = False, patient: bool = True
) -> OriginAnswer:
    return await origin.read(credential, on_begin=nothing, is_expected=lambda: expected, patient=patient)


async def cause(origin: Origin, credential: Credential = TOKEN, *, patient: bool = True) -> str:
    """Why there is no answer."""
    with pytest.raises(OriginUnavailableError) as caught:
        await read(origin, credential, patient=patient)
    assert "secret" not in str(caught.value), "no credential in any message"
    return caught.value.cause


async def outcome(origin: Origin, credential: Credential = TOKEN, *, patient: bool = True) -> str:
    """The answer's body, or why there is none."""
    try:
        return (await read(origin, credential, patient=patient)).body.decode()
    except OriginUnavailableError as error:
        return error.cause
