"""`Traces.GetSpans`, answered from this process's ring of finished spans."""

from __future__ import annotations

import re

from tessera import telemetry
from tessera.api.common.v1 import common_pb2, traces_pb2, traces_pb2_grpc
from tessera.domain.errors import InvalidInput

_TRACE_ID = re.compile(r"[0-9a-f]{32}")


class TracesServicer(traces_pb2_grpc.TracesServicer):
    async def GetSpans(self, request: traces_pb2.GetSpansRequest, context: object) -> traces_pb2.GetSpansResponse:
        if not _TRACE_ID.fullmatch(request.trace_id):
            raise InvalidInput("trace_id", request.trace_id[:80], "must be 32 lowercase hex digits")
        return traces_pb2.GetSpansResponse(spans=[encode_span(span) for span in telemetry.spans_of(request.trace_id)])


def encode_span(span: telemetry.FinishedSpan) -> common_pb2.Span:
    """A finished span as it travels."""
    return common_pb2.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id,
        name=span.name,
        service=span.service,
        start_unix_ns=span.start_unix_ns,
        end_unix_ns=span.end_unix_ns,
        attributes=dict(span.attributes),
        status=span.status,
    )
