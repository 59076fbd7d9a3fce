"""What the registry does with artifacts: stores large tensors by digest, small ones packed, and the artifact itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.domain.artifact import Artifact, Blob, TensorRef
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest
from tessera.repository.interface import BlobRepository
from tessera.tensorstore.artifact import decode, digest_of, encode
from tessera.tensorstore.interface import BytesLike, flat
from tessera.tensorstore.pack import NamedTensor, PackWriter

__all__ = ["StoredTensors", "decode", "digest_of", "encode", "store_artifact", "store_tensors"]

_CHUNK_BYTES = 1 << 20


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
        InvalidInput: see `PackWriter.add`.
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
