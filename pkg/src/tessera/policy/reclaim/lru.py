"""Least recently used goes first, and nothing goes before room is needed."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate


class LruReclaimPolicy:
    name = "lru"
    expires = False

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        """Oldest use first; equal ages by digest, so that the same state always gives the same order."""
        return oldest_first(candidates)

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return []


def oldest_first(candidates: Sequence[ReclaimCandidate]) -> list[Digest]:
    return [found.digest for found in sorted(candidates, key=lambda found: (found.last_used_s, found.digest))]
