"""Elections, take-overs and outages of etcd, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scheduler_builders import assignment, instance, key
from scheduler_world import World, hanging, slow, until

from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.instance import StartPath
from tessera.testing import run_virtual

Scenario = Callable[[World], Awaitable[None]]


def in_world(scenario: Scenario) -> None:
    async def main() -> None:
        async with World() as world:
            await scenario(world)

    run_virtual(main)


def test_a_standby_refuses_and_names_the_leader() -> None:
    async def scenario(world: World) -> None:
        first = await world.add_scheduler()
        second = await world.add_scheduler()
        await until(lambda: second.leading.known is not None)
        assert first.leading.leadership is not None
        assert second.leading.leadership is None
        assert second.leading.known == first.leading.known
        with pytest.raises(Unavailable, match="scheduler scheduler-1:1 is a standby; the leader is scheduler-0:1"):
            await world.start(second)

    in_world(scenario)


def test_a_killed_leader_is_replaced_when_its_lease_ends_and_nothing_starts_twice() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        before = await world.start(first)
        old = first.leading.require().term
        await world.kill(first)
        killed_s = world.clock.monotonic_s()
        await until(lambda: second.leading.leadership is not None)
        assert world.clock.monotonic_s() - killed_s <= 6.0
        assert old.is_older_than(second.leading.require().term)
        after = await world.start(second)
        assert (after.instance.instance_id, after.instance.start_path) == (before.instance.instance_id, StartPath.WARM)
        assert len(world.live()) == 1

    in_world(scenario)


def test_a_leader_that_dies_before_it_wrote_the_record_leaves_an_instance_that_is_adopted() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        world.coordinators[0].go_away()
        answer = await world.start(first)
        assert world.recorded() == []
        await world.kill(first)
        await until(lambda: len(world.recorded()) == 1)
        record = world.recorded()[0]
        assert record.instance_id == answer.instance.instance_id
        assert record.term == second.leading.require().term

    in_world(scenario)


def test_a_leader_that_dies_in_the_middle_of_a_start() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        world.nodes["n1"].behave = slow(20.0)
        asking = asyncio.get_running_loop().create_task(world.start(first, budget_s=60.0))
        await asyncio.sleep(0.5)
        await world.kill(first)
        with pytest.raises(Unavailable):
            await asking
        await until(lambda: second.leading.leadership is not None)
        answer = await world.start(second, budget_s=60.0)
        assert len(world.live()) == 1
        assert {order.instance_id for order in world.nodes["n1"].orders} == {answer.instance.instance_id}

    in_world(scenario)


def test_starts_go_on_while_etcd_is_away_and_records_follow_when_it_is_back() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        await until(lambda: bool(scheduler.cluster.observed))
        term = scheduler.leading.require().term
        world.etcd.stop()
        await asyncio.sleep(60.0)
        assert scheduler.leading.require().term == term, "no one can have won since"
        answer = await world.start(scheduler)
        assert answer.instance.node_id == "n1"
        assert world.nodes["n1"].orders[0].term == term
        await asyncio.sleep(300.0)
        assert {order.instance_id for order in world.nodes["n1"].orders} == {answer.instance.instance_id}, "told again, not anew"
        assert world.nodes["n1"].expires_s[answer.instance.instance_id] > world.clock.monotonic_s(), "and in time"
        world.etcd.start()
        await until(lambda: len(world.recorded()) == 1)
        assert world.recorded()[0].instance_id == answer.instance.instance_id
        await until(lambda: scheduler.leading.leadership is not None)
        assert len(world.live()) == 1

    in_world(scenario)


def test_a_leader_cut_off_from_etcd_goes_on_until_agents_know_a_newer_one_and_steps_down_when_it_is_back() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        world.coordinators[0].go_away()
        await until(lambda: second.leading.leadership is not None)
        assert first.leading.leadership is not None, "it cannot know"
        await world.start(second)
        assert len(world.live()) == 1
        # The node has obeyed the newer term: what the older leader tells it is refused.
        world.nodes["n1"].instances.clear()
        with pytest.raises(Unavailable, match="another scheduler leads"):
            await world.start(first)
        assert world.live() == []
        world.coordinators[0].come_back()
        await until(lambda: first.leading.leadership is None)
        assert (first.cluster.observed, dict(first.cluster.desired.assignments)) == ({}, {}), "what the other does is not known here"
        with pytest.raises(Unavailable, match=r"is a standby; the leader is scheduler-1:1"):
            await world.start(first)
        await world.kill(second)
        await until(lambda: first.leading.leadership is not None)
        assert (await world.start(first)).instance.variant == key()

    in_world(scenario)


def test_a_leader_that_does_not_know_yet_that_it_is_replaced_writes_and_deletes_nothing() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        kept = await world.start(first)
        await until(lambda: len(world.recorded()) == 1)
        old = first.leading.require()
        world.coordinators[0].go_away()
        await until(lambda: second.leading.leadership is not None)
        # Its own wishes: one record to write, one to delete. Then etcd answers it again, before it has asked who leads.
        first.cluster.planned(assignment("i-late", "n9"), 0.0)
        first.cluster.answered(instance("i-late", "n9"), world.clock.monotonic_s())
        first.cluster.stop(world.recorded()[0], "idle", 0.0)
        world.coordinators[0].come_back()
        await first.reconciler.once(old)
        assert [item.instance_id for item in world.recorded()] == [kept.instance.instance_id]
        await until(lambda: first.leading.leadership is None)

    in_world(scenario)


def test_a_short_outage_costs_no_term() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        term = scheduler.leading.require().term
        world.etcd.stop()
        await asyncio.sleep(1.0)
        world.etcd.start()
        await asyncio.sleep(20.0)
        assert scheduler.leading.require().term == term

    in_world(scenario)


def test_a_graceful_end_hands_over_at_once() -> None:
    async def scenario(world: World) -> None:
        first, second = await world.add_scheduler(), await world.add_scheduler()
        began_s = world.clock.monotonic_s()
        first.leading.leadership = None
        await world.tasks[0].aclose()
        await until(lambda: second.leading.leadership is not None)
        assert world.clock.monotonic_s() - began_s < 1.0

    in_world(scenario)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_any_order_of_faults_is_safe_and_heals(seed: int) -> None:
    """Two schedulers, two nodes, random outages of etcd, cuts, silences and slow starts.

    Safety always: no generation is used twice (asserted by the nodes), no instance has two records. Once the faults stop there is one
    leader, a request is answered, every instance has its record and every record its instance; and when all are idle, all of them end.
    """

    async def main() -> None:
        chance = random.Random(seed)
        async with World() as world:
            await world.add_node("n2")
            schedulers = [await world.add_scheduler(), await world.add_scheduler()]
            asked: set[asyncio.Task[object]] = set()

            async def ask(which: int) -> None:
                try:
                    await world.start(schedulers[which], budget_s=5.0)
                except TesseraError:
                    pass

            for _ in range(12):
                fault = chance.randrange(8)
                node = world.nodes[chance.choice(["n1", "n2"])]
                if fault == 0:
                    world.etcd.stop()
                elif fault == 1:
                    world.etcd.start()
                elif fault == 2:
                    world.coordinators[chance.randrange(2)].go_away()
                elif fault == 3:
                    world.coordinators[chance.randrange(2)].come_back()
                elif fault == 4:
                    node.silence()
                elif fault == 5:
                    node.reporting = True
                elif fault == 6:
                    node.behave = chance.choice([slow(3.0), hanging, node.load])
                else:
                    node.reachable = not node.reachable
                asked.add(asyncio.get_running_loop().create_task(ask(chance.randrange(2))))
                await asyncio.sleep(chance.choice([0.05, 1.0, 8.0]))
                names = [record.instance_id for record in world.recorded()]
                assert len(names) == len(set(names)), "two records of one instance"
            await asyncio.gather(*asked)
            world.etcd.start()
            for coordinator in world.coordinators:
                coordinator.come_back()
            for node in world.nodes.values():
                node.reachable = node.reporting = True
                node.behave = node.load
            await asyncio.sleep(30.0)
            leaders = [item for item in schedulers if item.leading.leadership is not None]
            assert len(leaders) == 1
            answer = await world.start(leaders[0])
            assert answer.instance.instance_id in {item.instance_id for item in world.live()}
            for node in world.nodes.values():
                for item in node.live():
                    node.idle(item.instance_id, 1.0)
            await until(lambda: {item.instance_id for item in world.live()} == {item.instance_id for item in world.recorded()}, 200.0)
            for node in world.nodes.values():
                for item in node.live():
                    node.idle(item.instance_id, 1e6)
            await until(lambda: not world.live() and not world.recorded(), 60.0)

    run_virtual(main)
