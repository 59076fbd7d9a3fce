"""The variant generator: level-triggered. What is to be baked follows from the records and the nodes that are there; events only wake it.

One build at a time. Users wait for the base recipes of what they register: such a build takes the turn of any other, which is done again
later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tessera import telemetry
from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.errors import Conflict, Internal, NotFound, TesseraError, VariantNotFound
from tessera.domain.ids import JobId, ModelName, TrustDomain, VariantKey, VersionKey, VersionNumber
from tessera.domain.records import NodeRecord, VariantRecord, VariantState
from tessera.registry.core.recipes import ATEN, is_base, recipe_of
from tessera.registry.core.variants import OPEN, Bake, plan_variants, step
from tessera.registry.loops.building import Builder
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.loops.joblog import JobLog, JobProgress
from tessera.registry.loops.shelf import Shelf
from tessera.registry.ports import Baker, Blobs
from tessera.tensorstore.artifact import digest_of

_IDLE_S = 5.0
STOPPED = "stopped before it was made; registering the same content again has it made"
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
        recipes: Sequence[str],
        timeout_s: float,
        attempts: int,
    ) -> None:
        """`recipes`: what is made beside the base recipes of versions that name none themselves."""
        self.domains = tuple(domains)
        self.recipes = tuple(recipes)
        self.nodes = {domain: View(coordinator, keys.nodes(domain), NodeRecord) for domain in domains}
        self._catalogue = catalogue
        self._log = log
        self._builder = Builder(
            clock=clock, catalogue=catalogue, baker=baker, blobs=blobs, shelf=shelf, work=work, timeout_s=timeout_s, attempts=attempts,
            say=self._say,
        )  # fmt: skip
        self._woken = asyncio.Event()
        self._jobs: dict[VersionKey, JobId] = {}
        self._progress: dict[VariantKey, str] = {}
        self._current: tuple[Bake, asyncio.Task[None]] | None = None
        for view in self.nodes.values():
            view.on_change(lambda _key, _old, _new: self.wake())

    def wake(self) -> None:
        self._woken.set()

    def follow(self, version: VersionKey, job_id: JobId) -> None:
        """The job ends when the version's base variants are made or have failed; their progress is told to it."""
        self._jobs[version] = job_id

    def job_of(self, version: VersionKey) -> JobId | None:
        return self._jobs.get(version)

    def progress(self, variant: VariantKey) -> str:
        """Where the making of a variant is, or what it waits for; "" for one that is made or has failed."""
        return self._progress.get(variant, "")

    async def try_again(self, version: VersionKey) -> None:
        """Builds failed variants again, where there is an export to build from."""
        record = next(
            (v for v in await self._catalogue.versions(version.trust_domain) if (v.model, v.version) == (version.model, version.version)),
            None,
        )
        if record is None or not record.exports:
            return
        for variant in await self._catalogue.variants_of(version):
            current, revision = await self._catalogue.variant(variant.key)
            if current is not None and recipe_of(current) != ATEN and current.state is VariantState.FAILED:
                self._builder.forget(current.key)
                try:
                    await self._catalogue.write_variant(step(current, VariantState.BUILDING), revision)
                except (Conflict, NotFound):
                    continue  # somebody else is at it, or it is gone
                self.wake()

    async def stop(self, domain: TrustDomain, model: ModelName, version: VersionNumber | None, variant: str) -> list[VariantKey]:
        """Stops making what is not made yet, base recipes aside: all of a model, of a version, or one variant. What it stopped.

        Raises:
            ModelNotFound, VariantNotFound: there is no such thing.
        """
        known = await self._catalogue.model(domain, model)
        named = [v for v in known.variants if version in (None, v.key.version) and variant in ("", v.key.variant)]
        if not named:
            where = known.model.name if version is None else f"{known.model.name}@{version}"
            raise VariantNotFound(f"{where}/{variant or '*'}", ", ".join(sorted({v.key.variant for v in known.variants})))
        stopped = [record.key for record in named if not is_base(record) and await self._stop(record.key)]
        self.wake()
        return stopped

    async def _stop(self, key: VariantKey) -> bool:
        while True:
            record, revision = await self._catalogue.variant(key)
            if record is None or record.state not in OPEN:
                return False
            try:
                await self._catalogue.write_variant(step(record, VariantState.FAILED, STOPPED), revision)
            except Conflict:
                continue
            except NotFound:
                return False
            self._progress.pop(key, None)
            if self._current is not None and self._current[0].variant.key == key:
                self._current[1].cancel()
            return True

    async def run(self) -> None:
        """Until cancelled."""
        for view in self.nodes.values():
            await view.synced.wait()
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                try:
                    await self._look(group)
                except TesseraError as error:
                    _log.info("variants not looked at; tried again", reason=str(error))
                try:
                    async with asyncio.timeout(min(_IDLE_S, self._builder.pause_s())):
                        await self._woken.wait()
                except TimeoutError:
                    pass  # look anyway: a back-off is over, or a record may have been written by hand

    async def _look(self, group: asyncio.TaskGroup) -> None:
        due: list[Bake] = []
        for domain in self.domains:
            due += await self._plan(domain)
            await self._end_jobs(domain)
        due.sort(key=lambda bake: not bake.base)  # stable: the plan's order otherwise
        if not due:
            return
        if self._current is not None:
            bake, task = self._current
            if bake.base or not due[0].base:
                return
            _log.info("a build gives way", variant=str(bake.variant.key), to=str(due[0].variant.key))
            task.cancel()
            await asyncio.wait([task])
        self._current = due[0], group.create_task(self._build(due[0]))

    async def _build(self, bake: Bake) -> None:
        try:
            await self._builder.build(bake)
        except TesseraError as error:
            _log.info("a variant's record cannot be read or written; tried again", variant=str(bake.variant.key), reason=str(error))
        finally:
            self._current = None
            self.wake()

    async def _plan(self, domain: TrustDomain) -> list[Bake]:
        """Writes what the plan says about records; what could be built now, without what is under way."""
        versions, variants = await self._catalogue.versions(domain), await self._catalogue.variants(domain)
        plan = plan_variants(versions, variants, list(self.nodes[domain].values()), digest_of, self.recipes)
        for record in plan.create:
            try:
                await self._catalogue.write_variant(record, 0)
            except (Conflict, NotFound):
                continue
            _log.info("variant wanted", variant=str(record.key), build_class=record.build_class)
            self.wake()
        by_key = {variant.key: variant for variant in variants}
        for key, reason in plan.fail:
            await self._fail(by_key[key], reason)
        for key, reason in plan.waiting:
            self._wait(by_key[key], reason)
        open_keys = {variant.key for variant in variants if variant.state in OPEN}
        self._progress = {k: words for k, words in self._progress.items() if k.trust_domain != domain or k in open_keys}
        current = self._current[0].variant.key if self._current is not None else None
        return [bake for bake in plan.bake if bake.variant.key != current and self._builder.due(bake.variant.key)]

    def _wait(self, record: VariantRecord, reason: str) -> None:
        words = f"{record.key.variant} waits: {reason}"
        if self._progress.get(record.key) != words:
            self._tell(record, "baking", words, 0.9)

    async def _fail(self, record: VariantRecord, reason: str) -> None:
        current, revision = await self._catalogue.variant(record.key)
        if current is None or current.state not in OPEN:
            return
        try:
            await self._catalogue.write_variant(step(current, VariantState.FAILED, reason), revision)
        except (Conflict, NotFound):
            return

    async def _end_jobs(self, domain: TrustDomain) -> None:
        """Ends the jobs of versions whose base variants are all ready or failed, and of versions that are gone."""
        for version, job_id in [item for item in self._jobs.items() if item[0].trust_domain == domain]:
            variants = [variant for variant in await self._catalogue.variants_of(version) if is_base(variant)]
            if any(variant.state in OPEN for variant in variants):
                continue
            await self._catalogue.end_job(domain, job_id)
            del self._jobs[version]
            if not variants:
                error = Internal(f"{version} was deleted while its variants were made")
                self._log.say(job_id, JobProgress(job_id, 0, "failed", "", 1.0, error=error, last=True))
                continue
            words = ", ".join(f"{v.key.variant} {v.state.value}" for v in sorted(variants, key=lambda v: v.key))
            self._log.say(job_id, JobProgress(job_id, 0, "done", words, 1.0, version, last=True))

    def _say(self, bake: Bake, word: str, message: str, fraction: float) -> None:
        self._tell(bake.variant, word, message, fraction)

    def _tell(self, record: VariantRecord, word: str, message: str, fraction: float) -> None:
        """To whoever asks for the model, and, of a base variant, to those who follow its registration."""
        self._progress[record.key] = message
        job_id = self._jobs.get(record.key.version_key)
        if job_id is not None and is_base(record):
            self._log.say(job_id, JobProgress(job_id, 0, word, message, fraction))
