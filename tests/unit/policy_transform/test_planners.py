"""Every plan turns its source into its target exactly, and none is cheaper than the optimum."""

from __future__ import annotations

import json
from itertools import permutations
from math import inf
from typing import Any

import pytest
from hypothesis import given
from transform_programs import a_program, carried_out, flat, nodes

from tessera.domain.errors import DataCorrupted, InvalidInput, Unsupported
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform import registry
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.base import Pairs, Planner
from tessera.policy.transform.costs import CostLine, MetaCosts
from tessera.policy.transform.matrix import CostMatrix
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Origin, OriginKind, Program, structure_of

COSTS = MetaCosts(
    {
        (MetaOperator.REPLACE, ""): CostLine(1.0, 100.0),
        (MetaOperator.RESHAPE, ""): CostLine(2.0, 100.0, 300.0),
        (MetaOperator.RESHAPE, "aten.norm.default"): CostLine(3.0),
        (MetaOperator.ADD, ""): CostLine(4.0, 100.0),
        (MetaOperator.REDUCE, ""): CostLine(0.5),
        (MetaOperator.EDGE, ""): CostLine(0.25),
    }
)
EVERY = pytest.mark.parametrize("name", sorted(registry.PLANNERS))
RELU, CONV, NORM = ("relu", 0, 1, 0, 0), ("conv", 1, 2, 1, 0), ("norm", 1, 2, 1, 0)


def cost(planner: Planner, source: Program, target: Program) -> float:
    matrix = CostMatrix(source, target, COSTS)
    return matrix.total_ms(planner.pairs(matrix))


def cheapest(matrix: CostMatrix) -> float:
    """By trying everything: each of the longer side's places gets one of the shorter one's, or none."""
    rows, columns = len(matrix.source.structure.operations), len(matrix.target.structure.operations)
    best = inf
    for chosen in permutations([*range(rows), *[None] * columns], columns):
        pairs: Pairs = tuple((row, column) for column, row in enumerate(chosen) if row is not None)
        if all(matrix.pair_ms(*pair) < inf for pair in pairs):
            best = min(best, matrix.total_ms(pairs))
    return best


@given(nodes, nodes)
@EVERY
def test_a_plan_turns_the_source_into_the_target_exactly(name: str, here: list[Any], there: list[Any]) -> None:
    source, target = a_program(here, ("x", "mask")), a_program(there, ("mask", "x"))
    found = plan(source, target, registry.make(name), COSTS)
    assert carried_out(source, found, target) == target
    assert found.cost_ms == pytest.approx(CostMatrix(source, target, COSTS).total_ms(found.kept))
    order = [step.operator for step in found.steps]
    assert order == sorted(order, key=lambda each: (each is MetaOperator.EDGE) - (each is MetaOperator.REDUCE))
    assert len({source for source, _ in found.kept}) == len(found.kept) == len({target for _, target in found.kept})


@given(nodes, nodes)
def test_the_optimum_costs_no_more_than_ours_and_ours_no_more_than_the_group_plan(here: list[Any], there: list[Any]) -> None:
    source, target = a_program(here), a_program(there)
    munkres, ours, group = (cost(registry.make(name), source, target) for name in ("munkres", "tessera", "group"))
    assert munkres <= ours + 1e-9
    assert ours <= group + 1e-9


@given(nodes.map(lambda rows: rows[:3]), nodes.map(lambda rows: rows[:3]))
def test_trying_everything_finds_what_munkres_finds(here: list[Any], there: list[Any]) -> None:
    matrix = CostMatrix(a_program(here), a_program(there), COSTS)
    assert matrix.total_ms(registry.make("munkres").pairs(matrix)) == pytest.approx(cheapest(matrix))


@given(nodes)
@EVERY
def test_what_is_the_same_already_costs_nothing(name: str, rows: list[Any]) -> None:
    source = a_program(rows)
    found = plan(source, a_program(rows), registry.make(name), COSTS)
    assert (found.steps, found.cost_ms, found.edges_ms) == ((), 0.0, 0.0)


def test_each_meta_operator_does_what_it_is_for() -> None:
    other_weights, other_stride = ("conv", 1, 2, 3, 0), ("norm", 2, 2, 1, 0)
    source, target = a_program([CONV, RELU, NORM, ("add", 0, 1, 0, 1)]), a_program([other_weights, other_stride, ("add", 0, 1, 0, 1), CONV])
    found = plan(source, target, registry.make("tessera"), COSTS)
    size = 2 * 256 * 4
    assert [(step.operator, step.source, step.target, step.new_bytes) for step in found.steps] == [
        (MetaOperator.REDUCE, 1, None, 0),
        (MetaOperator.REPLACE, 0, 0, 3 * size),
        (MetaOperator.RESHAPE, 2, 1, 0),
        (MetaOperator.ADD, None, 3, 3 * size),
        (MetaOperator.EDGE, 2, 1, 0),
        (MetaOperator.EDGE, 3, 2, 0),
    ]
    mib = 3 * size / (1 << 20)
    assert found.cost_ms == pytest.approx(0.5 + (1.0 + 100 * mib) + 3.0 + (4.0 + 100 * mib))
    assert found.expected_ms == pytest.approx(found.cost_ms + 2 * 0.25)


