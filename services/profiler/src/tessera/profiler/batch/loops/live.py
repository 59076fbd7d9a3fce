"""How far the job under way is, between two writes of its record; and who wants to hear when any job changed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tessera.domain.records import BatchRecord
from tessera.profiler.batch.core.states import ENDED


class Live:
    def __init__(self) -> None:
        self._job: BatchRecord | None = None
        self._changed = asyncio.Event()

    def tell(self, job: BatchRecord) -> None:
        self._job = job
        self.wake()

    def forget(self) -> None:
        self._job = None
        self.wake()

    def wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change; take it before looking."""
        return self._changed

    def seen(self, job: BatchRecord) -> BatchRecord:
        """The record with what is known beyond it."""
        known = self._job
        if known is None or job.state in ENDED or (known.trust_domain, known.job_id) != (job.trust_domain, job.job_id):
            return job
        return replace(job, rows=known.rows, rows_done=known.rows_done, rows_failed=known.rows_failed, parts=known.parts)
