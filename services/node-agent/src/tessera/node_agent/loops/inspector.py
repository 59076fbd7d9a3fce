"""`tessera node fsck`: looks at a store, its runtimes and the kernel until they agree, or until what does not agree has stayed.

A start, a stop or a fetch under way changes the three one after the other. So what one look finds counts only when the next looks find it
too: what is wrong stays wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tessera.clock import Clock
from tessera.domain.errors import TesseraError
from tessera.node_agent.core.fsck import Declaration, Occupant, Seen, compare
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.core.table import InstanceTable
from tessera.node_agent.loops.fleet import Fleet, Member
from tessera.tensorstore.interface import TensorStore

LOOKS = 4
PAUSE_S = 0.25
ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """Findings in words, none when all is sound. `unlinked_bytes` are no finding: they are free when whoever maps them ends."""

    findings: tuple[str, ...]
    blobs: int
    size_bytes: int
    unlinked_bytes: int


class Inspector:
    """One per store."""

    def __init__(
        self,
        store: TensorStore,
        fleet: Fleet,
        table: InstanceTable,
        own_holders: Callable[[], Collection[str]],
        own_pids: Callable[[], Collection[int]],
        clock: Clock,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._table = table
        self._own_holders = own_holders
        self._own_pids = own_pids
        self._clock = clock

    async def check(self, deep: bool) -> Inspection:
        """Compares everything; with `deep` every blob is hashed as well, in a thread."""
        disk = await asyncio.to_thread(lambda: self._store.check(deep=deep))
        lasting = set(await self._look())
        for _ in range(LOOKS - 1):
            if not lasting:
                break
            await self._clock.sleep(PAUSE_S)
            lasting &= set(await self._look())
        status, sizes = await asyncio.to_thread(self._store.status), self._store.digests()
        return Inspection((*disk, *sorted(lasting)), len(sizes), sum(sizes.values()), status.unlinked_bytes)

    async def _look(self) -> list[str]:
        """The kernel first: what was mapped then must be said by whoever is asked after it."""
        members = self._fleet.members
        mappings = await asyncio.to_thread(self._store.mappings)
        occupants = await asyncio.gather(*(self._occupant(member) for member in members))
        here = [
            occupant for occupant in occupants if self._fleet.find(occupant.runtime_id) is not None
        ]  # who ended meanwhile is no finding
        own_pids = await asyncio.to_thread(self._own_pids)
        return compare(Seen(self._store.holders(), here, self._own_holders(), own_pids, mappings))

    async def _occupant(self, member: Member) -> Occupant:
        declared: Declaration | None = None
        try:
            async with asyncio.timeout(ANSWER_S):
                declared = await member.runtime.declare()
        except (TesseraError, TimeoutError):
            pass  # what it did not say is the finding
        unmapped = {instance.artifact for instance in self._table.in_runtime(member.runtime_id) if instance.artifact is not None}
        if member.purpose is Purpose.MEASURE:  # what is measured is no instance of the table: held before, between and after its loads
            unmapped |= member.holds
        return Occupant(member.runtime_id, member.runtime.hello.pid, member.runtime.alive, declared, frozenset(unmapped))
