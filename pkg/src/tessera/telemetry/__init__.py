"""Spans, logs and metrics: what a service says about its decisions.

A process calls `configure` once. Before that spans go to a ring of their own and logs to stderr from "warning" on, so that a library
or a test needs no set-up. Names: spans `tessera.<service>.<verb>`, metrics `tessera_<service>_<thing>_<unit>`.
"""

from tessera.telemetry._context import (
    TraceContext,
    format_traceparent,
    new_span_id,
    new_trace_id,
    parse_traceparent,
)
from tessera.telemetry._logging import Logger, get_logger
from tessera.telemetry._metrics import MetricsServer
from tessera.telemetry._ring import FinishedSpan, SpanRing
from tessera.telemetry._tracing import (
    configure,
    current_context,
    current_trace_id,
    is_sampled,
    record_span,
    service_name,
    shutdown,
    span,
    spans_of,
)

__all__ = [
    "FinishedSpan",
    "Logger",
    "MetricsServer",
    "SpanRing",
    "TraceContext",
    "configure",
    "current_context",
    "current_trace_id",
    "format_traceparent",
    "get_logger",
    "is_sampled",
    "new_span_id",
    "new_trace_id",
    "parse_traceparent",
    "record_span",
    "service_name",
    "shutdown",
    "span",
    "spans_of",
]
