"""Keeps a store small unasked: what nobody used for its keep-alive goes, and under memory pressure more than that.

Decides nothing: the store's policy says what expires and what goes first, `core.pressure` says how much. Before a blob loses its name
whoever maps it without a hold is asked to let go, because an unlinked file that is mapped frees nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from tessera.clock import Clock
from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest
from tessera.node_agent.core.pressure import PressureLimits, relief_bytes
from tessera.node_agent.ports import Memory
from tessera.program import Stop
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import TensorStore

LOOK_S = 1.0

_log = get_logger(__name__)

Trim = Callable[[Collection[Digest] | None], Awaitable[None]]
"""Has runtimes let go of what they map for no instance: all, or what maps one of the digests."""


class Keeper:
    """One per store. Only from adoption on: before that, what surviving runtimes hold is not known. Where a node has several stores each
    gives up what is missing: what nobody holds is cheap to give up, and which store's users suffer is not for one of them to say."""

    def __init__(self, store: TensorStore, trim: Trim, memory: Memory, limits: PressureLimits, clock: Clock) -> None:
        self._store = store
        self._trim = trim
        self._memory = memory
        self._limits = limits
        self._clock = clock
        self._stepped_at_s = float("-inf")

    async def run(self, stop: Stop) -> None:
        while not await stop.wait_for(LOOK_S):
            try:
                await self.look()
            except (TesseraError, OSError) as error:
                _log.warning("the store could not be kept small; it is tried again", reason=str(error))

    async def look(self) -> None:
        """One pass."""
        await self._expire()
        await self._relieve()

    async def _expire(self) -> None:
        due = await asyncio.to_thread(self._store.expired)
        if not due:
            return
        await self._trim(due)
        gone = await asyncio.to_thread(self._store.expire)  # what was used meanwhile stays
        _log.info("blobs expired", blobs=len(gone))

    async def _relieve(self) -> None:
        reading = await asyncio.to_thread(self._memory.read)
        now_s = self._clock.monotonic_s()
        wanted = relief_bytes(reading, self._limits, now_s - self._stepped_at_s)
        if wanted <= 0:
            return
        self._stepped_at_s = now_s
        status = await asyncio.to_thread(self._store.status)
        if status.pinned_bytes + status.incoming_bytes + status.unlinked_bytes >= status.used_bytes:
            return  # nothing that could go
        await self._trim(None)
        gone = await asyncio.to_thread(lambda: self._store.shrink(max(0, status.used_bytes - wanted)))
        _log.warning(
            "memory is short: blobs given up",
            blobs=len(gone),
            wanted_bytes=wanted,
            available_bytes=reading.available_bytes,
            stall_share=reading.stall_share,
        )
