"""Which blobs go so that something fits, and what to say when nothing helps. Decides in values; the store acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tessera.domain.errors import ResourceExhausted
from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimPolicy
from tessera.tensorstore.local.index import BlobIndex


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes by what they are; `total` is what counts against the budget."""

    blobs: int
    incoming: int
    quarantined: int
    unlinked: int

    @property
    def total(self) -> int:
        return self.blobs + self.incoming + self.quarantined + self.unlinked


def plan_reclaim(index: BlobIndex, held: set[Digest], policy: ReclaimPolicy, excess_bytes: int, now_s: float) -> list[Digest] | None:
    """The first blobs of the policy's order that together free `excess_bytes`, or None when all of them do not.

    A digest that the policy makes up, names twice or that is held is passed over: safety does not depend on the policy.
    """
    candidates = {found.digest: found.size_bytes for found in index.candidates(held)}
    chosen: list[Digest] = []
    for digest in policy.order(index.candidates(held), now_s):
        if excess_bytes <= 0:
            break
        size_bytes = candidates.pop(digest, None)
        if size_bytes is not None:
            chosen.append(digest)
            excess_bytes -= size_bytes
    return chosen if excess_bytes <= 0 else None


def exhausted(
    root: Path, needed: int, budget: int, usage: Usage, index: BlobIndex, holders: Mapping[str, frozenset[Digest]]
) -> ResourceExhausted:
    """Says what was needed, what there is, and who holds it."""
    pinned = index.size_of(set().union(*holders.values()))
    by_holder = sorted(((index.size_of(held), holder) for holder, held in holders.items()), reverse=True)
    who = ", ".join(f"{holder}: {size}" for size, holder in by_holder[:8])
    more = f", and {len(by_holder) - 8} more" if len(by_holder) > 8 else ""
    return ResourceExhausted(
        f"tensor store {root}: {needed} bytes needed, budget {budget}, used {usage.total} "
        f"(arriving {usage.incoming}, unlinked but still mapped {usage.unlinked}), "
        f"pinned {pinned}{f' by {who}{more}' if who else ''}"
    )
