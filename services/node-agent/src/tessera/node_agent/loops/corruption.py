"""Blobs whose bytes are no longer those of their digest: out of service, out of the store, and fetched again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.domain.errors import DataCorrupted, NotFound, TesseraError
from tessera.domain.ids import Digest, InstanceId
from tessera.domain.instance import InstanceState, Stage
from tessera.domain.source import Source
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.program import Tasks
from tessera.telemetry import get_logger

_log = get_logger(__name__)


class Corruption:
    """`fail(instance_id, error)` moves an instance to failed."""

    def __init__(
        self, table: InstanceTable, fleet: Fleet, larder: Larder, tasks: Tasks, fail: Callable[[InstanceId, TesseraError], None]
    ) -> None:
        self._table = table
        self._fleet = fleet
        self._larder = larder
        self._tasks = tasks
        self._fail = fail
        self._turn = asyncio.Lock()

    async def replace(self, instance_id: InstanceId, load: Load, sources: tuple[Source, ...] | None, watch: Stopwatch) -> None:
        """Quarantines what no longer has its digest and fetches it again. Whoever maps it is taken out of service. What was touched only,
        and has its digest, is sealed again. Of several starts that met the same bytes one finds them; what it fetches is sound."""
        with watch.stage(Stage.FETCH):
            async with self._turn:  # nobody acts on what he saw before another one replaced it
                bad = await self._larder.corrupted(load)
                if bad:
                    self._quarantine(bad, load, instance_id)
            # Also where nothing is bad any more: who quarantined it has ended this start's hold on it, too.
            # No sources were named where everything was here: that it is bad now nobody knew, nor asked who else has it.
            _, fetched = await self._larder.fetch(load.artifact, instance_id, None, sources or None)
        if fetched.bytes_fetched:
            self._table.note(instance_id, fetched=True)
        self._table.note(instance_id, fetched_bytes=0)  # the stage is of more than a fetch

    def _quarantine(self, bad: frozenset[Digest], load: Load, found_by: InstanceId) -> None:
        for other in self._table:
            here = other.variant.trust_domain == self._fleet.trust_domain  # what has the same digest elsewhere is another file
            if here and other.alive and other.instance_id != found_by and not bad.isdisjoint(other.blobs):
                self._withdraw(other, bad)
        self._larder.quarantine(bad)
        _log.error("corrupted blobs quarantined", digests=sorted(bad), artifact=load.artifact, found_by=found_by)

    def _withdraw(self, instance: Instance, bad: frozenset[Digest]) -> None:
        self._fleet.taint(instance.runtime_id)
        if instance.state not in (InstanceState.READY, InstanceState.DRAINING):
            return  # its own load finds out
        draining = instance.state is InstanceState.DRAINING
        error = DataCorrupted(f"instance {instance.instance_id} mapped {', '.join(sorted(bad & instance.blobs))}, which was corrupted")
        self._fail(instance.instance_id, error)
        self._tasks.start(f"unload {instance.instance_id}", self._unload(instance, draining))

    async def _unload(self, instance: Instance, draining: bool) -> None:
        assert instance.runtime_id is not None
        try:
            await self._fleet.get(instance.runtime_id).unload(instance.instance_id, 0)
        except TesseraError as error:
            # Not there: it has become another one meanwhile. One that is draining is not found either, and answers on.
            if draining or not isinstance(error, NotFound):
                _log.warning("a runtime keeps corrupted bytes and is killed", runtime_id=instance.runtime_id, reason=str(error))
                await self._fleet.kill(instance.runtime_id)
                return
        self._fleet.unpin(instance.runtime_id, instance.blobs)
