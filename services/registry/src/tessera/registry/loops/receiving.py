"""Blobs that a node streams, written to a folder under their digests; the repository checks the digests when it takes them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tessera import failpoint
from tessera.domain.artifact import Blob
from tessera.domain.errors import DataCorrupted
from tessera.domain.ids import Digest
from tessera.registry.ports import BakeBlob

_MAX_BLOB_BYTES = 64 << 30


class BlobReceiver:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._received: dict[Digest, int] = {}
        self._sizes: dict[Digest, int] = {}
        folder.mkdir(parents=True)

    async def take(self, piece: BakeBlob) -> None:
        """Raises: DataCorrupted when pieces are out of order or longer than they said; OSError when they cannot be written."""
        got = self._received.get(piece.digest, 0)
        size = self._sizes.setdefault(piece.digest, piece.size_bytes)
        if piece.offset != got or piece.size_bytes != size or got + len(piece.data) > size or size > _MAX_BLOB_BYTES:
            raise DataCorrupted(
                f"blob {piece.digest} from the node: {len(piece.data)} bytes at {piece.offset} of {piece.size_bytes} after {got} of {size}"
            )
        await failpoint.async_hit("registry.receive_blob")
        await asyncio.to_thread(self._append, piece)
        self._received[piece.digest] = got + len(piece.data)

    def _append(self, piece: BakeBlob) -> None:
        with (self._folder / piece.digest).open("ab") as file:
            file.write(piece.data)

    def finish(self) -> tuple[Blob, ...]:
        """Everything that arrived. Raises: DataCorrupted when a blob is not whole."""
        for digest, size in self._sizes.items():
            if self._received[digest] != size:
                raise DataCorrupted(f"blob {digest} from the node: {self._received[digest]} of {size} bytes arrived")
        return tuple(Blob(digest, size) for digest, size in self._sizes.items())
