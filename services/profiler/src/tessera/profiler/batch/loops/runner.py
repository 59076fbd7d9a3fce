"""Works on one job at a time, of all trust domains, as long as this profiler is elected to.

The election makes two profilers work side by side in turn only: every write compares its key, and a lost session ends the work. A job
that a dead predecessor had begun goes on at its last complete part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, CreateRevisionIs, Leadership
from tessera.coord.view import View
from tessera.domain.errors import Conflict, Internal, NotFound, TesseraError, Unavailable
from tessera.domain.ids import TrustDomain
from tessera.domain.records import BatchRecord, BatchState
from tessera.profiler.batch.core.states import ENDED, MAX_ATTEMPTS, forgotten, next_job, step
from tessera.profiler.batch.loops.gate import Gate
from tessera.profiler.batch.loops.limits import BatchLimits
from tessera.profiler.batch.loops.live import Live
from tessera.profiler.batch.loops.sending import Sender, with_patience
from tessera.profiler.batch.loops.thread import WorkThread
from tessera.profiler.batch.loops.work import Work
from tessera.profiler.batch.ports import Batches, FileFormat, Inferences, Models, Storage
from tessera.telemetry import get_logger

log = get_logger("tessera.profiler.batch")

RETRY_S = 1.0
LOOK_S = 5.0
RECORD_GAP_S = 1.0


class _Cancelled(Exception):
    """The job's end was asked for."""


class Elected:
    """Whether this profiler is elected; its guard goes into every write."""

    def __init__(self) -> None:
        self.leadership: Leadership | None = None

    def guard(self) -> CreateRevisionIs | None:
        """Raises: Conflict: it is not."""
        if self.leadership is None:
            raise Conflict("this profiler does not work on batch jobs now")
        return self.leadership.guard


