"""The wish that the program ends, and why. Set once; never taken back."""

from __future__ import annotations

import asyncio


class Stop:
    """Everyone who runs for long waits for this. `reason` says who wished it; `error` is what failed, if something did."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""
        self.error: BaseException | None = None

    def request(self, reason: str, error: BaseException | None = None) -> None:
        """Asks everything to end. The first reason stays; the first error stays too, even when the wish was there before it."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()
        if self.error is None:
            self.error = error

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    async def wait_for(self, seconds: float) -> bool:
        """Waits at most `seconds`; True when the program shall end. The pause of a loop that must not outlive the program."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
