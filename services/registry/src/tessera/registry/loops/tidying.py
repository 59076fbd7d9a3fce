"""Removes uploaded files that nobody has used for long."""

from __future__ import annotations

import asyncio

from tessera import telemetry
from tessera.clock import Clock
from tessera.registry.loops.imports import Imports
from tessera.registry.ports import Uploads

_EVERY_S = 600.0
_log = telemetry.get_logger("tessera.registry.tidying")


class Tidying:
    def __init__(self, *, clock: Clock, uploads: Uploads, imports: Imports, keep_s: float) -> None:
        self._clock = clock
        self._uploads = uploads
        self._imports = imports
        self._keep_s = keep_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            freed = await asyncio.to_thread(self._uploads.sweep, self._clock.wall_s() - self._keep_s, self._imports.needed_files())
            if freed:
                _log.info("removed uploads that were not used", freed_bytes=freed, older_than_s=self._keep_s)
            await self._clock.sleep(_EVERY_S)
