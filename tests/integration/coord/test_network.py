"""Endpoints that are dead, silent or lose answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aetcd
import pytest

from tessera.coord.binary import EtcdProcess
from tessera.coord.etcd import EtcdCoordinator
from tessera.coord.interface import ModRevisionIs, Put, Reset, WatchEvent
from tessera.domain.errors import Conflict, ResourceExhausted, Unavailable
from tessera.testing.etcd import free_port
from tessera.testing.proxy import FaultyProxy

Connect = Callable[..., EtcdCoordinator]
Until = Callable[[Callable[[], bool | Awaitable[bool]]], Awaitable[None]]


@pytest.fixture
async def proxy(etcd: EtcdProcess) -> AsyncIterator[FaultyProxy]:
    host, _, port = etcd.endpoint.partition(":")
    proxy = FaultyProxy(host, int(port))
    await proxy.start()
    yield proxy
    await proxy.cut()


async def test_a_dead_first_endpoint_is_passed_over_by_everything(etcd: EtcdProcess, connect: Connect) -> None:
    coordinator = connect(f"127.0.0.1:{free_port()}", etcd.endpoint)
    await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1")])
    assert (await anext(coordinator.watch("/a"))) == Reset(await coordinator.list("/a"))
    session = await coordinator.session(2.0)
    leadership = await coordinator.campaign("/e/", session, b"me")
    await asyncio.sleep(4.0)
    assert not session.lost.is_set()
    await leadership.resign()
    await session.close()


async def test_an_endpoint_that_dies_later_is_left_with_no_loss_of_the_session(
    etcd: EtcdProcess, proxy: FaultyProxy, connect: Connect, until: Until
) -> None:
    coordinator, writer = connect(proxy.address, etcd.endpoint), connect()
    session = await coordinator.session(3.0)
    events: list[WatchEvent] = []

    async def watch() -> None:
        async for event in coordinator.watch("/w/"):
            events.append(event)  # noqa: PERF401 - looked at while it grows

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        await until(lambda: len(events) == 1)
        await proxy.cut()
        await writer.transact([ModRevisionIs("/w/a", 0)], [Put("/w/a", b"1")])
        await until(lambda: isinstance(events[-1], Reset) and len(events[-1].listing.items) == 1)
        await asyncio.sleep(4.0)
        assert not session.lost.is_set()
        watching.cancel()


async def test_a_silent_endpoint_is_noticed_by_calls_and_by_an_idle_watch(
    etcd: EtcdProcess, proxy: FaultyProxy, connect: Connect, until: Until
) -> None:
    coordinator, writer = connect(proxy.address, etcd.endpoint, timeout_s=1.5, progress_s=0.5), connect()
    events: list[WatchEvent] = []

    async def watch() -> None:
        async for event in coordinator.watch("/w/"):
            events.append(event)  # noqa: PERF401 - looked at while it grows

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        await until(lambda: len(events) == 1)
        await asyncio.sleep(2.0)
        assert len(events) == 1, "an idle watch of a living server is not disturbed"
        proxy.freeze()
        assert await coordinator.get("/w/absent") is None
        await writer.transact([ModRevisionIs("/w/a", 0)], [Put("/w/a", b"1")])
        await until(lambda: isinstance(events[-1], Reset) and len(events[-1].listing.items) == 1)
        watching.cancel()


async def test_a_frozen_server_costs_a_call_its_budget_and_no_more(etcd: EtcdProcess, connect: Connect) -> None:
    coordinator = connect(timeout_s=1.5)
    await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1")])
    etcd.pause()
    try:
        async with asyncio.timeout(20.0):
            with pytest.raises(Unavailable):
                await coordinator.get("/a")
            with pytest.raises(Unavailable, match="may have been applied"):
                await coordinator.transact([ModRevisionIs("/b", 0)], [Put("/b", b"1")])
    finally:
        etcd.resume()
    assert (await coordinator.list("/a")).items


async def test_a_write_whose_answer_is_lost_was_applied_once_and_is_not_sent_again(
    etcd: EtcdProcess, proxy: FaultyProxy, connect: Connect, until: Until
) -> None:
    coordinator, observer = connect(proxy.address, etcd.endpoint, timeout_s=1.5), connect()
    await coordinator.cluster_id()
    proxy.freeze(answers_only=True)
    with pytest.raises(Unavailable, match="may have been applied"):
        await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1")])
    found = await observer.get("/a")
    assert found is not None
    assert found.create_revision == found.mod_revision
    with pytest.raises(Conflict):
        await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"2")])


async def test_a_full_database_is_not_taken_for_an_outage(etcd: EtcdProcess, connect: Connect) -> None:
    """etcd raises its space alarm; told apart from Unavailable, because trying again does not help."""
    coordinator = connect()
    await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1")])
    host, _, port = etcd.endpoint.partition(":")
    async with aetcd.Client(host, int(port), timeout=10) as admin:
        member = await anext(admin.members())
        await admin.create_alarm(member_id=member.id)
    with pytest.raises(ResourceExhausted, match="space"):
        await coordinator.transact([ModRevisionIs("/b", 0)], [Put("/b", b"1")])
    assert await coordinator.get("/a") is not None
