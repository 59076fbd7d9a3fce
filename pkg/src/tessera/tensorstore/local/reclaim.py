"""Which blobs go so that something fits, and what to say when nothing helps. Decides in values; the store acts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.domain.errors import ResourceExhausted
from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate
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


def vetted(proposed: Iterable[Digest], candidates: Sequence[ReclaimCandidate]) -> dict[Digest, int]:
    """What a policy proposes, with sizes in bytes, in its order. A digest that it makes up, names twice or that is held (and so is no
    candidate) is passed over: safety does not depend on the policy."""
    sizes = {found.digest: found.size_bytes for found in candidates}
    return {digest: sizes[digest] for digest in proposed if digest in sizes}


def first_of(proposed: Mapping[Digest, int], excess_bytes: int) -> tuple[list[Digest], int]:
    """The first ones that together free `excess_bytes`, and how many bytes are missing when all of them do not."""
    chosen: list[Digest] = []
    for digest, size_bytes in proposed.items():
        if excess_bytes <= 0:
            break
        chosen.append(digest)
        excess_bytes -= size_bytes
    return chosen, max(0, excess_bytes)


def exhausted(
    root: Path, needed: int, budget: int, usage: Usage, index: BlobIndex, holders: Mapping[str, frozenset[Digest]]
) -> ResourceExhausted:
    """Says what was needed, what there is, and who holds it."""
    pinned = index.size_of(set().union(*holders.values()))
    by_holder = sorted(((index.size_of(held), holder) for holder, held in holders.items()), reverse=True)
    beyond = f", which is {needed - budget} more than all of it" if needed > budget else ""
    who = ", ".join(f"{holder}: {size}" for size, holder in by_holder[:8])
    more = f", and {len(by_holder) - 8} more" if len(by_holder) > 8 else ""
    return ResourceExhausted(
        f"tensor store {root}: {needed} bytes needed, budget {budget}{beyond}, used {usage.total} "
        f"(arriving {usage.incoming}, unlinked but still mapped {usage.unlinked}), "
        f"pinned {pinned}{f' by {who}{more}' if who else ''}"
    )
