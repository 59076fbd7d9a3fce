"""What goes in and out of a model, in the words of the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass

DATATYPES: dict[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8, "BYTES": 0,
}  # fmt: skip
"""Open Inference datatype -> bytes per element (0: each element carries its length)."""

ANY_DATATYPE = "ANY"
"""A datatype in a signature that takes every datatype (the `identity` model)."""

ROWS_MIX = "rows of a batch change one another's answers: requests are never joined"
"""What is noted of a model, or of a variant, of which that was found."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output; a dimension of -1 varies. A shape of `(-1,) * 0` with `any_rank` takes every rank."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    any_rank: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs and outputs. Where `batched`, dimension 0 of every tensor is the batch and requests may be joined along it, unless the
    artifact's options say otherwise."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool = True

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)
