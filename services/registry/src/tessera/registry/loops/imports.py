"""Registrations as jobs: recognised, recorded, imported, stored, committed. Killed anywhere they are done again or leave nothing.

Order and what a kill leaves: job record (done again at start) - sandbox (its folder is removed at start) - blobs (unreferenced, swept
at start) - one transaction with version, variants and the job's next step. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tessera import failpoint, telemetry
from tessera.clock import Clock
from tessera.domain.artifact import Blob
from tessera.domain.errors import DataCorrupted, FailedPrecondition, Internal, TesseraError, Unavailable
from tessera.domain.ids import Digest, JobId, TrustDomain, VariantName, VersionKey, VersionNumber
from tessera.domain.records import Evaluation, JobRecord, ModelRecord, VariantRecord, VariantState, VersionRecord
from tessera.program import Tasks
from tessera.registry.core.jobs import JobStep, payload_of, registration_of, step
from tessera.registry.core.operators import Operators, count
from tessera.registry.core.recipes import ATEN, BASE, ORT, recipe_named, wanted
from tessera.registry.core.source import Registration, source_digest
from tessera.registry.core.variants import OPEN
from tessera.registry.loops.accounting import placeholder, ready
from tessera.registry.loops.catalogue import Catalogue, NewVersion
from tessera.registry.loops.joblog import JobLog, JobProgress
from tessera.registry.loops.shelf import Shelf
from tessera.registry.loops.variants import VariantMaker
from tessera.registry.ports import Blobs, Imported, Importer, Sets, Uploads
from tessera.tensorstore.artifact import digest_of

_IMPORT_SHARE = 0.8
"""The part of a job's progress that the import is; the rest is storing and variants."""
_FIRST = VersionNumber(0)
_RETRY_S = 2.0
_log = telemetry.get_logger("tessera.registry.imports")


@dataclass(frozen=True, slots=True)
class Limits:
    attempts: int
    at_once: int


