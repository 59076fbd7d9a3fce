"""Packing an artifact's small tensors. For who makes artifacts: the registry's importer, and the runtime's bake."""

from __future__ import annotations

import math

from tessera.domain.artifact import PACK_ALIGNMENT_BYTES, PACK_THRESHOLD_BYTES, TensorRef
from tessera.domain.errors import InvalidInput
from tessera.domain.signature import DATATYPES
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.interface import BytesLike, flat

NamedTensor = tuple[str, str, tuple[int, ...], BytesLike]
"""Slot, Open Inference datatype, shape, and the raw little-endian row-major bytes."""


class PackWriter:
    """Collects tensors: those below the threshold go into the pack, of the others only the reference is made."""

    def __init__(self, threshold_bytes: int = PACK_THRESHOLD_BYTES) -> None:
        self._threshold_bytes = threshold_bytes
        self._pack = bytearray()
        self._refs: list[TensorRef] = []

    def add(self, slot: str, dtype: str, shape: tuple[int, ...], data: BytesLike) -> TensorRef:
        """Raises:
        InvalidInput: dtype and shape do not make the length of `data`; names the slot.
        """
        view = flat(data)
        item_bytes = DATATYPES.get(dtype)
        if not item_bytes or min(shape, default=0) < 0 or math.prod(shape) * item_bytes != len(view):
            raise InvalidInput(f"tensor {slot}", f"{dtype} {list(shape)}", f"does not make the {len(view)} bytes given")
        offset = None
        if len(view) < self._threshold_bytes:
            self._pack.extend(bytes(-len(self._pack) % PACK_ALIGNMENT_BYTES))
            offset = len(self._pack)
            self._pack.extend(view)
        ref = TensorRef(slot, dtype, tuple(shape), digest_of(view), len(view), offset)
        self._refs.append(ref)
        return ref

    def finish(self) -> tuple[tuple[TensorRef, ...], bytes | None]:
        """All references in the order of `add`, and the pack's bytes (None where no tensor went into it)."""
        packed = any(ref.pack_offset is not None for ref in self._refs)
        return tuple(self._refs), bytes(self._pack) if packed else None
