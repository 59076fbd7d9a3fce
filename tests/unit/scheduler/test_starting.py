"""Start requests in virtual time: the choice carried out, merging, failures, budgets, and never two."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from scheduler_builders import instance, key, variant
from scheduler_world import CRASH, World, failing, hanging, slow, until

from tessera.coord import keys
from tessera.coord.interface import Delete, KeyValue, ModRevisionIs
from tessera.domain.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidInput,
    ResourceExhausted,
    StaleTerm,
    Unavailable,
)
from tessera.domain.ids import BuildClass, Digest, InstanceId, NodeId, RequestId, TrustDomain, VariantKey
from tessera.domain.instance import InstanceState, Stage, StartPath
from tessera.domain.records import VariantState
from tessera.domain.source import Source
from tessera.scheduler.core.observed import StoreReport
from tessera.scheduler.loops.starting import StartRequest
from tessera.testing import run_virtual

Scenario = Callable[[World], Awaitable[None]]


def in_world(scenario: Scenario) -> None:
    async def main() -> None:
        async with World() as world:
            await scenario(world)

    run_virtual(main)


def test_a_start_answers_when_ready_and_its_record_follows() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        answer = await world.start(scheduler)
        assert (answer.instance.start_path, answer.instance.node_id) == (StartPath.BIND, "n1")
        assert [stage.stage for stage in answer.stages] == [Stage.SCHEDULE, Stage.LOAD]
        order = world.nodes["n1"].orders[0]
        leadership = scheduler.leading.require()
        assert (order.term, order.artifact, order.expires_after_s, order.budget_s) == (leadership.term, "f" * 64, 40.0, 10.0)
        await until(lambda: len(world.recorded()) == 1, 1.0)
        record = world.recorded()[0]
        assert (record.instance_id, record.generation, record.term) == (answer.instance.instance_id, order.generation, leadership.term)

    in_world(scenario)


def test_an_agent_is_told_who_has_the_bytes() -> None:
    async def scenario(world: World) -> None:
        has = {"build_class": BuildClass("other")}
        await world.add_node("n2", **has, peer_address="n2:8040", added=frozenset({Digest("f" * 64)}))
        stranger = {TrustDomain("stranger"): StoreReport(1 << 30, 0, frozenset({Digest("f" * 64)}))}
        await world.add_node("n3", **has, peer_address="n3:8040", stores=stranger)
        scheduler = await world.add_scheduler()
        await world.start(scheduler)
        (order,) = world.nodes["n1"].orders
        assert order.sources == (Source(NodeId("n2"), "n2:8040"),)

    in_world(scenario)


def test_what_is_ready_answers_warm() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        first = await world.start(scheduler)
        second = await world.start(scheduler)
        assert second.instance.start_path is StartPath.WARM
        assert second.instance.instance_id == first.instance.instance_id
        assert [stage.stage for stage in second.stages] == [Stage.SCHEDULE]
        assert len(world.nodes["n1"].orders) == 1

    in_world(scenario)


def test_requests_in_flight_share_one_start() -> None:
    async def scenario(world: World) -> None:
        await world.add_node("n2")
        scheduler = await world.add_scheduler()
        answers = await asyncio.gather(*(world.start(scheduler) for _ in range(20)))
        assert len({answer.instance.instance_id for answer in answers}) == 1
        assert sum(len(node.orders) for node in world.nodes.values()) == 1

    in_world(scenario)


def test_other_variants_start_beside_it() -> None:
    async def scenario(world: World) -> None:
        await world.add_variant(variant("aten-fp32", backend="aten", flavour="aten", build_class=None))
        scheduler = await world.add_scheduler()
        answers = await asyncio.gather(world.start(scheduler), world.start(scheduler, "aten-fp32"))
        assert {answer.instance.variant for answer in answers} == {key("ort-fp32"), key("aten-fp32")}

    in_world(scenario)


def test_a_waiter_that_leaves_does_not_end_the_start_of_the_others() -> None:
    async def scenario(world: World) -> None:
        world.nodes["n1"].behave = slow(0.5)
        scheduler = await world.add_scheduler()
        first = asyncio.get_running_loop().create_task(world.start(scheduler))
        await asyncio.sleep(0.1)
        second = asyncio.get_running_loop().create_task(world.start(scheduler))
        await asyncio.sleep(0.1)
        first.cancel()
        answer = await second
        assert answer.instance.instance_id in world.nodes["n1"].instances
        assert len(world.nodes["n1"].orders) == 1

    in_world(scenario)


def test_a_budget_that_ends_is_its_waiters_alone_and_the_instance_is_there_for_the_next() -> None:
    async def scenario(world: World) -> None:
        world.nodes["n1"].behave = slow(2.0)
        scheduler = await world.add_scheduler()
        await until(lambda: NodeId("n1") in scheduler.cluster.observed)
        with pytest.raises(DeadlineExceeded, match=r"budget of 100 ms used up while m@1/ort-fp32 was starting"):
            await world.start(scheduler, budget_s=0.1)
        await until(lambda: bool(world.recorded()), 5.0)
        assert (await world.start(scheduler)).instance.start_path is StartPath.WARM
        assert len(world.nodes["n1"].orders) == 1

    in_world(scenario)


def test_a_start_may_take_longer_than_what_nobody_knows_is_kept() -> None:
    """Its record is not written before it is ready, and until then its agent must not take it for abandoned."""

    async def scenario(world: World) -> None:
        node = world.nodes["n1"]
        node.behave = slow(45.0)
        scheduler = await world.add_scheduler(provisional_s=30.0)
        name = (await world.start(scheduler, budget_s=60.0)).instance.instance_id
        await until(lambda: [item.instance_id for item in world.recorded()] == [name], 1.0)
        await asyncio.sleep(100.0)
        assert (node.stopped, [item.instance_id for item in node.live()]) == ([], [name])

    in_world(scenario)


def test_a_start_that_no_leader_waits_for_any_more_is_not_kept_for_ever() -> None:
    async def scenario(world: World) -> None:
        node = world.nodes["n1"]
        node.behave = slow(45.0)
        scheduler = await world.add_scheduler(provisional_s=30.0)
        waiting = asyncio.get_running_loop().create_task(world.start(scheduler, budget_s=60.0))
        await until(lambda: bool(node.orders))
        await world.kill(scheduler)
        with pytest.raises(Unavailable):
            await waiting
        await asyncio.sleep(60.0)
        assert [item.state for item in node.live()] == [InstanceState.READY], "the next leader may want it"
        await until(lambda: node.stopped == [node.orders[0].instance_id], 35.0)

    in_world(scenario)


def test_a_node_that_crashes_on_it_is_left_for_the_next_best() -> None:
    async def scenario(world: World) -> None:
        await world.add_node("n2")
        world.nodes["n1"].behave = failing(CRASH, CRASH, CRASH)
        scheduler = await world.add_scheduler()
        answer = await world.start(scheduler)
        assert answer.instance.node_id in ("n1", "n2")
        tried = [(order.node_id, order.start_path) for node in world.nodes.values() for order in node.orders]
        assert len(tried) == len(set(tried)), "the same option is not tried twice"
        await until(lambda: len(world.recorded()) == 1, 2.0)

    in_world(scenario)


def test_a_model_that_crashes_everywhere_ends_with_the_agents_own_words() -> None:
    async def scenario(world: World) -> None:
        world.nodes["n1"].behave = failing(*[CRASH] * 9)
        scheduler = await world.add_scheduler()
        with pytest.raises(
            Internal, match=r"start of m@1/ort-fp32 on n1 by fork failed: the runtime crashed while loading .*1 failed at this start"
        ):
            await world.start(scheduler)
        assert [order.start_path for order in world.nodes["n1"].orders] == [StartPath.BIND, StartPath.FORK]
        await asyncio.sleep(3.0)
        assert world.recorded() == []

    in_world(scenario)


def test_an_agent_that_cannot_be_reached_is_passed_over_at_once() -> None:
    async def scenario(world: World) -> None:
        await world.add_node("n2")
        scheduler = await world.add_scheduler()
        await until(lambda: len(scheduler.cluster.observed) == 2)
        world.nodes["n1"].reachable = False
        answer = await world.start(scheduler)
        assert answer.instance.node_id == "n2"

    in_world(scenario)


def test_the_only_agent_being_away_for_a_moment_is_waited_out() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        node = world.nodes["n1"]
        await until(lambda: NodeId("n1") in scheduler.cluster.observed)
        node.reachable = False
        task = asyncio.get_running_loop().create_task(world.start(scheduler))
        await asyncio.sleep(0.6)
        node.reachable = True
        assert (await task).instance.node_id == "n1"

    in_world(scenario)


def test_an_agent_that_never_answers_costs_its_budget_and_no_more() -> None:
    async def scenario(world: World) -> None:
        world.nodes["n1"].behave = hanging
        scheduler = await world.add_scheduler()
        began = world.clock.monotonic_s()
        with pytest.raises(DeadlineExceeded):
            await world.start(scheduler, budget_s=1.0)
        assert world.clock.monotonic_s() - began == pytest.approx(1.0, abs=0.1)
        await asyncio.sleep(70.0)
        assert len(scheduler.starter.waited_for) == 0, "the flight itself ends with the agent's budget"

    in_world(scenario)


def test_a_newer_leader_known_to_the_agent_makes_this_one_look() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        await until(lambda: NodeId("n1") in scheduler.cluster.observed)
        world.nodes["n1"].behave = failing(StaleTerm("term 2 is older than 9"))
        coordinator, looked = world.coordinators[0], []
        leader = coordinator.leader

        async def looking(election: str) -> KeyValue | None:
            looked.append(election)
            return await leader(election)

        coordinator.leader = looking  # type: ignore[method-assign]
        answer = await world.start(scheduler)
        assert answer.instance.node_id == "n1", "it still led: the start is tried again"
        assert looked, "it asked etcd who leads"
        assert scheduler.leading.leadership is not None

    in_world(scenario)


def test_refusals_are_counted_and_have_their_kind() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        await world.add_variant(variant("ort-zen", build_class=BuildClass("zen")))
        with pytest.raises(FailedPrecondition, match="no node can start it: m@1/ort-zen: 0 of 1 nodes: 1 is of another build class"):
            await world.start(scheduler, "ort-zen")
        await world.add_variant(variant("ort-big", tensor_bytes=2 << 30))
        with pytest.raises(ResourceExhausted, match=r"1 is short of 1\.0 GiB in its store"):
            await world.start(scheduler, "ort-big")

    in_world(scenario)


def test_a_record_that_is_on_its_way_is_waited_for_and_one_that_is_not_there_is_named() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        task = asyncio.get_running_loop().create_task(world.start(scheduler, "late"))
        await asyncio.sleep(0.2)
        await world.add_variant(variant("late", state=VariantState.READY))
        assert (await task).instance.variant == key("late")
        with pytest.raises(Unavailable, match="variant m@1/never is not known here"):
            await world.start(scheduler, "never")
        await world.add_variant(variant("half", state=VariantState.BUILDING))
        with pytest.raises(Unavailable, match="variant m@1/half is building"):
            await world.start(scheduler, "half")

    in_world(scenario)


def test_a_silent_node_is_not_chosen() -> None:
    async def scenario(world: World) -> None:
        await world.add_node("n2")
        scheduler = await world.add_scheduler()
        await until(lambda: len(scheduler.cluster.observed) == 2)
        world.nodes["n1"].silence()
        assert (await world.start(scheduler)).instance.node_id == "n2"
        world.nodes["n2"].silence()
        with pytest.raises(Unavailable, match="0 of 2 nodes: 2 do not report"):
            await world.start(scheduler, budget_s=60.0)

    in_world(scenario)


def test_a_suspect_node_is_not_chosen_but_what_it_has_serves() -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        first = await world.start(scheduler)
        where = keys.node(TrustDomain("default"), NodeId("n1"))
        found = await world.own.get(where)
        assert found is not None
        await world.own.transact([ModRevisionIs(where, found.mod_revision)], [Delete(where)])
        await until(lambda: not scheduler.records.nodes())
        again = await world.start(scheduler)
        assert (again.instance.instance_id, again.instance.start_path) == (first.instance.instance_id, StartPath.WARM)
        await world.add_variant(variant("aten-fp32", backend="aten", flavour="aten", build_class=None))
        with pytest.raises(Unavailable, match=r"1 is suspect \(its lease is lost\)"):
            await world.start(scheduler, "aten-fp32", budget_s=60.0)
        await asyncio.sleep(100.0)
        assert len(world.recorded()) == 1, "its instances are not deleted while its stream answers"

    in_world(scenario)


def test_an_instance_that_an_agent_is_starting_for_an_earlier_leader_is_taken_up() -> None:
    """The agent answers for the instance that exists: no second one, and the same generation."""

    async def scenario(world: World) -> None:
        node = world.nodes["n1"]
        loading = instance("i-old", state=InstanceState.LOADING)
        node.instances[InstanceId("i-old")] = loading
        scheduler = await world.add_scheduler()
        answer = await world.start(scheduler)
        assert (answer.instance.instance_id, answer.instance.generation) == ("i-old", loading.generation)
        assert len(node.instances) == 1

    in_world(scenario)


def test_a_new_leader_waits_for_reports_before_it_starts_what_may_be_there() -> None:
    async def scenario(world: World) -> None:
        node = await world.add_node("n2")
        node.instances[InstanceId("i-old")] = instance("i-old", "n2")
        node.reporting = False
        scheduler = await world.add_scheduler()
        await until(lambda: NodeId("n1") in scheduler.cluster.observed)
        task = asyncio.get_running_loop().create_task(world.start(scheduler))
        await asyncio.sleep(1.0)
        assert not task.done()
        node.reporting = True
        answer = await task
        assert (answer.instance.instance_id, answer.instance.start_path) == ("i-old", StartPath.WARM)

    in_world(scenario)


def test_every_decision_can_be_explained_afterwards() -> None:
    async def scenario(world: World) -> None:
        await world.add_node("n2", build_class=BuildClass("zen"))
        scheduler = await world.add_scheduler()
        await until(lambda: len(scheduler.cluster.observed) == 2)
        await world.start(scheduler, request_id="a" * 32)
        found = scheduler.explanations.get(RequestId("a" * 32))
        assert found is not None
        assert found.decision.chosen is not None
        assert (found.decision.chosen.node_id, found.decision.policy) == ("n1", "cheapest(bytes-present)")
        assert 3.0 <= found.actual_ms < 50.0
        assert any(loser.refused and "build class zen" in loser.reason for loser in found.decision.losers)

    in_world(scenario)


@pytest.mark.parametrize(
    ("candidates", "budget_s", "words"),
    [
        ((), 1.0, "candidates: at least one variant must be named"),
        ((key(),), 0.0, "budget_us 0: must be more than 0"),
        (
            (key(), VariantKey(TrustDomain("other"), key().model, key().version, key().variant)),
            1.0,
            "candidates .*default.*other.*: all must be of one trust domain",
        ),
    ],
)
def test_bad_requests_name_the_field(candidates: tuple[VariantKey, ...], budget_s: float, words: str) -> None:
    async def scenario(world: World) -> None:
        scheduler = await world.add_scheduler()
        with pytest.raises(InvalidInput, match=words):
            await scheduler.starter.start(StartRequest(RequestId("r"), candidates, budget_s))

    in_world(scenario)
