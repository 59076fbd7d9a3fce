"""Starts out of idle instances in virtual time: the donor is named, its assignment ends with it, and who fails is bound instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from scheduler_builders import key, variant
from scheduler_world import DOMAIN, World, failing, until

from tessera.coord import keys
from tessera.domain.errors import Conflict, DataCorrupted, DeadlineExceeded, FailedPrecondition, NotFound, TesseraError
from tessera.domain.ids import Digest, InstanceId, NodeId, ProfileClass, RequestId, RuntimeId
from tessera.domain.instance import InstanceState, Stage, StageTime, StartPath
from tessera.domain.records import LoadCost, ProfileRecord
from tessera.domain.transformation import MetaOperator, StepSum
from tessera.policy.transform.fitting import LEAST_OBSERVATIONS
from tessera.policy.view import RuntimeView
from tessera.scheduler.adapters.graph_plans import GraphPlans
from tessera.scheduler.app import Scheduler
from tessera.scheduler.core.start_times import FORGET_S
from tessera.scheduler.loops.donating import MOST_REFUSED, REFUSED_S
from tessera.scheduler.loops.starting import StartLimits, StartRequest
from tessera.scheduler.ports import StartOrder
from tessera.testing import run_virtual
from tessera.testing.builders import a_meta_cost_record

OLD, NEW = key("aten-old"), key("aten-new")
GRAPHS = {OLD: Digest("1" * 64), NEW: Digest("2" * 64)}
ATTEMPTS = StartLimits().attempts
STEPS = (StepSum(MetaOperator.ADD, "aten.linear.default", 20),)


@pytest.fixture(autouse=True)
def planned(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(self: GraphPlans, source: Digest, target: Digest) -> tuple[StepSum, ...]:
        assert {source, target} == set(GRAPHS.values())
        return STEPS

    monkeypatch.setattr(GraphPlans, "steps", steps)
    monkeypatch.setattr(GraphPlans, "delta", lambda self, source, target: f"{source[0]}-{target[0]}".encode())


def in_world(scenario: Callable[[World, Scheduler], Awaitable[None]], idle_s: float = 60.0) -> None:
    """A node with a runtime in which `old` is, and has been idle for two minutes."""

    async def main() -> None:
        async with World() as world:
            world.nodes["n1"].facts["runtimes"] = (RuntimeView(RuntimeId("r-1"), "aten", DOMAIN, 0),)
            for each, graph in GRAPHS.items():
                await world.add_variant(variant(key=each, backend="aten", flavour="aten", build_class=None, graph=graph))
            scheduler = await world.add_scheduler(transform_idle_s=idle_s)
            await world.start(scheduler, OLD.variant)
            await until(lambda: len(world.recorded()) == 1, 2.0)
            world.nodes["n1"].idle(world.nodes["n1"].orders[0].instance_id, 120.0)
            world.nodes["n1"].push()
            await scenario(world, scheduler)

    run_virtual(main)


def test_a_start_is_made_of_the_idle_instance_and_its_record_goes() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        donor = world.nodes["n1"].orders[0].instance_id
        answer = await world.start(scheduler, NEW.variant)
        order = world.nodes["n1"].orders[1]
        assert (order.start_path, order.donor, order.delta) == (StartPath.TRANSFORM, donor, b"1-2")
        assert order.donor_idle_s == scheduler.starter._donors.idle_s > 0, "for who asks it meanwhile"
        assert answer.instance.start_path is StartPath.TRANSFORM
        await until(lambda: [item.instance_id for item in world.recorded()] == [order.instance_id], 5.0)
        assert [item.instance_id for item in world.nodes["n1"].live()] == [order.instance_id]
        assert world.nodes["n1"].stopped == [], "nobody tells the agent to stop what is gone"
        again = await world.start(scheduler, OLD.variant)
        assert again.instance.start_path is StartPath.BIND, "the other one has not been idle"

    in_world(scenario)


def test_what_was_made_of_a_donor_is_kept_while_etcd_is_away() -> None:
    """It is provisional still, and its agent is asked for it again; nobody names the donor any more."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        node = world.nodes["n1"]
        world.etcd.stop()
        answer = await world.start(scheduler, NEW.variant)
        assert answer.instance.start_path is StartPath.TRANSFORM
        await asyncio.sleep(300.0)
        assert node.expires_s[answer.instance.instance_id] > world.clock.monotonic_s()
        world.etcd.start()
        await until(lambda: [item.instance_id for item in world.recorded()] == [answer.instance.instance_id])
        assert [item.instance_id for item in node.live()] == [answer.instance.instance_id]

    in_world(scenario)


