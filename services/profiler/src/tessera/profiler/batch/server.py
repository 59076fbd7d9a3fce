"""The gRPC face of batch jobs: wire in, one call, wire out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tessera.api.batch.v1 import batch_pb2, batch_pb2_grpc
from tessera.domain.ids import JobId, TrustDomain
from tessera.domain.records import BatchRecord
from tessera.profiler.batch.loops.desk import BatchDesk, Submission
from tessera.wire import decode_objectives, encode_objectives


class BatchServer(batch_pb2_grpc.BatchServicer):
    def __init__(self, desk: BatchDesk) -> None:
        self._desk = desk

    async def SubmitBatch(self, request: batch_pb2.SubmitBatchRequest, context: Any) -> batch_pb2.SubmitBatchResponse:
        wanted = Submission(
            self._desk.domain(request.trust_domain),
            request.model,
            request.input_url,
            request.output_url,
            request.input_format,
            request.output_format,
            request.batch_size,
            decode_objectives(request.objectives),
            request.max_errors if request.HasField("max_errors") else None,
            request.if_exists,
        )
        return batch_pb2.SubmitBatchResponse(batch=_info(await self._desk.submit(wanted)))

    async def ListBatches(self, request: batch_pb2.ListBatchesRequest, context: Any) -> batch_pb2.ListBatchesResponse:
        found = await self._desk.all_of(self._desk.domain(request.trust_domain))
        return batch_pb2.ListBatchesResponse(batches=[_info(job) for job in found])

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: Any) -> batch_pb2.GetBatchResponse:
        return batch_pb2.GetBatchResponse(batch=_info(await self._desk.get(*self._named(request))))

    async def CancelBatch(self, request: batch_pb2.CancelBatchRequest, context: Any) -> batch_pb2.CancelBatchResponse:
        return batch_pb2.CancelBatchResponse(batch=_info(await self._desk.cancel(*self._named(request))))

    async def WatchBatch(self, request: batch_pb2.WatchBatchRequest, context: Any) -> AsyncIterator[batch_pb2.BatchInfo]:
        async for job in self._desk.watch(*self._named(request)):
            yield _info(job)

    def _named(self, request: Any) -> tuple[TrustDomain, JobId]:
        return self._desk.domain(request.trust_domain), JobId(request.job_id)


def _info(job: BatchRecord) -> batch_pb2.BatchInfo:
    return batch_pb2.BatchInfo(
        job_id=job.job_id,
        trust_domain=job.trust_domain,
        model=job.model,
        input_url=job.input_url,
        output_url=job.output_url,
        input_format=job.input_format,
        output_format=job.output_format,
        batch_size=job.batch_size,
        objectives=encode_objectives(job.objectives),
        max_errors=job.max_errors,
        state=job.state,
        reason=job.reason,
        rows=job.rows,
        rows_done=job.rows_done,
        rows_failed=job.rows_failed,
        parts=job.parts,
        submitted_unix_s=job.submitted_unix_s,
        started_unix_s=job.started_unix_s,
        ended_unix_s=job.ended_unix_s,
        cancelling=job.cancelling,
    )
