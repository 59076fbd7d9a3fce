"""As much of the ONNX file format as serving needs, without the `onnx` package: initializers read, a tiny model written."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera.frames import protowire as wire

ELEMENT_TYPES: dict[str, int] = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "BOOL": 9, "FP16": 10, "FP64": 11,
    "UINT32": 12, "UINT64": 13, "BF16": 16,
}  # fmt: skip
"""Open Inference datatype -> onnx.TensorProto.DataType."""

_EXTERNAL = 1
_NODE, _INITIALIZER = 1, 5
_GRAPHS = (6, 11)
"""Fields of an attribute that hold graphs: `g`, `graphs`."""


class Initializer(NamedTuple):
    element_type: int
    shape: tuple[int, ...]


@lru_cache(maxsize=64)
def external_initializers(graph: bytes) -> dict[str, Initializer]:
    """External initializers of a model's main graph, by name. Cached: siblings have the same graph.

    Raises:
        DataCorrupted: it is no ONNX model.
    """
    found: dict[str, Initializer] = {}
    _each(graph, _INITIALIZER, lambda tensor: _initializer(tensor, found))
    return found


@lru_cache(maxsize=64)
def readers(graph: bytes) -> dict[str, frozenset[str]]:
    """Of each value that the main graph's nodes take in, by name: their operators. What a subgraph reads, any node with one reads.

    Raises:
        DataCorrupted: it is no ONNX model.
    """
    found: dict[str, set[str]] = {}
    within: set[str] = set()
    _each(graph, _NODE, lambda node: _reads(node, found, within))
    return {name: frozenset(operators | within) for name, operators in found.items()}


def _each(graph: bytes, wanted: int, take: Callable[[memoryview], None]) -> None:
    """Every field `wanted` of a model's main graph. Raises: DataCorrupted."""
    try:
        for number, kind, value in wire.fields(memoryview(graph), "ModelProto"):
            if number == 7 and kind == wire.LENGTH:
                assert isinstance(value, memoryview)
                for inner, inner_kind, found in wire.fields(value, "GraphProto"):
                    if inner == wanted and inner_kind == wire.LENGTH:
                        assert isinstance(found, memoryview)
                        take(found)
    except InvalidInput as error:
        raise DataCorrupted(f"graph: {error}") from error


def _reads(node: memoryview, found: dict[str, set[str]], within: set[str]) -> None:
    names: list[str] = []
    operator, has_graph = "", False
    for number, _, value in wire.fields(node, "NodeProto"):
        if number == 1 and isinstance(value, memoryview):
            names.append(wire.text(value, "input"))
        elif number == 4 and isinstance(value, memoryview):
            operator = wire.text(value, "op_type")
        elif number == 5 and isinstance(value, memoryview):
            has_graph |= any(inner in _GRAPHS for inner, _, _ in wire.fields(value, "AttributeProto"))
    for name in names:
        found.setdefault(name, set()).add(operator)
    if has_graph:
        within.add(operator)


def _initializer(data: memoryview, found: dict[str, Initializer]) -> None:
    name, element_type, external = "", 0, False
    shape: list[int] = []
    for number, kind, value in wire.fields(data, "TensorProto"):
        if number == 1:
            shape.extend(wire.varints(kind, value, "dims"))
        elif number == 2 and isinstance(value, int):
            element_type = value
        elif number == 8 and isinstance(value, memoryview):
            name = wire.text(value, "name")
        elif number == 14 and isinstance(value, int):
            external = value == _EXTERNAL
    if external:
        found[name] = Initializer(element_type, tuple(shape))


@lru_cache(maxsize=1)
def warm_graph() -> tuple[bytes, dict[str, npt.NDArray[Any]], dict[str, tuple[npt.NDArray[Any], str]]]:
    """A convolution and a matrix product, large enough to fill the arena's first region: model, inputs, weights."""
    channels, size = 16, 24
    weights: dict[str, tuple[npt.NDArray[Any], str]] = {
        "conv_weight": (np.full((channels, channels, 3, 3), 0.01, np.float32), "FP32"),
        "matrix": (np.full((size - 2, 64), 0.01, np.float32), "FP32"),
    }
    nodes = _node("Conv", ["x", "conv_weight"], ["c"]) + _node("Relu", ["c"], ["r"]) + _node("MatMul", ["r", "matrix"], ["y"])
    initializers = b"".join(_field(5, _tensor(name, array.shape)) for name, (array, _) in weights.items())
    graph = nodes + _field(2, b"warm") + initializers + _field(11, _value_info("x", (1, channels, size, size)))
    graph += _field(12, _value_info("y", (1, channels, size - 2, 64)))
    model = b"\x08\x08" + _field(7, graph) + _field(8, _field(1, b"") + b"\x10\x11")
    return model, {"x": np.ones((1, channels, size, size), np.float32)}, weights


def _field(number: int, data: bytes) -> bytes:
    return wire.varint(number << 3 | wire.LENGTH) + wire.varint(len(data)) + data


def _node(operator: str, inputs: list[str], outputs: list[str]) -> bytes:
    body = b"".join(_field(1, name.encode()) for name in inputs) + b"".join(_field(2, name.encode()) for name in outputs)
    return _field(1, body + _field(4, operator.encode()))


def _tensor(name: str, shape: tuple[int, ...]) -> bytes:
    location = _field(13, _field(1, b"location") + _field(2, b"tessera"))
    return b"".join(b"\x08" + wire.varint(size) for size in shape) + b"\x10\x01" + _field(8, name.encode()) + location + b"\x70\x01"


def _value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, b"\x08" + wire.varint(size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, b"\x08\x01" + _field(2, dims)))
