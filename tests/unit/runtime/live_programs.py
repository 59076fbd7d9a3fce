"""Small flat programs of real operators, deltas between them, and weights to run them with."""

from __future__ import annotations

import json
from typing import Any

import torch
from hypothesis import strategies as st

from tessera.domain.ids import Digest
from tessera.policy.transform import registry
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import delta_of
from tessera.policy.transform.plan import plan
from tessera.policy.transform.structure import Program, structure_of

HALF, SIZED = "half", "sized"
"""A product with a tensor of half the precision; a view by a size that is asked for when it runs."""
WEIGHTS = {
    "aten.mul.Tensor": 1, "aten.addcmul.default": 2, "aten.relu.default": 0, "aten.add.Tensor": 0, "aten.cat.default": 0, HALF: 1, SIZED: 0,
}  # fmt: skip
"""What each kind reads beside values."""
DTYPES = {"FP32": torch.float32, "FP16": torch.float16}

rows = st.lists(
    st.tuples(
        st.sampled_from(sorted(WEIGHTS)),
        st.sampled_from([1, 4]),  # the weights' size
        st.integers(0, 3),  # which tensor: those of one number are tied
        st.integers(0, 4),  # from how far back its other value comes
    ),
    max_size=8,
)


def a_graph(made: list[tuple[str, int, int, int]], inputs: tuple[str, ...] = ("x",)) -> bytes:
    tensors: dict[str, dict[str, Any]] = {}
    named = [
        [f"{'half.' if kind == HALF else ''}{which}.{number}.{size}" for number in range(WEIGHTS[kind])] for kind, size, which, _ in made
    ]
    for names in named:
        for name in names:
            dtype = "FP16" if name.startswith("half") else "FP32"
            tensors.setdefault(name, {"name": name, "slot": len(inputs) + len(tensors), "dtype": dtype, "shape": [int(name[-1])]})
    values = list(range(len(inputs)))
    nodes = []
    for (kind, _, _, back), names in zip(made, named, strict=True):
        other = {"slot": values[-1 - min(back, len(values) - 1)]}
        weights = [{"slot": tensors[name]["slot"]} for name in names]
        here = {"slot": values[-1]}
        arguments: list[Any] = [here, *weights]
        keywords: dict[str, Any] = {}
        if kind == "aten.add.Tensor":
            arguments, keywords = [here, other], {"alpha": back}
        elif kind == "aten.cat.default":
            # folded back to the size of one: every value has four elements
            arguments = [[{"slot": values[-1]}, {"slot": values[-1]}], 0]
        elif kind == SIZED:
            nodes.append(["aten.sym_size.int", [here, 0], {}, len(inputs) + len(tensors) + len(nodes)])
            arguments = [here, [{"slot": nodes[-1][3]}]]
        operator = {HALF: "aten.mul.Tensor", SIZED: "aten.view.default"}.get(kind, kind)
        nodes.append([operator, arguments, keywords, len(inputs) + len(tensors) + len(nodes)])
        if kind == "aten.cat.default":
            nodes.append(["aten.slice.Tensor", [{"slot": nodes[-1][3]}, 0, back, back + 4], {}, nodes[-1][3] + 1])
        values.append(nodes[-1][3])
    program = {
        "format": 1, "dialect": "aten", "slots": len(inputs) + len(tensors) + len(nodes),
        "inputs": [{"name": name, "slot": at} for at, name in enumerate(inputs)], "tensors": list(tensors.values()),
        "nodes": nodes, "outputs": [{"name": "y", "slot": values[-1]}, {"name": "first", "slot": values[len(inputs) // 2]}],
    }  # fmt: skip
    return json.dumps(program).encode()


def delta(
    source: bytes, target: bytes, planner: str = "tessera", digests: bool = True, ends: tuple[str, str] = ("1" * 64, "2" * 64)
) -> bytes:
    here, there = (
        Program(found, tuple(each.name for each in found.tensors) if digests else ()) for found in map(structure_of, (source, target))
    )
    found = plan(here, there, registry.make(planner), MetaCosts())
    return delta_of(here.structure, there.structure, found, (Digest(ends[0]), Digest(ends[1])))


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % (1 << 31)
