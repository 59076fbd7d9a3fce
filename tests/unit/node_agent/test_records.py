"""This node's part of etcd, over the fake that passes etcd's own suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tessera.clock import SystemClock
from tessera.coord import keys, records
from tessera.coord.interface import ModRevisionIs, Put, WatchEvent
from tessera.domain.errors import Unavailable
from tessera.domain.ids import BuildClass, InstanceId, NodeId, ProfileClass, TrustDomain
from tessera.domain.records import AssignmentRecord, InstanceRecord, NodeRecord, ServiceRecord
from tessera.node_agent.adapters.etcd import EtcdRecords
from tessera.node_agent.core.status import NodeIdentity
from tessera.program import Stop, Tasks
from tessera.testing.builders import a_node, an_instance
from tessera.testing.coord import FakeCoordinator, FakeEtcd

DOMAIN, OTHER = TrustDomain("default"), TrustDomain("other")
ME = NodeIdentity(
    NodeId("n1"),
    "host",
    "127.0.0.1:1",
    "127.0.0.1:3",
    "127.0.0.1:2",
    BuildClass("b"),
    ProfileClass("p"),
    ("ort",),
    2,
    "/run/x",
    "127.0.0.1:4",
    usd_per_hour=0.25,
)


class World:
    def __init__(self, tasks: Tasks, stop: Stop) -> None:
        self.etcd = FakeEtcd(SystemClock())
        self.coordinator = FakeCoordinator(self.etcd, clock=SystemClock())
        self.stop = stop
        self.tasks = tasks
        self.changes = 0

    def records(self) -> EtcdRecords:
        made = EtcdRecords(self.coordinator, ME, [DOMAIN, OTHER], 1.0, SystemClock(), self.changed)
        made.announce({DOMAIN: 1 << 20, OTHER: 1 << 21}, 1)
        return made

    def changed(self) -> None:
        self.changes += 1

    def run(self, made: EtcdRecords) -> EtcdRecords:
        self.tasks.start("keep", made.keep(self.stop))
        self.tasks.start("watch", made.watch(self.stop))
        return made

    def instances(self) -> dict[str, InstanceRecord]:
        found = self.etcd.items(keys.instances(DOMAIN))
        return {item.key.rpartition("/")[2]: records.decode(InstanceRecord, item.value) for item in found}

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the fake etcd has no event for this
                await asyncio.sleep(0.01)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    stop = Stop()
    async with Tasks(stop) as tasks:
        found = World(tasks, stop)
        yield found
        stop.request("test over")
    await found.coordinator.close()
    assert stop.error is None


async def test_node_and_service_stand_under_the_lease_and_vanish_with_it(world: World) -> None:
    made = world.run(world.records())
    await world.until(lambda: world.etcd.get(keys.service("node-agent", "n1")))
    node = world.etcd.get(keys.node(DOMAIN, NodeId("n1")))
    assert node is not None
    assert node.lease_id != 0
    record = records.decode(NodeRecord, node.value)
    assert (record.store_budget_bytes, record.usd_per_hour, record.peer_address) == (1 << 20, 0.25, "127.0.0.1:4")
    service = world.etcd.get(keys.service("node-agent", "n1"))
    assert service is not None
    assert records.decode(ServiceRecord, service.value).address == "127.0.0.1:1"
    world.stop.request("test")
    await made.close(leave=False)
    assert world.etcd.items(keys.ROOT) == ()


async def test_instances_come_and_go(world: World) -> None:
    made = world.run(world.records())
    made.publish(an_instance("a", "n1"))
    made.publish(an_instance("b", "n1"))
    await world.until(lambda: world.instances().keys() == {"a", "b"})
    made.withdraw(DOMAIN, InstanceId("a"))
    made.withdraw(DOMAIN, InstanceId("never"))
    await world.until(lambda: world.instances().keys() == {"b"})


async def test_what_was_published_while_etcd_was_away_is_written_when_it_is_back(world: World) -> None:
    world.coordinator.go_away()
    made = world.run(world.records())
    made.publish(an_instance("a", "n1"))
    made.publish(an_instance("b", "n1"))
    made.withdraw(DOMAIN, InstanceId("b"))
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await made.read_assignments()
    world.coordinator.come_back()
    await world.until(lambda: world.instances().keys() == {"a"})


async def test_a_lost_lease_means_all_is_written_again(world: World) -> None:
    made = world.run(world.records())
    made.publish(an_instance("a", "n1"))
    await world.until(lambda: world.instances().keys() == {"a"})
    node = world.etcd.get(keys.node(DOMAIN, NodeId("n1")))
    assert node is not None
    world.etcd.revoke(node.lease_id)
    assert world.instances() == {}
    await world.until(lambda: world.instances().keys() == {"a"})
    again = world.etcd.get(keys.node(DOMAIN, NodeId("n1")))
    assert again is not None
    assert again.lease_id != node.lease_id


async def test_what_an_earlier_agent_left_is_taken_over_or_removed(world: World) -> None:
    old = await world.coordinator.session(60.0)
    for name in ("kept", "stale"):
        key = keys.instance(DOMAIN, NodeId("n1"), InstanceId(name))
        await world.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, records.encode(an_instance(name, "n1")), old.lease_id)])
    made = world.records()
    made.publish(an_instance("kept", "n1"))
    world.run(made)
    await world.until(lambda: world.instances().keys() == {"kept"})
    await world.until(lambda: all(item.lease_id != old.lease_id for item in world.etcd.items(keys.ROOT)))
    await old.close()  # its lease runs out: nothing of ours goes with it
    assert world.instances().keys() == {"kept"}


async def test_somebody_elses_write_is_overwritten_by_what_is_wanted(world: World) -> None:
    made = world.run(world.records())
    made.publish(an_instance("a", "n1"))
    await world.until(lambda: world.instances().keys() == {"a"})
    key = keys.instance(DOMAIN, NodeId("n1"), InstanceId("a"))
    found = world.etcd.get(key)
    assert found is not None
    world.etcd.transact([ModRevisionIs(key, found.mod_revision)], [Put(key, records.encode(an_instance("a", "n1", fetched=True)))])
    made.publish(an_instance("a", "n1", max_batch=3))
    await world.until(lambda: world.instances()["a"].max_batch == 3)


async def test_a_write_whose_answer_got_lost_is_repaired(world: World) -> None:
    made = world.run(world.records())
    await world.until(lambda: world.etcd.get(keys.service("node-agent", "n1")))
    world.coordinator.lose_answer()
    made.publish(an_instance("a", "n1"))
    made.publish(an_instance("a", "n1", max_batch=5))
    await world.until(lambda: "a" in world.instances() and world.instances()["a"].max_batch == 5)


async def test_assignments_are_seen_and_wake_the_agent(world: World, make: Any) -> None:
    made = world.run(world.records())
    assert made.assignments() is None
    await world.until(lambda: made.assignments() == {})
    record: AssignmentRecord = make.assignment("a")
    key = keys.assignment(DOMAIN, NodeId("n1"), InstanceId("a"))
    before = world.changes
    await world.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, records.encode(record))])
    await world.until(lambda: made.assignments() == {"a": record})
    assert world.changes > before
    assert await made.read_assignments() == {"a": record}


async def test_nodes_are_seen_by_trust_domain_and_before_any_assignment(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, go_on = world.coordinator.watch, asyncio.Event()

    async def held_up(prefix: str) -> AsyncIterator[WatchEvent]:
        if prefix == keys.nodes(OTHER):
            await go_on.wait()
        async for event in watch(prefix):
            yield event

    monkeypatch.setattr(world.coordinator, "watch", held_up)
    made = world.records()
    for domain, name in ((DOMAIN, "n2"), (OTHER, "n3"), (TrustDomain("third"), "n4")):
        key = keys.node(domain, NodeId(name))
        await world.coordinator.transact([ModRevisionIs(key, 0)], [Put(key, records.encode(a_node(name, peer_address=f"{name}:1")))])
    assert (made.nodes(DOMAIN), made.assignments()) == ((), None)
    world.run(made)
    await world.until(lambda: {node.node_id for node in made.nodes(DOMAIN)} == {"n1", "n2"})
    assert made.assignments() is None, "what is assigned might be started before it is known who may have it"
    go_on.set()
    await world.until(lambda: {node.peer_address for node in made.nodes(OTHER)} == {"127.0.0.1:4", "n3:1"})
    await world.until(lambda: made.assignments() == {})


async def test_the_leader_is_the_address_in_the_election(world: World) -> None:
    made = world.records()
    assert await made.leader() is None
    session = await world.coordinator.session(5.0)
    await world.coordinator.campaign(keys.SCHEDULER_ELECTION, session, b"127.0.0.1:8011")
    assert await made.leader() == "127.0.0.1:8011"
    await session.close()


async def test_left_records_stay_for_the_next_agent(world: World) -> None:
    made = world.run(world.records())
    made.publish(an_instance("a", "n1"))
    await world.until(lambda: world.instances().keys() == {"a"})
    world.stop.request("test")
    await made.close(leave=True)
    assert world.instances().keys() == {"a"}
