"""What the benchmark of transformations carries out, and what its table says."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.architectures import ALL
from benchmarks.report import Report
from benchmarks.transform import Model, carried_out, cuda_row
from tessera.domain.artifact import Blob
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform.by_size import MOST_OPERATIONS
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


def test_the_table_says_that_nothing_is_implemented_on_cuda() -> None:
    report = Report("transform")
    cuda_row(report)
    (row,) = report.rows
    assert (row["pairs"], "nothing is implemented on CUDA" in row["operations"]) == ("CUDA", True)
