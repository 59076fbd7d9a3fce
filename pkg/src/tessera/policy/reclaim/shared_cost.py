"""What is cheapest to be without goes first: the expected cost of fetching a blob again, per byte that its going frees.

    value = refetch_ms / size_bytes * (SHAPE * sharing_count + uses) / (SCALE_S + watched_s)

The first factor is the cost of one miss per byte, as in GreedyDual-Size (Cao and Irani, USITS'97) and GreedyDual-Size-Frequency
(Cherkasova, HP Labs 1998; for keep-alive: Fuerst and Sharma, ASPLOS'21), whose priority is clock + frequency * cost / size. The second
stands for their frequency and their clock without any state between calls: it is the rate at which the blob will be asked for, expected
from what was seen of it. Each variant that needs it is asked for at a rate drawn from Gamma(SHAPE, SCALE_S); the rates of
`sharing_count` independent variants add to Gamma(SHAPE * sharing_count, SCALE_S); `uses` in `watched_s` seconds give the posterior mean
above. So sharing decides while little was seen, use decides later, and both age with time because what was seen fades.

A blob that no registered variant needs is worth nothing and goes first; equal values: the oldest, then the digest.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate

SHAPE = 0.5
"""Below 1: few variants are asked for often, most are rare (Shahrad et al., USENIX ATC'20, figure 5)."""

SCALE_S = 600.0
"""With `SHAPE` the rate of a variant of which nothing was seen: one use in 20 minutes. Chosen on generated traces (seeds 1 to 4), where
60 to 3600 s and a shape of 0 to 2 differ by 3 % of the bytes."""

USES_HORIZON_S = 4 * 3600.0
"""How far back whoever keeps the blobs counts uses: hours of a working day. A quarter of it changed the bytes fetched by 1 %."""

USES_APART_S = 10.0
"""A start touches a blob several times (fetched, held, mapped), and a burst of starts says no more than one does: within this time uses
are one."""

ASSUMED_BLOB_MS = 0.5
ASSUMED_MS_PER_BYTE = 2e-6
"""Where `refetch_ms` is not known: opening and publishing one file, and 500 MB/s from a local repository with hashing."""


class SharedCostReclaimPolicy:
    name = "shared-cost"
    expires = False

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        ranked = sorted([(value(found, now_s), found.last_used_s, found.digest) for found in candidates])
        return [digest for _, _, digest in ranked]

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return []


def value(candidate: ReclaimCandidate, now_s: float) -> float:
    """Milliseconds of fetching per second and byte that keeping the blob is expected to save."""
    if candidate.sharing_count <= 0:
        return 0.0
    refetch_ms = candidate.refetch_ms
    if refetch_ms is None:
        refetch_ms = ASSUMED_BLOB_MS + candidate.size_bytes * ASSUMED_MS_PER_BYTE
    watched_s = candidate.watched_s if candidate.watched_s is not None else max(0.0, now_s - candidate.last_used_s)
    rate = (SHAPE * candidate.sharing_count + candidate.uses) / (SCALE_S + watched_s)
    return refetch_ms / max(1, candidate.size_bytes) * rate
