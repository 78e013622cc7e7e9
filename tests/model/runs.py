"""What is verified: each model with each set of defines, and each planted bug, which must be found.

`holds` means that no error is found in the whole state space; with `seconds` the search is a bitstate one (a hash of
the states, a few may be missed) and may be stopped by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """One verification of `model`.pml; `is_violated` says whether an error must be found."""

    model: str
    defines: tuple[str, ...]
    is_violated: bool = False
    seconds: int | None = None

    def __str__(self) -> str:
        return " ".join((self.model, *self.defines))


def _holds(model: str, defines: str, seconds: int | None = None) -> Iterator[Run]:
    yield Run(model, tuple(defines.split()), seconds=seconds)


def _bugs(model: str, defines: str, *bugs: str) -> Iterator[Run]:
    for bug in bugs:
        yield Run(model, (*defines.split(), *(f"BUG_{bug}" for _ in range(bug != ""))), is_violated=True)


_RELAYS = "FAILOVER CHANGES=1 LEN=4"
_CAPTURE = "CAPTURE LEN=5"

RUNS = (
    *_holds("fence", "OTHERS"),
    *_holds("fence", "OTHERS STORE_UNASKED"),
    *_holds("fence", "OTHER RESTART"),
    *_bugs("fence", "", "JOIN_UNFENCED", "ASOF_AFTER_READ", "NO_LEASE_ON_HIT", "NO_LEASE_AFTER_READ"),
    *_bugs("fence", "", "L2_UNFENCED", "L2_ASKS_NO_FLOOR", "L2_TO_EARLY_WAITERS"),
    *_bugs("fence", "", "STAMP_TO_TAIL", "DROP_KEEPS_FLOOR", "POSITION_BEFORE_FENCE"),
    *_bugs("fence", "OTHER RESTART", "FLOOR_BELOW_WINDOW"),
    *_holds("feed", "EMPTY RECEIPTS TRIM"),
    *_holds("feed", "FAILOVER MIN_REPLICAS RECEIPTS"),
    *_holds("feed", "FAILOVER MIN_REPLICAS RECEIPTS PUBLISH_BARE"),
    *_holds("feed", "FAILOVER WAIT RECEIPTS"),
    *_holds("feed", "FAILOVER MIN_REPLICAS FAILBACK", seconds=45),
    *_bugs("feed", "", "LEASE_FROM_ANSWER", "LEASE_BEFORE_LAST_PAGE"),
    *_bugs("feed", "TRIM NOISY", "NO_PREDECESSOR_CHECK"),
    *_bugs("feed", "EMPTY", "GENERATION_COUNTS"),
    *_bugs("feed", "EMPTY RECEIPTS", "GENERATION_COUNTS", "RECEIPT_FROM_YOUNG_GENERATION"),
    *_bugs("feed", "RECEIPTS", "RECEIPT_FORGETS_SILENT"),
    *_bugs("feed", "FAILOVER MIN_REPLICAS", "NO_GENERATION", "CONFIRM_ONLY_READS"),
    *_bugs("feed", "FAILOVER MIN_REPLICAS RECEIPTS", "RECEIPT_ONLY_READS"),
    *_bugs("feed", "FAILOVER MIN_REPLICAS NOISY NO_REPLAY", "XREAD_MOVES_POSITION"),
    *_bugs("feed", "FAILOVER MIN_REPLICAS FAILBACK", "GENERATION_COUNTS"),
    *_bugs("feed", "FAILOVER", ""),  # two primaries at once, which a single server without WAIT cannot tell apart
    *_holds("sources", _RELAYS),
    *_holds("sources", f"{_RELAYS} MIN_REPLICAS RECEIPTS"),
    *_holds("sources", f"{_RELAYS} NO_RESUME"),
    # A feed that never resumes needs neither of these two guards:
    *_holds(
        "sources",
        f"{_RELAYS} NO_RESUME MIN_REPLICAS RECEIPTS BUG_STAMPS_OUTLIVE_GENERATION BUG_CAS_WITHOUT_GENERATION",
    ),
    *_holds("sources", "FAILOVER", seconds=45),
    *_bugs("sources", f"{_RELAYS} RECEIPTS", ""),  # the same for relays
    *_bugs("sources", f"{_RELAYS} MIN_REPLICAS RECEIPTS", "STAMPS_OUTLIVE_GENERATION", "CAS_WITHOUT_GENERATION"),
    *_bugs("sources", _RELAYS, "ENTRY_OF_NEWER_GENERATION", "LEASE_OUTLIVES_GENERATION", "LEASE_IGNORES_AGE"),
    *_bugs("sources", "FAILOVER", "NO_CURSOR_CAS"),
    *_holds("sources", _CAPTURE),
    *_holds("sources", f"{_CAPTURE} PUBLISH_ONCE"),
    *_holds("sources", f"{_CAPTURE} WATERMARK_BY_SNAPSHOT"),
    *_holds("sources", f"{_CAPTURE} PUBLISH_ONCE FAILOVER MIN_REPLICAS", seconds=45),
    *_bugs("sources", _CAPTURE, "WATERMARK_BEFORE_VISIBLE"),
    *_bugs("sources", f"{_CAPTURE} PUBLISH_ONCE FAILOVER MIN_REPLICAS", "TOKEN_IS_CURSOR", "NO_FLUSH_BELOW_SLOT"),
)
