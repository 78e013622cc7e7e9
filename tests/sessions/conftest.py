"""An origin whose every byte is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.raw_origin import RawOrigin


@pytest.fixture
async def server() -> AsyncIterator[RawOrigin]:
    async with RawOrigin().listening() as listening:
        yield listening
