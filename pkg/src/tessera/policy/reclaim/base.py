"""What a reclaim policy is. It proposes an order; the store decides how many go and never gives up a blob that is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import Digest


@dataclass(frozen=True, slots=True)
class ReclaimCandidate:
    """A blob that nobody holds. `last_used_s` is the monotonic time of its last ingest, pin or unpin."""

    digest: Digest
    size_bytes: int
    last_used_s: float


class ReclaimPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        """The digests that may go, first to go first. What is left out stays."""
        ...
