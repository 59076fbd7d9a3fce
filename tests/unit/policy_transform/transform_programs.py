"""Small flat programs: chains with branches, whose operations and weights come from a few kinds; and what plans make of them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tessera.domain.transformation import MetaOperator, TransformationPlan
from tessera.policy.transform.plan import moved
from tessera.policy.transform.structure import Operation, Origin, OriginKind, Program, Structure, structure_of

NOWHERE = Origin(OriginKind.OPERATION, -1)
KINDS = ("conv", "norm", "relu", "add")
WEIGHTS = {"conv": 2, "norm": 1, "relu": 0, "add": 0}

nodes = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 2),  # an attribute: a stride
        st.integers(1, 3),  # a size
        st.integers(0, 3),  # which weights
        st.integers(0, 5),  # from how far back its second value comes
    ),
    max_size=7,
)


def a_program(rows: list[tuple[str, int, int, int, int]], inputs: tuple[str, ...] = ("x",)) -> Program:
    """One node a row. `add` reads two values, the others one; the last one is the output."""
    return Program(structure_of(json.dumps(flat(rows, inputs)).encode()), tuple(_digests(rows)))


def flat(rows: list[tuple[str, int, int, int, int]], inputs: tuple[str, ...] = ("x",)) -> dict[str, Any]:
    tensors = [
        {"name": f"{at}.{number}", "slot": len(inputs) + place, "dtype": "FP32", "shape": [size, 256 * (number + 1)]}
        for place, (at, number, size) in enumerate(
            (at, number, size) for at, (kind, _, size, _, _) in enumerate(rows) for number in range(WEIGHTS[kind])
        )
    ]
    slot_of = {tensor["name"]: tensor["slot"] for tensor in tensors}
    values = list(range(len(inputs)))
    made = []
    for at, (kind, attribute, _, _, back) in enumerate(rows):
        result = len(inputs) + len(tensors) + at
        arguments: list[Any] = [{"slot": values[-1]}]
        if kind == "add":
            arguments.append([{"slot": values[-1 - min(back, len(values) - 1)]}])
        arguments += [{"slot": slot_of[f"{at}.{number}"]} for number in range(WEIGHTS[kind])]
        made.append([f"aten.{kind}.default", arguments, {"stride": attribute}, result])
        values.append(result)
    return {
        "format": 1, "dialect": "aten", "slots": len(inputs) + len(tensors) + len(rows),
        "inputs": [{"name": name, "slot": at} for at, name in enumerate(inputs)],
        "tensors": tensors, "nodes": made, "outputs": [{"name": "y", "slot": values[-1]}],
    }  # fmt: skip


def _digests(rows: list[tuple[str, int, int, int, int]]) -> list[str]:
    """Weights of one number, size and place are the same bytes, in whichever program."""
    return [f"{number}-{size}-{which}" for kind, _, size, which, _ in rows for number in range(WEIGHTS[kind])]


def carried_out(source: Program, found: TransformationPlan, target: Program) -> Program:
    """What the steps make of the source. Of the target it takes what they bring: operations that are added, attributes of what is reshaped,
    weights of all three, origins of what reads from elsewhere; and the frame, which is tensors, inputs and outputs.

    What a plan leaves out is wrong here, as it is in a runtime.
    """
    here, there = source.structure, target.structure
    steps = {(step.operator, step.target) for step in found.steps}
    origins = moved(here, there, found.kept)
    source_of = {place: at for at, place in found.kept}
    made: list[Operation] = []
    digests = [""] * len(there.tensors)
    for place, wanted in enumerate(there.operations):
        at = source_of.get(place)
        if at is None:
            if (MetaOperator.ADD, place) not in steps:
                continue
            operation, brought = wanted, True
        else:
            operation = here.operations[at]
            edges = tuple(origins.get(origin, NOWHERE) for origin in operation.edges)
            reshaped = (MetaOperator.RESHAPE, place) in steps
            brought = reshaped or (MetaOperator.REPLACE, place) in steps
            if (MetaOperator.EDGE, place) in steps:
                edges = wanted.edges
            attributes = wanted.attributes if reshaped else operation.attributes
            operation = Operation(operation.kind, attributes, wanted.weights, edges)
        origin = target.digests if brought or at is None else tuple(source.digests[each] for each in here.operations[at].weights)
        for number, weight in enumerate(wanted.weights):
            digests[weight] = origin[weight] if brought else origin[number]
        made.append(operation)
    return Program(Structure(there.inputs, there.tensors, tuple(made), there.outputs), tuple(digests))
