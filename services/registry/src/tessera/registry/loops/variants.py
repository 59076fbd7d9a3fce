"""The variant generator: level-triggered. What is to be baked follows from the records and the nodes that are there; events only wake it.

A baked variant is stored before its record says ready. A node that is lost while it bakes costs another try; a build that fails is
recorded with its reason.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tessera import failpoint, telemetry
from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.artifact import Blob
from tessera.domain.errors import Conflict, DataCorrupted, DeadlineExceeded, Internal, NotFound, TesseraError, Unavailable
from tessera.domain.ids import JobId, TrustDomain, VariantKey, VersionKey
from tessera.domain.records import NodeRecord, VariantState
from tessera.registry.core.variants import Bake, plan_variants, step
from tessera.registry.loops.accounting import ready
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.joblog import JobLog, JobProgress
from tessera.registry.loops.receiving import BlobReceiver
from tessera.registry.loops.shelf import Shelf
from tessera.registry.ports import BakeBlob, BakeDone, BakeProgress, Baker, Blobs
from tessera.tensorstore.artifact import digest_of

_IDLE_S = 5.0
_BACK_OFF_S = (1.0, 2.0, 5.0, 15.0, 60.0)
_log = telemetry.get_logger("tessera.registry.variants")


class VariantMaker:
    def __init__(
        self,
        *,
        clock: Clock,
        coordinator: Coordinator,
        catalogue: Catalogue,
        baker: Baker,
        blobs: Blobs,
        shelf: Shelf,
        log: JobLog,
        work: Path,
        domains: Sequence[TrustDomain],
        timeout_s: float,
        attempts: int,
    ) -> None:
        self.domains = tuple(domains)
        self.nodes = {domain: View(coordinator, keys.nodes(domain), NodeRecord) for domain in domains}
        self._clock = clock
        self._catalogue = catalogue
        self._baker = baker
        self._blobs = blobs
        self._shelf = shelf
        self._log = log
        self._work = work
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._woken = asyncio.Event()
        self._jobs: dict[VersionKey, JobId] = {}
        self._tries: dict[VariantKey, int] = {}
        self._not_before_s: dict[VariantKey, float] = {}
        self._said_waiting: dict[VariantKey, str] = {}
        for view in self.nodes.values():
            view.on_change(lambda _key, _old, _new: self.wake())

    def wake(self) -> None:
        self._woken.set()

    def follow(self, version: VersionKey, job_id: JobId) -> None:
        """The job ends when the version's variants are made or have failed; their progress is told to it."""
        self._jobs[version] = job_id

    def job_of(self, version: VersionKey) -> JobId | None:
        return self._jobs.get(version)

    async def try_again(self, version: VersionKey) -> None:
        """Builds failed `ort` variants again, where there is an export to build from."""
        record = next(
            (v for v in await self._catalogue.versions(version.trust_domain) if (v.model, v.version) == (version.model, version.version)),
            None,
        )
        if record is None or not record.exports:
            return
        for variant in await self._catalogue.variants_of(version):
            current, revision = await self._catalogue.variant(variant.key)
            if current is not None and current.backend == "ort" and current.state is VariantState.FAILED:
                self._tries.pop(current.key, None)
                try:
                    await self._catalogue.write_variant(step(current, VariantState.BUILDING), revision)
                except (Conflict, NotFound):
                    continue  # somebody else is at it, or it is gone
                self.wake()

    async def run(self) -> None:
        """Until cancelled."""
        for view in self.nodes.values():
            await view.synced.wait()
        while True:
            self._woken.clear()
            try:
                busy = False
                for domain in self.domains:
                    busy = await self._pass(domain) or busy
            except TesseraError as error:
                _log.info("variants not looked at; tried again", reason=str(error))
                busy = False
            if not busy:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_IDLE_S):
                await self._woken.wait()
        except TimeoutError:
            pass  # look anyway: a back-off may be over, a record may have been written by hand

    async def _pass(self, domain: TrustDomain) -> bool:
        """Builds at most one variant, so that the next look sees what came meanwhile. True when there may be more to do."""
        plan = plan_variants(
            await self._catalogue.versions(domain), await self._catalogue.variants(domain), list(self.nodes[domain].values()), digest_of
        )
        for record in plan.create:
            try:
                await self._catalogue.write_variant(record, 0)
                _log.info("variant wanted for another build class", variant=str(record.key), build_class=record.build_class)
            except (Conflict, NotFound):
                continue
        for key, reason in plan.waiting:
            if self._said_waiting.get(key) != reason:
                self._said_waiting[key] = reason
                self._say(key, "baking", f"{key.variant} waits: {reason}", 0.9)
        await self._end_jobs(domain)
        now_s = self._clock.monotonic_s()
        for bake in plan.bake:
            if self._not_before_s.get(bake.variant.key, 0.0) <= now_s:
                await self._bake(bake)
                await self._end_jobs(domain)
                return True
        return bool(plan.create)

    async def _bake(self, bake: Bake) -> None:
        key = bake.variant.key
        current, revision = await self._catalogue.variant(key)
        if current is None or current.state not in (VariantState.PENDING, VariantState.BUILDING):
            return
        try:
            building = replace(step(current, VariantState.BUILDING), build_class=bake.node.build_class)
            await self._catalogue.write_variant(building, revision)
            with telemetry.span("tessera.registry.bake", variant=str(key), node=bake.node.node_id):
                await self._build(bake)
        except (Conflict, NotFound) as error:
            _log.info("variant changed while it was baked", variant=str(key), reason=str(error))
        except (Unavailable, DeadlineExceeded) as error:
            await self._lost(bake, error)
        except TesseraError as error:
            await self._failed(key, str(error))

    async def _build(self, bake: Bake) -> None:
        key = bake.variant.key
        begun_s = self._clock.monotonic_s()
        self._say(key, "baking", f"{key.variant} on {bake.node.node_id} ({bake.node.build_class})", 0.9)
        await failpoint.async_hit("registry.before_bake")
        folder = self._work / f"bake-{digest_of(str(key).encode())[:16]}"
        shutil.rmtree(folder, ignore_errors=True)
        receiver = BlobReceiver(folder)
        job_id = self._jobs.get(key.version_key, JobId(f"bake-{key.variant}"))
        try:
            done: BakeDone | None = None
            async for event in self._baker.bake(bake.node, job_id, bake.export, bake.variant.max_batch, self._timeout_s):
                if isinstance(event, BakeProgress):
                    self._say(key, "baking", f"{key.variant}: {event.message}", 0.92)
                elif isinstance(event, BakeBlob):
                    await receiver.take(event)
                else:
                    done = event
            if done is None:
                raise Unavailable(f"node {bake.node.node_id} stopped baking without an answer")
            if done.build_class != bake.node.build_class:
                raise Unavailable(f"node {bake.node.node_id} is of build class {done.build_class} now, not {bake.node.build_class}")
            await self._store(key, done, receiver.finish(), folder)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
        self._tries.pop(key, None)
        _log.info("variant ready", variant=str(key), node=bake.node.node_id, seconds=round(self._clock.monotonic_s() - begun_s, 3))
        self._say(key, "variant ready", str(key.variant), 0.97)

    async def _store(self, key: VariantKey, done: BakeDone, blobs: tuple[Blob, ...], folder: Path) -> None:
        async with self._shelf.exclusive:
            await self._blobs.store(blobs, folder)
            if not await self._blobs.has(done.artifact):
                raise DataCorrupted(f"the node did not send artifact {done.artifact}")
            artifact = await self._blobs.artifact(done.artifact)
            if artifact.backend != "ort" or artifact.build_class != done.build_class:
                made_for = f"backend {artifact.backend!r} for build class {artifact.build_class!r}"
                raise DataCorrupted(f"the node baked {made_for}, not ort for {done.build_class!r}")
            for blob in artifact.blobs():
                if not await self._blobs.has(blob.digest):
                    raise DataCorrupted(f"the node did not send blob {blob.digest} of artifact {done.artifact}")
            others = await self._shelf.large_tensors_of_others(key.trust_domain, key.version_key)
            current, revision = await self._catalogue.variant(key)
            if current is None:
                raise NotFound(f"{key} was deleted")
            made = replace(step(current, VariantState.READY), reason="")
            await self._catalogue.write_variant(ready(made, done.artifact, artifact, others), revision)

    async def _lost(self, bake: Bake, error: TesseraError) -> None:
        key = bake.variant.key
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        if tries >= self._attempts:
            await self._failed(key, f"tried {tries} times, at last on {bake.node.node_id}: {error}")
            return
        pause_s = _BACK_OFF_S[min(tries - 1, len(_BACK_OFF_S) - 1)]
        self._not_before_s[key] = self._clock.monotonic_s() + pause_s
        _log.warning("baking interrupted", variant=str(key), node=bake.node.node_id, reason=str(error), again_in_s=pause_s)
        self._say(key, "baking", f"{key.variant}: {error}; again in {pause_s:g} s", 0.9)

    async def _failed(self, key: VariantKey, reason: str) -> None:
        _log.warning("variant failed", variant=str(key), reason=reason)
        self._tries.pop(key, None)
        current, revision = await self._catalogue.variant(key)
        if current is None:
            return
        try:
            await self._catalogue.write_variant(step(current, VariantState.FAILED, reason), revision)
        except (Conflict, NotFound):
            return
        self._say(key, "baking", f"{key.variant} failed: {reason}", 0.97)

    async def _end_jobs(self, domain: TrustDomain) -> None:
        """Ends the jobs of versions whose variants are all ready or failed, and of versions that are gone."""
        for version, job_id in [item for item in self._jobs.items() if item[0].trust_domain == domain]:
            variants = await self._catalogue.variants_of(version)
            if any(variant.state in (VariantState.PENDING, VariantState.BUILDING) for variant in variants):
                continue
            await self._catalogue.end_job(domain, job_id)
            del self._jobs[version]
            if not variants:
                error = Internal(f"{version} was deleted while its variants were made")
                self._log.say(job_id, JobProgress(job_id, 0, "failed", "", 1.0, error=error, last=True))
                continue
            words = ", ".join(f"{v.key.variant} {v.state.value}" for v in sorted(variants, key=lambda v: v.key))
            self._log.say(job_id, JobProgress(job_id, 0, "done", words, 1.0, version, last=True))

    def _say(self, key: VariantKey, word: str, message: str, fraction: float) -> None:
        job_id = self._jobs.get(key.version_key)
        if job_id is not None:
            self._log.say(job_id, JobProgress(job_id, 0, word, message, fraction))
