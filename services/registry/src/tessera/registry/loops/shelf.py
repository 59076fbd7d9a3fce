"""What is in the repository and who needs it: accounting before a version is added, sweeping after one is gone.

Storing and sweeping exclude each other (`exclusive`), because a blob that is stored is unreferenced until its version is committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from tessera import telemetry
from tessera.domain.artifact import Artifact
from tessera.domain.errors import DataCorrupted, NotFound, Unsupported
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
        """Digests of large tensors that other versions of this trust domain refer to (bytes are shared within a domain only), as far as
        their artifacts can be read."""
        versions = [v for v in await self._catalogue.versions(domain) if but is None or (v.model, v.version) != (but.model, but.version)]
        variants = [v for v in await self._catalogue.variants(domain) if but is None or v.key.version_key != but]
        found = await self._read(artifacts_of(versions, variants))
        return frozenset(ref.digest for artifact in found.values() for ref in artifact.large_tensors())

    async def discard(self, removed: Collection[VariantRecord | VersionRecord]) -> int:
        """Deletes the blobs that only these records referred to; returns the bytes freed. Nothing while `_needed` cannot say."""
        async with self.exclusive:
            versions = [record for record in removed if isinstance(record, VersionRecord)]
            variants = [record for record in removed if isinstance(record, VariantRecord)]
            artifacts = artifacts_of(versions, variants)
            # one that cannot be read goes itself; a sweep finds what it named
            candidates = artifacts | sets_of(versions) | _reachable(await self._read(artifacts))
            needed = await self._needed(*await self._records())
            return 0 if needed is None else await self._blobs.delete(sorted(candidates - needed))

    async def sweep(self) -> int:
        """Deletes what no record refers to: left by imports that did not end. At start, before any job runs. Nothing while `_needed` cannot
        say.

        Where no model but the built-in one has a version, which each start writes anew, the repository is left alone: the records may be
        the part that is lost.
        """
        async with self.exclusive:
            versions, variants = await self._records()
            needed = await self._needed(versions, variants)
            if needed is None:
                return 0
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

    async def _needed(self, versions: Collection[VersionRecord], variants: Collection[VariantRecord]) -> frozenset[Digest] | None:
        """What these records refer to; None while an artifact among it is missing or damaged.

        Nobody knows then which tensors it named: any blob may be one. The artifact is small, and comes back from a backup or another
        copy; a few gigabytes of tensors that were deleted meanwhile do not. It ends when the model is deleted, which the log names.
        """
        artifacts = artifacts_of(versions, variants)
        found = await self._read(artifacts)
        if lost := artifacts - found.keys():
            holding = {f"{v.model}@{v.version}" for v in versions if lost & artifacts_of([v], [])}
            holding |= {str(v.key.version_key) for v in variants if v.artifact in lost}
            _log.error("nothing is deleted while artifacts cannot be read: restore them, or delete the models", models=sorted(holding))
            return None
        return sets_of(versions) | _reachable(found)

    async def _read(self, digests: Collection[Digest]) -> dict[Digest, Artifact]:
        """Those artifacts that can be read. One that cannot holds up nobody else; its readers will say so."""
        found: dict[Digest, Artifact] = {}
        for digest in digests:
            try:
                found[digest] = await self._blobs.artifact(digest)
            except (NotFound, DataCorrupted, Unsupported) as error:
                _log.error("an artifact cannot be read", digest=digest, reason=str(error))
        return found


def _reachable(artifacts: Mapping[Digest, Artifact]) -> frozenset[Digest]:
    return reachable(artifacts, {digest: artifact.blobs() for digest, artifact in artifacts.items()})
