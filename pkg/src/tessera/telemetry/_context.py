"""W3C trace context: the ids of a trace, as text and as the bytes that frames carry. A request's id is its trace id."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_SAMPLED = 0x01

_random = random.SystemRandom()
"""Forked processes share the state of an ordinary generator and would draw the same ids; the system's does not."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where a span hangs. `trace_id`: 32 lowercase hex digits; `span_id` (the parent's): 16, or "" for a root of this trace."""

    trace_id: str
    span_id: str = ""
    sampled: bool = True


def new_trace_id() -> str:
    """128 random bits, never all zero."""
    return f"{_random.getrandbits(128) or 1:032x}"


def new_span_id() -> str:
    """64 random bits, never all zero."""
    return f"{_random.getrandbits(64) or 1:016x}"


def parse_traceparent(text: str) -> TraceContext | None:
    """Reads a W3C `traceparent`; None when it is malformed, because the standard says to start a new trace then.

    Versions above 00 may carry further fields, which are ignored; version ff is invalid.
    """
    match = _TRACEPARENT.fullmatch(text.strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def format_traceparent(context: TraceContext) -> str:
    """Writes a W3C `traceparent`. A context without a span gets a random one, because the format has no way to say "root"."""
    return f"00-{context.trace_id}-{context.span_id or new_span_id()}-{'01' if context.sampled else '00'}"
