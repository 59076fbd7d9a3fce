"""The graph of dialect `aoti`: what AOTInductor packed, and which tensor each of its constants is.

u32 length of the header (little-endian) | header (JSON) | AOTInductor's package (a zip with the library in it, no constants)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgspec

from tessera.domain.errors import DataCorrupted, InvalidInput

_LENGTH = struct.Struct("<I")
FORMAT = 1


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tensor that a constant of the library is. The library reads as many bytes as these say."""

    slot: str
    dtype: str
    shape: tuple[int, ...]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`torch`: the version whose libraries the package is linked against. `constants`: by the library's name.

    `inputs` and `outputs`: names in the order in which the library takes and gives them. `shapes`: of each input, numbers and names of
    lengths; equal names are equal lengths. `longest`: the most that a named length may be, where the program says so. The library trusts
    its caller with both.
    """

    torch: str
    constants: dict[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    longest: dict[str, int]
    format: int = FORMAT

    def check(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Raises: InvalidInput: the inputs' shapes are none that the program was compiled for; names the input and the dimension."""
        lengths: dict[str, tuple[int, str]] = {}
        for name, wanted, shape in zip(self.inputs, self.shapes, shapes, strict=True):
            if len(wanted) != len(shape):
                raise InvalidInput(f"inputs {name} shape", list(shape), f"must have {len(wanted)} dimensions")
            for place, (want, got) in enumerate(zip(wanted, shape, strict=True)):
                expected, where = (
                    (want, "") if isinstance(want, int) else lengths.setdefault(want, (got, f" as dimension {place} of {name}"))
                )
                if got != expected:
                    raise InvalidInput(f"inputs {name} shape", list(shape), f"dimension {place} must be {expected}{where}")
                most = self.longest.get(want) if isinstance(want, str) else None
                if got < 1 or (most is not None and got > most):
                    raise InvalidInput(
                        f"inputs {name} shape", list(shape), f"dimension {place} must be from 1{f' to {most}' if most else ''}"
                    )


def pack(header: Header, package: bytes) -> bytes:
    text = msgspec.json.encode(header)
    return _LENGTH.pack(len(text)) + text + package


def unpack(graph: bytes) -> tuple[Header, memoryview]:
    """Raises: DataCorrupted: it is no graph of this dialect."""
    view = memoryview(graph)
    try:
        (length,) = _LENGTH.unpack_from(view)
        header = msgspec.json.decode(view[_LENGTH.size : _LENGTH.size + length], type=Header)
    except (struct.error, msgspec.MsgspecError) as error:
        raise DataCorrupted(f"graph: is no package of AOTInductor: {error}") from None
    if header.format != FORMAT:
        raise DataCorrupted(f"graph: format {header.format}, {FORMAT} is read")
    return header, view[_LENGTH.size + length :]
