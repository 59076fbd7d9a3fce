"""Waking loops: 'something changed, look again'. Several changes before a look are one."""

from __future__ import annotations

import asyncio

from tessera.program import Stop


class Pulse:
    """One per waiting loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until it fired since the last wait, or the time is over. True when it fired."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        finally:
            self._event.clear()
        return True

    async def wait_or(self, stop: Stop, timeout_s: float) -> None:
        """As `wait`; the program's stop ends it, too, at the next whole second at the latest."""
        left_s = timeout_s
        while not stop.is_set() and left_s > 0:
            if await self.wait(min(left_s, 1.0)):
                return
            left_s -= 1.0
