"""A span that is under way, as OpenTelemetry's API sees it.

The SDK's own span takes ten times as long to make and end (validation, limits, locks, an instrumentation scope), and every internal
call pays for one on each side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry.sdk.trace import Event
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
from opentelemetry.util import types

from tessera.telemetry._context import TraceContext

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class LiveSpan(trace.Span):
    """Made and ended in one process; ids as hex digits. `ended(span)` is called once, when it ends. After that nothing changes it."""

    def __init__(
        self,
        name: str,
        context: TraceContext,
        parent_span_id: str,
        attributes: dict[str, types.AttributeValue],
        ended: Callable[[LiveSpan], None],
    ) -> None:
        self.name = name
        self.context = context
        self.parent_span_id = parent_span_id
        self.attributes = attributes
        self.events: list[Event] = []
        self.error = ""
        self.start_unix_ns = time.time_ns()
        self.end_unix_ns = 0
        self._ended = ended

    def get_span_context(self) -> SpanContext:
        return SpanContext(int(self.context.trace_id, 16), int(self.context.span_id, 16), is_remote=False, trace_flags=_SAMPLED)

    def is_recording(self) -> bool:
        return not self.end_unix_ns

    def set_attribute(self, key: str, value: types.AttributeValue) -> None:
        if not self.end_unix_ns:
            self.attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, types.AttributeValue]) -> None:
        if not self.end_unix_ns:
            self.attributes.update(attributes)

    def add_event(self, name: str, attributes: types.Attributes = None, timestamp: int | None = None) -> None:
        if not self.end_unix_ns:
            self.events.append(Event(name, attributes, timestamp))

    def update_name(self, name: str) -> None:
        if not self.end_unix_ns:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """The last one counts; an error keeps its words."""
        code = status.status_code if isinstance(status, Status) else status
        words = status.description if isinstance(status, Status) else description
        if not self.end_unix_ns and code is not StatusCode.UNSET:
            self.error = (words or "error") if code is StatusCode.ERROR else ""

    def record_exception(
        self,
        exception: BaseException,
        attributes: types.Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        about = {"exception.type": type(exception).__qualname__, "exception.message": str(exception), "exception.escaped": str(escaped)}
        self.add_event("exception", {**about, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if not self.end_unix_ns:
            self.end_unix_ns = end_time or time.time_ns()
            self._ended(self)
