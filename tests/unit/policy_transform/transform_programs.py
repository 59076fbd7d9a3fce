"""Small flat programs: chains with branches, whose operations and weights come from a few kinds."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tessera.policy.transform.structure import Program, structure_of

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
