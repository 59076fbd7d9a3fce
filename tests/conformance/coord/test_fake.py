"""The fake coordinator, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tessera.coord.interface import Coordinator
from tessera.testing import VirtualClock
from tessera.testing.conformance_coord import CoordinatorConformance
from tessera.testing.coord import FakeCoordinator, FakeEtcd


class FakeWorld:
    def __init__(self) -> None:
        self.clock = VirtualClock()
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
