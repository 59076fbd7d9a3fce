"""OpenTelemetry spans, kept in a bounded ring and sent on by OTLP where that is configured.

Two ways in: `span(...)` around code, and `record_span(...)` after the fact for who measures stages itself (the gateway and the node
agent), which costs one append when nothing is exported. An unsampled trace costs neither a span nor an id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from tessera.domain.errors import InvalidInput
from tessera.telemetry._context import TraceContext, new_span_id, new_trace_id
from tessera.telemetry._logging import LEVELS, configure_default, configure_logging
from tessera.telemetry._ring import FinishedSpan, SpanRing

_EXPORT_TIMEOUT_S = 2
"""For one batch, retries included; a collector that is away must not hold up the end of a process."""

Attribute = str | bool | int | float

_wanted_trace_id: ContextVar[int] = ContextVar("tessera_wanted_trace_id", default=0)


class _Ids(IdGenerator):
    """Random ids, except that the root span of a trace whose id is given beforehand (a request's id) takes that one."""

    def generate_trace_id(self) -> int:
        return _wanted_trace_id.get() or int(new_trace_id(), 16)

    def generate_span_id(self) -> int:
        return int(new_span_id(), 16)


class _RingProcessor(SpanProcessor):
    def __init__(self, ring: SpanRing, service: str) -> None:
        self._ring = ring
        self._service = service

    def on_end(self, span: ReadableSpan) -> None:
        own = span.get_span_context()
        if own is None:
            return
        status = span.status
        self._ring.add(
            FinishedSpan(
                trace_id=f"{own.trace_id:032x}",
                span_id=f"{own.span_id:016x}",
                parent_span_id=f"{span.parent.span_id:016x}" if span.parent else "",
                name=span.name,
                service=self._service,
                start_unix_ns=span.start_time or 0,
                end_unix_ns=span.end_time or 0,
                attributes={key: str(value) for key, value in (span.attributes or {}).items()},
                status=(status.description or "error") if status.status_code is StatusCode.ERROR else "ok",
            )
        )


class _State:
    """Everything that `configure` replaces as one."""

    def __init__(self, service: str, ring_size: int, sample_ratio: float, exporter: BatchSpanProcessor | None) -> None:
        self.service = service
        self.ring = SpanRing(ring_size)
        self.exporter = exporter
        self.resource = Resource({"service.name": f"tessera-{service}" if service else "tessera"})
        self.sampler = TraceIdRatioBased(sample_ratio)
        self.sample_ratio = sample_ratio
        self.provider = TracerProvider(
            resource=self.resource, sampler=ParentBased(self.sampler), id_generator=_Ids(), shutdown_on_exit=False
        )
        self.provider.add_span_processor(_RingProcessor(self.ring, service))
        if exporter is not None:
            self.provider.add_span_processor(exporter)
        self.tracer = self.provider.get_tracer("tessera")


_state = _State("", 4096, 1.0, None)


def configure(
    service: str,
    otlp_endpoint: str | None = None,
    ring_size: int = 4096,
    *,
    sample_ratio: float = 1.0,
    log_level: str = "info",
    json_logs: bool | None = None,
) -> None:
    """Sets up spans and logs of this process. `service` is the folder name of the service ("node-agent").

    Spans go to a ring of `ring_size`; with `otlp_endpoint` ("http://host:4317") also there, in batches, by OTLP over gRPC.
    `sample_ratio` (0..1) decides for traces that start here; a trace that came in keeps its caller's decision.

    Raises:
        InvalidInput: names the setting and its limit.
    """
    global _state
    if not 0.0 <= sample_ratio <= 1.0:
        raise InvalidInput("sample_ratio", sample_ratio, "must be from 0 to 1")
    if ring_size < 1:
        raise InvalidInput("ring_size", ring_size, "must be at least 1")
    if log_level not in LEVELS:
        raise InvalidInput("log_level", log_level, f"must be one of {', '.join(LEVELS)}")
    exporter = _exporter(otlp_endpoint) if otlp_endpoint else None
    old, _state = _state, _State(service, ring_size, sample_ratio, exporter)
    old.provider.shutdown()
    configure_logging(log_level, json_logs, current_trace_id, service)


def _exporter(endpoint: str) -> BatchSpanProcessor:
    # Imported where it is wanted: it takes longer than everything else a command-line tool needs of this package.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    insecure = not endpoint.startswith("https://")
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S))


def shutdown() -> None:
    """Sends what is still batched and stops the exporter's thread. Spans that end later reach the ring only."""
    exporter, _state.exporter = _state.exporter, None
    if exporter is not None:
        exporter.shutdown()  # type: ignore[no-untyped-call] # untyped in the SDK


def service_name() -> str:
    """The name given to `configure`, or "" before."""
    return _state.service


def spans_of(trace_id: str) -> list[FinishedSpan]:
    """The spans of a trace (32 hex digits) that this process still holds, in order of their start."""
    return _state.ring.of_trace(trace_id)


