"""Rows of an input file as tensors of requests, checked against the model's signature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.domain.errors import InvalidInput, Unsupported
from tessera.domain.signature import ANY_DATATYPE, Signature, TensorSpec
from tessera.profiler.batch.core.checkpoint import RowError

Array = npt.NDArray[Any]

_DTYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8", "INT16": "int16",
    "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64", "BYTES": "object",
}  # fmt: skip
_TEXT_KINDS = "SUO"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows `first` to `first + rows`, to be sent in one request: dimension 0 of every array counts them."""

    first: int
    rows: int
    inputs: Mapping[str, Array]

    def halves(self) -> tuple[Chunk, Chunk]:
        middle = self.rows // 2
        return self._part(0, middle), self._part(middle, self.rows)

    def _part(self, start: int, end: int) -> Chunk:
        return Chunk(self.first + start, end - start, {name: array[start:end] for name, array in self.inputs.items()})


@dataclass(frozen=True, slots=True)
class Portion:
    """What was read at a time: `rows` of them, those that can be sent in `chunks`, the others in `errors`."""

    rows: int
    chunks: tuple[Chunk, ...]
    errors: tuple[RowError, ...] = ()


def row_specs(signature: Signature) -> tuple[TensorSpec, ...]:
    """The inputs as one row has them: without the batch dimension where there is one.

    Raises:
        Unsupported: an input is BF16, which no file format here holds.
    """
    for spec in signature.inputs:
        if spec.datatype != ANY_DATATYPE and spec.datatype not in _DTYPES:
            raise Unsupported(f"input {spec.name} is {spec.datatype}, which batch jobs do not read")
    if not signature.batched:
        return signature.inputs
    return tuple(TensorSpec(spec.name, spec.datatype, spec.shape[1:], spec.any_rank) for spec in signature.inputs)


def check_column(spec: TensorSpec, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
    """An array of all rows against the input of one row.

    Raises:
        InvalidInput: names the array, its dtype or shape, and what the model takes.
    """
    if dtype.hasobject or (spec.datatype != ANY_DATATYPE and not _is(dtype, spec.datatype)):
        raise InvalidInput(f"array {spec.name} dtype", str(dtype), f"must be {_words(spec.datatype)}")
    if not shape:
        raise InvalidInput(f"array {spec.name} shape", [], "must have rows in dimension 0")
    if not _fits(spec, shape[1:]):
        raise InvalidInput(f"array {spec.name} shape", list(shape), f"must be {['rows', *spec.shape]} (-1: any)")


def value_of(spec: TensorSpec, value: Any) -> Array:
    """One row's value (nested lists, numbers, texts, an array) as the tensor that the model takes; a flat list is given a fixed shape.

    Raises:
        InvalidInput: names the input and what it must be. Numbers are never rounded to whole ones, nor cut to a smaller range.
    """
    if value is None:
        raise InvalidInput(f"input {spec.name}", None, "is missing")
    try:
        found = _array(spec.datatype, value)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"input {spec.name}", None, f"is no tensor: {error}") from None
    found = _cast(spec, found)
    if not _fits(spec, found.shape):
        fixed = not spec.any_rank and all(size >= 0 for size in spec.shape)
        if not fixed or found.size != math.prod(spec.shape):
            raise InvalidInput(f"input {spec.name} shape", list(found.shape), f"must be {list(spec.shape)} (-1: any)")
        found = found.reshape(spec.shape)
    return found


def _array(datatype: str, value: Any) -> Array:
    """numpy makes floats of whole numbers of which some fit int64 and others only uint64: those are kept whole.

    Raises:
        ValueError, OverflowError: it is no array.
    """
    if datatype == "BYTES":
        return np.asarray(value, dtype=object)
    found = np.asarray(value)
    if isinstance(value, list) and found.dtype.kind == "f" and found.size and datatype in ("UINT64", ANY_DATATYPE):
        exact = np.asarray(value, dtype=object)
        if all(type(element) is int for element in exact.ravel()):
            return exact.astype(np.uint64)
    return found


def _cast(spec: TensorSpec, found: Array) -> Array:
    kind = found.dtype.kind
    if spec.datatype == ANY_DATATYPE:
        if kind not in "biuf" + _TEXT_KINDS or (kind == "O" and not _all_text(found)):
            raise InvalidInput(f"input {spec.name}", str(found.dtype), "must be numbers, truth values or texts")
        return found
    if spec.datatype == "BYTES":
        if kind not in _TEXT_KINDS or not _all_text(found):
            raise InvalidInput(f"input {spec.name}", str(found.dtype), "must be texts")
        return found.astype(object)
    target = np.dtype(_DTYPES[spec.datatype])
    takes = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[target.kind]
    if kind not in takes and found.size:
        raise InvalidInput(f"input {spec.name}", str(found.dtype), f"must be {_words(spec.datatype)}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = found.astype(target)
    if target.kind in "iu" and (cast != found).any():
        raise InvalidInput(f"input {spec.name}", None, f"has a number beyond {_words(spec.datatype)}")
    return cast


def _all_text(array: Array) -> bool:
    return array.dtype.kind in "SU" or all(isinstance(element, str | bytes) for element in array.ravel())


def _is(dtype: np.dtype[Any], datatype: str) -> bool:
    return dtype.kind in "SU" if datatype == "BYTES" else dtype.newbyteorder("=") == np.dtype(_DTYPES[datatype])


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    return spec.any_rank or (len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True)))


def _words(datatype: str) -> str:
    return "texts (BYTES)" if datatype == "BYTES" else f"{_DTYPES.get(datatype, 'numbers')} ({datatype})"


def chunks_of(first: int, rows: Sequence[Mapping[str, Array] | RowError]) -> Portion:
    """Rows read one by one, from row `first` on: neighbours of one shape and dtype travel together."""
    errors = tuple(row for row in rows if isinstance(row, RowError))
    good = [(first + offset, row) for offset, row in enumerate(rows) if not isinstance(row, RowError)]
    chunks: list[Chunk] = []
    for _, run in groupby(enumerate(good), key=lambda item: (item[1][0] - item[0], _form(item[1][1]))):
        members = [row for _, row in run]
        inputs = {name: np.stack([row[name] for _, row in members]) for name in members[0][1]}
        chunks.append(Chunk(members[0][0], len(members), inputs))
    return Portion(len(rows), tuple(chunks), errors)


def _form(row: Mapping[str, Array]) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    return tuple((name, "text" if array.dtype.kind in _TEXT_KINDS else array.dtype.str, array.shape) for name, array in row.items())
