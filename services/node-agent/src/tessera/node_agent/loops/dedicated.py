"""A runtime that serves nobody, for what is measured: gone afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from tessera.domain.ids import Digest
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.ports import Runtime


@asynccontextmanager
async def dedicated(fleet: Fleet, flavour: str, blobs: Collection[Digest], watch: Stopwatch, threads: int) -> AsyncIterator[Runtime]:
    """`blobs`: what it may map. Raises: TesseraError: it did not come up."""
    with watch.stage(fleet.stage):
        runtime_id = await fleet.create(flavour, Purpose.MEASURE, threads)
    try:
        runtime = fleet.get(runtime_id)
        fleet.pin(runtime_id, blobs)
        yield runtime
    finally:
        fleet.discard(runtime_id)
        await fleet.kill(runtime_id)  # whoever gets the last answer finds nothing of it
