"""A service's record in etcd: there while it runs, again after its lease was lost, gone when it ends."""

from __future__ import annotations

import asyncio

from tessera.coord import keys
from tessera.coord.presence import announce
from tessera.coord.records import decode, encode
from tessera.domain.records import ServiceRecord
from tessera.testing import VirtualClock, settle
from tessera.testing.coord import FakeCoordinator, FakeEtcd

RECORD = ServiceRecord("profiler", "p1", "127.0.0.1:1")
KEY = keys.service("profiler", "p1")


async def _address(coordinator: FakeCoordinator) -> str | None:
    found = await coordinator.get(KEY)
    return decode(ServiceRecord, found.value).address if found is not None else None


async def test_it_is_there_until_it_is_cancelled() -> None:
    clock = VirtualClock()
    coordinator = FakeCoordinator(FakeEtcd(clock))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(announce(coordinator, clock, RECORD, 5.0))
        await settle()
        assert await _address(coordinator) == "127.0.0.1:1"
        task.cancel()
    await settle()
    assert await _address(coordinator) is None


async def test_the_record_of_a_killed_predecessor_is_replaced() -> None:
    clock = VirtualClock()
    coordinator = FakeCoordinator(FakeEtcd(clock))
    from tessera.coord.interface import ModRevisionIs, Put

    await coordinator.transact([ModRevisionIs(KEY, 0)], [Put(KEY, encode(ServiceRecord("profiler", "p1", "127.0.0.1:9")))])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(announce(coordinator, clock, RECORD, 5.0))
        await settle()
        assert await _address(coordinator) == "127.0.0.1:1"
        task.cancel()
