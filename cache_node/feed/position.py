"""Place in the feed.  Positions of different generations are never compared: the type has no order on purpose."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """`number` counts the events of `generation` without gaps; together they are the stream id of a feed entry.

    `str()` gives the text that callers may keep and show again (`Cache-Node-Min-Position`); to them it is opaque.
    """

    generation: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.number}"

    @classmethod
    def parse(cls, text: str | bytes) -> Position:
        """Read what `str()` wrote.  Raises ValueError for anything else."""
        if isinstance(text, bytes):
            text = text.decode("ascii", "replace")
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError("a position looks like 1764000000000000-42")
        return cls(int(match[1]), int(match[2]))
