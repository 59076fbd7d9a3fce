"""Time that moves when a test says so."""

from __future__ import annotations

import asyncio
import heapq
import itertools

_TURNS = 50
"""How often the loop may go round before the tasks that were woken count as settled. Real work between two waits takes a few."""


class VirtualClock:
    """A `tessera.clock.Clock` that stands still until `advance`. Sleepers wake in the order of their deadlines, then of their arrival.

    Each sleeper that wakes finds the clock at its own deadline, so that what it does next is timed as it would be in the world.
    """

    def __init__(self, monotonic_s: float = 1000.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_offset_s = wall_s - monotonic_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._monotonic_s + self._wall_offset_s

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await _turn()
            return
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic_s + seconds, next(self._order), woken))
        await woken

    @property
    def sleepers(self) -> int:
        """How many wait now."""
        return sum(not woken.done() for _, _, woken in self._sleepers)

    def jump_wall(self, seconds: float) -> None:
        """Moves the wall clock alone, as a clock correction does."""
        self._wall_offset_s += seconds

    def move(self, seconds: float) -> None:
        """Moves both clocks at once and wakes nobody before that; for code that only reads the clock."""
        self._check(seconds)
        self._monotonic_s += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic_s:
            _wake(heapq.heappop(self._sleepers)[2])

    async def advance(self, seconds: float) -> None:
        """Lets `seconds` pass: wakes each sleeper at its deadline and lets everything settle before time goes on."""
        self._check(seconds)
        target = self._monotonic_s + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            deadline, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._monotonic_s = max(self._monotonic_s, deadline)
            _wake(woken)
            await settle()
        self._monotonic_s = target
        await settle()

    @staticmethod
    def _check(seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a monotonic clock does not go back: {seconds}")


async def settle(turns: int = _TURNS) -> None:
    """Lets every task that can run do so, until it waits for something that is not there yet."""
    for _ in range(turns):
        await _turn()


async def _turn() -> None:
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.call_soon(_wake, turn)
    await turn


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
