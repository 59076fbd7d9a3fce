"""What an export computes, as far as choosing recipes needs it: how many convolutions, how many matrix products."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tessera.domain.errors import DataCorrupted, InvalidInput
from tessera.frames import protowire as wire

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm", "Attention", "LSTM", "GRU"})
_GRAPH, _NODE, _OPERATOR = 7, 1, 4
"""Fields of onnx.ModelProto, GraphProto and NodeProto. Read without the `onnx` package, which only the sandbox and bakers have."""


@dataclass(frozen=True, slots=True)
class Operators:
    convolutions: int
    matrix_products: int


def count(graph: bytes) -> Operators:
    """Counts in the main graph of an ONNX model.

    Raises:
        DataCorrupted: it is no ONNX model.
    """
    found: Counter[str] = Counter()
    try:
        for inner in _messages(memoryview(graph), _GRAPH, "ModelProto"):
            for node in _messages(inner, _NODE, "GraphProto"):
                found.update(wire.text(value, "op_type") for value in _messages(node, _OPERATOR, "NodeProto"))
    except InvalidInput as error:
        raise DataCorrupted(f"graph: {error}") from error
    return Operators(sum(found[name] for name in _CONVOLUTIONS), sum(found[name] for name in _MATRIX_PRODUCTS))


def _messages(data: memoryview, field: int, what: str) -> list[memoryview]:
    return [
        value for number, kind, value in wire.fields(data, what) if number == field and kind == wire.LENGTH and not isinstance(value, int)
    ]
