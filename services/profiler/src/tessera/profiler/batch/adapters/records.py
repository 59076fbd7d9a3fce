"""etcd's records for batch jobs: the jobs themselves, and what models take."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tessera.coord import keys
from tessera.coord.interface import Compare, Coordinator, CreateRevisionIs, Delete, ModRevisionIs, Put
from tessera.coord.records import decode, encode
from tessera.domain.errors import Conflict, FailedPrecondition, InvalidInput, ModelNotFound, NotFound, VariantNotFound, VersionNotFound
from tessera.domain.ids import JobId, ModelName, TrustDomain, VersionKey, VersionNumber, checked_name, parse_reference
from tessera.domain.records import AliasRecord, BatchRecord, ModelRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.signature import Signature
from tessera.domain.tasks import TASK_PREFIX, common_signature
from tessera.profiler.batch.ports import Change

WRITE_TRIES = 10

T = TypeVar("T")


class EtcdBatches:
    """Implements `Batches`.

    Args:
        guard: what proves that the writer was elected; None where nobody was (queueing and cancelling take no election).
    """

    def __init__(self, coordinator: Coordinator, guard: Callable[[], CreateRevisionIs | None] = lambda: None) -> None:
        self._coordinator = coordinator
        self._guard = guard

    async def get(self, trust_domain: TrustDomain, job_id: JobId) -> BatchRecord:
        return (await self._read(trust_domain, job_id))[0]

    async def all_of(self, trust_domain: TrustDomain) -> list[BatchRecord]:
        listing = await self._coordinator.list(keys.batches(trust_domain))
        return [decode(BatchRecord, item.value) for item in listing.items]

    async def create(self, job: BatchRecord) -> None:
        key = keys.batch(job.trust_domain, job.job_id)
        await self._coordinator.transact([ModRevisionIs(key, 0)], [Put(key, encode(job))])

    async def change(self, trust_domain: TrustDomain, job_id: JobId, change: Change) -> BatchRecord:
        key = keys.batch(trust_domain, job_id)
        for attempt in range(WRITE_TRIES):
            job, revision = await self._read(trust_domain, job_id)
            changed = change(job)
            if changed is None or changed == job:
                return job
            try:
                await self._coordinator.transact([ModRevisionIs(key, revision), *self._guards()], [Put(key, encode(changed))])
                return changed
            except Conflict:
                if attempt == WRITE_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def delete(self, job: BatchRecord) -> None:
        key = keys.batch(job.trust_domain, job.job_id)
        try:
            found, revision = await self._read(job.trust_domain, job.job_id)
            if found == job:
                await self._coordinator.transact([ModRevisionIs(key, revision), *self._guards()], [Delete(key)])
        except (NotFound, Conflict):
            return

    async def _read(self, trust_domain: TrustDomain, job_id: JobId) -> tuple[BatchRecord, int]:
        found = await self._coordinator.get(keys.batch(trust_domain, job_id))
        if found is None:
            raise NotFound(f"batch job {str(job_id)[:80]!r} is not known in trust domain {trust_domain!r}")
        return decode(BatchRecord, found.value), found.mod_revision

    def _guards(self) -> list[Compare]:
        guard = self._guard()
        return [] if guard is None else [guard]


class EtcdModels:
    """Implements `Models`, read when it is asked: a job is rare and must see what was just registered."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def describe(self, trust_domain: TrustDomain, model: str) -> tuple[Signature, int]:
        variant = None
        if model.startswith(TASK_PREFIX):
            versions = await self._of_task(trust_domain, checked_name("task", model.removeprefix(TASK_PREFIX)))
        else:
            reference = parse_reference(model)
            versions = [await self._resolve(trust_domain, reference.name, reference.version)]
            variant = reference.variant
        signatures: list[Signature] = []
        batches: list[int] = []
        reasons: list[str] = []
        for key in versions:
            record = await self._get(VersionRecord, keys.version(key))
            if record is None:
                raise VersionNotFound(key.model, key.version)
            signatures.append(record.signature)
            found = await self._list(VariantRecord, keys.variants_of(key))
            wanted = [each for each in found if variant in (None, each.key.variant)]
            if variant is not None and not wanted:
                raise VariantNotFound(f"{key}/{variant}", ", ".join(sorted(each.key.variant for each in found)))
            batches += [each.max_batch for each in wanted if each.state is VariantState.READY]
            reasons += [f"{each.key} is {each.state}" + (f" ({each.reason})" if each.reason else "") for each in wanted]
        if not batches:
            raise FailedPrecondition(f"{model} cannot serve: {'; '.join(reasons) or 'it has no variants'}")
        return common_signature(signatures), min(batches)

    async def _resolve(self, trust_domain: TrustDomain, name: ModelName, version: VersionNumber | None) -> VersionKey:
        alias = await self._get(AliasRecord, keys.alias(trust_domain, name))
        if alias is not None:
            name, version = alias.model, version or alias.version
        found = await self._get(ModelRecord, keys.model(trust_domain, name))
        if found is None:
            raise ModelNotFound(name)
        return VersionKey(trust_domain, name, version or found.latest)

    async def _of_task(self, trust_domain: TrustDomain, task: str) -> list[VersionKey]:
        """The newest version of each model; what they have in common was checked when they were registered."""
        models = [each for each in await self._list(ModelRecord, keys.models(trust_domain)) if each.task == task]
        if not models:
            raise InvalidInput("model", TASK_PREFIX + task, "no model of this task is registered")
        return [VersionKey(trust_domain, each.name, each.latest) for each in models]

    async def _get(self, record_type: type[T], key: str) -> T | None:
        found = await self._coordinator.get(key)
        return None if found is None else decode(record_type, found.value)

    async def _list(self, record_type: type[T], prefix: str) -> list[T]:
        listing = await self._coordinator.list(prefix)
        return [decode(record_type, item.value) for item in listing.items]
