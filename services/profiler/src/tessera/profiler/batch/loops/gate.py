"""Lets requests of a job through while no instance of its trust domain is overloaded or interfered with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator
from tessera.coord.view import View
from tessera.domain.ids import TrustDomain
from tessera.domain.records import LoadRecord
from tessera.profiler.batch.core.pausing import Look, look

LOOK_S = 1.0


class Gate:
    """
    Args:
        on_change: told the reason when the job must pause, "" when it may go on. Requests wait until it has returned.
    """

    def __init__(
        self, coordinator: Coordinator, clock: Clock, trust_domain: TrustDomain, calm_s: float, on_change: Callable[[str], Awaitable[None]]
    ) -> None:
        self._clock = clock
        self._calm_s = calm_s
        self._on_change = on_change
        self._open = asyncio.Event()
        self.loads: View[LoadRecord] = View(coordinator, keys.loads(trust_domain), LoadRecord)
        self._woken = asyncio.Event()
        self.loads.on_change(lambda _key, _old, _new: self._woken.set())

    async def passed(self) -> None:
        await self._open.wait()

    async def run(self) -> None:
        """Looks at every change and each second; until it is cancelled. Closed until the load records were read once."""
        await self.loads.synced.wait()
        seen = Look()
        while True:
            self._woken.clear()
            before, seen = seen, look(seen, self.loads.values(), self._clock.monotonic_s(), self._calm_s)
            if seen.paused:
                self._open.clear()
            if seen.reason != before.reason:
                await self._on_change(seen.reason)
            if not seen.paused:
                self._open.set()
            await self._pause()

    async def _pause(self) -> None:
        async with asyncio.TaskGroup() as group:
            waits = {group.create_task(self._woken.wait()), group.create_task(self._clock.sleep(LOOK_S))}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
