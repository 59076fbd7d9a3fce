"""The pool of nodes in virtual time: a node comes under load, and leaves when it is low, empty and nothing was lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from scheduler_builders import key
from scheduler_world import CRASH, World, failing, slow, until
from test_autoscaling import P, offered, profile

from tessera.coord import keys
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import NodeId
from tessera.policy.nodes.published import PublishedNodes
from tessera.scheduler.adapters.metrics import PrometheusMeter
from tessera.scheduler.app import Scheduler
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.loops.pooling import NodePool
from tessera.testing import run_virtual


class FakeProvider:
    """Nodes of the world. `error` is raised by the next `add`; a `dead` one never reports; while `away` nobody says what there is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: set[NodeId] = set()
        self.removed: list[tuple[NodeId, int]] = []
        self.error: TesseraError | None = None
        self.dead = False
        self.away = False

    async def nodes(self) -> frozenset[NodeId]:
        if self.away:
            raise Unavailable("the engine is away")
        return frozenset(self.made)

    async def add(self) -> NodeId:
        await asyncio.sleep(1.0)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        name = NodeId(f"extra-{len(self.made)}")
        self.made.add(name)
        if not self.dead:
            await self.world.add_node(name, cpu_count=8)
        return name

    async def remove(self, node_id: NodeId) -> None:
        self.made.discard(node_id)
        there = self.world.nodes.get(node_id)
        if there is not None:
            self.removed.append((node_id, len(there.live())))
            there.silence()
            await self.world.lose_lease(node_id)
            del self.world.nodes[node_id]

    async def close(self) -> None:
        pass


async def pooled(world: World, most: int = 2, looks: int = 3, **settings: Any) -> tuple[Scheduler, FakeProvider]:
    """One instance on n1, which has no core to spare; a look each second, and `looks` where the published rules have fifteen."""
    scheduler = await world.add_scheduler(instance_keep_alive_s=36000.0, **settings)
    await world.put(keys.profile(key(), P), profile(key(), 10.0))
    world.nodes["n1"].facts.update(cpu_count=1, cpu_cores=1.0)
    await world.start(scheduler)
    provider = FakeProvider(world)
    pool = NodePool(
        clock=world.clock, tasks=world.background, coordinator=world.own, leading=scheduler.leading, cluster=scheduler.cluster,
        records=scheduler.records, starter=scheduler.starter, provider=provider, policy=PublishedNodes(looks=looks), wake=asyncio.Event(),
        meter=PrometheusMeter(), most=most, period_s=1.0,
    )  # fmt: skip
    world.background.start("pool", pool.run())
    return scheduler, provider


def used(world: World, cores: float) -> None:
    for there in world.nodes.values():
        there.facts["runtime_cores"] = cores


def test_a_node_comes_where_all_have_something_overloaded_and_takes_load_over() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world, looks=8)
            used(world, 0.5)
            assert await offered(world, 80.0, 20.0) == 1
            assert provider.made == set()
            await offered(world, 240.0, 6.0)
            assert provider.made == {"extra-0"}
            world.nodes["extra-0"].facts["runtime_cores"] = 4.0
            assert await offered(world, 240.0, 10.0) == 3
            assert len(world.nodes["extra-0"].live()) == 2
            assert provider.made == {"extra-0"}, "nothing is overloaded any more"

    run_virtual(main)


def test_a_low_node_is_emptied_before_it_is_taken_away() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler, provider = await pooled(world, autoscaling_policy="none")
            used(world, 0.5)
            await world.add_node("extra-0", cpu_count=8)
            provider.made.add(NodeId("extra-0"))
            await until(lambda: NodeId("extra-0") in scheduler.cluster.observed)
            moved = await scheduler.starter.add(key("ort-fp32"), [NodeId("extra-0")], 5.0)
            for there in world.nodes.values():
                for name in there.instances:
                    there.instances[name] = replace(there.instances[name], idle_s=0.0)
            world.nodes["n1"].instances.clear()
            used(world, 0.0)
            await until(lambda: bool(provider.removed))
            assert provider.removed == [("extra-0", 0)]
            assert len(world.nodes["n1"].live()) == 1, "it serves elsewhere"
            assert moved.instance_id not in {item.instance_id for item in world.live()}
            assert scheduler.cluster.closed == frozenset()
            await asyncio.sleep(30.0)
            assert len(provider.removed) == 1

    run_virtual(main)


def test_what_is_about_to_become_another_model_takes_nobodys_place() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler, provider = await pooled(world, autoscaling_policy="none")
            (there,) = world.nodes["n1"].live()
            used(world, 0.5)
            await world.add_node("extra-0", cpu_count=8)
            provider.made.add(NodeId("extra-0"))
            await until(lambda: NodeId("extra-0") in scheduler.cluster.observed)
            moved = await scheduler.starter.add(key("ort-fp32"), [NodeId("extra-0")], 5.0)
            world.nodes["extra-0"].idle(moved.instance_id, 0.0)
            scheduler.starter._donors.take(there.instance_id)
            used(world, 0.0)
            await until(lambda: bool(provider.removed))
            assert len(world.nodes["n1"].live()) == 2

    run_virtual(main)


