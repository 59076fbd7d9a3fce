"""The bounded memory of finished spans that answers `Traces.GetSpans` where no collector is configured."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """A span that ended. Times are nanoseconds since 1970. `status` is "ok" or the error's words."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    service: str
    start_unix_ns: int
    end_unix_ns: int
    attributes: Mapping[str, str] = field(default_factory=dict)
    status: str = "ok"


class SpanRing:
    """The last `size` finished spans; the oldest makes room for the newest. Safe to use from any thread."""

    def __init__(self, size: int) -> None:
        self._spans: deque[FinishedSpan] = deque(maxlen=size)
        self._lock = threading.Lock()

    def add(self, span: FinishedSpan) -> None:
        with self._lock:
            self._spans.append(span)

    def of_trace(self, trace_id: str) -> list[FinishedSpan]:
        """The spans of one trace that are still held, in order of their start."""
        with self._lock:
            found = [span for span in self._spans if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.start_unix_ns)

    def __len__(self) -> int:
        return len(self._spans)
