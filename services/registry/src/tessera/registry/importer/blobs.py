"""Writes blobs below the work folder under their digest, each once; the registry moves them into the repository."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tessera.domain.artifact import Blob, TensorRef
from tessera.domain.ids import Digest
from tessera.tensorstore.artifact import digest_of
from tessera.tensorstore.pack import PackWriter

_CHUNK_BYTES = 1 << 20


class BlobFolder:
    """`folder/<digest>`; a second write of the same content costs its hash only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Digest, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes | memoryview, known: Digest | None = None) -> Blob:
        """`known`: the digest of `data` where the caller has it already.

        Raises: OSError when the disk is full or the size limit is reached.
        """
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        digest = known or digest_of(view)
        if digest not in self._sizes:
            temporary = self._folder / f".{digest}"
            with temporary.open("wb") as file:
                for start in range(0, len(view), _CHUNK_BYTES):
                    file.write(view[start : start + _CHUNK_BYTES])
            os.replace(temporary, self._folder / digest)
            self._sizes[digest] = len(view)
        return Blob(digest, len(view))

    def listing(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self._sizes.items()))


def store_tensors(
    folder: BlobFolder, tensors: Iterable[tuple[str, str, tuple[int, ...], memoryview]]
) -> tuple[tuple[TensorRef, ...], Blob | None]:
    """Stores tensors given as (slot, datatype, shape, raw little-endian bytes), in this order.

    Returns their references, small ones placed in a pack, and the pack's blob (None when nothing is small).
    """
    writer = PackWriter()
    for slot, datatype, shape, raw in tensors:
        ref = writer.add(slot, datatype, shape, raw)
        if ref.pack_offset is None:
            folder.put(raw, ref.digest)
    refs, pack = writer.finish()
    return refs, None if pack is None else folder.put(pack)
