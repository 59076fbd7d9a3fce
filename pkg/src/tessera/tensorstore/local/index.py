"""The blobs that are visible, in memory: sizes and last uses. The disk is the truth; `check` compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.ids import Digest
from tessera.policy.fading import FadingCount
from tessera.policy.reclaim.base import ReclaimCandidate
from tessera.policy.reclaim.shared_cost import USES_APART_S, USES_HORIZON_S
from tessera.tensorstore.interface import WorthOf

MOST_PAST = 65536
"""Blobs that were given up and whose uses are remembered."""


@dataclass(slots=True)
class Entry:
    size_bytes: int
    last_used_s: float
    uses: FadingCount


class BlobIndex:
    """Not thread-safe: the store's lock is held around it."""

    def __init__(self) -> None:
        self.entries: dict[Digest, Entry] = {}
        self.total_bytes = 0
        self._past: dict[Digest, FadingCount] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self.entries

    def add(self, digest: Digest, size_bytes: int, now_s: float) -> None:
        uses = self._past.pop(digest, FadingCount(USES_HORIZON_S, now_s))
        self.entries[digest] = Entry(size_bytes, now_s, uses.again(now_s, USES_APART_S))
        self.total_bytes += size_bytes

    def remove(self, digest: Digest) -> int:
        entry = self.entries.pop(digest)
        self.total_bytes -= entry.size_bytes
        self._past[digest] = entry.uses
        while len(self._past) > MOST_PAST:
            del self._past[next(iter(self._past))]
        return entry.size_bytes

    def touch(self, digests: Iterable[Digest], now_s: float, used: bool) -> None:
        """`used`: somebody wants it; letting go of it is no use."""
        for digest in digests:
            entry = self.entries.get(digest)
            if entry is not None:
                entry.last_used_s = now_s
                if used:
                    entry.uses = entry.uses.again(now_s, USES_APART_S)

    def size_of(self, digests: Iterable[Digest]) -> int:
        return sum(self.entries[digest].size_bytes for digest in digests if digest in self.entries)

    def candidates(self, held: Iterable[Digest], worth_of: WorthOf, now_s: float) -> list[ReclaimCandidate]:
        kept, found = set(held), []
        for digest, at in self.entries.items():
            if digest not in kept:
                worth = worth_of(digest, at.size_bytes)
                uses = at.uses.faded(now_s)
                found.append(
                    ReclaimCandidate(
                        digest, at.size_bytes, at.last_used_s, worth.sharing_count, worth.refetch_ms, uses.count, uses.watched_s
                    )
                )
        return found
