"""Generated examples have no deadline of their own: on a busy machine one of them would miss it now and then."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
