"""A call that is due at a moment of the clock, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from tessera.clock import Clock


class Alarm:
    """One call at a time: of several moments it was set for since it last rang, the earliest counts. Whoever is called looks at the clock:
    a loop's timers may be a little early."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = inf

    def by(self, at_s: float, ring: Callable[[], None]) -> None:
        """Calls `ring` then, unless it is set for a moment before."""
        if at_s >= self._at_s:
            return
        self.off()
        self._at_s = at_s
        self._timer = self._loop.call_later(max(0.0, at_s - self._clock.monotonic_s()), self._due, ring)

    def off(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._at_s = None, inf

    def _due(self, ring: Callable[[], None]) -> None:
        self.off()
        ring()
