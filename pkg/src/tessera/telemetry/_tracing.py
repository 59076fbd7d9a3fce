"""OpenTelemetry spans, kept in a bounded ring and sent on by OTLP where that is configured.

Two ways in: `span(...)` around code, and `record_span(...)` after the fact for who measures stages itself (the gateway and the node
agent), which costs one append when nothing is exported. An unsampled trace costs neither a span nor an id.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Mapping, Sequence
from contextvars import Token
from types import TracebackType
from typing import Literal

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util import types

from tessera.domain.errors import InvalidInput
from tessera.telemetry._context import TraceContext, new_span_id, new_trace_id
from tessera.telemetry._live import LiveSpan
from tessera.telemetry._logging import LEVELS, configure_default, configure_logging
from tessera.telemetry._ring import FinishedSpan, SpanRing

_EXPORT_TIMEOUT_S = 2
"""For one batch, retries included; a collector that is away must not hold up the end of a process."""

Attribute = str | bool | int | float


class _State:
    """Everything that `configure` replaces as one."""

    def __init__(self, service: str, ring_size: int, sample_ratio: float, exporter: BatchSpanProcessor | None) -> None:
        self.service = service
        self.ring = SpanRing(ring_size)
        self.exporter = exporter
        self.resource = Resource({"service.name": f"tessera-{service}" if service else "tessera"})
        self.sampler = TraceIdRatioBased(sample_ratio)
        self.sample_ratio = sample_ratio


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
    shutdown()
    _state = _State(service, ring_size, sample_ratio, exporter)
    configure_logging(log_level, json_logs, current_trace_id, service)


def _exporter(endpoint: str) -> BatchSpanProcessor:
    # Imported where it is wanted: it takes longer than everything else a command-line tool needs of this package.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    atexit.register(shutdown)  # the last batch of every process, whoever composed it
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
    current = trace.get_current_span()
    if isinstance(current, LiveSpan):
        return current.context
    own = current.get_span_context()
    if not own.is_valid:
        return None
    return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", own.trace_flags.sampled)


def current_trace_id() -> str:
    """32 hex digits, or "" outside of any span."""
    context = current_context()
    return context.trace_id if context is not None else ""


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
        outer = current_context() if self._parent is None else self._parent
        if self._parent is None and outer is not None and not outer.sampled:
            # Not sampled: the children of the block see the same unsampled parent, and nothing is made.
            self._span = trace.get_current_span()
            return self._span
        self._span = _begin(self._name, outer, self._attributes)
        self._token = otel_context.attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None) -> Literal[False]:
        if self._token is not None:
            otel_context.detach(self._token)
            if error is not None:
                words = "cancelled" if isinstance(error, asyncio.CancelledError) else (str(error) or type(error).__name__)
                self._span.set_status(StatusCode.ERROR, words)
            self._span.end()
        return False


def _begin(name: str, parent: TraceContext | None, attributes: dict[str, Attribute]) -> trace.Span:
    """A span below `parent`; one without an id is the trace itself, and then the trace's id decides, as for a trace that begins here."""
    trace_id = parent.trace_id if parent is not None else new_trace_id()
    above = parent.span_id if parent is not None else ""
    sampled = parent.sampled if parent is not None else True
    if sampled and (above or is_sampled(trace_id)):
        return LiveSpan(name, TraceContext(trace_id, new_span_id()), above, {**attributes}, _ended)
    flags = TraceFlags(TraceFlags.DEFAULT)
    return NonRecordingSpan(SpanContext(int(trace_id, 16), int(above or new_span_id(), 16), is_remote=False, trace_flags=flags))


def _ended(own: LiveSpan) -> None:
    state, trace_id, span_id = _state, own.context.trace_id, own.context.span_id
    shown = {key: str(value) for key, value in own.attributes.items()}
    begin, end = own.start_unix_ns, own.end_unix_ns
    state.ring.add(FinishedSpan(trace_id, span_id, own.parent_span_id, own.name, state.service, begin, end, shown, own.error or "ok"))
    if state.exporter is not None:
        readable = _readable(state, trace_id, span_id, own.parent_span_id, own.name, begin, end, own.attributes, own.error, own.events)
        state.exporter.on_end(readable)


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
    attributes: types.Attributes,
    error: str,
    events: Sequence[Event] = (),
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
        events=events,
        status=Status(StatusCode.ERROR, error) if error else Status(StatusCode.OK),
        start_time=start_unix_ns,
        end_time=end_unix_ns,
    )


configure_default(current_trace_id)
