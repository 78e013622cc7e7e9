"""What the reader needs of the places it reads from; app.py alone knows which they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from cache_node.sessions.credential import Credential
from cache_node.sessions.entry import Entry
from cache_node.sessions.keys import Key
from cache_node.sessions.origin import OriginAnswer

Tell = Callable[[Entry | None], None]


class SharedTier(Protocol):
    """The tier that the nodes of a region share.  Never raises: one that does not answer is a miss."""

    async def get(self, keys: Sequence[Key]) -> Entry | None:
        """The entry under the first of the keys that has one."""

    def look_up(self, keys: Sequence[Key], tell: Tell) -> None:
        """The same for who has no task to wait with: `tell` hears it, once, and not before this has returned."""

    async def get_or_lock(self, keys: Sequence[Key], attempt: int) -> tuple[Entry | None, bool]:
        """The same, and whether another node is about to bring it; else the lock is the caller's, who must `release`.

        From the second attempt on (1, 2, …) it waits a moment first.
        """

    def release(self, key: Key, *, is_kept: bool) -> None:
        """Give the lock back, if it is held; `is_kept` says whether others find an entry now, some time soon."""

    def put(self, key: Key, entry: Entry) -> None:
        """Keep the entry, some time soon."""

    def discard(self, key: Key) -> None:
        """Take the entry away, some time soon, if the tier can be reached."""


class SessionOrigin(Protocol):
    """The authority.  Raises OriginUnavailableError when it gave no answer that may be believed."""

    async def read(
        self,
        credential: Credential,
        *,
        on_begin: Callable[[], None],
        is_expected: Callable[[], bool],
        patient: bool,
    ) -> OriginAnswer:
        """What it says of the credential.

        `on_begin` is called right before a request is sent; `is_expected` says whether a 401 would surprise nobody;
        `patient`, whether to wait for an origin that does not answer just now.
        """

    async def read_anonymous(self, *, patient: bool) -> OriginAnswer:
        """What it says to those who present nothing."""

    async def pass_on(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        anonymous: bool,
        is_expected: Callable[[], bool],
    ) -> OriginAnswer:
        """What it says to one client's request, for that client alone; `anonymous` if that presents no credential."""
