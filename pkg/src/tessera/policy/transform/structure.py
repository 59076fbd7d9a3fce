"""A flat program as planners see it: operations in order, which tensors each reads, and where its other values come from.

Slots are numbers that a writer chose (docs/adr/0003); here they are gone, so that equal operations are equal wherever they stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from sys import intern
from typing import Any, NamedTuple

from tessera.domain.errors import DataCorrupted, Unsupported

ITEM_BYTES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2,
    "UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip
MOST_ELEMENTS = 1 << 48
"""Of a tensor: costs are reckoned in 64 bits."""


class OriginKind(IntEnum):
    INPUT = 0
    TENSOR = 1
    OPERATION = 2


class Origin(NamedTuple):
    """Where a value comes from: the input, tensor or operation at that place."""

    kind: OriginKind
    place: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor that a program reads. dtype: an Open Inference name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Operation:
    """`kind`: the operator. `attributes`: its arguments as canonical JSON, every value from elsewhere in it as the number of its edge or
    weight. `weights`: places in the structure's tensors. `edges`: the other values' origins."""

    kind: str
    attributes: str
    weights: tuple[int, ...]
    edges: tuple[Origin, ...]


Form = tuple[str, str, tuple[tuple[str, tuple[int, ...]], ...]]
"""What must be equal for an operation to be another one with other weights: kind, attributes, and dtype and shape of each weight."""


@dataclass(frozen=True, slots=True)
class Structure:
    """Inputs and outputs by name; `outputs` with what each one is."""

    inputs: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[tuple[str, Origin], ...]
    forms: tuple[Form, ...] = field(init=False, compare=False)
    """Of each operation."""

    def __post_init__(self) -> None:
        weights = [(tensor.dtype, tensor.shape) for tensor in self.tensors]
        found = tuple((each.kind, each.attributes, tuple([weights[at] for at in each.weights])) for each in self.operations)
        object.__setattr__(self, "forms", found)


@dataclass(frozen=True, slots=True)
class Program:
    """A structure, and the digests of its tensors in their order; () where nobody knows them, so that every weight counts as new."""

    structure: Structure
    digests: tuple[str, ...] = ()


def structure_of(graph: bytes) -> Structure:
    """Reads a flat program's JSON.

    Raises:
        DataCorrupted: it is none, or reads a slot that nothing wrote before, or a tensor has no size; names the place.
        Unsupported: another dialect or format, or a tensor of another type.
    """
    try:
        program = json.loads(graph, parse_constant=_no_constant)
        if program["dialect"] != "aten" or program["format"] != 1:
            raise Unsupported(f"graph of dialect {program['dialect']!r} and format {program['format']}: plans are made of aten, format 1")
        return _Reading(program).structure()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise DataCorrupted(f"graph: {type(error).__name__}: {error}") from error


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _tensor(each: Mapping[str, Any]) -> Tensor:
    name, dtype, shape = each["name"], each["dtype"], tuple(each["shape"])
    if dtype not in ITEM_BYTES:
        raise Unsupported(f"graph: tensor {name} is of dtype {dtype!r}: plans know {', '.join(ITEM_BYTES)}")
    if any(not isinstance(length, int) or length < 0 for length in shape) or prod(shape) > MOST_ELEMENTS:
        raise DataCorrupted(f"graph: tensor {name} has the shape {list(shape)}")
    return Tensor(name, dtype, shape)


class _Reading:
    def __init__(self, program: Mapping[str, Any]) -> None:
        self._program = program
        self._origins: dict[int, Origin] = {}

    def structure(self) -> Structure:
        program = self._program
        for at, port in enumerate(program["inputs"]):
            self._origins[port["slot"]] = Origin(OriginKind.INPUT, at)
        for at, tensor in enumerate(program["tensors"]):
            self._origins[tensor["slot"]] = Origin(OriginKind.TENSOR, at)
        operations = []
        for at, (kind, arguments, keywords, result) in enumerate(program["nodes"]):
            operations.append(self._operation(at, kind, arguments, keywords))
            self._origins[result] = Origin(OriginKind.OPERATION, at)
        return Structure(
            tuple(port["name"] for port in program["inputs"]),
            tuple(map(_tensor, program["tensors"])),
            tuple(operations),
            tuple((port["name"], self._origin(port["slot"], f"output {port['name']}")) for port in program["outputs"]),
        )

    def _origin(self, slot: int, what: str) -> Origin:
        found = self._origins.get(slot)
        if found is None:
            raise DataCorrupted(f"graph: {what} reads slot {slot}, which nothing wrote before")
        return found

    def _operation(self, at: int, kind: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Operation:
        weights: list[int] = []
        edges: list[Origin] = []

        def bare(value: Any) -> Any:
            if isinstance(value, list):
                return [bare(each) for each in value]
            if not isinstance(value, dict) or "slot" not in value:
                return value
            origin = self._origin(value["slot"], f"node {at} ({kind})")
            if origin.kind is OriginKind.TENSOR:
                weights.append(origin.place)
                return {"weight": len(weights) - 1}
            edges.append(origin)
            return {"edge": len(edges) - 1}

        whole = [bare(list(arguments)), {name: bare(value) for name, value in sorted(keywords.items())}]
        # Interned: many structures are held at a time, and few words make all of them.
        attributes = intern(json.dumps(whole, separators=(",", ":"), ensure_ascii=False))
        return Operation(intern(kind), attributes, tuple(weights), tuple(edges))