def is_sampled(trace_id: str) -> bool:
    """The decision for a trace that starts here: by its id, so that every process decides alike."""
    if _state.sample_ratio >= 1.0:
        return True
    return (int(trace_id, 16) & TraceIdRatioBased.TRACE_ID_LIMIT) < _state.sampler.bound


def current_context() -> TraceContext | None:
    """Trace id and span id of the current span, or None outside of any."""
    own = trace.get_current_span().get_span_context()
    if not own.is_valid:
        return None
    return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled)


def current_trace_id() -> str:
    """32 hex digits, or "" outside of any span."""
    own = trace.get_current_span().get_span_context()
    return f"{own.trace_id:032x}" if own.is_valid else ""


class span:
    """`with span("tessera.registry.import", model=name) as s:` is a span around the block, child of the current one.

    `parent` hangs it elsewhere: into a trace that came over a wire, or (without a `span_id`) at the root of a trace whose id is given.
    An exception ends it with its words as the status, and passes. `s.set_attribute(name, value)` adds what is known later.
    """

    __slots__ = ("_attributes", "_name", "_parent", "_span", "_token")

    def __init__(self, name: str, /, *, parent: TraceContext | None = None, **attributes: Attribute) -> None:
        self._name = name
        self._parent = parent
        self._attributes = attributes
        self._span: trace.Span = trace.INVALID_SPAN
        self._token: Token[otel_context.Context] | None = None

    def __enter__(self) -> trace.Span:
        parent = self._parent
        if parent is None:
            outer = trace.get_current_span()
            own = outer.get_span_context()
            if own.is_valid and not own.trace_flags.sampled:
                # Not sampled: the children of the block see the same unsampled parent, and nothing is made.
                self._span = outer
                return outer
            self._span = _state.tracer.start_span(self._name, attributes=self._attributes)
        else:
            self._span = _start_below(parent, self._name, self._attributes)
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None) -> Literal[False]:
        if self._token is not None:
            otel_context.detach(self._token)
            if error is not None:
                words = "cancelled" if isinstance(error, asyncio.CancelledError) else (str(error) or type(error).__name__)
                self._span.set_status(Status(StatusCode.ERROR, words))
            self._span.end()
        return False


def _start_below(parent: TraceContext, name: str, attributes: Mapping[str, Attribute]) -> trace.Span:
    trace_id = int(parent.trace_id, 16)
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    if not parent.sampled:
        return NonRecordingSpan(SpanContext(trace_id, int(parent.span_id or new_span_id(), 16), is_remote=False, trace_flags=flags))
    if not parent.span_id:
        reset = _wanted_trace_id.set(trace_id)
        try:
            return _state.tracer.start_span(name, context=otel_context.Context(), attributes=attributes)
        finally:
            _wanted_trace_id.reset(reset)
    remote = NonRecordingSpan(SpanContext(trace_id, int(parent.span_id, 16), is_remote=True, trace_flags=flags))
    return _state.tracer.start_span(name, context=trace.set_span_in_context(remote), attributes=attributes)


def record_span(
    name: str,
    trace_id: str,
    *,
    start_unix_ns: int,
    end_unix_ns: int,
    parent_span_id: str = "",
    span_id: str = "",
    attributes: Mapping[str, Attribute] | None = None,
    error: str = "",
) -> str:
    """Records a span that has ended already; returns its id (16 hex digits), so that others can hang below it.

    The caller asks `is_sampled` once per trace and leaves this out where it is not. `error`: the error's words, "" for "ok".
    """
    own_id = span_id or new_span_id()
    state = _state
    shown = {key: str(value) for key, value in attributes.items()} if attributes else {}
    state.ring.add(FinishedSpan(trace_id, own_id, parent_span_id, name, state.service, start_unix_ns, end_unix_ns, shown, error or "ok"))
    if state.exporter is not None:
        state.exporter.on_end(_readable(state, trace_id, own_id, parent_span_id, name, start_unix_ns, end_unix_ns, attributes, error))
    return own_id


def _readable(
    state: _State,
    trace_id: str,
    span_id: str,
    parent_span_id: str,
    name: str,
    start_unix_ns: int,
    end_unix_ns: int,
    attributes: Mapping[str, Attribute] | None,
    error: str,
) -> ReadableSpan:
    flags = TraceFlags(TraceFlags.SAMPLED)
    trace_number = int(trace_id, 16)
    parent = SpanContext(trace_number, int(parent_span_id, 16), is_remote=True, trace_flags=flags) if parent_span_id else None
    return ReadableSpan(
        name=name,
        context=SpanContext(trace_number, int(span_id, 16), is_remote=False, trace_flags=flags),
        parent=parent,
        resource=state.resource,
        attributes=dict(attributes or {}),
        status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.OK),
        start_time=start_unix_ns,
        end_time=end_unix_ns,
    )


configure_default(current_trace_id)
