"""Where jobs are taken in, shown and cancelled; by any profiler, whoever works on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from tessera.clock import Clock
from tessera.domain.errors import AlreadyExists, DeadlineExceeded, InvalidInput, NotFound, ResourceExhausted, Unsupported
from tessera.domain.ids import JobId, TrustDomain
from tessera.domain.objectives import NO_OBJECTIVES, Objectives
from tessera.domain.records import BatchRecord, BatchState
from tessera.domain.signature import Signature
from tessera.profiler.batch.core.locations import FORMATS, format_of, location
from tessera.profiler.batch.core.states import ENDED, step
from tessera.profiler.batch.loops.limits import BatchLimits
from tessera.profiler.batch.loops.live import Live
from tessera.profiler.batch.loops.work import refuse_existing
from tessera.profiler.batch.ports import Batches, FileFormat, Models, Storage

IF_EXISTS = ("", "resume", "overwrite")
DEFAULT_BATCH = 8
MAX_ERRORS = 10_000
DEFAULT_ERRORS = 100
WATCH_GAP_S = 0.2


@dataclass(frozen=True, slots=True)
class Submission:
    """What a user asks for; "", 0 and None where the profiler is to decide."""

    trust_domain: TrustDomain
    model: str
    input_url: str
    output_url: str
    input_format: str = ""
    output_format: str = ""
    batch_size: int = 0
    objectives: Objectives = NO_OBJECTIVES
    max_errors: int | None = None
    if_exists: str = ""


class BatchDesk:
    """
    Args:
        storages: by trust domain; none that is not in it is served.
        draw: a new job's id.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        batches: Batches,
        models: Models,
        storages: Mapping[TrustDomain, Storage],
        formats: Callable[[str], FileFormat],
        live: Live,
        limits: BatchLimits,
        draw: Callable[[], JobId],
    ) -> None:
        self._clock = clock
        self._batches = batches
        self._models = models
        self._storages = storages
        self._formats = formats
        self._live = live
        self._limits = limits
        self._draw = draw
        self._taking_in = asyncio.Lock()

    def domain(self, name: str) -> TrustDomain:
        """Raises: InvalidInput: this profiler works for others."""
        if name not in self._storages:
            raise InvalidInput("trust_domain", name[:80], f"this profiler takes batch jobs of {', '.join(sorted(self._storages))}")
        return TrustDomain(name)

    async def submit(self, wanted: Submission) -> BatchRecord:
        """Checks everything that can be known now, and queues the job.

        Raises:
            InvalidInput, PermissionDenied, NotFound, ModelNotFound, AlreadyExists: names what is wrong with it.
            ResourceExhausted: too many jobs wait.
        """
        job = self._job(wanted)
        found = await self._models.describe(job.trust_domain, job.model)
        # From here on one version is asked, though the name may stand for another before the last row is answered.
        job = replace(job, resolved=found.resolved, batch_size=_batch_size(wanted.batch_size, found.max_batch, found.signature))
        await self._in_time(partial(self._check_files, job, found.signature))
        # One at a time, so that of two for the same output the second sees the first.
        async with self._taking_in:
            await self._check_queue(job)
            await self._batches.create(job)
        self._live.wake()
        return job

    async def get(self, trust_domain: TrustDomain, job_id: JobId) -> BatchRecord:
        return self._live.seen(await self._batches.get(trust_domain, job_id))

    async def all_of(self, trust_domain: TrustDomain) -> list[BatchRecord]:
        """Newest first."""
        found = await self._batches.all_of(trust_domain)
        return [self._live.seen(job) for job in sorted(found, key=lambda job: (job.submitted_unix_s, job.job_id), reverse=True)]

    async def cancel(self, trust_domain: TrustDomain, job_id: JobId) -> BatchRecord:
        """A queued job ends at once, one under way as soon as it is told; an ended one stays as it is."""

        def change(job: BatchRecord) -> BatchRecord | None:
            if job.state in ENDED:
                return None
            if job.state is BatchState.QUEUED:
                return step(job, BatchState.CANCELLED, self._clock.wall_s(), "cancelled before it began")
            return replace(job, cancelling=True)

        found = await self._batches.change(trust_domain, job_id, change)
        self._live.wake()
        return self._live.seen(found)

    async def watch(self, trust_domain: TrustDomain, job_id: JobId) -> AsyncIterator[BatchRecord]:
        """The job now and after each change, until it has ended; not more often than people can read.

        Raises:
            NotFound: there is no such job, or it was forgotten meanwhile.
        """
        said: BatchRecord | None = None
        while True:
            changed = self._live.changed
            found = await self.get(trust_domain, job_id)
            if found != said:
                said = found
                yield found
            if found.state in ENDED:
                return
            await self._clock.sleep(WATCH_GAP_S)
            await changed.wait()

    def _job(self, wanted: Submission) -> BatchRecord:
        """Raises: InvalidInput: a field that is wrong by itself."""
        if not wanted.model:
            raise InvalidInput("model", "", "must not be empty")
        if wanted.if_exists not in IF_EXISTS:
            raise InvalidInput("if_exists", wanted.if_exists[:40], "must be resume, overwrite or empty")
        max_errors = DEFAULT_ERRORS if wanted.max_errors is None else wanted.max_errors
        if not 0 <= max_errors <= MAX_ERRORS:
            raise InvalidInput("max_errors", max_errors, f"must be 0 to {MAX_ERRORS}")
        source, target = location("input_url", wanted.input_url), location("output_url", wanted.output_url)
        input_format = format_of("input", source, wanted.input_format)
        if target == source or target.lies_below(source) or source.lies_below(target):
            raise InvalidInput("output_url", str(target)[:200], "must be another place than input_url")
        return BatchRecord(
            job_id=self._draw(),
            trust_domain=wanted.trust_domain,
            model=wanted.model,
            input_url=str(source),
            output_url=str(target),
            input_format=input_format,
            output_format=format_of("output", target, wanted.output_format, input_format),
            batch_size=wanted.batch_size,
            max_errors=max_errors,
            submitted_unix_s=self._clock.wall_s(),
            objectives=wanted.objectives,
            if_exists=wanted.if_exists,
        )

    async def _check_queue(self, job: BatchRecord) -> None:
        unfinished = [other for other in await self._batches.all_of(job.trust_domain) if other.state not in ENDED]
        same = next((other for other in unfinished if other.output_url == job.output_url), None)
        if same is not None:
            raise AlreadyExists(f"output_url {job.output_url!r}: batch job {same.job_id} ({same.state}) writes there")
        if len(unfinished) >= self._limits.queue_limit:
            raise ResourceExhausted(
                f"{len(unfinished)} batch jobs of {job.trust_domain!r} are unfinished, at most batch_queue_limit may be"
            )

    async def _in_time(self, call: Callable[[], None]) -> None:
        """Raises: DeadlineExceeded: the storage does not answer; the thread is left to its own time limits."""
        try:
            async with asyncio.timeout(self._limits.check_s):
                await asyncio.to_thread(call)
        except TimeoutError:
            raise DeadlineExceeded(f"input and output were not looked at within {self._limits.check_s:g} s") from None

    def _check_files(self, job: BatchRecord, signature: Signature) -> None:
        storage = self._storages[job.trust_domain]
        source = location("input_url", job.input_url)
        storage.check("input_url", source)
        storage.check("output_url", location("output_url", job.output_url))
        texts = [spec.name for spec in signature.outputs if spec.datatype == "BYTES"]
        if job.output_format == "npz" and texts:
            raise InvalidInput("output_format", "npz", f"cannot hold the texts of output {texts[0]}: write jsonl or parquet")
        for name in {job.input_format, job.output_format} & set(FORMATS):
            self._formats(name)
        if storage.version(source) is None:
            raise NotFound(f"input_url {job.input_url!r}: there is no such file")
        self._formats(job.input_format).open_source(lambda: storage.open(source), signature, False).close()
        refuse_existing(storage, job)


def _batch_size(wanted: int, max_batch: int, signature: Signature) -> int:
    """Raises: InvalidInput, Unsupported: more than the model takes."""
    if not signature.batched:
        if wanted > 1:
            raise Unsupported(f"batch_size {wanted}: the model takes one row at a time")
        return 1
    if not wanted:
        return min(max_batch, DEFAULT_BATCH)
    if not 1 <= wanted <= max_batch:
        raise InvalidInput("batch_size", wanted, f"must be 1 to {max_batch}, what every ready variant takes")
    return wanted
