"""What measures on a node: in a runtime that serves nobody, with blobs held for as long as it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from tessera.clock import Clock
from tessera.domain.ids import Digest, InstanceId
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder, holder_of
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.loops.traffic import Traffic
from tessera.node_agent.ports import RandomBytes, Runtime


@dataclass(slots=True)
class MeasuringPlace:
    """Of one trust domain on one node. `turn`: whose turn it is among all jobs of the node."""

    fleet: Fleet
    larder: Larder
    traffic: Traffic
    load_timeout_s: float
    random_bytes: RandomBytes
    clock: Clock
    turn: asyncio.Lock
    _holders: set[InstanceId] = field(default_factory=set)

    @property
    def holders(self) -> frozenset[str]:
        """Who holds blobs for what is measured now."""
        return frozenset(map(holder_of, self._holders))

    @contextmanager
    def holder(self, what: str) -> Iterator[InstanceId]:
        """A name to hold blobs under; afterwards it holds none."""
        found = InstanceId(f"{what}-{self.random_bytes(6).hex()}")
        self._holders.add(found)
        try:
            yield found
        finally:
            self.larder.release(found)
            self._holders.discard(found)

    @asynccontextmanager
    async def runtime(self, flavour: str, blobs: Collection[Digest], watch: Stopwatch, threads: int) -> AsyncIterator[Runtime]:
        """One of its own, gone afterwards. `blobs`: what it may map. Raises: TesseraError: it did not come up."""
        with watch.stage(self.fleet.stage):
            runtime_id = await self.fleet.create(flavour, Purpose.MEASURE, threads)
        try:
            runtime = self.fleet.get(runtime_id)
            self.fleet.pin(runtime_id, blobs)
            yield runtime
        finally:
            self.fleet.discard(runtime_id)
            await self.fleet.kill(runtime_id)  # whoever gets the last answer finds nothing of it
