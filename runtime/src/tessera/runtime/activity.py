"""What an instance has done lately, in figures."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

RECENT_RUNS = 512
"""Runs that are remembered for percentiles; of a faster instance these are its newest."""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """Percentiles are of the runs that ended in the window that was asked for, 0 when there were none. `idle_s`: since its last run ended,
    or since it was loaded; 0 while it has something to do."""

    queue: int
    executing: int
    served: int
    idle_s: float
    run_p50_ms: float
    run_p99_ms: float
    parked: bool


class RecentRuns:
    """When the newest runs ended and how long they took."""

    def __init__(self) -> None:
        self._runs: deque[tuple[float, float]] = deque(maxlen=RECENT_RUNS)

    def note(self, ended_s: float, run_ms: float) -> None:
        self._runs.append((ended_s, run_ms))

    def percentiles(self, since_s: float) -> tuple[float, float]:
        """(p50, p99) in ms by the nearest rank. Runs from before `since_s` are forgotten when only such are there."""
        times = sorted(run_ms for ended_s, run_ms in self._runs if ended_s >= since_s)
        if not times:
            self._runs.clear()
            return 0.0, 0.0
        return times[math.ceil(0.5 * len(times)) - 1], times[math.ceil(0.99 * len(times)) - 1]