def test_without_digests_every_weight_is_new() -> None:
    known = a_program([CONV, NORM])
    unknown = Program(known.structure)
    found = plan(unknown, unknown, registry.make("group"), COSTS)
    assert [step.operator for step in found.steps] == [MetaOperator.REPLACE] * 2
    assert sum(step.new_bytes for step in found.steps) == 4 * 2 * 256 * 4


def test_order_is_kept_where_the_group_plan_loses_it() -> None:
    """A block is put in front: the group planner shifts every later weight by one, ours keeps them."""
    blocks = [("conv", 1, 2, which, 0) for which in range(4)]
    source, target = a_program(blocks[1:]), a_program(blocks)
    ours, group = (plan(source, target, registry.make(name), COSTS) for name in ("tessera", "group"))
    assert ours.kept == ((0, 1), (1, 2), (2, 3))
    assert group.kept == ((0, 0), (1, 1), (2, 2))
    assert ours.cost_ms < group.cost_ms / 2


def test_where_there_are_too_many_pairs_the_group_plan_is_taken() -> None:
    blocks = [("conv", 1, 2, which, 0) for which in range(4)]
    matrix = CostMatrix(a_program(blocks[1:]), a_program(blocks), COSTS)
    assert AlignedPlanner(12).pairs(matrix) == ((0, 1), (1, 2), (2, 3))
    assert AlignedPlanner(11).pairs(matrix) == ((0, 0), (1, 1), (2, 2))


def test_an_edge_alone_is_a_change() -> None:
    source, target = a_program([RELU, RELU, ("add", 0, 1, 0, 1)]), a_program([RELU, RELU, ("add", 0, 1, 0, 2)])
    found = plan(source, target, registry.make("tessera"), COSTS)
    assert [(step.operator, step.source, step.target) for step in found.steps] == [(MetaOperator.EDGE, 2, 2)]
    assert (found.cost_ms, found.expected_ms) == (0.0, 0.25)


def test_a_structure_has_no_slots() -> None:
    structure = a_program([CONV, ("add", 0, 1, 0, 1)]).structure
    conv, add = structure.operations
    assert (conv.kind, conv.weights, conv.edges) == ("aten.conv.default", (0, 1), (Origin(OriginKind.INPUT, 0),))
    assert conv.attributes == '[[{"edge":0},{"weight":0},{"weight":1}],{"stride":1}]'
    assert add.edges == (Origin(OriginKind.OPERATION, 0), Origin(OriginKind.INPUT, 0))
    assert add.attributes == '[[{"edge":0},[{"edge":1}]],{"stride":0}]'
    assert structure.outputs == (("y", Origin(OriginKind.OPERATION, 1)),)
    assert [tensor.size_bytes for tensor in structure.tensors] == [2 * 256 * 4, 2 * 512 * 4]


def odd(**fields: Any) -> bytes:
    return json.dumps({**flat([]), **fields}).encode()


def a_tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "w", "slot": 1, "dtype": "FP32", "shape": [2], **fields}


@pytest.mark.parametrize(
    ("graph", "kind", "words"),
    [
        (b"{", DataCorrupted, "JSONDecodeError"),
        (b'{"dialect": "onnx", "format": 1}', Unsupported, "dialect 'onnx' and format 1"),
        (b'{"dialect": "aten", "format": 1}', DataCorrupted, "KeyError: 'inputs'"),
        (
            b'{"dialect": "aten", "format": 1, "inputs": [], "tensors": [], "nodes": [["aten.relu.default", [{"slot": 3}], {}, 0]]}',
            DataCorrupted,
            r"node 0 \(aten.relu.default\) reads slot 3",
        ),
        (odd(nodes=[["aten.relu.default", [], [], 1]]), DataCorrupted, "AttributeError"),
        (odd(nodes=[["aten.relu.default", [float("nan")], {}, 1]]), DataCorrupted, "NaN is no JSON"),
        (b"[" * 100_000, DataCorrupted, "RecursionError"),
        (odd(tensors=[a_tensor(dtype="FP8")]), Unsupported, "tensor w is of dtype 'FP8': plans know BOOL, UINT8"),
        (odd(tensors=[a_tensor(shape=["2"])]), DataCorrupted, r"tensor w has the shape \['2'\]"),
        (odd(tensors=[a_tensor(shape=[-1])]), DataCorrupted, r"tensor w has the shape \[-1\]"),
        (odd(tensors=[a_tensor(shape=[1 << 40, 1 << 40])]), DataCorrupted, "tensor w has the shape"),
    ],
)
def test_what_is_no_flat_program_is_refused(graph: bytes, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        structure_of(graph)


def test_planners_are_chosen_by_name() -> None:
    with pytest.raises(InvalidInput, match="one of group, munkres, tessera"):
        registry.make("best")