class Imports:
    def __init__(
        self,
        *,
        clock: Clock,
        tasks: Tasks,
        catalogue: Catalogue,
        uploads: Uploads,
        importer: Importer,
        blobs: Blobs,
        shelf: Shelf,
        variants: VariantMaker,
        log: JobLog,
        work: Path,
        limits: Limits,
        draw: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._catalogue = catalogue
        self._uploads = uploads
        self._importer = importer
        self._blobs = blobs
        self._shelf = shelf
        self._variants = variants
        self._log = log
        self._work = work
        self._limits = limits
        self._draw = draw
        self._turn = asyncio.Semaphore(limits.at_once)
        self._starting = asyncio.Lock()
        self._running: dict[tuple[TrustDomain, Digest], tuple[JobId, tuple[Digest, ...]]] = {}

    async def missing(self, registration: Registration) -> list[Digest]:
        """Files that have to be uploaded before it can be registered: none where its source is known already, however long ago.

        Raises:
            AlreadyExists: the name is an alias; said before anything is sent.
        """
        domain = registration.trust_domain
        if await self._catalogue.version_of_source(domain, source_digest(registration, digest_of)) is not None:
            return []
        await self._catalogue.check_name_free_for_model(domain, registration.name)
        self._uploads.expect(domain, registration.uploads)
        return self._uploads.missing(domain, registration.uploads)

    async def register(self, registration: Registration, *, wait: bool) -> AsyncGenerator[JobProgress, None]:
        """Progress until the version is durable; with `wait` until its variants are made or have failed.

        The job goes on when nobody follows. Raises, after the event that says so: whatever the job failed with.
        """
        digest = source_digest(registration, digest_of)
        async with self._starting:
            known = await self._catalogue.version_of_source(registration.trust_domain, digest)
            running = self._running.get((registration.trust_domain, digest))
            if known is None:
                job_id = running[0] if running is not None else await self._begin(registration, digest)
        if known is not None:
            async for progress in self._unchanged(known, registration, wait=wait):
                yield progress
            return
        async for progress in self._log.follow(job_id):
            yield progress
            if progress.error is not None:
                raise progress.error
            if progress.step == "registered" and not wait:
                return

    async def _unchanged(self, known: VersionKey, registration: Registration, *, wait: bool) -> AsyncGenerator[JobProgress, None]:
        _log.info("unchanged source", model=str(known))
        await self._catalogue.set_said(known.trust_domain, known.model, registration.accuracy, registration.lossy)
        await self._variants.try_again(known)
        nothing = JobId("")
        yield JobProgress(nothing, 0, "registered", f"{known}: the same content was registered before", 1.0, known, unchanged=True)
        if wait:
            job_id = await self._job_of(known)
            if job_id is not None:
                async for progress in self._log.follow(job_id):
                    yield replace(progress, unchanged=progress.version is not None)
                return
        yield JobProgress(nothing, 0, "done", "nothing to do", 1.0, known, unchanged=True, last=True)

    async def _job_of(self, known: VersionKey) -> JobId | None:
        """The job that ends when the version's base variants are made; None: there is nothing to wait for.

        Where failed ones are tried again the job that once made them has ended. One in memory alone takes its place: nothing of it has to
        survive the registry, whose next start goes on from the variants' own records.
        """
        variants = await self._catalogue.variants_of(known)
        job_id = self._variants.job_of(known)
        waited = [v.key for v in variants if v.key.variant in BASE and v.state in OPEN]
        if job_id is not None or not waited:
            return job_id
        job_id = JobId(f"variants-{known.model}-{known.version}-{self._draw()}")
        self._log.begin(job_id, 1)
        self._variants.follow(known, job_id)
        for key in waited:  # what was said before anybody followed
            if words := self._variants.progress(key):
                self._log.say(job_id, JobProgress(job_id, 0, "baking", words, 0.9))
        self._variants.wake()
        return job_id

    async def _begin(self, registration: Registration, digest: Digest) -> JobId:
        """Checks what can be checked at once, makes the record, starts the work."""
        await self._catalogue.check_name_free_for_model(registration.trust_domain, registration.name)
        missing = set(self._uploads.missing(registration.trust_domain, registration.uploads))
        if missing:
            first = next(file for file in registration.uploads if file.digest in missing)
            raise FailedPrecondition(
                f"{len(missing)} of {len(registration.uploads)} files were not uploaded, the first is {first.path}: "
                f"send them with BeginUpload and UploadFiles"
            )
        job_id = JobId(f"import-{digest[:12]}-{self._draw()}")
        job = JobRecord(
            job_id, registration.trust_domain, registration.name, _FIRST, JobStep.IMPORTING.value, payload_of(registration, digest)
        )
        await self._catalogue.create_job(job)
        self._start(job, registration, digest)
        return job_id

    async def resume(self) -> None:
        """At start: removes the folders of dead imports and starts their jobs again; jobs at their variants go to the variant maker."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True, mode=0o700)
        for domain in self._variants.domains:
            for job in await self._catalogue.jobs(domain):
                registration, digest = registration_of(domain, job.model, job.payload)
                registration = replace(registration, attempt=registration.attempt + 1)
                job = replace(job, payload=payload_of(registration, digest))
                if job.step == JobStep.VARIANTS.value:
                    self._log.begin(job.job_id, registration.attempt)
                    await self._catalogue.update_job(job)
                    self._variants.follow(VersionKey(domain, job.model, job.version), job.job_id)
                    continue
                _log.info("resuming an import", job=job.job_id, model=job.model, attempt=registration.attempt)
                await self._catalogue.update_job(replace(job, step=JobStep.IMPORTING.value))
                self._start(replace(job, step=JobStep.IMPORTING.value), registration, digest)

    def needed_files(self) -> list[tuple[TrustDomain, Digest]]:
        """What may not be swept from the uploads."""
        return [(domain, file) for (domain, _), (_, files) in self._running.items() for file in files]

    def _start(self, job: JobRecord, registration: Registration, digest: Digest) -> None:
        self._log.begin(job.job_id, registration.attempt)
        self._running[job.trust_domain, digest] = (job.job_id, tuple(file.digest for file in registration.uploads))
        self._tasks.start(job.job_id, self._run(job, registration, digest))

    async def _run(self, job: JobRecord, registration: Registration, digest: Digest) -> None:
        folder = self._work / job.job_id
        failure: TesseraError | None = None
        try:
            if registration.attempt > self._limits.attempts:
                raise Internal(f"the registry died {self._limits.attempts} times while it imported this model; it is not tried again")
            if self._turn.locked():
                self._say(job, "importing", "waiting for another import", 0.0)
            async with self._turn:
                with telemetry.span("tessera.registry.import", model=registration.name, job=job.job_id):
                    await self._import(job, registration, digest, folder)
        except TesseraError as error:
            failure = error
        except OSError as error:
            failure = Internal(f"the import cannot be written: {error.strerror or error}")
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        if failure is not None:
            await self._fail(job, failure)
        self._running.pop((job.trust_domain, digest), None)

    async def _import(self, job: JobRecord, registration: Registration, digest: Digest, folder: Path) -> None:
        begun_s = self._clock.monotonic_s()
        source = folder / "source"
        folder.mkdir(parents=True)
        await asyncio.to_thread(self._uploads.lay_out, registration.trust_domain, registration.files, source)
        source.mkdir(exist_ok=True)  # a builder without weights has no files
        sets = await asyncio.to_thread(self._lay_out_sets, registration, folder / "sets")
        await failpoint.async_hit("registry.before_import")

        def progress(message: str, fraction: float) -> None:
            self._say(job, "importing", message, fraction * _IMPORT_SHARE)

        imported = await self._importer.run(folder, source, registration.builder, sets, progress)
        imported_s = self._clock.monotonic_s()
        step(JobStep(job.step), JobStep.STORING)
        self._say(job, "storing", f"{len(imported.blobs)} blobs", _IMPORT_SHARE)
        job = replace(job, step=JobStep.STORING.value)
        key = await self._patiently(job, lambda: self._store(job, registration, digest, imported, folder / "sets"))
        _log.info(
            "registered",
            model=str(key),
            job=job.job_id,
            import_s=round(imported_s - begun_s, 3),
            store_s=round(self._clock.monotonic_s() - imported_s, 3),
            blobs=len(imported.blobs),
            onnx=imported.onnx is not None,
        )
        notes = "".join(f"; {note}" for note in imported.notes)
        if imported.onnx is None:
            self._say(job, "registered", f"{key}; {imported.onnx_reason}{notes}", 0.9, key)
            self._say(job, "done", f"{key}: {ATEN} is ready", 1.0, key, last=True)
            return
        self._variants.follow(key, job.job_id)
        self._say(job, "registered", f"{key}{notes}", 0.9, key)
        self._variants.wake()

    async def _patiently(self, job: JobRecord, work: Callable[[], Awaitable[VersionKey]]) -> VersionKey:
        """A finished import is worth waiting for etcd."""
        while True:
            try:
                return await work()
            except Unavailable as error:
                self._say(job, "storing", f"waiting: {error}", _IMPORT_SHARE)
                await self._clock.sleep(_RETRY_S)

    def _lay_out_sets(self, registration: Registration, folder: Path) -> Sets:
        """Under their digests, as they are stored."""
        demands = registration.demands
        named = {file.digest: replace(file, path=file.digest) for file in demands.sets}
        self._uploads.lay_out(registration.trust_domain, list(named.values()), folder)
        evaluation, calibration = (None if file is None else folder / file.digest for file in (demands.evaluation, demands.calibration))
        return Sets(evaluation, demands.metric, calibration)

    async def _store(self, job: JobRecord, registration: Registration, digest: Digest, imported: Imported, sets_folder: Path) -> VersionKey:
        async with self._shelf.exclusive:
            known = await self._catalogue.version_of_source(job.trust_domain, digest)
            if known is not None:
                return known  # committed, and the answer was lost: the job's record is at its next step, or gone
            await self._catalogue.update_job(job)
            await self._blobs.store(imported.blobs, imported.folder)
            await self._blobs.store([Blob(file.digest, file.size_bytes) for file in registration.demands.sets], sets_folder)
            await failpoint.async_hit("registry.before_commit")
            new = await self._records(registration, digest, imported)
            await self._catalogue.check_task(new)
            after = replace(job, step=step(JobStep(job.step), JobStep.VARIANTS).value)
            key = await self._catalogue.commit(new, digest, after, keep_job=imported.onnx is not None)
        await failpoint.async_hit("registry.after_commit")
        return key

    async def _records(self, registration: Registration, digest: Digest, imported: Imported) -> NewVersion:
        now_s = self._clock.wall_s()
        domain, name = registration.trust_domain, registration.name
        main = imported.aten or imported.onnx
        if main is None:
            raise Internal("the import made nothing that could be served")
        artifact = await self._blobs.artifact(main)
        model = ModelRecord(name, domain, registration.task, registration.dataset, registration.accuracy, _FIRST, now_s)
        demands = registration.demands
        version = VersionRecord(name, domain, _FIRST, artifact.signature, imported.source_kind, digest, now_s)
        version = replace(version, allowance=demands.allow_loss, recipes=demands.recipes)
        if demands.evaluation is not None:
            file = demands.evaluation
            version = replace(version, evaluation=Evaluation(file.digest, file.size_bytes, demands.metric))
        if demands.calibration is not None:
            version = replace(version, calibration=Blob(demands.calibration.digest, demands.calibration.size_bytes))
        variants: list[VariantRecord] = []
        if imported.aten is not None:
            others = await self._shelf.large_tensors_of_others(domain, None)
            aten = ready(placeholder(domain, name, ATEN, "aten", artifact.max_batch), imported.aten, artifact, others)
            variants.append(replace(aten, agreement=imported.agreement))
        ort = placeholder(domain, name, ORT, "ort", artifact.max_batch)
        if imported.onnx is None:
            failed = replace(ort, state=VariantState.FAILED, reason=imported.onnx_reason)
            return NewVersion(model, version, (*variants, failed), registration.lossy)
        operators = await self._operators(imported.onnx)
        version = replace(
            version,
            exports=(imported.onnx,),
            convolutions=operators.convolutions,
            matrix_products=operators.matrix_products,
        )
        further = [
            placeholder(domain, name, VariantName(made.name), made.backend, artifact.max_batch, made.precision, made.flavour)
            for made in map(recipe_named, wanted(version, self._variants.recipes))
        ]
        return NewVersion(model, version, (*variants, ort, *further), registration.lossy)

    async def _operators(self, export: Digest) -> Operators:
        graph = (await self._blobs.artifact(export)).graph
        if graph is None:
            raise DataCorrupted(f"export {export} has no graph")
        return await asyncio.to_thread(count, await self._blobs.read(graph.digest))

    async def _fail(self, job: JobRecord, error: TesseraError) -> None:
        _log.warning("import failed", job=job.job_id, model=job.model, kind=error.kind, reason=str(error))
        while True:
            try:
                await self._catalogue.end_job(job.trust_domain, job.job_id)
                break
            except TesseraError:
                # until the record is gone the job would be done again at the next start
                await self._clock.sleep(_RETRY_S)
        self._log.say(job.job_id, JobProgress(job.job_id, 0, "failed", "", 1.0, error=error, last=True))

    def _say(
        self, job: JobRecord, word: str, message: str, fraction: float, version: VersionKey | None = None, *, last: bool = False
    ) -> None:
        self._log.say(job.job_id, JobProgress(job.job_id, 0, word, message, fraction, version, last=last))
