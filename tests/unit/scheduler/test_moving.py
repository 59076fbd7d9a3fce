"""A node gets slow while it serves: what it serves goes elsewhere, and is there before it leaves. In virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler_builders import key
from scheduler_world import CRASH, World, failing, until
from test_loads import SLOW, profiled, shown, work

from tessera.domain.ids import InstanceId, NodeId
from tessera.scheduler.app import Scheduler
from tessera.testing import run_virtual

STEADY: dict[str, Any] = {"run_ms": 10.0, "run_items": 1.0, "requests_per_s": 20.0, "items_per_s": 20.0}


async def serving(world: World, **settings: Any) -> tuple[Scheduler, InstanceId]:
    """One instance on n1, with a profile; n2 is idle."""
    scheduler = await world.add_scheduler(**settings)
    await profiled(world)
    name = (await world.start(scheduler)).instance.instance_id
    await world.add_node("n2")
    work(world.nodes["n1"], name, 1, **STEADY)
    await asyncio.sleep(2.0)
    return scheduler, name


async def slowed(world: World, name: InstanceId, seconds: float) -> None:
    for at in range(int(2 * seconds)):
        if name in world.nodes["n1"].instances:
            work(world.nodes["n1"], name, 10 + at, **{**SLOW, "run_ms": 100.0 + at})
        await asyncio.sleep(0.5)


def test_the_new_instance_is_ready_before_the_old_one_drains() -> None:
    async def main() -> None:
        async with World() as world:
            scheduler, name = await serving(world)
            one, two = world.nodes["n1"], world.nodes["n2"]
            began_s = world.clock.monotonic_s()
            task = asyncio.get_running_loop().create_task(slowed(world, name, 6.0))
            await until(lambda: bool(two.live(key())))
            assert one.live(key()), "not before"
            assert world.clock.monotonic_s() - began_s < 3.0
            await until(lambda: one.stopped == [name])
            assert world.clock.monotonic_s() - began_s < 3.0
            await task
            (order,) = two.orders
            assert order.variant == key()
            await until(lambda: [item.node_id for item in world.recorded()] == [NodeId("n2")])
            await until(lambda: not shown(world))
            assert len(two.orders) == 1
            assert scheduler.cluster.desired.assignments[name].reason.startswith("moved to n2: runs take 10")

    run_virtual(main)


def test_a_start_that_fails_elsewhere_leaves_the_instance_where_it_is_and_is_not_tried_at_once() -> None:
    async def main() -> None:
        async with World() as world:
            _, name = await serving(world)
            one, two = world.nodes["n1"], world.nodes["n2"]
            two.behave = failing(CRASH)
            await slowed(world, name, 20.0)
            assert (one.stopped, len(two.orders)) == ([], 1)
            await slowed(world, name, 20.0)
            assert (one.stopped, len(two.orders)) == ([name], 2)

    run_virtual(main)


def test_nothing_moves_where_nobody_may_take_it_or_it_is_switched_off() -> None:
    async def main() -> None:
        async with World() as world:
            _, name = await serving(world, move_interfered=False)
            await slowed(world, name, 10.0)
            assert (world.nodes["n1"].stopped, world.nodes["n2"].orders) == ([], [])
        async with World() as world:
            _, name = await serving(world)
            world.nodes["n2"].facts["flavours"] = ("aten",)
            await asyncio.sleep(1.0)
            await slowed(world, name, 10.0)
            assert (world.nodes["n1"].stopped, world.nodes["n2"].orders) == ([], [])

    run_virtual(main)


def test_without_etcd_the_old_instance_stays() -> None:
    """Gateways could not learn of the new one."""

    async def main() -> None:
        async with World() as world:
            scheduler, name = await serving(world)
            one, two = world.nodes["n1"], world.nodes["n2"]
            world.etcd.stop()
            await slowed(world, name, 8.0)
            assert scheduler.cluster.loads[name].flagged
            assert one.stopped == []
            assert two.live(key())

    run_virtual(main)
