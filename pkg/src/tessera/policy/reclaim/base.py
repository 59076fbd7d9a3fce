"""What a reclaim policy is. It proposes; the store decides how many go and never gives up a blob that is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import Digest


@dataclass(frozen=True, slots=True)
class ReclaimCandidate:
    """A blob that nobody holds.

    `last_used_s` is the monotonic time of its last ingest, pin or unpin. `sharing_count` is how many registered variants need it: 0 means
    that none does any more. `refetch_ms` is what bringing it back would take, None where nobody knows. `uses` counts how often it was
    used in the last `watched_s` seconds (`tessera.policy.fading`), also before it was given up the last time; None: since its last use.
    """

    digest: Digest
    size_bytes: int
    last_used_s: float
    sharing_count: int = 1
    refetch_ms: float | None = None
    uses: float = 1.0
    watched_s: float | None = None


class ReclaimPolicy(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def expires(self) -> bool:
        """Whether anything ever goes unasked; False: `expired` is always empty, and nobody need collect candidates to hear that."""
        ...

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        """When room is needed: the digests that may go, first to go first. What is left out stays."""
        ...

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        """The digests that go though no room is needed, first to go first."""
        ...
