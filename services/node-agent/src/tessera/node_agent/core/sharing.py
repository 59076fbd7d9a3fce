"""How many registered variants need a blob, and what it takes to bring it in again: what a reclaim policy may look at.

Counted along as variants come and go, since there are thousands; `recount` says the same from nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tessera.domain.ids import Digest
from tessera.tensorstore.interface import Worth

REFETCH_BLOB_MS = 2.0
REFETCH_MS_PER_BYTE = 1 / 500_000
"""Opening one object, and 500 MB/s with hashing: what a repository on a local disk gives. From a remote one, or from a peer, both are
larger or smaller for all blobs alike, which changes no order between them."""


def refetch_ms(size_bytes: int) -> float:
    """What bringing a blob in again would take."""
    return REFETCH_BLOB_MS + size_bytes * REFETCH_MS_PER_BYTE


class SharingLedger:
    """Which variant needs which artifact, and which artifact needs which blobs. `worth_of` may be called from any thread."""

    def __init__(self) -> None:
        self._artifact_of: dict[str, Digest] = {}
        self._blobs_of: dict[Digest, tuple[Digest, ...]] = {}
        self._variants_of: Counter[Digest] = Counter()
        self._counts: Counter[Digest] = Counter()
        self._unknown: set[Digest] = set()
        self._names: dict[Digest, Digest] = {}
        """One object per digest, however many artifacts name it."""
        self.complete = False
        """Whether every registered variant has been seen: before that nothing can be said to be needed by none."""

    def set_variant(self, key: str, artifact: Digest | None) -> None:
        """A variant is registered with this artifact, or (None) no longer."""
        before = self._artifact_of.pop(key, None)
        if artifact is not None:
            self._artifact_of[key] = artifact
        if before == artifact:
            return
        if before is not None:
            self._count(before, -1)
        if artifact is not None:
            self._count(artifact, +1)

    def learn(self, artifact: Digest, blobs: Iterable[Digest]) -> None:
        """What an artifact needs beside itself. Artifacts never change: said once."""
        if artifact not in self._unknown:
            return
        self._unknown.discard(artifact)
        variants = self._variants_of[artifact]
        needs = self._blobs_of[artifact] = tuple(self._names.setdefault(digest, digest) for digest in dict.fromkeys((artifact, *blobs)))
        for digest in needs:
            self._counts[digest] += variants

    def unknown(self) -> list[Digest]:
        """Artifacts of registered variants whose content is not known yet."""
        return sorted(self._unknown)

    def count(self, digest: Digest) -> int:
        """The sharing count; at least 1 as long as not everything is known."""
        found = self._counts.get(digest, 0)
        return found if self.complete and not self._unknown else max(1, found)

    def worth_of(self, digest: Digest, size_bytes: int) -> Worth:
        return Worth(self.count(digest), refetch_ms(size_bytes))

    def recount(self) -> dict[Digest, int]:
        """Every sharing count above zero, from nothing."""
        counts: Counter[Digest] = Counter()
        for artifact in self._artifact_of.values():
            counts.update(self._blobs_of.get(artifact, ()))
        return dict(counts)

    def counts(self) -> dict[Digest, int]:
        """Every sharing count above zero, as counted along."""
        return dict(self._counts)

    def _count(self, artifact: Digest, by: int) -> None:
        self._variants_of[artifact] += by
        if artifact not in self._blobs_of:
            self._unknown.add(artifact)
        needs = self._blobs_of.get(artifact, ())
        for digest in needs:
            self._counts[digest] += by
            if not self._counts[digest]:
                del self._counts[digest]
                self._names.pop(digest, None)
        if not self._variants_of[artifact]:
            del self._variants_of[artifact]
            self._blobs_of.pop(artifact, None)
            self._unknown.discard(artifact)
