"""Plans between graphs: made ahead for those that came last, behind for whatever else is asked for, and never while somebody waits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from scheduler_builders import eventually

from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest
from tessera.domain.transformation import StepSum
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
        self.plans = GraphPlans(self.read)

    def read(self, digest: Digest) -> bytes:
        self.reads.append(digest)
        if digest not in self.blobs:
            raise NotFound(f"blob {digest}")
        return self.blobs[digest]

    async def done(self) -> None:
        await eventually(lambda: self.plans._wanted.empty() and not self.plans._asked)

    def steps(self, source: int, target: int) -> tuple[StepSum, ...] | None:
        return self.plans.steps(name(source), name(target))


@asynccontextmanager
async def running() -> AsyncIterator[World]:
    world = World()
    async with Tasks(Stop()) as tasks:
        tasks.start("plans", world.plans.run())
        yield world


async def test_a_pair_that_was_never_asked_for_is_planned_behind() -> None:
    async with running() as world:
        assert (world.steps(1, 4), world.plans.delta(name(1), name(4))) == (None, None)
        await world.done()
        here, there = structure_of(chain(1)), structure_of(chain(4))
        made = plan(Program(here), Program(there), AlignedPlanner(), COSTS)
        assert world.steps(1, 4) == made.sums() != ()
        assert world.plans.delta(name(1), name(4)) == delta_of(here, there, made, (name(1), name(4)))
        assert world.steps(4, 1) is None, "the way back is another plan"


async def test_graphs_that_come_are_planned_to_and_from_those_that_came_last_and_each_is_read_once() -> None:
    async with running() as world:
        for length in range(1, 20):
            world.plans.learn(name(length))
            await world.done()
        latest = range(20 - graph_plans.AMONG, 20)
        assert all(world.steps(19, other) is not None and world.steps(other, 19) is not None for other in latest)
        assert world.steps(19, 19) == (), "siblings: nothing but the way there"
        assert world.steps(19, 1) is None
        await world.done()
        assert world.steps(19, 1) is not None
        assert sorted(world.reads) == sorted(map(name, range(1, 20)))


async def test_large_programs_are_planned_by_the_linear_planner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plans, "MOST_OPERATIONS", 10)
    async with running() as world:
        for source, target, planner in ((4, 9, AlignedPlanner()), (4, 11, GroupPlanner())):
            world.steps(source, target)
            await world.done()
            here, there = structure_of(chain(source)), structure_of(chain(target))
            made = plan(Program(here), Program(there), planner, COSTS)
            assert world.plans.delta(name(source), name(target)) == delta_of(here, there, made, (name(source), name(target)))


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_plans, "KEPT_PLANS", 3)
    monkeypatch.setattr(graph_plans, "KEPT_GRAPHS", 2)
    async with running() as world:
        for target in range(2, 8):
            world.steps(1, target)
            await world.done()
        assert len(world.plans._plans) == 3
        assert len(world.plans._structures) <= 2
        assert [world.steps(1, target) is not None for target in range(2, 8)] == [False, False, False, True, True, True]


async def test_what_cannot_be_read_or_planned_stays_unknown_and_holds_nothing_up() -> None:
    async with running() as world:
        for other in (Digest("e" * 64), Digest("f" * 64)):
            world.plans.learn(other)
            assert world.plans.steps(name(1), other) is None
        world.steps(1, 2)
        await world.done()
        assert world.steps(1, 2) is not None
        assert world.plans.steps(name(1), Digest("f" * 64)) is None
