"""What transformations cost: unknown until the graphs are read, exact once they are planned."""

from __future__ import annotations

import json

import pytest
from scheduler_builders import eventually

from tessera.domain.errors import NotFound
from tessera.domain.ids import Digest
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Program, structure_of
from tessera.program import Stop, Tasks
from tessera.scheduler.adapters.graph_plans import GraphPlans

COSTS = MetaCosts(base_ms=0.7)


def chain(length: int) -> bytes:
    nodes = [["aten.relu.default", [{"slot": at}], {}, at + 1] for at in range(length)]
    ports = {"inputs": [{"name": "x", "slot": 0}], "outputs": [{"name": "y", "slot": length}]}
    return json.dumps({"format": 1, "dialect": "aten", "slots": length + 1, "tensors": [], "nodes": nodes, **ports}).encode()


BLOBS = {Digest(f"{length:064x}"): chain(length) for length in range(1, 6)} | {Digest("f" * 64): b"{"}
READS: list[Digest] = []


def read(digest: Digest) -> bytes:
    READS.append(digest)
    if digest not in BLOBS:
        raise NotFound(f"blob {digest}")
    return BLOBS[digest]


def names(*lengths: int) -> list[Digest]:
    return [Digest(f"{length:064x}") for length in lengths]


async def test_a_pair_is_unknown_then_exact_and_each_graph_is_read_once() -> None:
    READS.clear()
    plans = GraphPlans(read, COSTS)
    one, four, five = names(1, 4, 5)
    assert plans.transform_ms(one, four) is None
    async with Tasks(Stop()) as tasks:
        tasks.start("plans", plans.run())
        await eventually(lambda: plans.transform_ms(one, four) is not None)
        await eventually(lambda: plans.transform_ms(four, five) is not None)
        await eventually(lambda: plans._wanted.empty() and not plans._asked)
        for source, target in ((one, four), (four, five)):
            made = plan(*(Program(structure_of(BLOBS[each])) for each in (source, target)), AlignedPlanner(), COSTS)
            assert plans.transform_ms(source, target) == pytest.approx(0.7 + made.expected_ms)
        estimated = plans.transform_ms(one, five)
        assert estimated is not None, "both graphs are known: an estimate until it is planned"
    assert sorted(READS) == sorted([one, four, five])


async def test_graphs_that_are_learnt_have_an_estimate_at_once_and_siblings_a_plan() -> None:
    plans = GraphPlans(read, COSTS)
    two, three = names(2, 3)
    async with Tasks(Stop()) as tasks:
        tasks.start("plans", plans.run())
        for graph in (two, three):
            plans.learn(graph)
        await eventually(lambda: plans._wanted.empty() and not plans._asked)
        estimated = plans.transform_ms(two, three)
        assert plans.transform_ms(two, two) == 0.7, "nothing but the way there"
        assert estimated is not None
        await eventually(lambda: plans._wanted.empty() and not plans._asked)
        exact = plans.transform_ms(two, three)
        assert exact is not None
        assert exact <= estimated


async def test_what_cannot_be_read_or_planned_stays_unknown() -> None:
    plans = GraphPlans(read, COSTS)
    (one,) = names(1)
    async with Tasks(Stop()) as tasks:
        tasks.start("plans", plans.run())
        for other in (Digest("e" * 64), Digest("f" * 64)):
            assert plans.transform_ms(one, other) is None
            await eventually(lambda: plans._wanted.empty() and not plans._asked)
            assert plans.transform_ms(one, other) is None
