"""Tensors of a request out of its bytes, typed or raw, and how many values a request may have decoded.

All of it runs on the event loop, which stands still meanwhile for every instance of the runtime. FP32, FP64 and what is raw and of fixed
size are views, however large; the rest has a limit per request, below which the loop is held for some 100 ms and memory is tens of MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.domain.errors import InvalidInput
from tessera.frames import protowire as wire
from tessera.frames.codec import Buffer
from tessera.frames.openinference import CONTENT_FIELDS, ContentValues, InferInput
from tessera.runtime import varints
from tessera.tensorstore.mapping import numpy_dtype

MAX_ELEMENTS = 1 << 17
"""What Python reads one by one, at about a microsecond each: elements of BYTES (256 texts of 512 tokens), and bytes of numbers that are not
packed, which protobuf does by itself wherever it may."""
MAX_NUMBERS = 1 << 21
"""Booleans and integers in typed contents, which numpy decodes at 10 to 100 ns each: 13 images of 3 x 224 x 224."""

CONTENTS_OF: dict[str, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Datatype -> its field of InferTensorContents. FP16 and BF16 have none: raw only."""

_BYTES = 8
_U32 = struct.Struct("<I")
_FIXED_WIDTH = {"fp32_contents": 4, "fp64_contents": 8}
_NUMBER = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
}


