"""Writes blobs below the work folder under their digest, each once; the registry moves them into the repository."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from blake3 import blake3

from tessera.domain.artifact import PACK_ALIGNMENT_BYTES, PACK_THRESHOLD_BYTES, Blob, TensorRef
from tessera.domain.ids import Digest

_CHUNK_BYTES = 1 << 20


class BlobFolder:
    """`folder/<digest>`; a second write of the same content costs its hash only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[Digest, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes | memoryview) -> Blob:
        """Raises: OSError when the disk is full or the size limit is reached."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        digest = Digest(blake3(view).hexdigest())
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
    refs: list[TensorRef] = []
    pack = bytearray()
    for slot, datatype, shape, raw in tensors:
        if len(raw) >= PACK_THRESHOLD_BYTES:
            blob = folder.put(raw)
            refs.append(TensorRef(slot, datatype, shape, blob.digest, blob.size_bytes))
            continue
        pack.extend(b"\0" * (-len(pack) % PACK_ALIGNMENT_BYTES))
        refs.append(TensorRef(slot, datatype, shape, Digest(blake3(raw).hexdigest()), len(raw), len(pack)))
        pack.extend(raw)
    if not any(ref.pack_offset is not None for ref in refs):
        return tuple(refs), None
    return tuple(refs), folder.put(bytes(pack))