class BatchRunner:
    """
    Args:
        batches: whose writes carry `elected`'s guard.
        name: of this profiler, for who looks at the election.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        coordinator: Coordinator,
        elected: Elected,
        batches: Batches,
        models: Models,
        storages: Mapping[TrustDomain, Storage],
        formats: Callable[[str], FileFormat],
        inferences: Inferences,
        live: Live,
        thread: WorkThread,
        limits: BatchLimits,
        name: str,
        lease_ttl_s: float,
    ) -> None:
        self._clock = clock
        self._coordinator = coordinator
        self._elected = elected
        self._batches = batches
        self._models = models
        self._storages = storages
        self._formats = formats
        self._inferences = inferences
        self._live = live
        self._thread = thread
        self._limits = limits
        self._name = name
        self._lease_ttl_s = lease_ttl_s
        self.views = [View(coordinator, keys.batches(domain), BatchRecord) for domain in storages]
        for view in self.views:
            view.on_change(lambda _key, _old, _new: live.wake())

    async def run(self) -> None:
        """Until it is cancelled."""
        for view in self.views:
            await view.synced.wait()
        while True:
            try:
                await self._lead()
            except TesseraError as error:
                log.info("batch jobs are not worked on; tried again", reason=error.message)
            await self._clock.sleep(RETRY_S)

    async def _lead(self) -> None:
        """Campaigns and works until the session is lost. Raises: TesseraError."""
        session = await self._coordinator.session(self._lease_ttl_s)
        try:
            leadership = await self._coordinator.campaign(keys.BATCH_ELECTION, session, self._name.encode())
            self._elected.leadership = leadership
            log.info("works on batch jobs", term=leadership.term.revision)
            try:
                async with asyncio.TaskGroup() as group:
                    working = group.create_task(self._work_on_jobs())
                    lost = group.create_task(session.lost.wait())
                    await asyncio.wait({working, lost}, return_when=asyncio.FIRST_COMPLETED)
                    working.cancel()
                    lost.cancel()
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            finally:
                self._elected.leadership = None
                self._live.forget()
        finally:
            await session.close()

    async def _work_on_jobs(self) -> None:
        while True:
            changed = self._live.changed
            job = next_job(job for view in self.views for job in view.values())
            if job is not None:
                await self._job(job)
                await self._forget_old(job.trust_domain)
                continue
            try:
                async with asyncio.timeout(LOOK_S):
                    await changed.wait()
            except TimeoutError:
                continue

    async def _job(self, seen: BatchRecord) -> None:
        """One job to its end. Raises: TesseraError: etcd, not the job; it is begun again."""
        job = await self._change(seen, self._taken_up)
        # The view may lag behind what was just read.
        if job is None or job.state in ENDED:
            await self._clock.sleep(0.05)
            return
        log.info("batch job under way", job=job.job_id, model=job.asked, input=job.input_url, attempt=job.attempts)
        state = BatchState.DONE
        try:
            reason = await self._until_done(job)
        except _Cancelled:
            state, reason = BatchState.CANCELLED, "cancelled; what is written stays"
        except TesseraError as error:
            if self._elected.leadership is None or isinstance(error, Conflict):
                raise
            state, reason = BatchState.FAILED, f"{error.kind}: {error.message}"
        except Exception as error:
            log.exception("batch job failed", job=job.job_id)
            state, reason = BatchState.FAILED, f"{Internal.kind}: {type(error).__name__}: {error}"
        ended = await self._end(job, state, reason)
        self._live.forget()
        if ended is not None:
            log.info("batch job ended", job=job.job_id, state=ended.state, rows=ended.rows_done, failed=ended.rows_failed, reason=reason)

    def _taken_up(self, job: BatchRecord) -> BatchRecord | None:
        now_s = self._clock.wall_s()
        if job.state in ENDED:
            return None
        if job.cancelling:
            return step(job, BatchState.CANCELLED, now_s, "cancelled; what is written stays")
        if job.attempts >= MAX_ATTEMPTS:
            words = f"the profiler ended {job.attempts} times while it worked on the next part"
            return step(job, BatchState.FAILED, now_s, words)
        begun = job if job.state is BatchState.RUNNING else step(job, BatchState.RUNNING, now_s)
        return replace(begun, attempts=job.attempts + 1)

    async def _until_done(self, job: BatchRecord) -> str:
        """What is to be said of the end, "" where all is well. Raises: _Cancelled; TesseraError: why it cannot be done."""
        model = await with_patience(
            self._clock,
            self._limits.patience_s,
            lambda: self._models.describe(job.trust_domain, job.asked),
            "looking up the model",
            job.job_id,
        )
        gate = Gate(self._coordinator, self._clock, job.trust_domain, self._limits.calm_s, lambda reason: self._paused(job, reason))
        sender = Sender(self._clock, self._inferences, gate.passed, self._limits.request_s, self._limits.patience_s, self._limits.share)
        work = Work(
            job,
            model.signature,
            clock=self._clock,
            storage=self._storages[job.trust_domain],
            input_format=self._formats(job.input_format),
            output_format=self._formats(job.output_format),
            sender=sender,
            thread=self._thread,
            limits=self._limits,
            tell=_Progress(self, job).tell,
        )
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(each) for each in (gate.loads.run(), gate.run(), self._cancel_asked(job))]
                try:
                    done = await work.run()
                finally:
                    for task in beside:
                        task.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        self._live.tell(done)
        return done.reason

    async def _cancel_asked(self, job: BatchRecord) -> None:
        """Raises: _Cancelled: when the record says so, or is gone."""
        key = keys.batch(job.trust_domain, job.job_id)
        while True:
            changed = self._live.changed
            found = next((view.get(key) for view in self.views if key in view), None)
            if found is None or found.cancelling:
                raise _Cancelled
            await changed.wait()

    async def _paused(self, job: BatchRecord, reason: str) -> None:
        log.info("batch job paused" if reason else "batch job goes on", job=job.job_id, reason=reason)
        then = BatchState.PAUSED if reason else BatchState.RUNNING

        def change(now: BatchRecord) -> BatchRecord | None:
            if now.state is then:
                return replace(now, reason=reason)
            return step(now, then, self._clock.wall_s(), reason) if now.state not in ENDED else None

        try:
            await self._change(job, change)
        except Unavailable as error:
            # The record may lag behind; whether requests go out does not hang on it.
            log.info("pause not recorded", job=job.job_id, reason=error.message)

    async def _end(self, job: BatchRecord, state: BatchState, reason: str) -> BatchRecord | None:
        """Written for as long as it takes: an end that is not recorded would be worked on again."""

        def change(now: BatchRecord) -> BatchRecord | None:
            if now.state in ENDED:
                return None
            running = step(now, BatchState.RUNNING, self._clock.wall_s()) if now.state is BatchState.PAUSED else now
            return step(self._live.seen(running), state, self._clock.wall_s(), reason)

        while True:
            try:
                return await self._change(job, change)
            except Unavailable as error:
                log.info("end of a batch job not recorded; tried again", job=job.job_id, reason=error.message)
                await self._clock.sleep(RETRY_S)

    async def _change(self, job: BatchRecord, change: Callable[[BatchRecord], BatchRecord | None]) -> BatchRecord | None:
        """None where somebody removed the record. Raises: Unavailable, Conflict."""
        try:
            return await self._batches.change(job.trust_domain, job.job_id, change)
        except NotFound:
            return None

    async def _forget_old(self, trust_domain: TrustDomain) -> None:
        for job in forgotten(await self._batches.all_of(trust_domain), self._limits.kept):
            await self._batches.delete(job)


class _Progress:
    """Tells who watches at once, and the record once a second and for every part."""

    def __init__(self, runner: BatchRunner, job: BatchRecord) -> None:
        self._runner = runner
        self._job = job
        self._written_s = float("-inf")

    async def tell(self, job: BatchRecord, part_written: bool) -> None:
        runner = self._runner
        runner._live.tell(job)
        now_s = runner._clock.monotonic_s()
        if not part_written and now_s - self._written_s < RECORD_GAP_S:
            return
        self._written_s = now_s

        def change(now: BatchRecord) -> BatchRecord | None:
            if now.state in ENDED:
                return None
            attempts = 1 if part_written and job.parts > now.parts else now.attempts
            return replace(now, rows=job.rows, rows_done=job.rows_done, rows_failed=job.rows_failed, parts=job.parts, attempts=attempts)

        try:
            await runner._change(self._job, change)
        except Unavailable as error:
            log.info("progress not recorded", job=self._job.job_id, reason=error.message)