def test_a_donor_that_refuses_is_passed_by_and_stays() -> None:
    """The last report before the refusal showed the start under way: the next try is a start of its own nevertheless."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        node = world.nodes["n1"]

        async def busy(order: StartOrder) -> None:
            node.reporting = order.donor is None
            if order.donor is not None:
                raise Conflict(f"instance {order.donor} is not idle")
            await node.load(order)

        node.behave = busy
        answer = await world.start(scheduler, NEW.variant)
        assert answer.instance.start_path is StartPath.BIND
        assert [(order.start_path, order.delta) for order in node.orders[1:]] == [(StartPath.TRANSFORM, b"1-2"), (StartPath.BIND, b"")]
        assert len({order.instance_id for order in node.orders}) == 3
        assert not scheduler.starter._donors._refused, "it may be idle soon"
        await until(lambda: len(world.recorded()) == 2, 2.0)
        assert {item.state for item in node.live()} == {InstanceState.READY}

    in_world(scenario)


def test_a_transformation_that_nodes_refuse_costs_no_try_and_is_not_tried_again_for_a_minute() -> None:
    """As many nodes as a request has tries, and one more: all refuse alike."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        others = [key(f"aten-old-{at}") for at in range(ATTEMPTS)]
        for at, other in enumerate(others):
            node = await world.add_node(f"m{at}")
            node.facts["runtimes"] = world.nodes["n1"].facts["runtimes"]
            await world.add_variant(variant(key=other, backend="aten", flavour="aten", build_class=None, graph=GRAPHS[OLD]))
        await until(lambda: all(scheduler.records.variant(other) is not None for other in others), 2.0)
        await until(lambda: len(scheduler.cluster.observed) == 1 + len(others), 2.0)
        for at, other in enumerate(others):
            await scheduler.starter.add(other, [NodeId(f"m{at}")], 5.0)

        async def unable(order: StartOrder) -> None:
            if order.donor is not None:
                raise FailedPrecondition(f"donor {order.donor}: its runtime takes nothing else")

        def orders(donated: bool) -> int:
            return sum((order.donor is not None) is donated for node in world.nodes.values() for order in node.orders)

        def all_idle() -> None:
            for node in world.nodes.values():
                node.behave, node.bind_ms = unable, 5.0
                for item in node.live():
                    node.idle(item.instance_id, 120.0)
                node.push()

        async def started() -> tuple[StartPath, int]:
            all_idle()
            before = orders(donated=True)
            answer = await world.start(scheduler, NEW.variant)
            await scheduler.reconciler.stop(answer.instance.node_id, answer.instance.instance_id)
            return answer.instance.start_path, orders(donated=True) - before

        assert await started() == (StartPath.BIND, ATTEMPTS)
        assert await started() == (StartPath.BIND, 1), "the node that nobody has asked yet"
        assert await started() == (StartPath.BIND, 0)
        await asyncio.sleep(REFUSED_S)
        assert await started() == (StartPath.BIND, ATTEMPTS)

    in_world(scenario)


