"""Keeps the sharing ledger true: follows the registered variants, and reads the artifacts that it does not know yet, in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.domain.errors import NotFound, TesseraError
from tessera.domain.ids import Digest
from tessera.node_agent.core.sharing import SharingLedger
from tessera.node_agent.loops.pulse import Pulse
from tessera.node_agent.ports import Variants
from tessera.program import Stop
from tessera.telemetry import get_logger
from tessera.tensorstore.artifact import decode
from tessera.tensorstore.interface import TensorStore

RETRY_S = 5.0

_log = get_logger(__name__)

ReadBlob = Callable[[Digest], bytes]
"""A small blob from the repository, verified; blocks. Raises: NotFound, DataCorrupted, Unavailable."""


class Appraiser:
    """One per store."""

    def __init__(self, store: TensorStore, variants: Variants, read: ReadBlob) -> None:
        self.ledger = SharingLedger()
        self._store = store
        self._variants = variants
        self._read = read
        self._pulse = Pulse()
        variants.on_change(self._changed)
        store.appraise(self.ledger.worth_of)

    async def run(self, stop: Stop) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._variants.watch(stop))
            while not stop.is_set():
                await self.learn(stop)
                await self._pulse.wait_or(stop, RETRY_S)

    async def learn(self, stop: Stop) -> None:
        """Reads the artifacts that are not known; one that cannot be read is tried again at the next pass."""
        self.ledger.complete = self._variants.synced
        for artifact in self.ledger.unknown():
            if stop.is_set():
                return
            try:
                data = await asyncio.to_thread(self._bytes_of, artifact)
                self.ledger.learn(artifact, (blob.digest for blob in decode(data).blobs()))
            except TesseraError as error:
                _log.debug("an artifact's sharing is not known yet", artifact=artifact, reason=str(error))

    def _bytes_of(self, artifact: Digest) -> bytes:
        try:
            return self._store.path(artifact).read_bytes()
        except (NotFound, FileNotFoundError):
            return self._read(artifact)

    def _changed(self, key: str, artifact: Digest | None) -> None:
        self.ledger.set_variant(key, artifact)
        self._pulse.fire()
