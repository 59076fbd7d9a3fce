"""The states of a batch job (docs/states/batch.md), and which job is next."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tessera.domain.errors import FailedPrecondition
from tessera.domain.records import BatchRecord, BatchState

MAX_ATTEMPTS = 5
"""How often a job is taken up without writing a part in between: one that kills the profiler must not do so for ever."""
ENDED = frozenset({BatchState.DONE, BatchState.FAILED, BatchState.CANCELLED})

_NEXT: dict[BatchState, frozenset[BatchState]] = {
    BatchState.QUEUED: frozenset({BatchState.RUNNING, BatchState.FAILED, BatchState.CANCELLED}),
    BatchState.RUNNING: frozenset({BatchState.PAUSED, *ENDED}),
    BatchState.PAUSED: frozenset({BatchState.RUNNING, BatchState.FAILED, BatchState.CANCELLED}),
    BatchState.DONE: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}


def step(job: BatchRecord, then: BatchState, now_unix_s: float, reason: str = "") -> BatchRecord:
    """The job in its next state.

    Raises:
        FailedPrecondition: there is no such transition.
    """
    if then not in _NEXT[job.state]:
        raise FailedPrecondition(f"batch job {job.job_id} does not go from {job.state} to {then}")
    return replace(
        job,
        state=then,
        reason=reason,
        started_unix_s=job.started_unix_s or (now_unix_s if then is BatchState.RUNNING else 0.0),
        ended_unix_s=now_unix_s if then in ENDED else 0.0,
    )


def next_job(jobs: Iterable[BatchRecord]) -> BatchRecord | None:
    """What a dead predecessor had begun, else what was submitted first; those whose end was asked for are ended first of all."""
    open_jobs = [job for job in jobs if job.state not in ENDED]
    return min(
        open_jobs,
        key=lambda job: (not job.cancelling, job.state is BatchState.QUEUED, job.submitted_unix_s, job.job_id),
        default=None,
    )


def forgotten(jobs: Iterable[BatchRecord], kept: int) -> list[BatchRecord]:
    """The ended jobs of a trust domain beyond the `kept` that ended last."""
    ended = sorted((job for job in jobs if job.state in ENDED), key=lambda job: (job.ended_unix_s, job.job_id), reverse=True)
    return ended[kept:]
