"""What a lost runtime does to its instances: they fail at once, whoever is to blame is blamed, and the cause follows when it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tessera.clock import Clock
from tessera.domain.errors import TesseraError, Unavailable
from tessera.domain.ids import InstanceId, RuntimeId
from tessera.domain.instance import InstanceState
from tessera.node_agent.core.poison import PoisonLedger
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.core.table import Instance, InstanceTable
from tessera.node_agent.loops.fleet import Member
from tessera.node_agent.ports import Meter, Notes, Records
from tessera.program import Tasks
from tessera.telemetry import get_logger

_log = get_logger(__name__)


class Losses:
    """`fail(instance_id, error)` moves an instance to failed; `changed` tells that there is something to report."""

    def __init__(
        self,
        table: InstanceTable,
        poison: PoisonLedger,
        meter: Meter,
        records: Records,
        notes: Notes,
        clock: Clock,
        tasks: Tasks,
        fail: Callable[[InstanceId, TesseraError], None],
        changed: Callable[[], None],
    ) -> None:
        self._table = table
        self._poison = poison
        self._meter = meter
        self._records = records
        self._notes = notes
        self._clock = clock
        self._tasks = tasks
        self._fail = fail
        self._changed = changed
        self._explaining: dict[RuntimeId, asyncio.Task[None]] = {}

    def lost(self, member: Member, asked: bool) -> None:
        """Its process has ended; `asked`: we wanted that."""
        instances = self._table.in_runtime(member.runtime_id)
        for instance in instances:
            if asked and instance.state is InstanceState.DRAINING:
                self._table.move(instance.instance_id, InstanceState.GONE, self._clock.monotonic_s(), "its runtime was ended")
                self._records.withdraw(instance.variant.trust_domain, instance.instance_id)
            else:
                self._fail(instance.instance_id, Unavailable(_words(instance, member)))
        self._notes.forget(member.runtime_id)
        self._changed()
        if not asked:  # whatever comes of blaming somebody, nobody takes what is lost for ready
            self._meter.runtime_lost()
            task = self._tasks.start(f"why {member.runtime_id} ended", self._explain(member, instances))
            self._explaining[member.runtime_id] = task
            loading = [instance.variant for instance in instances if instance.loading]
            there = (InstanceState.READY, InstanceState.DRAINING)
            serving = [instance.variant for instance in instances if instance.state in there and not instance.opening]
            self._poison.runtime_lost(loading, serving, member.purpose is Purpose.ISOLATED, self._clock.monotonic_s())

    async def explained(self, runtime_id: RuntimeId | None) -> None:
        """Waits until the cause of a loss is known, or known to be unknown; nothing to wait for where nothing was lost."""
        task = self._explaining.get(runtime_id) if runtime_id is not None else None
        if task is not None:
            await asyncio.wait({task})

    async def _explain(self, member: Member, instances: tuple[Instance, ...]) -> None:
        """Amends the errors of those that failed by it."""
        try:
            cause = await member.runtime.cause() if not member.hung else "killed by the node agent, which it did not answer as it should"
        finally:
            self._explaining.pop(member.runtime_id, None)
        lost = [str(instance.variant) for instance in instances]
        _log.warning("runtime lost", runtime_id=member.runtime_id, pid=member.runtime.hello.pid, cause=cause or "not known", variants=lost)
        for instance in instances if cause else ():
            now = self._table.find(instance.instance_id)
            if now is not None and now.state is InstanceState.FAILED:
                self._table.note(instance.instance_id, error=Unavailable(f"{_words(instance, member)}: {cause}"))
                self._table.tell(instance.instance_id, self._clock.monotonic_s(), f"its runtime ended: {cause}")
        self._changed()


def _words(instance: Instance, member: Member) -> str:
    what = "while it loaded" if instance.loading else "that held"
    return f"runtime {member.runtime_id} (pid {member.runtime.hello.pid}) ended {what} variant {instance.variant}"
