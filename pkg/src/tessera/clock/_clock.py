"""The one place that reads the machine's clocks. Everything else gets a `Clock` as an argument (house rule 8)."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Three readings and one wait."""

    def monotonic_s(self) -> float:
        """Seconds that only go forward; for deadlines, idle times and stages."""
        ...

    def wall_s(self) -> float:
        """Seconds since 1970; for records that people read. May jump."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    monotonic_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
