"""Ends requests whose client set no deadline, all after the same time: they expire in the order of their arrival, so that one timer
does for all of them. A timer each is a measurable part of a warm request.
"""

from __future__ import annotations

import asyncio


class Watchdog:
    """`enter` at arrival, `leave` at the end; in between the task is cancelled when its `budget_s` is over, and `leave` says so."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self._deadlines: dict[asyncio.Task[object], float] = {}
        self._expired: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, now_s: float) -> asyncio.Task[object]:
        """`now_s`: the loop's own time, or a reading of the clock that it goes by."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._deadlines[task] = now_s + self.budget_s
        if self._timer is None:
            self._timer = loop.call_later(self.budget_s, self._expire)
        return task

    def leave(self, task: asyncio.Task[object]) -> bool:
        """Whether the task was cancelled because its time was over."""
        self._deadlines.pop(task, None)
        if self._expired and task in self._expired:
            self._expired.discard(task)
            task.uncancel()
            return True
        return False

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._deadlines:
            task, deadline_s = next(iter(self._deadlines.items()))
            remaining_s = deadline_s - loop.time()
            if remaining_s > 0:
                self._timer = loop.call_later(remaining_s, self._expire)
                return
            del self._deadlines[task]
            self._expired.add(task)
            task.cancel()
