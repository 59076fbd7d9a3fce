"""The repository, off the event loop, with artifacts kept in memory (they never change)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from tessera import failpoint
from tessera.domain.artifact import Artifact, Blob
from tessera.domain.ids import Digest
from tessera.repository.artifacts import decode
from tessera.repository.interface import BlobRepository

_CHUNK_BYTES = 1 << 20


class StoredBlobs:
    """Implements `ports.Blobs`."""

    def __init__(self, repository: BlobRepository) -> None:
        self._repository = repository
        self._artifacts: dict[Digest, Artifact] = {}

    async def artifact(self, digest: Digest) -> Artifact:
        """Raises: NotFound; DataCorrupted; Unsupported."""
        if digest not in self._artifacts:
            self._artifacts[digest] = decode(await asyncio.to_thread(self._repository.read, digest))
        return self._artifacts[digest]

    async def read(self, digest: Digest) -> bytes:
        return await asyncio.to_thread(self._repository.read, digest)

    async def store(self, blobs: Sequence[Blob], folder: Path) -> None:
        for blob in blobs:
            await failpoint.async_hit("registry.store_blob")
            await asyncio.to_thread(self._repository.put, blob.digest, _chunks(folder / blob.digest))

    async def put_bytes(self, data: bytes) -> Digest:
        return await asyncio.to_thread(self._repository.put_bytes, data)

    async def has(self, digest: Digest) -> bool:
        return await asyncio.to_thread(self._repository.has, digest)

    async def delete(self, digests: Sequence[Digest]) -> int:
        freed = 0
        for digest in digests:
            self._artifacts.pop(digest, None)
            freed += await asyncio.to_thread(self._repository.delete, digest)
        return freed

    async def listing(self) -> list[Digest]:
        return await asyncio.to_thread(lambda: [digest for digest, _ in self._repository.digests()])

    async def sweep(self) -> int:
        """Removes what writers that died left unfinished. Before the first `store` only."""
        return await asyncio.to_thread(self._repository.sweep)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
