"""What the registry does with artifacts: packs small tensors, stores large ones by digest, stores the artifact itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.artifact import PACK_ALIGNMENT_BYTES, PACK_THRESHOLD_BYTES, Artifact, Blob, TensorRef
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest
from tessera.domain.signature import DATATYPES
from tessera.repository.interface import BlobRepository
from tessera.tensorstore.artifact import decode, digest_of, encode
from tessera.tensorstore.interface import BytesLike, flat

__all__ = ["NamedTensor", "PackWriter", "StoredTensors", "build_pack", "decode", "digest_of", "encode", "store_artifact", "store_tensors"]

NamedTensor = tuple[str, str, tuple[int, ...], BytesLike]
"""Slot, Open Inference datatype, shape, and the raw little-endian row-major bytes."""

_CHUNK_BYTES = 1 << 20


class PackWriter:
    """Collects tensors: those below the threshold go into the pack, of the others only the reference is made."""

    def __init__(self) -> None:
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
        if len(view) < PACK_THRESHOLD_BYTES:
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


def build_pack(tensors: Iterable[NamedTensor]) -> tuple[tuple[TensorRef, ...], bytes | None]:
    """References of all tensors, and the pack of the small ones (see `PackWriter`).

    Raises:
        InvalidInput: dtype and shape do not make the length of the data; names the slot.
    """
    writer = PackWriter()
    for slot, dtype, shape, data in tensors:
        writer.add(slot, dtype, shape, data)
    return writer.finish()


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """`tensors` and `pack` go into the artifact. `new_bytes` were written; `known_bytes` were in the repository already."""

    tensors: tuple[TensorRef, ...]
    pack: Blob | None
    new_bytes: int
    known_bytes: int


def store_tensors(repository: BlobRepository, tensors: Iterable[NamedTensor]) -> StoredTensors:
    """Stores tensors one by one (each may be dropped before the next is made) and then their pack. Distinct bytes count once.

    Raises:
        InvalidInput: see `build_pack`.
    """
    writer = PackWriter()
    counted: dict[Digest, bool] = {}
    sizes = {True: 0, False: 0}
    for slot, dtype, shape, data in tensors:
        ref = writer.add(slot, dtype, shape, data)
        if ref.pack_offset is None and ref.digest not in counted:
            counted[ref.digest] = _put(repository, ref.digest, data)
            sizes[counted[ref.digest]] += ref.size_bytes
    refs, packed = writer.finish()
    if packed is None:
        return StoredTensors(refs, None, sizes[True], sizes[False])
    pack = Blob(digest_of(packed), len(packed))
    sizes[_put(repository, pack.digest, packed)] += pack.size_bytes
    return StoredTensors(refs, pack, sizes[True], sizes[False])


def store_artifact(repository: BlobRepository, artifact: Artifact) -> Digest:
    """Stores an artifact whose blobs are stored already; returns its digest.

    Raises:
        InvalidInput: it contradicts itself, or names a blob that the repository lacks.
    """
    data = encode(artifact)
    for blob in artifact.blobs():
        if not repository.has(blob.digest):
            raise InvalidInput("artifact", None, f"names blob {blob.digest}, which the repository lacks; store it first")
    return repository.put_bytes(data)


def _put(repository: BlobRepository, digest: Digest, data: BytesLike) -> bool:
    view = flat(data)
    return repository.put(digest, (view[start : start + _CHUNK_BYTES] for start in range(0, len(view), _CHUNK_BYTES)))
