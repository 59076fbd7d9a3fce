"""From pairs to meta-operators."""

from __future__ import annotations

from dataclasses import replace

from tessera.domain.transformation import MetaOperator, MetaStep, TransformationPlan
from tessera.policy.transform.base import Pairs, Planner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.matrix import CostMatrix
from tessera.policy.transform.structure import Origin, OriginKind, Program, Structure


def plan(source: Program, target: Program, planner: Planner, costs: MetaCosts) -> TransformationPlan:
    """What turns an instance of the one into an instance of the other."""
    matrix = CostMatrix(source, target, costs)
    return plan_of(matrix, planner.pairs(matrix), planner.name, costs)


def plan_of(matrix: CostMatrix, kept: Pairs, planner: str, costs: MetaCosts) -> TransformationPlan:
    here, there = matrix.source.structure, matrix.target.structure
    source_of = {target: source for source, target in kept}
    staying = set(source_of.values())
    gone = [
        MetaStep(MetaOperator.REDUCE, operation.kind, at, None, 0, matrix.reduce_ms(at))
        for at, operation in enumerate(here.operations)
        if at not in staying
    ]
    made, edges = [], []
    origins = moved(here, there, kept)
    for at, operation in enumerate(there.operations):
        source = source_of.get(at)
        new_bytes = matrix.new_bytes(source, at)
        if source is None:
            made.append(MetaStep(MetaOperator.ADD, operation.kind, None, at, new_bytes, matrix.add_ms(at)))
            continue
        alike = here.forms[source] == there.forms[at]
        if new_bytes or not alike:
            operator, changed_bytes = (MetaOperator.REPLACE, 0) if alike else (MetaOperator.RESHAPE, matrix.changed_bytes(source, at))
            made.append(MetaStep(operator, operation.kind, source, at, new_bytes, matrix.pair_ms(source, at), changed_bytes))
        if tuple(origins.get(origin) for origin in here.operations[source].edges) != operation.edges:
            edges.append(MetaStep(MetaOperator.EDGE, operation.kind, source, at, 0, costs.line(MetaOperator.EDGE, operation.kind).ms()))
    cost_ms = sum(step.cost_ms for step in (*gone, *made))
    return TransformationPlan(planner, kept, (*gone, *made, *edges), cost_ms, sum(step.cost_ms for step in edges))


def priced(found: TransformationPlan, costs: MetaCosts) -> TransformationPlan:
    """The same plan by other costs than those that it was made with."""
    steps = tuple(
        replace(step, cost_ms=costs.line(step.operator, step.kind).ms(step.new_bytes, step.changed_bytes)) for step in found.steps
    )
    edges_ms = sum(step.cost_ms for step in steps if step.operator is MetaOperator.EDGE)
    return replace(found, steps=steps, cost_ms=sum(step.cost_ms for step in steps) - edges_ms, edges_ms=edges_ms)


def moved(here: Structure, there: Structure, kept: Pairs) -> dict[Origin, Origin]:
    """Where the values of the source are found in the target: inputs by their names."""
    inputs = {name: at for at, name in enumerate(there.inputs)}
    found = {Origin(OriginKind.INPUT, at): Origin(OriginKind.INPUT, inputs[name]) for at, name in enumerate(here.inputs) if name in inputs}
    found.update({Origin(OriginKind.OPERATION, source): Origin(OriginKind.OPERATION, target) for source, target in kept})
    return found
