"""What unloads leave for the next load of the same artifact: its bytes stay mapped, so that a start pays for the session alone.

Nothing here is held: the store may reclaim a kept blob, which the next `take` notices (the file is gone or another one) and `drop`
gives back. Lives on the loader thread; needs no lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from tessera.domain.ids import Digest
from tessera.runtime.blobs import ArtifactBlobs

MAX_ARTIFACTS = 64
MAX_FILES = 4096
"""Mapped files are limited per process (`vm.max_map_count`, 65,530 by default)."""


@dataclass(frozen=True, slots=True)
class _Kept:
    blobs: ArtifactBlobs
    since_s: float


class KeptArtifacts:
    """Bounded; the longest unused goes first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Digest, _Kept] = OrderedDict()

    def take(self, artifact: Digest) -> ArtifactBlobs | None:
        """The kept bytes of an artifact, now the caller's; None where nothing is kept or the store has other files by now."""
        kept = self._kept.pop(artifact, None)
        if kept is None:
            return None
        if not kept.blobs.is_current():
            kept.blobs.close()
            return None
        return kept.blobs

    def keep(self, artifact: Digest, blobs: ArtifactBlobs, now_s: float) -> None:
        """Takes over what an unloaded instance used; nothing may point into it but its own arrays."""
        if artifact in self._kept or blobs.files == 0:
            blobs.close()
            return
        self._kept[artifact] = _Kept(blobs, now_s)
        while len(self._kept) > MAX_ARTIFACTS or sum(kept.blobs.files for kept in self._kept.values()) > MAX_FILES:
            self._kept.popitem(last=False)[1].blobs.close()

    def drop(self) -> int:
        """Lets everything go. Returns how many artifacts went."""
        count = len(self._kept)
        while self._kept:
            self._kept.popitem()[1].blobs.close()
        return count

    def drop_old(self, before_s: float) -> float | None:
        """Lets go of what is kept since `before_s` or longer. Returns since when the oldest is that is left."""
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.since_s > before_s:
                return oldest.since_s
            self._kept.popitem(last=False)[1].blobs.close()
        return None

    def drop_mapping(self, digests: Collection[Digest]) -> int:
        """Lets go of what maps one of `digests`. Returns how many artifacts went."""
        touched = [artifact for artifact, kept in self._kept.items() if not kept.blobs.digests.isdisjoint(digests)]
        for artifact in touched:
            self._kept.pop(artifact).blobs.close()
        return len(touched)
