"""The progress of jobs, in memory, for those who follow it. What must survive the registry is in the job's record.

Sequence numbers only grow, over restarts too: each attempt of a job starts at its own multiple.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from tessera.domain.errors import NotFound, TesseraError
from tessera.domain.ids import JobId, VersionKey

_SEQUENCES_PER_ATTEMPT = 1_000_000
_EVENTS_KEPT = 2000


@dataclass(frozen=True, slots=True)
class JobProgress:
    """One event. `version` is set where a result goes with it; `error` ends the job."""

    job_id: JobId
    sequence: int
    step: str
    message: str
    fraction: float
    version: VersionKey | None = None
    unchanged: bool = False
    error: TesseraError | None = None
    last: bool = False


class JobLog:
    """All jobs of this registry, ended ones up to a number."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._jobs: OrderedDict[JobId, _Job] = OrderedDict()

    def begin(self, job_id: JobId, attempt: int) -> None:
        self._jobs[job_id] = _Job(attempt * _SEQUENCES_PER_ATTEMPT)
        self._jobs.move_to_end(job_id)
        for other in [name for name, job in self._jobs.items() if job.ended][: max(0, len(self._jobs) - self._remembered)]:
            del self._jobs[other]

    def say(self, job_id: JobId, progress: JobProgress) -> None:
        """Appends the event with its sequence number; a job that is not known or has ended takes none."""
        job = self._jobs.get(job_id)
        if job is None or job.ended:
            return
        job.events.append(replace(progress, sequence=job.base + job.count + 1))
        job.count += 1
        del job.events[:-_EVENTS_KEPT]
        job.ended = progress.last
        job.changed.set()
        job.changed = asyncio.Event()

    async def follow(self, job_id: JobId, after_sequence: int = 0) -> AsyncIterator[JobProgress]:
        """Events with a greater sequence number, until the job has ended.

        Raises:
            NotFound: no such job, or one that ended long ago.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"job {job_id!r} is not running and not among the last {self._remembered} that ended")
        seen = after_sequence
        while True:
            changed = job.changed
            for event in [event for event in job.events if event.sequence > seen]:
                seen = event.sequence
                yield event
            if job.ended:
                return
            await changed.wait()


class _Job:
    def __init__(self, base: int) -> None:
        self.base = base
        self.count = 0
        self.events: list[JobProgress] = []
        self.ended = False
        self.changed = asyncio.Event()
