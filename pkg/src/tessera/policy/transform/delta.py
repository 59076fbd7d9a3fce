"""A plan with what it brings, as bytes for a runtime (docs/adr/0012): everything that makes a live program of the source one of the target.

It names places, not slots: a runtime's program has slots of its own after it has been transformed. Weights are in the target's artifact.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tessera.domain.ids import Digest
from tessera.domain.transformation import DELTA_FORMAT, MetaOperator, TransformationPlan
from tessera.policy.transform.base import Planner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Operation, Origin, OriginKind, Program, Structure

_WORDS = {OriginKind.INPUT: "input", OriginKind.TENSOR: "tensor", OriginKind.OPERATION: "operation"}


def planned(
    source: Structure, target: Structure, planner: Planner, costs: MetaCosts, digests: tuple[Digest, Digest]
) -> tuple[TransformationPlan, bytes]:
    """The plan for all siblings, which does not ask what weights are the same, and its delta."""
    made = plan(Program(source), Program(target), planner, costs)
    return made, delta_of(source, target, made, digests)


def delta_of(source: Structure, target: Structure, plan: TransformationPlan, digests: tuple[Digest, Digest]) -> bytes:
    """`digests`: of the two graphs. Equal plans are equal bytes."""
    written = {step.target for step in plan.steps if step.operator in (MetaOperator.ADD, MetaOperator.RESHAPE, MetaOperator.EDGE)} | _torn(
        source, target, plan
    )
    kept = {place: at for at, place in plan.kept}
    found = {
        "format": DELTA_FORMAT,
        "source": digests[0],
        "target": digests[1],
        "inputs": list(target.inputs),
        "tensors": [{"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in target.tensors],
        "outputs": [[name, _value(origin)] for name, origin in target.outputs],
        "kept": list(_runs(plan.kept)),
        "nodes": [[place, *_node(operation)] for place, operation in enumerate(target.operations) if place in written],
        "weights": [
            [place, list(operation.weights)]
            for place, operation in enumerate(target.operations)
            if operation.weights and place in kept and place not in written
        ],
    }
    return json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _torn(source: Structure, target: Structure, plan: TransformationPlan) -> set[int]:
    """Operations that stay and whose tensors cannot stay where they are: two read one tensor in the source and two in the target, or the
    other way round (tied weights). They are written anew, the first reader keeps its place."""
    there: dict[int, int] = {}
    back: dict[int, int] = {}
    found: set[int] = set()
    for at, place in plan.kept:
        for one, other in zip(source.operations[at].weights, target.operations[place].weights, strict=False):
            if there.setdefault(one, other) != other or back.setdefault(other, one) != one:
                found.add(place)
    return found


def _runs(kept: tuple[tuple[int, int], ...]) -> Iterator[list[int]]:
    """[source, target, count] of pairs that follow each other in both."""
    start: list[int] = []
    for at, place in kept:
        if start and (at, place) == (start[0] + start[2], start[1] + start[2]):
            start[2] += 1
            continue
        if start:
            yield start
        start = [at, place, 1]
    if start:
        yield start


def _node(operation: Operation) -> tuple[str, list[Any], dict[str, Any]]:
    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(each) for each in value]
        if isinstance(value, dict) and "edge" in value:
            return _value(operation.edges[value["edge"]])
        if isinstance(value, dict) and "weight" in value:
            return {"tensor": operation.weights[value["weight"]]}
        return value

    arguments, keywords = json.loads(operation.attributes)
    return operation.kind, whole(arguments), {name: whole(value) for name, value in keywords.items()}


def _value(origin: Origin) -> dict[str, int]:
    return {_WORDS[origin.kind]: origin.place}
