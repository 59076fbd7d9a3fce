"""The graph of dialect `openvino`: a model in OpenVINO's representation whose weights are parameters, named by the artifact's slots.

u32 length of the header (little-endian) | header (JSON) | topology (XML) | constants that are no weights
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy.typing as npt

from tessera.domain.errors import DataCorrupted, InvalidInput

_LENGTH = struct.Struct("<I")
FORMAT = 1
_LEAST, _MOST = -(2**31), 2**31 - 1

ELEMENT_TYPES = {
    "FP32": "f32", "FP16": "f16", "INT64": "i64", "INT32": "i32", "INT16": "i16", "INT8": "i8", "UINT16": "u16", "UINT8": "u8",
    "BOOL": "boolean",
}  # fmt: skip
"""Open Inference datatype -> OpenVINO's element type. FP64, INT64 beyond 32 bits and the rest lose values in its kernels, unsaid."""


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`topology_bytes`: where the constants begin. `lengths`: what each input's varying dimensions are called ("": one that does not vary);
    equal names are equal lengths. `rows`: input whose values are indices -> length of what they index, the least where there are several.
    """

    topology_bytes: int
    lengths: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    format: int = FORMAT

    def check(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """What OpenVINO does not look at: fused operators trust their inputs' lengths, an index beyond what it indexes reads zeros, and of
        whole numbers the lower 32 bits are taken.

        Raises:
            InvalidInput: names the input.
        """
        found: dict[str, int] = {}
        for name, array in inputs.items():
            for place, (length, size) in enumerate(zip(self.lengths[name], array.shape, strict=True)):
                if length and size != found.setdefault(length, size):
                    words = f"dimension {place} must be {found[length]}, as in the other inputs"
                    raise InvalidInput(f"inputs {name} shape", list(array.shape), words)
            self._check_values(name, array)

    def _check_values(self, name: str, array: npt.NDArray[Any]) -> None:
        rows = self.rows.get(name)
        if array.dtype.kind not in "iu" or not array.size or (rows is None and array.dtype.itemsize < 8):
            return
        least, most = (_LEAST, _MOST) if rows is None else (-rows, rows - 1)
        for value in (int(array.min()), int(array.max())):
            if not least <= value <= most:
                raise InvalidInput(f"inputs {name}", value, f"must be from {least} to {most}")


def pack(lengths: Mapping[str, tuple[str, ...]], rows: Mapping[str, int], topology: bytes, constants: bytes) -> bytes:
    text = msgspec.json.encode(Header(len(topology), dict(lengths), dict(rows)), order="deterministic")
    return b"".join((_LENGTH.pack(len(text)), text, topology, constants))


def unpack(graph: bytes) -> tuple[Header, bytes, bytes]:
    """Header, topology, constants. Raises: DataCorrupted: it is no graph of this dialect."""
    try:
        (length,) = _LENGTH.unpack_from(graph)
        begin = _LENGTH.size + length
        header = msgspec.json.decode(graph[_LENGTH.size : begin], type=Header)
    except (struct.error, msgspec.MsgspecError) as error:
        raise DataCorrupted(f"graph: is none of dialect openvino: {error}") from None
    if header.format != FORMAT:
        raise DataCorrupted(f"graph: format {header.format}, {FORMAT} is read")
    end = begin + header.topology_bytes
    return header, graph[begin:end], graph[end:]
