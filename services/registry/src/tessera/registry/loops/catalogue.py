"""Models, versions, variants and jobs in etcd. Every write is a transaction that compares what it was decided from.

`Unavailable` after a write means that it may have happened, so writers read again before they try again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from tessera.coord import keys
from tessera.coord.interface import Compare, Coordinator, Delete, ModRevisionIs, Put, Write
from tessera.coord.reading import read_record, read_records
from tessera.coord.records import decode, encode
from tessera.domain.errors import AlreadyExists, Conflict, FailedPrecondition, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import Digest, JobId, ModelName, TrustDomain, VariantKey, VersionKey, VersionNumber, parse_reference
from tessera.domain.records import AliasRecord, JobRecord, MetaCostRecord, ModelRecord, NodeRecord, VariantRecord, VersionRecord
from tessera.domain.tasks import check_task_signature
from tessera.registry.core.references import check_deletable

T = TypeVar("T")
_MODEL = b"model"
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Known:
    """A model with everything below it."""

    model: ModelRecord
    versions: tuple[VersionRecord, ...]
    variants: tuple[VariantRecord, ...]
    aliases: tuple[AliasRecord, ...]


@dataclass(frozen=True, slots=True)
class NewVersion:
    """What a finished import adds. `version` of the records is set by the commit. `lossy` None: a model that is there keeps its word."""

    model: ModelRecord
    version: VersionRecord
    variants: tuple[VariantRecord, ...]
    lossy: bool | None = None


class Catalogue:
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    # --- reading

    async def _record(self, key: str, record_type: type[T]) -> tuple[T | None, int]:
        return await read_record(self._coordinator, record_type, key)

    async def _records(self, prefix: str, record_type: type[T]) -> list[T]:
        return await read_records(self._coordinator, record_type, prefix)

    async def models(self, domain: TrustDomain) -> list[Known]:
        """Every model, in the order of names."""
        models = await self._records(keys.models(domain), ModelRecord)
        versions = await self.versions(domain)
        variants = await self.variants(domain)
        aliases = await self.aliases(domain)
        return [
            Known(
                model,
                tuple(sorted((v for v in versions if v.model == model.name), key=lambda v: v.version)),
                tuple(v for v in variants if v.key.model == model.name),
                tuple(a for a in aliases if a.model == model.name),
            )
            for model in models
        ]

    async def model(self, domain: TrustDomain, name: ModelName) -> Known:
        """The model of that name, or the one that an alias of that name stands for.

        Raises:
            ModelNotFound: neither a model nor an alias.
        """
        model, _ = await self._record(keys.model(domain, name), ModelRecord)
        if model is None:
            alias, _ = await self._record(keys.alias(domain, name), AliasRecord)
            if alias is None:
                raise ModelNotFound(name)
            model, _ = await self._record(keys.model(domain, alias.model), ModelRecord)
            if model is None:
                raise ModelNotFound(alias.model, f"alias {name!r} stands for it")
        versions = await self._records(f"{keys.versions(domain)}{model.name}/", VersionRecord)
        variants = await self._records(f"{keys.variants(domain)}{model.name}/", VariantRecord)
        aliases = tuple(alias for alias in await self.aliases(domain) if alias.model == model.name)
        return Known(model, tuple(sorted(versions, key=lambda v: v.version)), tuple(variants), aliases)

    async def domains(self) -> list[TrustDomain]:
        """Every trust domain that has records, served here or not."""
        return sorted({keys.domain_of(key) for key in await self._coordinator.list_keys(keys.DOMAINS)})

    async def versions(self, domain: TrustDomain) -> list[VersionRecord]:
        return await self._records(keys.versions(domain), VersionRecord)

    async def variants(self, domain: TrustDomain) -> list[VariantRecord]:
        return await self._records(keys.variants(domain), VariantRecord)

    async def aliases(self, domain: TrustDomain) -> list[AliasRecord]:
        return await self._records(keys.aliases(domain), AliasRecord)

    async def meta_costs(self, domain: TrustDomain) -> list[MetaCostRecord]:
        return await self._records(keys.meta_costs(domain), MetaCostRecord)

    async def nodes(self, domain: TrustDomain) -> list[NodeRecord]:
        """Those that are there: each record is under its agent's lease."""
        return await self._records(keys.nodes(domain), NodeRecord)

    async def variants_of(self, key: VersionKey) -> list[VariantRecord]:
        return await self._records(keys.variants_of(key), VariantRecord)

    async def version_of_source(self, domain: TrustDomain, source: Digest) -> VersionKey | None:
        """The version that was made of this source, if it is still there."""
        found = await self._coordinator.get(keys.source(domain, source))
        if found is None:
            return None
        reference = parse_reference(found.value.decode())
        assert reference.version is not None
        return VersionKey(domain, reference.name, reference.version)

    async def check_name_free_for_model(self, domain: TrustDomain, name: ModelName) -> None:
        """Raises: AlreadyExists when the name is an alias."""
        found = await self._coordinator.get(keys.name(domain, name))
        if found is not None and found.value != _MODEL:
            raise AlreadyExists(f"{name!r} is an alias: choose another name, or delete the alias")

    # --- jobs

    async def jobs(self, domain: TrustDomain) -> list[JobRecord]:
        return await self._records(keys.jobs(domain), JobRecord)

    async def create_job(self, job: JobRecord) -> None:
        key = keys.job(job.trust_domain, job.job_id)
        await self._coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(job))])

    async def update_job(self, job: JobRecord) -> None:
        """Raises: NotFound when the job was ended by somebody else."""
        key = keys.job(job.trust_domain, job.job_id)
        found = await self._coordinator.get(key)
        if found is None:
            raise NotFound(f"job {job.job_id!r} has ended")
        await self._coordinator.transact([ModRevisionIs(key, found.mod_revision)], [Put(key, encode(job))])

    async def end_job(self, domain: TrustDomain, job_id: JobId) -> None:
        key = keys.job(domain, job_id)
        found = await self._coordinator.get(key)
        if found is not None:
            await self._coordinator.transact([ModRevisionIs(key, found.mod_revision)], [Delete(key)])

    # --- versions

    async def commit(self, new: NewVersion, source: Digest, job: JobRecord, *, keep_job: bool) -> VersionKey:
        """Adds a version in one transaction: name claim, model, version, variants, source, job. The number is the next free one.

        Done again after a crash or a lost answer it finds the source and changes nothing.

        Raises:
            AlreadyExists: the name is an alias.
            Conflict: others kept writing.
            NotFound: the job is gone.
        """
        domain, name = new.model.trust_domain, new.model.name
        for _ in range(_ATTEMPTS):
            known = await self.version_of_source(domain, source)
            if known is not None:
                return known
            claim = await self._coordinator.get(keys.name(domain, name))
            if claim is not None and claim.value != _MODEL:
                raise AlreadyExists(f"{name!r} is an alias: choose another name, or delete the alias")
            model, model_revision = await self._record(keys.model(domain, name), ModelRecord)
            job_item = await self._coordinator.get(keys.job(domain, job.job_id))
            if job_item is None:
                raise NotFound(f"job {job.job_id!r} has ended")
            number = VersionNumber(1 if model is None else max(model.latest, model.highest) + 1)
            key = VersionKey(domain, name, number)
            writes = _version_writes(new, key, model)
            writes.append(Put(keys.source(domain, source), f"{name}@{number}".encode()))
            job_key = keys.job(domain, job.job_id)
            writes.append(Put(job_key, encode(replace(job, version=number))) if keep_job else Delete(job_key))
            compares: list[Compare] = [
                ModRevisionIs(keys.name(domain, name), claim.mod_revision if claim else 0),
                ModRevisionIs(keys.model(domain, name), model_revision),
                ModRevisionIs(keys.version(key), 0),
                ModRevisionIs(keys.source(domain, source), 0),
                ModRevisionIs(job_key, job_item.mod_revision),
            ]
            try:
                await self._coordinator.transact(compares, writes)
            except Conflict:
                continue
            return key
        raise Conflict(f"model {name!r} is written by others again and again; try again")

    async def check_task(self, new: NewVersion) -> None:
        """Raises: InvalidInput when the version's signature does not fit those of its task's other models."""
        domain, task = new.model.trust_domain, new.model.task
        if not task:
            return
        models = await self._records(keys.models(domain), ModelRecord)
        latest = {model.name: model.latest for model in models if model.task == task and model.name != new.model.name}
        others = {v.model: v.signature for v in await self.versions(domain) if latest.get(v.model) == v.version}
        check_task_signature(task, new.version.signature, others)

    async def set_said(self, domain: TrustDomain, name: ModelName, accuracy: float | None, lossy: bool | None) -> None:
        """What users say about a model, without a new version; None leaves what was said before."""
        for _ in range(_ATTEMPTS):
            model, revision = await self._record(keys.model(domain, name), ModelRecord)
            if model is None:
                raise ModelNotFound(name)
            said = replace(
                model,
                accuracy=model.accuracy if accuracy is None else accuracy,
                lossy=model.lossy if lossy is None else lossy,
            )
            if said == model:
                return
            key = keys.model(domain, name)
            try:
                await self._coordinator.transact([ModRevisionIs(key, revision)], [Put(key, encode(said))])
            except Conflict:
                continue
            return

    async def ensure(self, new: NewVersion) -> None:
        """Writes the records of a built-in model where they differ; they have version 1."""
        domain, name = new.model.trust_domain, new.model.name
        key = VersionKey(domain, name, VersionNumber(1))
        for write in _version_writes(new, key, None):
            assert isinstance(write, Put)
            found = await self._coordinator.get(write.key)
            if found is None or found.value != write.value:
                await self._coordinator.transact([ModRevisionIs(write.key, found.mod_revision if found else 0)], [write])

    async def variant(self, key: VariantKey) -> tuple[VariantRecord | None, int]:
        """The record and its revision (0: absent)."""
        return await self._record(keys.variant(key), VariantRecord)

    async def write_variant(self, record: VariantRecord, revision: int) -> None:
        """Writes a variant whose last revision was `revision` (0: new), as long as its version is there.

        Raises:
            Conflict: it was written or deleted meanwhile.
            NotFound: its version is gone.
        """
        version_key = keys.version(record.key.version_key)
        version = await self._coordinator.get(version_key)
        if version is None:
            raise NotFound(f"{record.key.version_key} was deleted")
        key = keys.variant(record.key)
        await self._coordinator.transact(
            [ModRevisionIs(key, revision), ModRevisionIs(version_key, version.mod_revision)], [Put(key, encode(record))]
        )

    async def delete(self, domain: TrustDomain, name: ModelName, version: VersionNumber | None) -> list[VariantRecord | VersionRecord]:
        """Removes the records of one version, or of all. Returns what was removed, for the blobs.

        Raises:
            ModelNotFound, VersionNotFound: nothing to delete.
            FailedPrecondition: an alias refers to it, or the name is an alias.
        """
        removed: list[VariantRecord | VersionRecord] = []
        while True:
            model, _ = await self._record(keys.model(domain, name), ModelRecord)
            if model is None:
                if removed:
                    return removed
                if await self._coordinator.get(keys.alias(domain, name)) is not None:
                    raise FailedPrecondition(f"{name!r} is an alias; delete the alias, or the model it stands for")
                raise ModelNotFound(name)
            numbers = [v.version for v in await self._records(f"{keys.versions(domain)}{name}/", VersionRecord)]
            if version is not None and version not in numbers:
                if removed:
                    return removed
                raise VersionNotFound(name, version, ", ".join(map(str, sorted(numbers))))
            if version is None:
                # checked for all before the first goes; then one transaction a version keeps them within etcd's limit
                check_deletable(name, set(numbers), set(), await self.aliases(domain))
            target = version if version is not None else min(numbers)
            try:
                removed += await self._delete_version(domain, name, target, whole=version is None)
            except Conflict:
                continue

    async def _delete_version(
        self, domain: TrustDomain, name: ModelName, version: VersionNumber, *, whole: bool
    ) -> list[VariantRecord | VersionRecord]:
        key = VersionKey(domain, name, version)
        model, model_revision = await self._record(keys.model(domain, name), ModelRecord)
        record, version_revision = await self._record(keys.version(key), VersionRecord)
        if model is None or record is None:
            raise Conflict(f"{key} was deleted by somebody else")
        numbers = {v.version for v in await self._records(f"{keys.versions(domain)}{name}/", VersionRecord)}
        remaining = numbers - {version}
        check_deletable(name, {version}, set() if whole else remaining, await self.aliases(domain))
        variants = (await self._coordinator.list(keys.variants_of(key))).items
        profiles = (await self._coordinator.list(keys.profiles_of(key))).items
        writes: list[Write] = [Delete(keys.version(key)), Delete(keys.source(domain, record.source_digest))]
        writes += [Delete(item.key) for item in (*variants, *profiles)]
        model_key = keys.model(domain, name)
        if remaining:
            highest = VersionNumber(max(model.latest, model.highest))
            writes.append(Put(model_key, encode(replace(model, latest=max(remaining), highest=highest))))
        else:
            writes += [Delete(model_key), Delete(keys.name(domain, name))]
        # a new alias writes the model record too, so that it cannot slip in between
        compares = [ModRevisionIs(model_key, model_revision), ModRevisionIs(keys.version(key), version_revision)]
        compares += [ModRevisionIs(item.key, item.mod_revision) for item in variants]
        await self._coordinator.transact(compares, writes)
        return [record, *(decode(VariantRecord, item.value) for item in variants)]


def _version_writes(new: NewVersion, key: VersionKey, model: ModelRecord | None) -> list[Write]:
    created = new.model.created_unix_s if model is None else model.created_unix_s
    accuracy = new.model.accuracy if new.model.accuracy is not None or model is None else model.accuracy
    kept = new.model.lossy if model is None else model.lossy
    lossy = kept if new.lossy is None else new.lossy
    record = replace(new.model, latest=key.version, highest=key.version, created_unix_s=created, accuracy=accuracy, lossy=lossy)
    writes: list[Write] = [
        Put(keys.name(key.trust_domain, key.model), _MODEL),
        Put(keys.model(key.trust_domain, key.model), encode(record)),
        Put(keys.version(key), encode(replace(new.version, version=key.version))),
    ]
    for variant in new.variants:
        named = replace(variant, key=VariantKey(key.trust_domain, key.model, key.version, variant.key.variant))
        writes.append(Put(keys.variant(named.key), encode(named)))
    return writes
