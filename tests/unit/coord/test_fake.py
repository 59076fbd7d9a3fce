"""The faults that the fake has beyond the conformance suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tessera.coord.interface import ModRevisionIs, Put, Reset
from tessera.domain.errors import Unavailable
from tessera.testing import VirtualClock, settle
from tessera.testing.coord import FakeCoordinator, FakeEtcd


@pytest.fixture
def server() -> FakeEtcd:
    return FakeEtcd(VirtualClock())


@pytest.fixture
async def coordinator(server: FakeEtcd) -> AsyncIterator[FakeCoordinator]:
    coordinator = FakeCoordinator(server)
    yield coordinator
    await coordinator.close()


async def test_a_lost_answer_hides_that_the_write_was_applied(coordinator: FakeCoordinator) -> None:
    coordinator.lose_answer()
    with pytest.raises(Unavailable, match="may have been applied"):
        await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1")])
    found = await coordinator.get("/a")
    assert found is not None
    await coordinator.transact([ModRevisionIs("/a", found.mod_revision)], [Put("/a", b"2")])


async def test_a_campaign_settles_a_lost_answer_by_reading(coordinator: FakeCoordinator, server: FakeEtcd) -> None:
    clock = server.clock
    assert isinstance(clock, VirtualClock)
    session = await coordinator.session(60.0)
    coordinator.lose_answer()
    waiting = []

    async def campaign() -> None:
        waiting.append(await coordinator.campaign("/e/", session, b"me"))

    async with asyncio.TaskGroup() as group:
        group.create_task(campaign())
        await clock.advance(5.0)
    leader = await coordinator.leader("/e/")
    assert leader is not None
    assert waiting[0].term.revision == leader.create_revision == leader.mod_revision


async def test_leases_have_their_whole_time_again_after_an_outage_of_the_server(coordinator: FakeCoordinator, server: FakeEtcd) -> None:
    clock = server.clock
    assert isinstance(clock, VirtualClock)
    session = await coordinator.session(10.0)
    await coordinator.transact([ModRevisionIs("/a", 0)], [Put("/a", b"1", session.lease_id)])
    server.stop()
    await clock.advance(100.0)
    assert session.lost.is_set(), "the client cannot know that the server kept it"
    server.start()
    await clock.advance(9.0)
    assert await coordinator.get("/a") is not None
    await clock.advance(1.0)
    assert await coordinator.get("/a") is None


async def test_an_outage_that_nobody_looked_at_still_breaks_the_watch(coordinator: FakeCoordinator, server: FakeEtcd) -> None:
    watch = coordinator.watch("/")
    assert isinstance(await anext(watch), Reset)
    server.stop()
    server.start()
    assert isinstance(await anext(watch), Reset)


async def test_the_last_client_that_closes_ends_the_server_s_work(server: FakeEtcd) -> None:
    first, second = FakeCoordinator(server), FakeCoordinator(server)
    await first.session(10.0)
    clock = server.clock
    assert isinstance(clock, VirtualClock)
    await settle()
    await first.close()
    assert clock.sleepers == 1
    await second.close()
    await settle()
    assert clock.sleepers == 0
