"""Packed varints to arrays and back, in numpy: a loop in Python over the numbers of a request would hold the event loop for seconds.

Both ways work on pieces that fit a core's cache, so that what they need beside the numbers themselves is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tessera.domain.errors import InvalidInput
from tessera.frames.codec import Buffer

_LONGEST = 10
"""Bytes of a number of 64 bits, 7 in each."""
_DECODED_AT_ONCE_BYTES = 32 << 10
_ENCODED_AT_ONCE = 8 << 10
_COUNTED_AT_ONCE_BYTES = 1 << 20


def count(data: Buffer) -> int:
    """How many varints there are: each ends with the only byte below 128 that it has."""
    found = np.frombuffer(data, np.uint8)
    return sum(int(np.count_nonzero(found[at : at + _COUNTED_AT_ONCE_BYTES] < 128)) for at in range(0, found.size, _COUNTED_AT_ONCE_BYTES))


def decode(data: Buffer, dtype: npt.DTypeLike, size: int, field: str) -> npt.NDArray[Any]:
    """`size` numbers, `count(data)`, as protobuf reads them: cut to 64 bits, then to those of `dtype`; any but 0 is true.

    Raises:
        InvalidInput: one is cut off or longer than ten bytes; names the field.
    """
    numbers = np.empty(size, dtype)
    at = 0
    for piece in _pieces(np.frombuffer(data, np.uint8), field):
        found = _decoded(piece, field)
        numbers[at : at + found.size] = found != 0 if numbers.dtype == np.bool_ else found.astype(numbers.dtype)
        at += found.size
    return numbers


def _pieces(data: npt.NDArray[np.uint8], field: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Cut behind the end of a varint."""
    at = 0
    while at < data.size:
        stop = min(at + _DECODED_AT_ONCE_BYTES, data.size)
        ends = np.flatnonzero(data[stop - min(stop - at, _LONGEST) : stop] < 128)
        if not ends.size or (stop == data.size and data[-1] > 127):
            raise _malformed(field)
        stop -= min(stop - at, _LONGEST) - int(ends[-1]) - 1
        yield data[at:stop]
        at = stop


def _decoded(data: npt.NDArray[np.uint8], field: str) -> npt.NDArray[np.unsignedinteger]:
    ends = np.flatnonzero(data < 128)
    if ends.size == data.size:
        return data
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    further = ends - starts
    shortest, longest = int(further.min()), int(further.max())
    if longest >= _LONGEST:
        raise _malformed(field)
    parts = (data & 127).astype(np.uint64)
    numbers = parts[starts]
    which = np.arange(ends.size)
    for place in range(1, longest + 1):
        shift = np.uint64(7 * place)
        if place <= shortest:
            numbers |= parts[starts + place] << shift
        else:
            which = which[further[which] >= place]
            numbers[which] |= parts[starts[which] + place] << shift
    return numbers


def _malformed(field: str) -> InvalidInput:
    return InvalidInput(field, None, "malformed message: varint cut off or too long")


def encode(numbers: npt.NDArray[np.generic]) -> bytes:
    """Integers or booleans as packed varints; negative ones take ten bytes."""
    flat = numbers.reshape(-1)
    return b"".join(_encoded(flat[at : at + _ENCODED_AT_ONCE]) for at in range(0, flat.size, _ENCODED_AT_ONCE))


def _encoded(numbers: npt.NDArray[np.generic]) -> bytes:
    values = numbers.astype(np.int64 if numbers.dtype.kind == "i" else np.uint64).view(np.uint64)
    width = (int(values.max()).bit_length() + 6) // 7
    if width < 2:
        return values.astype(np.uint8).tobytes()
    parts = np.empty((values.size, width), np.uint8)
    there = np.ones((values.size, width), np.bool_)
    for place in range(width):
        rest = values >> np.uint64(7 * place)
        parts[:, place] = rest.astype(np.uint8) & 127
        if place:
            there[:, place] = rest != 0
            parts[:, place - 1] |= there[:, place].astype(np.uint8) << 7
    return parts[there].tobytes()
