"""What is in the repository and who needs it: accounting before a version is added, sweeping after one is gone.

Storing and sweeping exclude each other (`exclusive`), because a blob that is stored is unreferenced until its version is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from tessera import telemetry
from tessera.domain.artifact import Artifact
from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest, TrustDomain, VersionKey
from tessera.domain.records import VariantRecord, VersionRecord
from tessera.registry.core.references import artifacts_of, reachable, sets_of
from tessera.registry.core.source import BUILT_IN
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.ports import Blobs

_log = telemetry.get_logger("tessera.registry.shelf")


class Shelf:
    def __init__(self, catalogue: Catalogue, blobs: Blobs) -> None:
        self.exclusive = asyncio.Lock()
        self._catalogue = catalogue
        self._blobs = blobs

    async def large_tensors_of_others(self, domain: TrustDomain, but: VersionKey | None) -> frozenset[Digest]:
        """Digests of large tensors that other versions of this trust domain refer to (bytes are shared within a domain only)."""
        versions = [v for v in await self._catalogue.versions(domain) if but is None or (v.model, v.version) != (but.model, but.version)]
        variants = [v for v in await self._catalogue.variants(domain) if but is None or v.key.version_key != but]
        found: set[Digest] = set()
        for digest in artifacts_of(versions, variants):
            found.update(ref.digest for ref in (await self._blobs.artifact(digest)).large_tensors())
        return frozenset(found)

    async def discard(self, removed: Collection[VariantRecord | VersionRecord]) -> int:
        """Deletes the blobs that only these records referred to; returns the bytes freed."""
        async with self.exclusive:
            versions = [record for record in removed if isinstance(record, VersionRecord)]
            variants = [record for record in removed if isinstance(record, VariantRecord)]
            candidates = await self._reachable(artifacts_of(versions, variants), missing_is_fine=True)
            needed = await self._needed(*await self._records())
            return await self._blobs.delete(sorted((candidates | sets_of(versions)) - needed))

    async def sweep(self) -> int:
        """Deletes what no record refers to: left by imports that did not end. At start, before any job runs.

        Where no model but the built-in one has a version, which each start writes anew, the repository is left alone: the records may be
        the part that is lost.
        """
        async with self.exclusive:
            versions, variants = await self._records()
            needed = await self._needed(versions, variants)
            unneeded = [digest for digest in await self._blobs.listing() if digest not in needed]
            if unneeded and all(version.model == BUILT_IN for version in versions):
                _log.warning("no model refers to any blob of the repository; nothing is swept", blobs=len(unneeded))
                return 0
            freed = await self._blobs.delete(unneeded)
        if unneeded:
            _log.info("swept blobs that no record refers to", blobs=len(unneeded), freed_bytes=freed)
        return freed

    async def _records(self) -> tuple[list[VersionRecord], list[VariantRecord]]:
        """Of every trust domain that has any: one that is not served now keeps its blobs, and all share the repository."""
        versions: list[VersionRecord] = []
        variants: list[VariantRecord] = []
        for domain in await self._catalogue.domains():
            versions += await self._catalogue.versions(domain)
            variants += await self._catalogue.variants(domain)
        return versions, variants

    async def _needed(self, versions: Collection[VersionRecord], variants: Collection[VariantRecord]) -> frozenset[Digest]:
        return sets_of(versions) | await self._reachable(artifacts_of(versions, variants), missing_is_fine=False)

    async def _reachable(self, artifacts: Collection[Digest], *, missing_is_fine: bool) -> frozenset[Digest]:
        found: dict[Digest, Artifact] = {}
        for digest in artifacts:
            try:
                found[digest] = await self._blobs.artifact(digest)
            except NotFound:
                # a record whose artifact is lost protects nothing; its readers will say so
                if not missing_is_fine:
                    _log.error("an artifact is missing from the repository", digest=digest)
        return reachable(found, {digest: artifact.blobs() for digest, artifact in found.items()})
