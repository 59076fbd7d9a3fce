"""What a runtime keeps for loads to come, and gives back when none comes: mappings of unloaded artifacts, and free heap.

On the event loop; what takes time is done by the loader, in the order in which it was asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor

from tessera.clock import Clock
from tessera.domain.ids import Digest
from tessera.runtime import memory
from tessera.runtime.alarm import Alarm
from tessera.runtime.backends.interface import Backend
from tessera.runtime.kept import KeptArtifacts

_log = logging.getLogger(__name__)

TIDY_AFTER_S = 1.0
"""How long memory that an unload left free is kept for a load that may follow it."""
KEEP_S = 600.0
"""How long what an unloaded instance mapped stays mapped for the next one of its artifact, unless the agent wants the room."""


class Housekeeping:
    """`backends`: those that there are now."""

    def __init__(self, kept: KeptArtifacts, backends: Callable[[], Sequence[Backend]], loader: Executor, clock: Clock) -> None:
        self._kept = kept
        self._backends = backends
        self._loader = loader
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._tidying: asyncio.TimerHandle | None = None
        self._forgetting = Alarm(clock)

    def stop(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
        self._forgetting.off()

    def tidy_later(self) -> None:
        """Something was unloaded: its heap goes back soon, at once for all of that second."""
        if self._tidying is None:
            self._tidying = self._loop.call_later(TIDY_AFTER_S, self._tidy)

    def forget_later(self) -> None:
        """Something was kept: it goes when nobody has wanted it for long."""
        self._forgetting.by(self._clock.monotonic_s() + KEEP_S, self._forget_old)

    async def trim(self, digests: Collection[Digest] | None = None) -> int:
        """Lets go of what is kept for later loads: mappings of no instance (all, or of the artifacts that map one of `digests`), and,
        when all goes, free heap. Returns how many artifacts went."""
        if digests is not None:
            return await self._loop.run_in_executor(self._loader, self._kept.drop_mapping, frozenset(digests))
        return await self._loop.run_in_executor(self._loader, self._let_go)

    def _tidy(self) -> None:
        self._tidying = None
        self._loader.submit(_give_back, self._backends())

    def _forget_old(self) -> None:
        before_s = self._clock.monotonic_s() - KEEP_S
        self._loop.run_in_executor(self._loader, self._kept.drop_old, before_s).add_done_callback(self._forgot)

    def _forgot(self, done: asyncio.Future[float | None]) -> None:
        oldest_s = done.result()
        if oldest_s is not None:
            self._forgetting.by(oldest_s + KEEP_S, self._forget_old)

    def _let_go(self) -> int:
        gone = self._kept.drop()
        _give_back(self._backends())
        return gone


def _give_back(used: Sequence[Backend]) -> None:
    """On the loader thread: what was kept for reuse, then the heap."""
    try:
        for backend in used:
            backend.release()
        memory.trim()
    except Exception:
        _log.exception("free memory could not be given back")
