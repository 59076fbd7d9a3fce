"""Keep-alive, explicit stops, adoption and lost nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from scheduler_builders import instance, key, variant
from scheduler_world import World, slow, until

from tessera.domain.errors import NotFound, Unavailable
from tessera.domain.ids import BuildClass, Generation, InstanceId, NodeId
from tessera.domain.instance import StartPath
from tessera.testing import run_virtual

Scenario = Callable[[World], Awaitable[None]]


def in_world(scenario: Scenario) -> None:
    async def main() -> None:
        async with World() as world:
            await scenario(world)

    run_virtual(main)


def test_an_idle_instance_ends_with_its_record_after_the_window() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler(instance_keep_alive_s=600.0)
        answer = await world.start(scheduler)
        name, node = answer.instance.instance_id, world.nodes["n1"]
        await until(lambda: len(world.recorded()) == 1)
        node.idle(name, 600.0)
        await asyncio.sleep(5.0)
        assert node.stopped == []
        node.idle(name, 600.5)
        await until(lambda: node.stopped == [name])
        assert world.recorded() == []
        await asyncio.sleep(5.0)
        assert node.stopped == [name], "once"
        assert (await world.start(scheduler)).instance.start_path is StartPath.BIND

    in_world(scenario)


def test_what_executes_or_is_waited_for_does_not_end() -> None:
    async def scenario(world: World) -> None:
        await world.add_variant(variant("aten-fp32", backend="aten", flavour="aten", build_class=None))
        scheduler = await world.add_scheduler(instance_keep_alive_s=10.0)
        answer = await world.start(scheduler)
        node = world.nodes["n1"]
        await until(lambda: len(world.recorded()) == 1)
        node.idle(answer.instance.instance_id, 0.0)
        await asyncio.sleep(50.0)
        assert node.stopped == []
        # Ready on one node, and a start of the same variant in flight on another class: somebody waits for this model.
        other = await world.add_node("n2", build_class=BuildClass("b"))
        other.behave = slow(30.0)
        await world.add_variant(variant("aten-fp32", backend="aten", flavour="aten", build_class=None))
        await until(lambda: NodeId("n2") in scheduler.cluster.observed)
        waiting = asyncio.get_running_loop().create_task(world.start(scheduler, "aten-fp32", budget_s=60.0))
        await until(lambda: bool(scheduler.starter.waited_for))
        held = replace(instance("i-held"), variant=key("aten-fp32"), idle_s=100.0, node_id=NodeId("n1"))
        node.instances[held.instance_id] = held
        await asyncio.sleep(10.0)
        assert node.stopped == []
        await waiting
        await until(lambda: "i-held" in node.stopped)

    in_world(scenario)


def test_nothing_ends_while_etcd_is_away() -> None:
    """The record could not be deleted, and the agent would find an instance assigned that it was told to stop."""

    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler(instance_keep_alive_s=10.0)
        answer = await world.start(scheduler)
        await until(lambda: len(world.recorded()) == 1)
        world.etcd.stop()
        await asyncio.sleep(5.0)
        world.nodes["n1"].idle(answer.instance.instance_id, 100.0)
        await asyncio.sleep(20.0)
        assert world.nodes["n1"].stopped == []
        assert (await world.start(scheduler)).instance.start_path is StartPath.WARM
        world.etcd.start()
        await until(lambda: answer.instance.instance_id in world.nodes["n1"].stopped)

    in_world(scenario)


def test_an_asked_stop_ends_the_instance_at_once_and_its_record_behind_it() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        answer = await world.start(scheduler)
        await until(lambda: len(world.recorded()) == 1)
        await scheduler.reconciler.stop(NodeId("n1"), answer.instance.instance_id)
        assert world.nodes["n1"].stopped == [answer.instance.instance_id]
        await until(lambda: world.recorded() == [], 2.0)
        with pytest.raises(NotFound, match="neither assigned nor reported"):
            await scheduler.reconciler.stop(NodeId("n1"), InstanceId("i-unknown"))
        with pytest.raises(NotFound):
            await scheduler.reconciler.stop(NodeId("n2"), answer.instance.instance_id)

    in_world(scenario)


def test_an_asked_stop_of_an_unreachable_agent_is_carried_out_when_it_is_back() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        answer = await world.start(scheduler)
        await until(lambda: len(world.recorded()) == 1)
        node = world.nodes["n1"]
        await until(lambda: not scheduler.cluster.observed[NodeId("n1")].answered)
        node.reachable = False
        with pytest.raises(Unavailable):
            await scheduler.reconciler.stop(NodeId("n1"), answer.instance.instance_id)
        await until(lambda: world.recorded() == [])
        node.reachable = True
        await until(lambda: node.stopped == [answer.instance.instance_id])

    in_world(scenario)


def test_two_instances_of_one_variant_become_one() -> None:
    async def scenario(world: World) -> None:
        node = world.nodes["n1"]
        for number in (1, 2):
            node.instances[InstanceId(f"i-{number}")] = instance(f"i-{number}", generation=Generation(number))
        await world.add_scheduler()
        await until(lambda: len(world.recorded()) == 1)
        await until(lambda: len(node.live()) == 1)
        assert node.live()[0].instance_id == world.recorded()[0].instance_id == "i-1"

    in_world(scenario)


def test_a_crashed_instance_loses_its_record_and_the_next_request_starts_anew() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        first = await world.start(scheduler)
        await until(lambda: len(world.recorded()) == 1)
        await until(lambda: not scheduler.cluster.observed[NodeId("n1")].answered)
        world.nodes["n1"].instances.clear()
        world.nodes["n1"].push()
        second = await world.start(scheduler)
        assert second.instance.start_path is StartPath.BIND
        assert second.instance.generation != first.instance.generation
        await until(lambda: [item.instance_id for item in world.recorded()] == [second.instance.instance_id], 20.0)

    in_world(scenario)


def test_a_lost_node_loses_its_assignments_and_a_returning_one_is_adopted() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler(node_lost_s=30.0)
        await world.start(scheduler)
        await until(lambda: len(world.recorded()) == 1)
        node = world.nodes["n1"]
        node.silence()
        await asyncio.sleep(100.0)
        assert len(world.recorded()) == 1, "its lease lasts"
        await world.lose_lease("n1")
        await asyncio.sleep(25.0)
        assert len(world.recorded()) == 1
        await until(lambda: world.recorded() == [], 10.0)
        node.reporting = True
        await until(lambda: len(world.recorded()) == 1, 10.0)

    in_world(scenario)


def test_a_lost_answer_of_a_write_does_no_harm() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        world.coordinators[0].lose_answer(1)
        answer = await world.start(scheduler)
        await asyncio.sleep(10.0)
        assert [item.instance_id for item in world.recorded()] == [answer.instance.instance_id]
        assert scheduler.leading.leadership is not None

    in_world(scenario)


def test_a_burst_of_starts_is_written_whole() -> None:
    async def scenario(world: World) -> None:
        for number in range(10):
            await world.add_variant(variant(f"v{number}"))
        world.nodes["n1"].behave = slow(0.01)
        scheduler = await world.add_scheduler()
        await asyncio.gather(*(world.start(scheduler, f"v{number}") for number in range(10)))
        await until(lambda: len(world.recorded()) == 10, 3.0)

    in_world(scenario)


def test_a_variant_that_is_called_by_a_timer_is_kept_for_the_timer_and_no_longer() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler(instance_keep_alive_s=60.0, keep_alive_policy="histogram")
        answer = await world.start(scheduler)
        name, node = answer.instance.instance_id, world.nodes["n1"]
        await until(lambda: len(world.recorded()) == 1)
        for served in range(1, 13):
            node.instances[name] = replace(node.instances[name], idle_s=0.0, served=served)
            await asyncio.sleep(3.0)
            node.idle(name, 50.0)
            await asyncio.sleep(300.0 - 3.0)
        assert node.stopped == []
        node.idle(name, 300.0)
        await asyncio.sleep(5.0)
        assert node.stopped == [], "longer than the fixed window, shorter than the timer"
        node.idle(name, 400.0)
        await until(lambda: node.stopped == [name])

    in_world(scenario)
