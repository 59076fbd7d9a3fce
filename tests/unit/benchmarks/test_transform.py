"""What the benchmark of transformations carries out, and what its table says."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import transform, transformpairs
from benchmarks.architectures import ALL
from benchmarks.report import Report
from benchmarks.transform import cuda_row, group_planner_ms
from benchmarks.transformpairs import PLANNERS, Model, Pair, against_bind, beyond, carried_out, plan
from tessera.domain.artifact import Blob
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform.by_size import MOST_OPERATIONS
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.structure import Operation, Origin, OriginKind, Program, Structure, Tensor
from tessera.testing.builders import a_digest, an_artifact


def a_model(number: int, operations: int) -> Model:
    """A chain of products with one tensor, which all such models have in common."""
    origins = [Origin(OriginKind.INPUT, 0), *(Origin(OriginKind.OPERATION, at) for at in range(operations))]
    chain = tuple(Operation("aten.mul.Tensor", '[[{"edge":0},{"weight":0}],{}]', (0,), (origin,)) for origin in origins[:-1])
    structure = Structure(("x",), (Tensor("w", "FP32", (4,)),), chain, (("y", origins[-1]),))
    artifact = replace(an_artifact(), graph=Blob(a_digest(number), 1))
    return Model(ALL[0], a_digest(number + 100), artifact, Program(structure, (a_digest(7),)))


@pytest.mark.parametrize(("operations", "planner"), [(MOST_OPERATIONS, "tessera"), (MOST_OPERATIONS + 1, "group")])
def test_what_is_timed_is_the_plan_that_the_product_makes(operations: int, planner: str) -> None:
    source, target = a_model(1, operations - 1), a_model(2, operations)
    found, delta = carried_out(source, target)
    assert found.planner == planner
    replaced = [step for step in found.steps if step.operator is MetaOperator.REPLACE]
    assert len(replaced) == operations - 1, "whoever knows digests would replace nothing"
    ends = json.loads(delta)
    assert (ends["source"], ends["target"]) == (source.graph, target.graph)


def test_siblings_are_compared_with_a_bind_beside_their_donor() -> None:
    """Which has read their graph; a bind of whoever comes first takes longer."""
    donor = a_model(1, 5)
    pair = Pair(donor, replace(donor, bind_ms=4.0), ms=1.0, bind_ms=2.0)
    assert pair.siblings
    assert against_bind([pair]) == [-0.5]
    assert [beyond(replace(pair, ms=ms)) for ms in (2.9, 3.1)] == [False, True]
    assert [beyond(replace(pair, ms=ms, bind_ms=100.0)) for ms in (104.0, 106.0)] == [False, True]


def test_planning_is_timed_to_the_plan_and_its_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    made, found = transformpairs.plan_of, transform.planned

    def slow_plan(*given: Any) -> Any:
        time.sleep(0.02)
        return made(*given)

    def slow_planned(*given: Any) -> Any:
        time.sleep(0.02)
        return found(*given)

    monkeypatch.setattr(transformpairs, "plan_of", slow_plan)
    monkeypatch.setattr(transform, "planned", slow_planned)
    known = [a_model(1, 10), a_model(2, 12), a_model(3, 3)]
    pair = Pair(known[0], known[1])
    plan(pair, MetaCosts())
    assert sorted(pair.planning_ms) == sorted(PLANNERS)
    assert min(pair.planning_ms.values()) >= 20.0
    assert group_planner_ms(known, MetaCosts()) >= 20.0 * 1000 / 12


def test_the_table_says_that_nothing_is_implemented_on_cuda() -> None:
    report = Report("transform")
    cuda_row(report)
    (row,) = report.rows
    assert (row["pairs"], "nothing is implemented on CUDA" in row["operations"]) == ("CUDA", True)
