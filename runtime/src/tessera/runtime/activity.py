"""What an instance has done lately, in figures."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

RECENT_RUNS = 512
"""Runs that are remembered for percentiles; of a faster instance these are its newest."""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """Percentiles, and `run_items` (the mean batch), are of the runs that ended in the window that was asked for, 0 when there were none.
    `items`: batch items answered since it was loaded, as `served` counts requests. `idle_s`: since its last run ended, or since it was
    loaded; 0 while it has something to do."""

    queue: int
    executing: int
    served: int
    idle_s: float
    run_p50_ms: float
    run_p99_ms: float
    parked: bool
    items: int = 0
    run_items: float = 0.0


@dataclass(frozen=True, slots=True)
class RunFigures:
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    items: float = 0.0


class RecentRuns:
    """When the newest runs ended, how long they took and how many items they had."""

    def __init__(self) -> None:
        self._runs: deque[tuple[float, float, int]] = deque(maxlen=RECENT_RUNS)

    def note(self, ended_s: float, run_ms: float, items: int) -> None:
        self._runs.append((ended_s, run_ms, items))

    def figures(self, since_s: float) -> RunFigures:
        """Percentiles by the nearest rank. Runs from before `since_s` are forgotten when only such are there."""
        runs = [(run_ms, items) for ended_s, run_ms, items in self._runs if ended_s >= since_s]
        if not runs:
            self._runs.clear()
            return RunFigures()
        times = sorted(run_ms for run_ms, _ in runs)
        p50_ms, p99_ms = (times[math.ceil(share * len(times)) - 1] for share in (0.5, 0.99))
        return RunFigures(p50_ms, p99_ms, sum(items for _, items in runs) / len(runs))
