"""What one trust domain has of a node, and shares with no other: store, runtimes, and the ways to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import Digest, TrustDomain
from tessera.node_agent.loops.appraiser import Appraiser
from tessera.node_agent.loops.eviction import Evictor
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.inspector import Inspector
from tessera.node_agent.loops.jobs import Jobs
from tessera.node_agent.loops.keeper import Keeper
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.loops.measuring import Measurer
from tessera.node_agent.loops.observing import Observer
from tessera.node_agent.loops.starter import Starter
from tessera.node_agent.ports import Meter, Runtimes
from tessera.program import Stop
from tessera.tensorstore.interface import StoreStatus, TensorStore

STORE_STATUS_S = 5.0


class Domain:
    """One trust domain on this node. Only the instance table and the poison ledger are the node's, not its own."""

    def __init__(
        self,
        store: TensorStore,
        runtimes: Runtimes,
        fleet: Fleet,
        larder: Larder,
        evictor: Evictor,
        starter: Starter,
        jobs: Jobs,
        measurer: Measurer,
        observer: Observer,
        inspector: Inspector,
        keeper: Keeper,
        appraiser: Appraiser,
        meter: Meter,
        clock: Clock,
        warm_flavours: Sequence[str],
    ) -> None:
        """`warm_flavours`: of which warm runtimes wait from the start; of others they do from their first use on."""
        self.name: TrustDomain = fleet.trust_domain
        self.store = store
        self.runtimes = runtimes
        self.fleet = fleet
        self.larder = larder
        self.evictor = evictor
        self.starter = starter
        self.jobs = jobs
        self.measurer = measurer
        self.observer = observer
        self.inspector = inspector
        self._keeper = keeper
        self._appraiser = appraiser
        self._meter = meter
        self._clock = clock
        self._warm_flavours = tuple(warm_flavours)
        self._status: StoreStatus | None = None
        self._status_at_s = 0.0
        self._blobs: frozenset[Digest] = frozenset()

    @property
    def pooled(self) -> tuple[str, ...]:
        """The flavours of which warm runtimes wait."""
        return tuple(dict.fromkeys((*self._warm_flavours, *sorted(self.fleet.used_flavours))))

    async def prepare(self) -> None:
        """Raises: FailedPrecondition: a zygote of the flavours that are warm from the start does not come up."""
        await self.runtimes.prepare(self._warm_flavours)

    async def keep(self, stop: Stop) -> None:
        """Keeps the store small, and what its blobs are worth true, until `stop`. Only from adoption on."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keeper.run(stop))
            group.create_task(self._appraiser.run(stop))

    async def store_status(self) -> StoreStatus:
        """Looked at every few seconds, and when blobs came or went: counting what is mapped but deleted walks /proc."""
        now_s, blobs = self._clock.monotonic_s(), frozenset(self.store.digests())
        if self._status is None or blobs != self._blobs or now_s - self._status_at_s >= STORE_STATUS_S:
            self._status_at_s, self._blobs = now_s, blobs
            self._status = status = await asyncio.to_thread(self.store.status)
            self._meter.store(
                self.name, status.used_bytes, status.pinned_bytes, status.unlinked_bytes, status.ingested_bytes, status.pulled_bytes
            )
            self._meter.reclaimed(self.name, "room", status.reclaimed_room_bytes)
            self._meter.reclaimed(self.name, "expired", status.reclaimed_expired_bytes)
            self._meter.reclaimed(self.name, "pressure", status.reclaimed_pressure_bytes)
        return self._status


class Domains:
    """The trust domains of this node, in the order of its settings; at least one."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        self._domains: Mapping[TrustDomain, Domain] = {domain.name: domain for domain in domains}

    def __iter__(self) -> Iterator[Domain]:
        return iter(self._domains.values())

    def get(self, name: TrustDomain) -> Domain:
        """Raises: FailedPrecondition: this node does not have it; names those that it has."""
        found = self._domains.get(name)
        if found is None:
            raise FailedPrecondition(f"this node has no store of trust domain {name!r}; it has {', '.join(sorted(self._domains))}")
        return found
