"""Random ids in bulk: a system call per request for sixteen bytes is a measurable part of a warm request."""

from __future__ import annotations

import os

_BLOCK = 24 * 256
_NO_TRACE = bytes(16)
_NO_SPAN = bytes(8)


class Identifiers:
    """Trace and span ids (16 and 8 bytes, never all zero) of the system's generator, drawn in blocks. For a process that never forks."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def __call__(self) -> tuple[bytes, bytes]:
        """(trace id, span id)."""
        at = self._at
        if at >= len(self._pool):
            self._pool, at = os.urandom(_BLOCK), 0
        self._at = at + 24
        trace_id, span_id = self._pool[at : at + 16], self._pool[at + 16 : at + 24]
        if trace_id == _NO_TRACE or span_id == _NO_SPAN:
            return self()
        return trace_id, span_id
