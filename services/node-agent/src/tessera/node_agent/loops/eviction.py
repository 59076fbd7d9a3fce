"""Room for a start, at the cost of instances that nobody uses: `core.eviction` says which, this stops them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from tessera.domain.ids import Digest, InstanceId
from tessera.domain.instance import InstanceState
from tessera.node_agent.core.eviction import Idle, evictable, freed_bytes, plan_eviction
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Lacking
from tessera.telemetry import get_logger
from tessera.tensorstore.interface import TensorStore

Stop = Callable[[InstanceId, str], Awaitable[None]]
"""Drains an instance and takes it out; the second argument says why."""

_log = get_logger(__name__)


class Evictor:
    """One per trust domain."""

    def __init__(self, table: InstanceTable, fleet: Fleet, store: TensorStore, least_idle_s: float) -> None:
        self._table = table
        self._fleet = fleet
        self._store = store
        self._least_idle_s = least_idle_s
        self._turn = asyncio.Lock()

    def evictable_bytes(self) -> int:
        """What stopping every idle instance would free, as of the last activity reports."""
        idle = self._idle()
        return freed_bytes(idle, self._others(), self._store.digests(), self._mapped()) if idle else 0

    async def make_room(self, lacking: Lacking, instance_id: InstanceId, stop: Stop, check_wanted: Callable[[], None]) -> bool:
        """Stops as few idle instances as it takes; False where none was stopped, because all of them would not do or the budget has the
        room (a full file system may not). One start at a time: what one evicts for itself another must not count as free.

        Raises:
            Cancelled: the start is not wanted any more, as `check_wanted` says when its turn has come; nothing was stopped.
        """
        async with self._turn:
            await self._fleet.refresh(memory_age_s=3600.0)  # a start waits for it, and memory does not matter
            status = await asyncio.to_thread(self._store.status)
            held = status.pinned_bytes + status.unlinked_bytes + status.incoming_bytes
            short = lacking.missing_bytes + lacking.present_bytes - (status.budget_bytes - held)
            if short <= 0:
                return False
            donor = self._table.get(instance_id).donor
            may_go = sorted(self._idle(), key=lambda idle: idle.instance_id == donor)  # last: the start is to be made of it
            plan = plan_eviction(may_go, short, lacking.needs, self._others(), self._store.digests(), self._mapped())
            if plan is None:
                return False
            check_wanted()
            _log.info("idle instances make room", for_instance=instance_id, short_bytes=short, evicted=[idle.instance_id for idle in plan])
            async with asyncio.TaskGroup() as group:
                for idle in plan:
                    group.create_task(_stopped(stop, idle, instance_id))
            return True

    def _here(self) -> list[Instance]:
        return [found for found in self._table if found.alive and found.variant.trust_domain == self._fleet.trust_domain]

    def _idle(self) -> list[Idle]:
        ready = (found for found in self._here() if found.state is InstanceState.READY)
        return evictable((Idle(found.instance_id, found.idle_s, found.blobs) for found in ready), self._least_idle_s)

    def _mapped(self) -> Counter[Digest]:
        counts: Counter[Digest] = Counter()
        for found in self._here():
            counts.update(found.blobs)
        return counts

    def _others(self) -> dict[str, frozenset[Digest]]:
        runtimes = {str(member.runtime_id) for member in self._fleet.members}
        return {holder: held for holder, held in self._store.holders().items() if holder not in runtimes}


async def _stopped(stop: Stop, idle: Idle, instance_id: InstanceId) -> None:
    await stop(idle.instance_id, f"idle for {idle.idle_s:.0f} s, makes room for {instance_id}")
