"""The fake coordinator, in virtual time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator

import pytest

from tessera.coord.interface import Coordinator
from tessera.testing.conformance_coord import CoordinatorConformance
from tessera.testing.coord import FakeCoordinator, FakeEtcd


class StepClock:
    """Time that goes on when the test says so; whoever sleeps wakes in order."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self._now_s + max(seconds, 0.0), self._count, woken))
        await woken.wait()

    async def advance(self, seconds: float) -> None:
        end_s = self._now_s + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._now_s, _, woken = heapq.heappop(self._sleepers)
            woken.set()
            await self._settle()
        self._now_s = end_s
        await self._settle()

    @staticmethod
    async def _settle() -> None:
        for _ in range(30):
            await asyncio.sleep(0)


class FakeWorld:
    def __init__(self) -> None:
        self.clock = StepClock()
        self.server = FakeEtcd(self.clock)
        self.clients: list[FakeCoordinator] = []

    async def client(self) -> Coordinator:
        self.clients.append(FakeCoordinator(self.server))
        return self.clients[-1]

    async def cut(self, client: Coordinator) -> None:
        assert isinstance(client, FakeCoordinator)
        client.go_away()

    async def heal(self, client: Coordinator) -> None:
        assert isinstance(client, FakeCoordinator)
        client.come_back()

    async def compact(self) -> None:
        self.server.compact()

    async def revoke(self, lease_id: int) -> None:
        assert self.server.revoke(lease_id)

    async def let_pass(self, seconds: float) -> None:
        await self.clock.advance(seconds)


@pytest.fixture
async def world() -> AsyncIterator[FakeWorld]:
    world = FakeWorld()
    yield world
    for client in world.clients:
        await client.close()


class TestFake(CoordinatorConformance):
    pass
