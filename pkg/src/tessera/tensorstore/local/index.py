"""The blobs that are visible, in memory: sizes and last uses. The disk is the truth; `check` compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.ids import Digest
from tessera.policy.reclaim.base import ReclaimCandidate
from tessera.tensorstore.interface import WorthOf


@dataclass(slots=True)
class Entry:
    size_bytes: int
    last_used_s: float


class BlobIndex:
    """Not thread-safe: the store's lock is held around it."""

    def __init__(self) -> None:
        self.entries: dict[Digest, Entry] = {}
        self.total_bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self.entries

    def add(self, digest: Digest, size_bytes: int, now_s: float) -> None:
        self.entries[digest] = Entry(size_bytes, now_s)
        self.total_bytes += size_bytes

    def remove(self, digest: Digest) -> int:
        size_bytes = self.entries.pop(digest).size_bytes
        self.total_bytes -= size_bytes
        return size_bytes

    def touch(self, digests: Iterable[Digest], now_s: float) -> None:
        for digest in digests:
            entry = self.entries.get(digest)
            if entry is not None:
                entry.last_used_s = now_s

    def size_of(self, digests: Iterable[Digest]) -> int:
        return sum(self.entries[digest].size_bytes for digest in digests if digest in self.entries)

    def candidates(self, held: Iterable[Digest], worth_of: WorthOf) -> list[ReclaimCandidate]:
        kept, found = set(held), []
        for digest, at in self.entries.items():
            if digest not in kept:
                worth = worth_of(digest, at.size_bytes)
                found.append(ReclaimCandidate(digest, at.size_bytes, at.last_used_s, worth.sharing_count, worth.refetch_ms))
        return found
