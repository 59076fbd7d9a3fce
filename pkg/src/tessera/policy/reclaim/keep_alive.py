"""The published policy of TETRIS: what nobody has held for a window goes, whether room is needed or not.

Li et al., "Tetris: Memory-efficient Serverless Inference through Tensor Sharing", USENIX ATC'22; the published code deletes a tensor
that no running container refers to after one minute. When room is needed sooner the oldest goes first; ties end in the digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate
from tessera.policy.reclaim.lru import oldest_first

DEFAULT_KEEP_ALIVE_S = 60.0
"""As published."""


@dataclass(frozen=True, slots=True)
class KeepAliveReclaimPolicy:
    """A blob unused for exactly the window still stays; a window of 0 keeps nothing."""

    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S

    @property
    def name(self) -> str:
        return "keep-alive"

    @property
    def expires(self) -> bool:
        return True

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return oldest_first(candidates)

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return oldest_first([found for found in candidates if now_s - found.last_used_s > self.keep_alive_s])
