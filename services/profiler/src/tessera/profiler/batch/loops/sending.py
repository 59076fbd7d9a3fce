"""From rows to answers: one request for a chunk; where it is refused for what is in it, halves of it, down to the row that is to blame."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tessera.clock import Clock
from tessera.domain.errors import DeadlineExceeded, Internal, InvalidInput, TesseraError, TooLarge, error_of
from tessera.domain.records import BatchRecord
from tessera.profiler.batch.core.answers import Segment, segment_of
from tessera.profiler.batch.core.checkpoint import MAX_MESSAGE_CHARS, RowError
from tessera.profiler.batch.core.rows import Chunk
from tessera.profiler.batch.ports import Inferences
from tessera.telemetry import get_logger

log = get_logger("tessera.profiler.batch")

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0
ROW_KINDS = (InvalidInput.kind, TooLarge.kind, Internal.kind)
"""What a request may be refused with for what is in its rows; everything else is about the platform, or the job."""

T = TypeVar("T")


async def with_patience(clock: Clock, patience_s: float, call: Callable[[], Awaitable[T]], what: str, job_id: str) -> T:
    """What `call` gives, tried again in growing pauses while it fails in a way that passes.

    Raises:
        TesseraError: it fails otherwise, or still after `patience_s`.
    """
    began_s, pause_s = clock.monotonic_s(), FIRST_RETRY_S
    while True:
        try:
            return await call()
        except TesseraError as error:
            if not (error.retryable or isinstance(error, DeadlineExceeded)):
                raise
            waited_s = clock.monotonic_s() - began_s
            if waited_s >= patience_s:
                raise error_of(error.kind, f"{what} failed for {waited_s:.0f} s, at last: {error.message}") from error
            log.info("tried again", job=job_id, what=what, reason=error.message, again_in_s=pause_s)
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, LAST_RETRY_S)


class Sender:
    """
    Args:
        passed: returns when a request may go out.
        share: of the time a request is under way, the rest is a pause behind each: a job alone must not take an instance to its peak,
            where it would count as overloaded, or have others started beside it.
    """

    def __init__(
        self,
        clock: Clock,
        inferences: Inferences,
        passed: Callable[[], Awaitable[None]],
        request_s: float,
        patience_s: float,
        share: float = 1.0,
    ) -> None:
        self._clock = clock
        self._inferences = inferences
        self._passed = passed
        self._request_s = request_s
        self._patience_s = patience_s
        self._rest_per_s = 1 / share - 1

    async def answer(self, job: BatchRecord, batched: bool, chunk: Chunk) -> tuple[list[Segment], list[RowError]]:
        """An answer or an error for each of the chunk's rows.

        Raises:
            TesseraError: nothing can be answered now, whatever is in the rows.
        """
        waiting, segments, errors = [chunk], list[Segment](), list[RowError]()
        while waiting:
            part = waiting.pop()
            try:
                segments.append(await self._ask(job, batched, part))
            except TesseraError as error:
                if error.kind not in ROW_KINDS:
                    raise
                if part.rows > 1:
                    waiting.extend(reversed(part.halves()))
                else:
                    errors.append(RowError(part.first, error.kind, error.message[:MAX_MESSAGE_CHARS]))
        return segments, errors

    async def _ask(self, job: BatchRecord, batched: bool, chunk: Chunk) -> Segment:
        inputs = dict(chunk.inputs) if batched else {name: array[0] for name, array in chunk.inputs.items()}

        async def send() -> Segment:
            await self._passed()
            began_s = self._clock.monotonic_s()
            outputs = await self._inferences.infer(job.trust_domain, job.asked, inputs, job.objectives, self._request_s)
            await self._clock.sleep(self._rest_per_s * (self._clock.monotonic_s() - began_s))
            return segment_of(chunk, outputs, batched)

        rows = f"rows {chunk.first} to {chunk.first + chunk.rows - 1}"
        return await with_patience(self._clock, self._patience_s, send, f"the request for {rows}", job.job_id)