@pytest.mark.parametrize(
    ("error", "path"),
    [(FailedPrecondition("its runtime takes nothing else"), StartPath.BIND)]
    + [(error, StartPath.TRANSFORM) for error in (DeadlineExceeded("it is fetching"), NotFound("blob 12"), DataCorrupted("blob 12"))],
)
def test_only_what_a_runtime_refused_is_not_asked_of_it_again(error: TesseraError, path: StartPath) -> None:
    """That bytes were late, missing or wrong says nothing of the donor."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        node = world.nodes["n1"]
        node.behave = failing(error)
        with contextlib.suppress(TesseraError):
            await world.start(scheduler, NEW.variant)
        donor = node.orders[0].instance_id
        for other in [item.instance_id for item in node.live() if item.instance_id != donor]:
            await scheduler.reconciler.stop(node.node_id, other)
        node.idle(donor, 120.0)
        node.push()
        assert (await world.start(scheduler, NEW.variant)).instance.start_path is path

    in_world(scenario)


def test_refusals_are_kept_within_bounds() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        donors, donor = scheduler.starter._donors, world.nodes["n1"].orders[0].instance_id
        for at in range(MOST_REFUSED + 1):
            donors.failed(donor, key(f"aten-{at}"), FailedPrecondition("full"))
        donors.failed(InstanceId("i-gone"), NEW, FailedPrecondition("full"))
        assert len(donors._refused) == MOST_REFUSED

    in_world(scenario)


@pytest.mark.parametrize("refused", [False, True])
def test_an_explanation_says_why_nothing_was_made_of_the_idle_instance(refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        node = world.nodes["n1"]

        async def full(order: StartOrder) -> None:
            if order.donor is not None:
                raise FailedPrecondition("its runtime is full")

        node.behave = full
        if not refused:
            monkeypatch.setattr(GraphPlans, "steps", lambda self, source, target: None)
        answer = await world.start(scheduler, NEW.variant, request_id="asked")
        assert answer.instance.start_path is StartPath.BIND
        found = scheduler.explanations.get(RequestId("asked"))
        assert found is not None
        why = "its runtime refused a moment ago: its runtime is full" if refused else "there is no plan yet"
        told = [loser.reason for loser in found.decision.losers if loser.start_path is StartPath.TRANSFORM]
        assert told == [f"no transformation: {node.orders[0].instance_id} ({OLD}) is idle, but {why}"]

    in_world(scenario)


@pytest.mark.parametrize(("profile_class", "path"), [("p", StartPath.BIND), ("another", StartPath.TRANSFORM)])
def test_what_was_measured_on_the_nodes_class_is_what_a_transformation_is_expected_to_take(profile_class: str, path: StartPath) -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        place = (DOMAIN, ProfileClass(profile_class))
        await world.put(keys.meta_cost(DOMAIN, "aten", place[1]), a_meta_cost_record(profile_class=place[1], base_ms=500.0))
        await until(lambda: scheduler.records.meta_costs(*place) is not None, 2.0)
        assert (await world.start(scheduler, NEW.variant)).instance.start_path is path
        assert scheduler.records.meta_costs(DOMAIN, ProfileClass("a third")) is None

    in_world(scenario)


def test_transformations_that_take_longer_than_expected_are_made_no_more() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        node, wanted = world.nodes["n1"], [NEW, OLD]

        async def late(order: StartOrder) -> None:
            await node.load(order)
            node.transform_ms = 300.0

        node.behave = late
        paths = []
        for _ in range(LEAST_OBSERVATIONS + 1):
            answer = await world.start(scheduler, wanted[0].variant)
            paths.append(answer.instance.start_path)
            wanted.reverse()
            await asyncio.sleep(1.0)
            node.idle(answer.instance.instance_id, 120.0)
            node.push()
        assert paths == [StartPath.TRANSFORM] * LEAST_OBSERVATIONS + [StartPath.BIND]

    in_world(scenario)


@pytest.mark.parametrize("how", ["time", "term"])
def test_corrections_of_transformations_wear_off_and_end_with_the_term(how: str) -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        donors, now_s = scheduler.starter._donors, world.clock.monotonic_s()
        source, target = (scheduler.records.variant(each) for each in (OLD, NEW))
        assert source is not None
        assert target is not None
        before_ms = donors._transform_ms(ProfileClass("p"), source, target)
        place, record = donors._place(target, ProfileClass("p"))
        for _ in range(LEAST_OBSERVATIONS):
            donors._transform_costs.note(place, record, STEPS, 300.0, now_s)
        assert donors._transform_ms(ProfileClass("p"), source, target) == pytest.approx(300.0)
        if how == "term":
            scheduler._forget()
        else:
            await world.clock.sleep(FORGET_S)
            donors.of((), scheduler.starter._views())
        assert donors._transform_ms(ProfileClass("p"), source, target) == before_ms

    in_world(scenario)


@pytest.mark.parametrize("during", [False, True])
def test_a_donor_is_not_ended_for_idleness(during: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken before its time came, or while etcd is asked whether it answers."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        (donor,) = world.nodes["n1"].live()
        answers = scheduler.reconciler._etcd_answers

        async def asked() -> bool:
            scheduler.starter._donors.take(donor.instance_id)
            return await answers()

        if during:
            monkeypatch.setattr(scheduler.reconciler, "_etcd_answers", asked)
        else:
            scheduler.starter._donors.take(donor.instance_id)
        world.nodes["n1"].idle(donor.instance_id, 1e6)
        await asyncio.sleep(5.0)
        assert [item.instance_id for item in world.nodes["n1"].live()] == [donor.instance_id]
        scheduler.starter._donors.release(donor.instance_id)
        monkeypatch.setattr(scheduler.reconciler, "_etcd_answers", answers)
        await until(lambda: not world.nodes["n1"].live(), 10.0)

    in_world(scenario)


def test_two_starts_never_get_the_same_donor() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        other = key("aten-other")
        GRAPHS[other] = GRAPHS[NEW]
        try:
            await world.add_variant(variant(key=other, backend="aten", flavour="aten", build_class=None, graph=GRAPHS[NEW]))
            await until(lambda: scheduler.records.variant(other) is not None, 2.0)
            answers = await asyncio.gather(world.start(scheduler, NEW.variant), world.start(scheduler, other.variant))
        finally:
            del GRAPHS[other]
        assert sorted(answer.instance.start_path for answer in answers) == [StartPath.BIND, StartPath.TRANSFORM]

    in_world(scenario)


@pytest.mark.parametrize("refuses", [False, True])
def test_who_asks_for_a_donor_that_a_start_has_gets_another_instance(refuses: bool) -> None:
    """Its runtime sends requests on before the start is answered: they would be sent to it again. It is back where that start failed."""

    async def scenario(world: World, scheduler: Scheduler) -> None:
        node, donor = world.nodes["n1"], world.nodes["n1"].orders[0]
        under_way, go_on = asyncio.Event(), asyncio.Event()

        async def held(order: StartOrder) -> None:
            if order.donor is not None:
                under_way.set()
                await go_on.wait()
            if order.donor is not None and refuses:
                raise Conflict(f"instance {order.donor} is not idle")

        node.behave = held
        made = asyncio.ensure_future(world.start(scheduler, NEW.variant))
        await under_way.wait()
        if not refuses:
            answer = await world.start(scheduler, OLD.variant)
            assert answer.instance.start_path is StartPath.BIND
            assert answer.instance.generation != donor.generation
        go_on.set()
        assert (await made).instance.start_path is (StartPath.BIND if refuses else StartPath.TRANSFORM)
        again = await world.start(scheduler, OLD.variant)
        assert again.instance.start_path is StartPath.WARM
        assert (again.instance.generation == donor.generation) is refuses

    in_world(scenario)


def test_with_0_nothing_is_made_of_anything_else() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        answer = await world.start(scheduler, NEW.variant)
        assert answer.instance.start_path is StartPath.BIND

    in_world(scenario, idle_s=0.0)


def test_who_was_asked_a_minute_ago_is_no_donor() -> None:
    async def scenario(world: World, scheduler: Scheduler) -> None:
        world.nodes["n1"].idle(InstanceId(world.nodes["n1"].orders[0].instance_id), 59.0)
        world.nodes["n1"].push()
        answer = await world.start(scheduler, NEW.variant)
        assert answer.instance.start_path is StartPath.BIND

    in_world(scenario)


@pytest.mark.parametrize(("bind_ms", "path"), [(4.0, StartPath.BIND), (10.0, StartPath.TRANSFORM)])
def test_a_session_is_a_donor_to_its_siblings_and_taken_where_opening_one_is_dearer(bind_ms: float, path: StartPath) -> None:
    """By what the profile of the one that is wanted says; no delta travels, since there is one graph. Where it is prepacked it is bound."""
    there, wanted, packed = (key("ort-fp32", model) for model in ("there", "wanted", "packed"))

    async def main() -> None:
        async with World() as world:
            for each in (there, wanted, packed):
                recipe = "ort-fp32-prepacked" if each is packed else "ort-fp32"
                await world.add_variant(variant(key=each, recipe=recipe, graph=GRAPHS[OLD]))
                if each is not there:
                    cost = LoadCost(StartPath.BIND, (StageTime(Stage.LOAD, bind_ms),))
                    await world.put(keys.profile(each, ProfileClass("p")), ProfileRecord(each, ProfileClass("p"), (cost,), (), 0.0))
            scheduler = await world.add_scheduler(transform_idle_s=60.0)
            node = world.nodes["n1"]
            await scheduler.starter.start(StartRequest(RequestId("first"), (there,), 10.0))
            await until(lambda: len(world.recorded()) == 1, 2.0)
            node.idle(node.orders[0].instance_id, 120.0)
            node.push()
            for each, expected in ((packed, StartPath.BIND), (wanted, path)):
                answer = await scheduler.starter.start(StartRequest(RequestId(each.model), (each,), 10.0))
                assert answer.instance.start_path is expected
            assert (node.orders[-1].donor, node.orders[-1].delta) == (
                node.orders[0].instance_id if path is StartPath.TRANSFORM else None,
                b"",
            )

    run_virtual(main)
