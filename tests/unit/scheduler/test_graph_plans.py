"""Plans between graphs: made ahead to and from medoids, behind for whatever else is asked for, and never while somebody waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product

import pytest
from scheduler_builders import eventually

from tessera.clock import SystemClock
from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest
from tessera.domain.transformation import StepSum
from tessera.policy.transform import by_size
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import delta_of
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Program, structure_of
from tessera.program import Stop, Tasks
from tessera.scheduler.adapters import graph_plans
from tessera.scheduler.adapters.graph_plans import GraphPlans

COSTS = MetaCosts()


def chain(length: int) -> bytes:
    kinds = ("aten.relu.default", "aten.neg.default")
    nodes = [[kinds[at % 3 % 2], [{"slot": at}], {}, at + 1] for at in range(length)]
    ports = {"inputs": [{"name": "x", "slot": 0}], "outputs": [{"name": "y", "slot": length}]}
    return json.dumps({"format": 1, "dialect": "aten", "slots": length + 1, "tensors": [], "nodes": nodes, **ports}).encode()


def name(length: int) -> Digest:
    return Digest(f"{length:064x}")


class World:
    def __init__(self) -> None:
        self.blobs = {name(length): chain(length) for length in range(1, 40)} | {Digest("f" * 64): b"{"}
        self.reads: list[Digest] = []
        self.ours = asyncio.Event()
        self.plans = GraphPlans(self.read, SystemClock(), self.turn)

    async def turn(self) -> None:
        await self.ours.wait()

    def read(self, digest: Digest) -> bytes:
        self.reads.append(digest)
        if digest not in self.blobs:
            raise NotFound(f"blob {digest}")
        return self.blobs[digest]

    async def done(self) -> None:
        await eventually(lambda: not self.plans._wanted and not self.plans._coming)

    def steps(self, source: int, target: int) -> tuple[StepSum, ...] | None:
        return self.plans.steps(name(source), name(target))


@asynccontextmanager
async def running(leading: bool = True) -> AsyncIterator[World]:
    world = World()
    if leading:
        world.ours.set()
    async with Tasks(Stop()) as tasks:
        tasks.start("plans", world.plans.run())
        yield world


async def test_a_pair_that_was_never_asked_for_is_planned_behind() -> None:
    async with running() as world:
        assert (world.steps(1, 4), world.plans.delta(name(1), name(4))) == (None, None)
        assert world.plans.why_not(name(1), name(4)) == "there is no plan yet"
        await world.done()
        here, there = structure_of(chain(1)), structure_of(chain(4))
        made = plan(Program(here), Program(there), AlignedPlanner(), COSTS)
        assert world.steps(1, 4) == made.sums() != ()
        assert world.plans.delta(name(1), name(4)) == delta_of(here, there, made, (name(1), name(4)))
        assert world.steps(4, 1) is None, "the way back is another plan"


async def test_graphs_that_come_are_planned_to_and_from_the_medoids_and_each_is_read_once() -> None:
    async with running() as world:
        for length in range(1, 20):
            world.plans.learn(name(length))
            await world.done()
        medoids = range(1, 17)
        assert all(world.steps(19, other) is not None and world.steps(other, 19) is not None for other in medoids)
        assert world.steps(19, 19) == (), "siblings: nothing but the way there"
        assert world.steps(19, 18) is None, "neither is a medoid"
        await world.done()
        assert world.steps(19, 18) is not None
        assert sorted(world.reads) == sorted(map(name, range(1, 20)))


async def test_a_thousand_siblings_have_one_plan() -> None:
    async with running() as world:
        for _ in range(1000):
            world.plans.learn(name(7))
        await world.done()
        assert (world.reads, list(world.plans._plans)) == ([name(7)], [(name(7), name(7))])


async def test_a_standby_reads_and_plans_nothing_and_a_new_leader_all_that_came() -> None:
    async with running(leading=False) as world:
        for length in (1, 2, 3):
            world.plans.learn(name(length))
        assert world.steps(1, 2) is None
        await asyncio.sleep(0.05)
        assert world.reads == []
        world.ours.set()
        await world.done()
        assert None not in {world.steps(source, target) for source, target in product((1, 2), repeat=2)}


async def test_the_latest_of_too_many_are_learnt_and_planned_ahead_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plans, "KEPT_GRAPHS", 5)
    monkeypatch.setattr(graph_plans, "KEPT_PLANS", 10)
    async with running(leading=False) as world:
        for length in range(1, 9):
            world.plans.learn(name(length))
        world.ours.set()
        await world.done()
        assert world.reads == [name(length) for length in range(4, 9)]
        assert len(world.plans._plans) <= 10
        assert world.steps(4, 4) is not None, "what was planned first is kept"


async def test_what_becoming_one_another_costs_is_estimated_for_all_pairs_at_once() -> None:
    async with running() as world:
        nothing = world.plans.edits_ms([name(1), name(2)], [name(1)])
        assert nothing.tolist() == [[0.0], [0.0]], "nothing is read yet"
        for length in (3, 6, 9):
            world.plans.learn(name(length))
        await world.done()
        unknown = Digest("e" * 64)
        found = world.plans.edits_ms([name(3), unknown], [name(3), name(9), unknown])
        made = plan(Program(structure_of(chain(3))), Program(structure_of(chain(9))), GroupPlanner(), COSTS)
        assert found[0, 1] == pytest.approx(made.cost_ms)
        assert found.tolist() == [[0.0, found[0, 1], found[0, 1]], [found[0, 1], found[0, 1], 0.0]]


async def test_large_programs_are_planned_by_the_linear_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_size, "MOST_OPERATIONS", 10)
    async with running() as world:
        for source, target, planner in ((4, 9, AlignedPlanner()), (4, 11, GroupPlanner())):
            world.steps(source, target)
            await world.done()
            here, there = structure_of(chain(source)), structure_of(chain(target))
            made = plan(Program(here), Program(there), planner, COSTS)
            assert world.plans.delta(name(source), name(target)) == delta_of(here, there, made, (name(source), name(target)))


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plans, "KEPT_PLANS", 3)
    monkeypatch.setattr(graph_plans, "IN_USE_S", 0.0)
    monkeypatch.setattr(graph_plans, "KEPT_GRAPHS", 2)
    async with running() as world:
        for target in range(2, 8):
            world.steps(1, target)
            await world.done()
        assert len(world.plans._plans) == 3
        assert len(world.plans._cache) <= 2
        assert [world.steps(1, target) is not None for target in range(2, 8)] == [False, False, False, True, True, True]


async def test_more_pairs_asked_for_in_turn_than_there_is_room_for_do_not_take_one_anothers_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plans, "KEPT_PLANS", 3)
    async with running() as world:
        for _ in range(2):
            found = [world.steps(1, target) is not None for target in range(2, 8)]
            await world.done()
        assert found == [True, True, True, False, False, False], "the first ones were planned, and stay while they are looked at"
        assert len(world.reads) == 4
        assert world.plans.why_not(name(1), name(7)) == "there is no room for its plan: 3 are in use"
        monkeypatch.setattr(graph_plans, "IN_USE_S", 0.0)
        assert world.steps(1, 7) is None
        assert world.plans.why_not(name(1), name(7)) == "there is no plan yet"
        await world.done()
        assert [world.steps(1, target) is not None for target in (2, 3, 4, 7)] == [False, True, True, True]


async def test_what_cannot_be_read_or_planned_stays_unknown_and_holds_nothing_up() -> None:
    async with running() as world:
        for other in (Digest("e" * 64), Digest("f" * 64)):
            world.plans.learn(other)
            assert world.plans.steps(name(1), other) is None
        world.steps(1, 2)
        await world.done()
        assert world.steps(1, 2) is not None
        assert world.plans.steps(name(1), Digest("f" * 64)) is None


async def test_what_cannot_be_planned_is_tried_again_after_a_while_and_not_at_every_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as world:
        lost = Digest("e" * 64)
        for _ in range(3):
            assert world.plans.steps(name(1), lost) is None
            await world.done()
        assert world.reads.count(lost) == 1
        assert world.plans.why_not(name(1), lost) == f"no plan could be made: blob {lost}"
        world.blobs[lost] = chain(20)
        monkeypatch.setattr(graph_plans, "FAILED_S", 0.0)
        assert world.plans.steps(name(1), lost) is None
        await world.done()
        assert world.plans.steps(name(1), lost) is not None
        assert world.plans._failed == {}


async def test_a_delta_that_no_start_takes_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as world:
        monkeypatch.setattr(graph_plans, "MOST_DELTA_BYTES", 100)
        world.steps(1, 30)
        await world.done()
        assert world.steps(1, 30) is None
        assert world.plans.why_not(name(1), name(30)).endswith("bytes: a start takes 100")


async def test_what_planning_did_not_expect_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as world:
        monkeypatch.setattr(graph_plans, "structure_of", lambda graph: 1 / 0)
        world.steps(1, 2)
        await world.done()
        assert world.plans.why_not(name(1), name(2)) == "no plan could be made: ZeroDivisionError: division by zero"
        monkeypatch.undo()
        world.steps(3, 4)
        await world.done()
        assert world.steps(3, 4) is not None