class Decoder:
    """Decodes the inputs of one request, and counts what that takes.

    Raises from `array`: InvalidInput, which names the input, the value and the limit.
    """

    def __init__(self) -> None:
        self._fields = wire.FieldLimit(MAX_ELEMENTS, " in one request: send raw_input_contents, or fewer elements")
        self._numbers = MAX_NUMBERS

    def array(self, tensor: InferInput, count: int, raw: memoryview | None) -> npt.NDArray[np.generic]:
        """A flat array of the `count` elements that the shape says, a view of the request where that is possible."""
        if tensor.datatype == "BYTES":
            elements = self._typed_elements(tensor, count) if raw is None else self._raw_elements(tensor, count, raw)
            array = np.empty(count, dtype=object)
            array[:] = elements
            return array
        dtype = numpy_dtype(tensor.datatype)
        if raw is None:
            return self._typed_array(tensor, count, dtype)
        _check_length(tensor, "raw bytes", len(raw), count * dtype.itemsize)
        return _view(raw, dtype)

    def _raw_elements(self, tensor: InferInput, count: int, raw: memoryview) -> list[bytes]:
        if len(raw) < 4 * count:
            limit = f"cut off: the lengths alone of {count} elements of BYTES are {4 * count} bytes"
            raise InvalidInput(f"inputs {tensor.name} raw bytes", len(raw), limit)
        self._check_elements(tensor, count)
        self._fields.left -= count
        elements: list[bytes] = []
        at, end = 0, len(raw)
        while at < end:
            start = at + 4
            if len(elements) == count:
                raise _wrong_length(tensor, "elements", f"{count + 1} or more", count)
            if start > end:
                raise InvalidInput(f"inputs {tensor.name} raw bytes", None, f"length of element {len(elements)} is cut off at byte {at}")
            at = start + int(_U32.unpack_from(raw, at)[0])
            if at > end:
                raise InvalidInput(f"inputs {tensor.name} raw bytes", None, f"element {len(elements)} ends at byte {at} of {end}")
            elements.append(bytes(raw[start:at]))
        _check_length(tensor, "elements", len(elements), count)
        return elements

    def _typed_elements(self, tensor: InferInput, count: int) -> list[bytes]:
        self._check_elements(tensor, count)
        elements = self._typed_values(tensor, count)
        assert isinstance(elements, list)
        if len(elements) > count:
            raise _wrong_length(tensor, "elements", f"{count + 1} or more", count)
        _check_length(tensor, "elements", len(elements), count)
        return elements

    def _check_elements(self, tensor: InferInput, count: int) -> None:
        if count > self._fields.left:
            raise InvalidInput(
                f"inputs {tensor.name} elements", count, f"at most {MAX_ELEMENTS} of BYTES in one request: send fewer at a time"
            )

    def _typed_array(self, tensor: InferInput, count: int, dtype: np.dtype[Any]) -> npt.NDArray[np.generic]:
        values = self._typed_values(tensor, 0)
        assert not isinstance(values, list)
        if dtype.kind == "f":
            _check_length(tensor, "elements", len(values) // dtype.itemsize, count)
            return _view(values, dtype)
        _check_length(tensor, "elements", varints.count(values), count)
        if count > self._numbers:
            limit = f"at most {MAX_NUMBERS} booleans and integers in typed contents of one request: send raw_input_contents"
            raise InvalidInput(f"inputs {tensor.name} elements", count, limit)
        self._numbers -= count
        field = f"inputs {tensor.name} contents"
        found = varints.decode(values, _NUMBER[CONTENTS_OF[tensor.datatype]], count, field)
        if dtype.kind in "iu" and dtype.itemsize < 4:
            low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
            wrong = np.flatnonzero((found < low) | (found > high))
            if wrong.size:
                raise InvalidInput(field, int(found[wrong[0]]), f"must be {low} to {high} for {tensor.datatype}")
        return found.astype(dtype, copy=False)

    def _typed_values(self, tensor: InferInput, most: int) -> ContentValues:
        name = CONTENTS_OF.get(tensor.datatype)
        field = f"inputs {tensor.name} contents"
        if name is None:
            raise InvalidInput(field, None, f"{tensor.datatype} has no typed contents: send raw_input_contents")
        found = gather(tensor.contents or (), field, most, self._fields)
        other = next((each for each in found if each != name), None)
        if other is not None:
            raise InvalidInput(field, other, f"{tensor.datatype} belongs into {name}")
        return found.get(name, [] if name == "bytes_contents" else b"")


def gather(messages: Sequence[memoryview], what: str, most: int, limit: wire.FieldLimit) -> dict[str, ContentValues]:
    """The fields of InferTensorContents that have values, merged as protobuf does it: BYTES copied into a list of elements, all others
    packed, a view where they are in one piece. Each byte of an integer that is not packed counts as a field. At element `most` + 1 of BYTES
    it reads no further: the caller sees that they are too many.

    Raises:
        InvalidInput: malformed, or more fields than `limit` has left; names `what`.
    """
    packed: dict[str, Buffer] = {}
    elements: list[bytes] = []
    for message in messages:
        for number, kind, value in wire.fields(message, what, limit):
            if number == _BYTES:
                if kind == wire.LENGTH:
                    elements.append(bytes(value))
                    if len(elements) > most:
                        return {**packed, "bytes_contents": elements}
            elif number in CONTENT_FIELDS:
                name = CONTENT_FIELDS[number]
                piece = _packed(name, kind, value, what)
                if kind == wire.VARINT:
                    limit.take(max(0, len(piece) - 1), what)
                _add(packed, name, piece)
    return {**packed, "bytes_contents": elements} if elements else {**packed}


def _packed(name: str, kind: int, value: int | memoryview, what: str) -> Buffer:
    """The values of one field on the wire, packed or not; none where it is another field's type, as in protobuf."""
    width = _FIXED_WIDTH.get(name)
    if isinstance(value, memoryview):
        if width is not None and len(value) % width:
            raise InvalidInput(f"{what} {name}", None, f"{len(value)} bytes: must be a multiple of {width}")
        if width is None and len(value) and value[-1] > 127:
            raise InvalidInput(f"{what} {name}", None, "malformed message: varint cut off")
        return value
    if width is None:
        return wire.varint(value) if kind == wire.VARINT else b""
    return value.to_bytes(width, "little") if kind == (wire.FIXED32 if width == 4 else wire.FIXED64) else b""


def _add(packed: dict[str, Buffer], name: str, piece: Buffer) -> None:
    if not len(piece):
        return
    before = packed.get(name)
    if before is None:
        packed[name] = piece
    elif isinstance(before, bytearray):
        before += piece
    else:
        packed[name] = bytearray(before) + piece


def _view(values: Buffer, dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
    """Of checked length. Nothing computes on values that are not aligned: those are copied."""
    found = np.frombuffer(values, dtype) if len(values) else np.empty(0, dtype)
    return found if found.flags.aligned else found.copy()


def _check_length(tensor: InferInput, unit: str, got: int, want: int) -> None:
    if got != want:
        raise _wrong_length(tensor, unit, got, want)


def _wrong_length(tensor: InferInput, unit: str, got: object, want: int) -> InvalidInput:
    return InvalidInput(f"inputs {tensor.name} {unit}", got, f"must be {want} for {tensor.datatype} of shape {tensor.shape[:16]}")
