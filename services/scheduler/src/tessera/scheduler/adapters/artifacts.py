"""Blob lists of artifacts, read from the repository ahead of the starts that need them. The scheduler only reads there.

Bounded and best effort: a start whose list is not there yet is decided by the record's sizes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from tessera.domain.artifact import Blob
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest
from tessera.repository import Repository
from tessera.repository.artifacts import decode
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

QUEUE_LENGTH = 1024


class BlobLists:
    """Artifact digest -> its blobs. Least recently used lists go first when `capacity` is reached."""

    def __init__(
        self,
        repository_url: str,
        capacity: int,
        on_read: Callable[[], None] = lambda: None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._url = repository_url
        self._options = options
        self._capacity = capacity
        self._on_read = on_read
        self._lists: OrderedDict[Digest, tuple[Blob, ...]] = OrderedDict()
        self._wanted: asyncio.Queue[Digest] = asyncio.Queue(QUEUE_LENGTH)
        self._asked: set[Digest] = set()
        self._repository: Repository | None = None

    def blobs(self, artifact: Digest) -> tuple[Blob, ...] | None:
        found = self._lists.get(artifact)
        if found is not None:
            self._lists.move_to_end(artifact)
        return found

    def want(self, artifact: Digest) -> None:
        """Queues a read; does nothing where the list is there, is queued, no repository is configured, or the queue is full."""
        if not self._url or artifact in self._lists or artifact in self._asked or self._wanted.full():
            return
        self._asked.add(artifact)
        self._wanted.put_nowait(artifact)

    async def run(self) -> None:
        """Reads what is wanted, one at a time, in a thread."""
        while True:
            artifact = await self._wanted.get()
            try:
                self._lists[artifact] = await asyncio.to_thread(self._read, artifact)
                while len(self._lists) > self._capacity:
                    self._lists.popitem(last=False)
                self._on_read()
            except (TesseraError, OSError) as error:
                log.info("artifact not readable; placement uses the record's sizes", artifact=artifact, reason=str(error))
            finally:
                self._asked.discard(artifact)

    def read(self, digest: Digest) -> bytes:
        """A blob; blocks. Raises: TesseraError, OSError."""
        if self._repository is None:
            self._repository = Repository(self._url, self._options)
        return self._repository.read(digest)

    def _read(self, artifact: Digest) -> tuple[Blob, ...]:
        data = self.read(artifact)
        # A node fetches the artifact itself as well.
        return (Blob(artifact, len(data)), *decode(data).blobs())