def test_a_node_whose_load_has_nowhere_to_go_stays() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler, provider = await pooled(world, autoscaling_policy="none")
            await world.add_node("extra-0", cpu_count=8)
            provider.made.add(NodeId("extra-0"))
            await until(lambda: NodeId("extra-0") in scheduler.cluster.observed)
            await scheduler.starter.add(key("ort-fp32"), [NodeId("extra-0")], 5.0)
            there = world.nodes["extra-0"]
            for name in there.instances:
                there.instances[name] = replace(there.instances[name], idle_s=0.0)
            world.nodes["n1"].instances.clear()
            world.nodes["n1"].behave = failing(*[CRASH] * 100)
            used(world, 0.0)
            await asyncio.sleep(20.0)
            assert (provider.removed, len(there.live())) == ([], 1)
            assert scheduler.cluster.closed == frozenset(), "and takes starts again"

    run_virtual(main)


async def leaving(world: World) -> tuple[FakeProvider, asyncio.Task[ObservedInstance]]:
    """extra-0 is about to leave, while an instance starts there for 20 s."""
    scheduler, provider = await pooled(world, autoscaling_policy="none")
    used(world, 0.5)
    await world.add_node("extra-0", cpu_count=8)
    provider.made.add(NodeId("extra-0"))
    await until(lambda: NodeId("extra-0") in scheduler.cluster.observed)
    world.nodes["extra-0"].behave = slow(20.0)
    starting = asyncio.get_running_loop().create_task(scheduler.starter.add(key(), [NodeId("extra-0")], 40.0))
    await until(lambda: bool(scheduler.cluster.closed))
    return provider, starting


async def replaced(world: World) -> None:
    """Another scheduler leads from now on, and the first one knows."""
    first, second = world.schedulers[0], await world.add_scheduler(autoscaling_policy="none")
    world.coordinators[0].go_away()
    await until(lambda: second.leading.leadership is not None)
    world.coordinators[0].come_back()
    await until(lambda: first.leading.leadership is None)


def test_a_node_that_says_nothing_for_a_moment_is_not_empty() -> None:
    async def main() -> None:
        async with World() as world:
            provider, starting = await leaving(world)
            world.nodes["extra-0"].silence()
            await asyncio.sleep(1.0)
            assert provider.removed == []
            world.nodes["extra-0"].reporting = True
            await starting
            await until(lambda: bool(provider.removed))
            assert provider.removed == [("extra-0", 0)]

    run_virtual(main)


def test_a_node_stays_when_another_scheduler_leads_before_it_is_empty() -> None:
    async def main() -> None:
        async with World() as world:
            provider, starting = await leaving(world)
            await replaced(world)
            await starting
            assert provider.removed == []
            assert len(world.nodes["extra-0"].live()) == 1

    run_virtual(main)


def test_nothing_leaves_while_etcd_is_away() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world)
            await world.add_node("extra-0", cpu_count=8)
            provider.made.add(NodeId("extra-0"))
            await asyncio.sleep(1.0)
            world.etcd.stop()
            used(world, 0.0)
            await asyncio.sleep(20.0)
            assert provider.removed == []
            world.etcd.start()
            await until(lambda: bool(provider.removed))

    run_virtual(main)


def test_a_provider_that_fails_is_asked_again_after_the_rest_and_a_node_that_never_reports_goes() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world)
            provider.error = Unavailable("no machine is left")
            used(world, 1.0)
            await until(lambda: provider.error is None)
            provider.dead = True
            await until(lambda: bool(provider.made))
            await until(lambda: not provider.made, 150.0)
            provider.dead = False
            await until(lambda: "extra-0" in world.nodes)

    run_virtual(main)


def test_a_node_that_comes_under_another_leader_stays() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world)
            provider.dead = True
            used(world, 1.0)
            await until(lambda: bool(provider.made))
            await replaced(world)
            await world.add_node("extra-0", cpu_count=8)
            await asyncio.sleep(100.0)
            assert provider.made == {"extra-0"}

    run_virtual(main)


def test_no_more_than_the_most() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world, most=1)
            used(world, 1.0)
            for _ in range(30):
                for there in world.nodes.values():
                    there.facts["runtime_cores"] = 8.0
                await asyncio.sleep(1.0)
            assert provider.made == {"extra-0"}

    run_virtual(main)


def test_a_node_of_which_nothing_is_heard_goes_whoever_added_it() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world, looks=1000)
            provider.made |= {NodeId("extra-0"), NodeId("extra-1")}
            await world.add_node("extra-1", cpu_count=8)
            await asyncio.sleep(55.0)
            assert provider.made == {"extra-0", "extra-1"}
            await until(lambda: provider.made == {"extra-1"}, 20.0)
            await asyncio.sleep(120.0)
            assert provider.made == {"extra-1"}

    run_virtual(main)


def test_a_lost_node_stays_while_etcd_is_away() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world, looks=1000)
            provider.made.add(NodeId("extra-0"))
            world.etcd.stop()
            await asyncio.sleep(200.0)
            assert provider.made == {"extra-0"}
            world.etcd.start()
            await until(lambda: not provider.made, 30.0)

    run_virtual(main)


def test_a_provider_that_cannot_be_asked_is_asked_again() -> None:
    async def main() -> None:
        async with World() as world:
            _, provider = await pooled(world)
            provider.away = True
            used(world, 1.0)
            await asyncio.sleep(20.0)
            assert provider.made == set()
            provider.away = False
            await until(lambda: "extra-0" in world.nodes)

    run_virtual(main)
