"""Random ids in bulk: a system call per request for sixteen bytes is a measurable part of a warm request."""

from __future__ import annotations

import os

_BLOCK = 24 * 256


class Identifiers:
    """Trace and span ids (16 and 8 bytes, never all zero) of the system's generator, drawn in blocks. For a process that never forks."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def __call__(self) -> tuple[str, str]:
        """(trace id, span id) in lowercase hex."""
        at = self._at
        if at >= len(self._pool):
            self._pool, at = os.urandom(_BLOCK), 0
        self._at = at + 24
        text = self._pool[at : at + 24].hex()
        trace_id, span_id = text[:32], text[32:]
        if not trace_id.strip("0") or not span_id.strip("0"):
            return self()
        return trace_id, span_id
