"""etcd's records for batch jobs: the jobs themselves, and what models take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tessera.coord import keys
from tessera.coord.interface import Compare, Coordinator, CreateRevisionIs, Delete, ModRevisionIs, Put
from tessera.coord.reading import read_named, read_record, read_records
from tessera.coord.records import encode
from tessera.domain.errors import Conflict, FailedPrecondition, InvalidInput, NotFound, VariantNotFound, VersionNotFound
from tessera.domain.ids import JobId, TrustDomain, VersionKey, checked_name, parse_reference
from tessera.domain.records import BatchRecord, ModelRecord, NodeRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.signature import Signature
from tessera.domain.tasks import TASK_PREFIX, common_signature
from tessera.policy.variant.answering import answering_version
from tessera.profiler.batch.ports import Change, Described

WRITE_TRIES = 10


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
        return await read_records(self._coordinator, BatchRecord, keys.batches(trust_domain))

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
        found, revision = await read_record(self._coordinator, BatchRecord, keys.batch(trust_domain, job_id))
        if found is None:
            raise NotFound(f"batch job {str(job_id)[:80]!r} is not known in trust domain {trust_domain!r}")
        return found, revision

    def _guards(self) -> list[Compare]:
        guard = self._guard()
        return [] if guard is None else [guard]


class EtcdModels:
    """Implements `Models`, read when it is asked: a job is rare and must see what was just registered."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def describe(self, trust_domain: TrustDomain, model: str) -> Described:
        resolved, variant = "", None
        if model.startswith(TASK_PREFIX):
            versions = await self._of_task(trust_domain, checked_name("task", model.removeprefix(TASK_PREFIX)))
        else:
            reference = parse_reference(model)
            stands_for, named = await read_named(self._coordinator, trust_domain, reference.name)
            if named and reference.version not in (None, named):
                raise VersionNotFound(reference.name, reference.version, f"only {named}: it is an alias of {stands_for.name}@{named}")
            number = reference.version or named
            versions = [VersionKey(trust_domain, stands_for.name, number)] if number else await self._answering(trust_domain, [stands_for])
            variant = reference.variant
            resolved = str(versions[0]) if variant is None else f"{versions[0]}/{variant}"
        signatures: list[Signature] = []
        batches: list[int] = []
        reasons: list[str] = []
        for key in versions:
            record, _ = await read_record(self._coordinator, VersionRecord, keys.version(key))
            if record is None:
                raise VersionNotFound(key.model, key.version)
            signatures.append(record.signature)
            found = await read_records(self._coordinator, VariantRecord, keys.variants_of(key))
            wanted = [each for each in found if variant in (None, each.key.variant)]
            if variant is not None and not wanted:
                raise VariantNotFound(f"{key}/{variant}", ", ".join(sorted(each.key.variant for each in found)))
            batches += [each.max_batch for each in wanted if each.state is VariantState.READY]
            reasons += [f"{each.key} is {each.state}" + (f" ({each.reason})" if each.reason else "") for each in wanted]
        if not batches:
            raise FailedPrecondition(f"{model} cannot serve: {'; '.join(reasons) or 'it has no variants'}")
        return Described(resolved, common_signature(signatures), min(batches))

    async def _of_task(self, trust_domain: TrustDomain, task: str) -> list[VersionKey]:
        """The answering version of each model; what they have in common was checked when they were registered."""
        models = [each for each in await read_records(self._coordinator, ModelRecord, keys.models(trust_domain)) if each.task == task]
        if not models:
            raise InvalidInput("model", TASK_PREFIX + task, "no model of this task is registered")
        return await self._answering(trust_domain, models)

    async def _answering(self, trust_domain: TrustDomain, models: Sequence[ModelRecord]) -> list[VersionKey]:
        """The version of each that its name alone stands for at the gateways now."""
        nodes = await read_records(self._coordinator, NodeRecord, keys.nodes(trust_domain))
        found: list[VersionKey] = []
        for model in models:
            versions = await read_records(self._coordinator, VersionRecord, f"{keys.versions(trust_domain)}{model.name}/")
            variants = await read_records(self._coordinator, VariantRecord, f"{keys.variants(trust_domain)}{model.name}/")
            number = answering_version(model, {each.version for each in versions}, variants, nodes)
            found.append(VersionKey(trust_domain, model.name, number))
        return found
