"""Budgets that end in the queue of an instance."""

from __future__ import annotations

from collections import deque

from tessera.clock import Clock
from tessera.domain.errors import DeadlineExceeded
from tessera.runtime.alarm import Alarm
from tessera.runtime.waiting import Waiting

TIMER_GRAIN_S = 1e-3
"""The loop's timers count in whole milliseconds: one that came a little early would have to be set again at once, and again."""


class Expiry:
    """Who has waited in `queue` beyond its budget hears so then, whatever runs, and frees its place."""

    def __init__(self, queue: deque[Waiting], variant: str, clock: Clock) -> None:
        self._queue = queue
        self._variant = variant
        self._clock = clock
        self._alarm = Alarm(clock)

    def watch(self, item: Waiting) -> None:
        """It waits in the queue."""
        self._alarm.by(item.deadline_s + TIMER_GRAIN_S, self._look)

    def end(self, item: Waiting, now_s: float) -> None:
        """Tells it, which is in the queue no more."""
        if not item.future.done():
            waited_ms = (now_s - item.arrived_s) * 1e3
            item.future.set_exception(DeadlineExceeded(f"the budget ended after {waited_ms:.1f} ms in the queue of {self._variant}"))

    def _look(self) -> None:
        now_s = self._clock.monotonic_s()
        for _ in range(len(self._queue)):
            item = self._queue.popleft()
            if item.deadline_s <= now_s:
                self.end(item, now_s)
            else:
                self._queue.append(item)
        if self._queue:
            self.watch(min(self._queue, key=lambda item: item.deadline_s))
