"""The etcd coordinator, each client behind a proxy that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aetcd
import pytest

from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Coordinator
from tessera.testing.conformance_coord import CoordinatorConformance
from tessera.testing.etcd import running_etcd
from tessera.testing.proxy import FaultyProxy


class EtcdWorld:
    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.partition(":")
        self._target = (host, int(port))
        self._admin = aetcd.Client(host, int(port), timeout=10)
        self._clients: list[tuple[EtcdCoordinator, FaultyProxy]] = []

    async def client(self) -> Coordinator:
        proxy = FaultyProxy(*self._target)
        await proxy.start()
        coordinator = EtcdCoordinator([proxy.address], timeout_s=2.0)
        self._clients.append((coordinator, proxy))
        return coordinator

    async def cut(self, client: Coordinator) -> None:
        await self._proxy(client).cut()

    async def heal(self, client: Coordinator) -> None:
        await self._proxy(client).heal()

    async def compact(self) -> None:
        header = (await self._admin.get_prefix(b"/c/")).header
        await self._admin.compact(header.revision)

    async def revoke(self, lease_id: int) -> None:
        await self._admin.revoke_lease(lease_id)

    async def let_pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for coordinator, proxy in self._clients:
            await coordinator.close()
            await proxy.cut()
        await self._admin.delete_prefix(b"/c/")
        await self._admin.close()

    def _proxy(self, client: Coordinator) -> FaultyProxy:
        return next(proxy for coordinator, proxy in self._clients if coordinator is client)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    folder: Path = tmp_path_factory.mktemp("etcd")
    with running_etcd(folder) as process:
        yield process


@pytest.fixture
async def world(etcd: EtcdProcess) -> AsyncIterator[EtcdWorld]:
    world = EtcdWorld(etcd.endpoint)
    yield world
    await world.close()


class TestEtcd(CoordinatorConformance):
    pass
