"""Load states and their records: judged once per report, written on changes alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from scheduler_builders import instance, key, node
from scheduler_world import DOMAIN, FakeNode, World, until

from tessera.coord import keys
from tessera.coord.records import decode
from tessera.domain.ids import InstanceId, NodeId, ProfileClass
from tessera.domain.instance import InstanceState
from tessera.domain.records import LoadRecord, LoadState
from tessera.policy.load.base import Expected
from tessera.policy.load.published import PublishedLoad
from tessera.scheduler.core.loads import differences, judge
from tessera.testing import run_virtual
from tessera.testing.builders import a_latency_row, a_profile

TEN_MS = Expected(0.0, 10.0, 100.0)
SLOW: dict[str, Any] = {"run_ms": 100.0, "run_items": 1.0, "requests_per_s": 9.0, "items_per_s": 9.0}
NAME = InstanceId("i-1")


def test_a_report_is_looked_at_once() -> None:
    slow = instance(run_ms=45.0, run_items=1.0, requests_per_s=20.0, items_per_s=20.0)
    loads = judge({}, [node(instances=[slow], at_s=1.0)], {}, PublishedLoad(), lambda *_: TEN_MS)
    assert loads[NAME].slow == 1
    for at_s in (1.0, 1.2, 1.9):
        again = judge(loads, [node(instances=[slow], at_s=at_s)], {}, PublishedLoad(), lambda *_: TEN_MS)
        assert again == loads, "the same figures, or reported right after it"
    other = replace(slow, run_ms=46.0)
    assert judge(loads, [node(instances=[other], at_s=2.0)], {}, PublishedLoad(), lambda *_: TEN_MS)[NAME].state is LoadState.INTERFERED


def test_a_node_that_is_silent_or_unknown_proves_nothing() -> None:
    slow = node(instances=[instance(**SLOW)], at_s=1.0)
    loads = judge({}, [slow], {}, PublishedLoad(), lambda *_: TEN_MS)
    assert loads[NAME].state is LoadState.INTERFERED
    silent = replace(node(instances=[instance()], at_s=9.0), stream=None)
    assert judge(loads, [silent], {}, PublishedLoad(), lambda *_: TEN_MS) == loads

    def unknown(*_: object) -> Expected:
        raise KeyError

    assert judge(loads, [node(instances=[instance()], at_s=9.0)], {}, PublishedLoad(), unknown) == loads
    assert judge({}, [slow], {}, PublishedLoad(), unknown) == {}
    assert judge(loads, [node(instances=[instance(state=InstanceState.DRAINING)], at_s=9.0)], {}, PublishedLoad(), unknown) == {}


def test_a_new_leader_goes_on_from_the_record() -> None:
    record = LoadRecord(NAME, NodeId("n1"), key(), LoadState.INTERFERED, 5.0, "slow")
    between = instance(run_ms=20.0, run_items=1.0, requests_per_s=20.0, items_per_s=20.0)
    loads = judge({}, [node(instances=[between], at_s=1.0)], {NAME: record}, PublishedLoad(), lambda *_: TEN_MS)
    assert loads[NAME].state is LoadState.INTERFERED, "twice the profiled latency would not flag it anew"
    assert judge({}, [node(instances=[between], at_s=1.0)], {}, PublishedLoad(), lambda *_: TEN_MS)[NAME].state is LoadState.ACTIVE


def test_records_follow_states_and_not_reasons() -> None:
    there, without = node(instances=[instance(**SLOW)], at_s=1.0), node(at_s=2.0)
    loads = judge({}, [there], {}, PublishedLoad(), lambda *_: TEN_MS)
    put, gone = differences(loads, [there], ["n1"], {}, 7.0)
    assert [(record.state, record.since_unix_s, record.reason) for record in put] == [
        (LoadState.INTERFERED, 7.0, "runs take 100 ms, 10.0 times the profiled 10 ms")
    ]
    assert gone == []
    recorded = {NAME: replace(put[0], reason="other words")}
    assert differences(loads, [there], ["n1"], recorded, 9.0) == ([], [])
    assert differences({}, [there], ["n1"], recorded, 9.0) == ([], [recorded[NAME]])
    assert differences(loads, [without], ["n1"], recorded, 9.0) == ([], [recorded[NAME]]), "an instance that is gone has none"
    assert differences({}, [replace(without, stream=None)], ["n1"], recorded, 9.0) == ([], []), "its node says nothing"
    assert differences({}, [], ["n1"], recorded, 9.0) == ([], []), "or not yet, to a new leader"
    assert differences({}, [], [], recorded, 9.0) == ([], [recorded[NAME]]), "a node that is lost takes its records along"


def shown(world: World) -> list[LoadRecord]:
    return [decode(LoadRecord, item.value) for item in world.etcd.items(keys.loads(DOMAIN))]


def work(there: FakeNode, name: InstanceId, served: int, **figures: Any) -> None:
    there.instances[name] = replace(there.instances[name], served=served, idle_s=0.0, **figures)


async def profiled(world: World, ms: float = 10.0) -> None:
    profile = a_profile(key(), profile_class=ProfileClass("p"), rows=(a_latency_row(1, 1, ms, mean_ms=ms),))
    await world.put(keys.profile(key(), ProfileClass("p")), profile)


def test_the_record_comes_with_the_state_and_goes_with_it() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            await profiled(world)
            name = (await world.start(scheduler)).instance.instance_id
            there = world.nodes["n1"]
            for at in range(4):
                work(there, name, at, run_ms=10.0 + at / 100, run_items=1.0, requests_per_s=20.0, items_per_s=20.0)
                await asyncio.sleep(1.0)
            assert shown(world) == []
            before_s = world.clock.monotonic_s()
            for at in range(4):
                work(there, name, 9 + at, **{**SLOW, "run_ms": 100.0 + at})
                await asyncio.sleep(0.5)
            (record,) = shown(world)
            assert (record.state, record.node_id, record.variant) == (LoadState.INTERFERED, NodeId("n1"), key())
            assert scheduler.cluster.loads[name].since_s - before_s < 1.1
            revision = world.etcd.items(keys.loads(DOMAIN))[0].mod_revision
            for at in range(6):
                work(there, name, 20 + at, **{**SLOW, "run_ms": 90.0 + at})
                await asyncio.sleep(1.0)
            assert world.etcd.items(keys.loads(DOMAIN))[0].mod_revision == revision, "written once"
            for at in range(6):
                work(there, name, 40 + at, run_ms=10.0 + at / 100, run_items=1.0, requests_per_s=20.0, items_per_s=20.0)
                await asyncio.sleep(1.0)
            assert shown(world) == []

    run_virtual(main)


@pytest.mark.parametrize("measured", [True, False])
def test_a_variant_without_a_profile_is_not_judged(measured: bool) -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            if measured:
                await profiled(world)
            name = (await world.start(scheduler)).instance.instance_id
            for at in range(5):
                work(world.nodes["n1"], name, at, **{**SLOW, "run_ms": 100.0 + at})
                await asyncio.sleep(1.0)
            await until(lambda: name in scheduler.cluster.loads)
            assert len(shown(world)) == measured
            assert measured or scheduler.cluster.loads[name].reason.startswith("not judged")

    run_virtual(main)


def test_a_node_that_is_lost_takes_the_records_of_its_instances_along() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler(node_lost_s=30.0)
            await profiled(world)
            name = (await world.start(scheduler)).instance.instance_id
            for at in range(4):
                work(world.nodes["n1"], name, at, **{**SLOW, "run_ms": 100.0 + at})
                await asyncio.sleep(1.0)
            assert len(shown(world)) == 1
            world.nodes["n1"].silence()
            await asyncio.sleep(100.0)
            assert len(shown(world)) == 1, "its lease lasts"
            await world.lose_lease("n1")
            await asyncio.sleep(25.0)
            assert len(shown(world)) == 1
            await until(lambda: not shown(world), 10.0)
            assert (scheduler.cluster.observed, scheduler.cluster.loads) == ({}, {})

    run_virtual(main)


def test_a_record_of_an_instance_that_ended_goes() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler = await world.add_scheduler()
            await world.put(keys.load(DOMAIN, NodeId("n1"), NAME), LoadRecord(NAME, NodeId("n1"), key(), LoadState.OVERLOADED, 1.0, ""))
            await until(lambda: not shown(world))
            assert scheduler.cluster.loads == {}

    run_virtual(main)
