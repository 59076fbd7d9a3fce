"""etcd stopped, wiped and killed under views, sessions, elections and writers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tessera.coord import keys
from tessera.coord.binary import EtcdProcess, find_etcd
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import Changed, Coordinator, Delete, ModRevisionIs, Put, Reset
from tessera.coord.records import encode
from tessera.coord.view import View
from tessera.domain.errors import Conflict, Unavailable
from tessera.domain.records import ServiceRecord
from tessera.testing.etcd import free_port

Connect = Callable[..., EtcdCoordinator]
Until = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]

A, B, C = (keys.service("gateway", name) for name in "abc")


def record(name: str) -> ServiceRecord:
    return ServiceRecord("gateway", name, "127.0.0.1:1")


async def create(coordinator: Coordinator, key: str, value: bytes, lease_id: int = 0) -> int:
    return await coordinator.transact([ModRevisionIs(key, 0)], [Put(key, value, lease_id)])


async def test_a_view_goes_on_through_a_restart(etcd: EtcdProcess, connect: Connect, until: Until) -> None:
    coordinator, writer = connect(), connect()
    view = View(coordinator, keys.SERVICES, ServiceRecord)
    await create(writer, A, encode(record("a")))
    first = await create(writer, B, encode(record("b")))
    told: list[str] = []
    async with asyncio.TaskGroup() as group:
        run = group.create_task(view.run())
        await view.synced.wait()
        view.on_change(lambda key, old, new: told.append(key))
        await etcd.stop()
        assert dict(view.items()) == {A: record("a"), B: record("b")}
        with pytest.raises(Unavailable):
            await coordinator.get(A)
        assert len(view) == 2
        await etcd.start()
        await writer.transact([ModRevisionIs(B, first)], [Delete(B), Put(C, encode(record("c")))])
        await until(lambda: dict(view.items()) == {A: record("a"), C: record("c")})
        assert sorted(told) == [B, C], "what did not change is not told again"
        run.cancel()


async def test_a_session_and_a_term_survive_a_restart_shorter_than_the_lease(etcd: EtcdProcess, connect: Connect) -> None:
    coordinator = connect()
    session = await coordinator.session(6.0)
    leadership = await coordinator.campaign("/e/", session, b"me")
    await etcd.restart()
    await asyncio.sleep(7.0)
    assert not session.lost.is_set()
    await coordinator.transact([leadership.guard], [Put("/state", b"1")])


async def test_a_session_is_lost_on_its_own_clock_when_etcd_stays_away(etcd: EtcdProcess, connect: Connect, until: Until) -> None:
    coordinator = connect()
    session = await coordinator.session(2.0)
    await create(coordinator, "/s/a", b"1", session.lease_id)
    await etcd.stop()
    await until(session.lost.is_set)
    await etcd.start()
    # etcd has kept the lease and given it its whole time again; closing the lost session takes the key away all the same.
    found = await coordinator.get("/s/a")
    assert found is not None
    await session.close()
    assert await coordinator.get("/s/a") is None


async def test_a_new_cluster_is_another_one_and_its_view_is_empty(
    etcd: EtcdProcess, connect: Connect, until: Until, tmp_path: Path
) -> None:
    coordinator = connect()
    session = await coordinator.session(9.0)
    old = await coordinator.campaign("/e/", session, b"me")
    await create(coordinator, A, encode(record("a")))
    view = View(coordinator, keys.SERVICES, ServiceRecord)
    client_port = int(etcd.endpoint.rpartition(":")[2])
    async with asyncio.TaskGroup() as group:
        run = group.create_task(view.run())
        await until(lambda: A in view)
        await etcd.stop()
        shutil.rmtree(tmp_path / "etcd")
        fresh = EtcdProcess(find_etcd(), tmp_path / "etcd", client_port, free_port())
        await fresh.start()
        try:
            await until(lambda: len(view) == 0)
            await until(session.lost.is_set)
            again = await coordinator.campaign("/e/", await coordinator.session(30.0), b"me")
            assert again.term.cluster_id != old.term.cluster_id
            assert not again.term.is_older_than(old.term)
            with pytest.raises(Conflict):
                await coordinator.transact([old.guard], [Put("/state", b"1")])
        finally:
            await fresh.kill()
        run.cancel()


@pytest.mark.etcd
async def test_killed_again_and_again_it_loses_no_acknowledged_write(etcd: EtcdProcess, connect: Connect, until: Until) -> None:
    """Writers count up while etcd is killed. Unavailable may mean applied, so the sum may exceed what was acknowledged by these at most."""
    acknowledged, unknown, conflicts, running = 0, 0, 0, True

    async def add(coordinator: EtcdCoordinator) -> None:
        nonlocal acknowledged, unknown, conflicts
        while running:
            try:
                found = await coordinator.get("/counter")
                value, revision = (int(found.value), found.mod_revision) if found else (0, 0)
            except Unavailable:
                continue
            try:
                await coordinator.transact([ModRevisionIs("/counter", revision)], [Put("/counter", b"%d" % (value + 1))])
                acknowledged += 1
            except Conflict:
                conflicts += 1
            except Unavailable:
                unknown += 1

    observer = connect()
    seen: list[int] = []

    async def watch() -> None:
        async for event in observer.watch("/counter"):
            if isinstance(event, Changed):
                seen.append(int(event.item.value))
            elif isinstance(event, Reset):
                seen.extend(int(item.value) for item in event.listing.items)

    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(add(connect())) for _ in range(2)]
        watching = group.create_task(watch())
        for _ in range(3):
            before = acknowledged
            await until(lambda before=before: acknowledged > before + 20)
            await etcd.kill()
            await asyncio.sleep(0.2)
            await etcd.start()
        before = acknowledged
        await until(lambda: acknowledged > before + 20)
        running = False
        await asyncio.wait(writers)
        found = await observer.get("/counter")
        assert found is not None
        total = int(found.value)
        await until(lambda: seen[-1] == total)
        watching.cancel()
    assert acknowledged <= total <= acknowledged + unknown
    assert conflicts > 0, "the writers never raced, so the test proved less"
    assert seen == sorted(seen), "a watch never goes back"


@pytest.mark.etcd
async def test_a_leader_outlives_the_killing_of_etcd(etcd: EtcdProcess, connect: Connect, until: Until) -> None:
    first, second = connect(), connect()
    one, two = await first.session(8.0), await second.session(8.0)
    leadership = await first.campaign("/e/", one, b"one")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(second.campaign("/e/", two, b"two"))

        async def both_stand() -> bool:
            return len((await first.list("/e/")).items) == 2

        await until(both_stand)
        await etcd.kill()
        await etcd.start()
        await first.transact([leadership.guard], [Put("/state", b"still one")])
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await one.close()
        await until(waiting.done)
    assert leadership.term.is_older_than(waiting.result().term)
    with pytest.raises(Conflict):
        await first.transact([leadership.guard], [Put("/state", b"too late")])
