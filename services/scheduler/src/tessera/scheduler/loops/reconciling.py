"""Brings etcd and the agents to what the leader wants, again and again; proposes the end of what is idle.

Records are written behind the starts. While etcd is away nothing is lost: what is wanted stays in memory and is written when etcd
answers again. An instance is never stopped for idleness while its record cannot be deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, Delete, Leadership, ModRevisionIs, Put
from tessera.coord.records import encode
from tessera.domain.errors import Conflict, NotFound, StaleTerm, TesseraError, Unavailable
from tessera.domain.ids import Digest, InstanceId, NodeId, RequestId
from tessera.domain.records import AssignmentRecord
from tessera.policy.scaling.base import KeepAlivePolicy, StopProposal
from tessera.scheduler.core.ahead import Ahead
from tessera.scheduler.core.assignments import (
    Adopted,
    DeleteRecord,
    Instruction,
    Limits,
    RenewProvisional,
    StopInstance,
    World,
    WriteRecord,
    reconcile,
    vet_stop,
    write_behind,
)
from tessera.scheduler.core.cluster import Cluster
from tessera.scheduler.core.observed import ObservedInstance
from tessera.scheduler.loops.leading import Leading
from tessera.scheduler.loops.learning import Learning
from tessera.scheduler.loops.replacing import require_etcd
from tessera.scheduler.loops.starting import Starter
from tessera.scheduler.ports import Agents, Meter, Records, StartOrder
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

WRITE_TIMEOUT_S = 2.0
GAP_S = 0.05
STOP_BUDGET_S = 10.0
"""An agent drains an instance before it answers."""


class Reconciler:
    def __init__(
        self,
        *,
        clock: Clock,
        coordinator: Coordinator,
        leading: Leading,
        cluster: Cluster,
        records: Records,
        agents: Agents,
        starter: Starter,
        keep_alive: KeepAlivePolicy,
        wake: asyncio.Event,
        meter: Meter,
        limits: Limits,
        learning: Learning,
        period_s: float = 1.0,
    ) -> None:
        self._clock = clock
        self._coordinator = coordinator
        self._leading = leading
        self._cluster = cluster
        self._records = records
        self._agents = agents
        self._starter = starter
        self._keep_alive = keep_alive
        self._wake = wake
        self._meter = meter
        self._limits = limits
        self._learning = learning
        self._period_s = period_s
        self._ahead: Ahead[AssignmentRecord] = Ahead(lambda shown, written: (shown is None) == (written is None))

    async def run(self) -> None:
        """A whole pass each period; in between only the records of new starts are written."""
        while True:
            until_s = self._clock.monotonic_s() + self._period_s
            leadership = self._leading.leadership
            self._meter.leading(leadership is not None)
            if leadership is not None:
                await self.once(leadership)
            while (left_s := until_s - self._clock.monotonic_s()) > 0 and await self._woken(left_s):
                leadership = self._leading.leadership
                if leadership is not None:
                    # Starts that come in a burst are written in one go.
                    await self._clock.sleep(GAP_S)
                    recorded = self._recorded(self._clock.monotonic_s())
                    await self._act(leadership, write_behind(self._cluster.desired, self._cluster.take_fresh(), recorded))

    async def _woken(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    async def once(self, leadership: Leadership) -> None:
        """One pass: propose, compare, act."""
        self._learning.look()
        await self._end_idle()
        now_s = self._clock.monotonic_s()
        recorded = self._recorded(now_s)
        self._cluster.take_fresh()
        world = World(recorded, self._cluster.observed, self._records.nodes().keys(), leadership.term, self._leading.since_s)
        self._cluster.desired, instructions = reconcile(self._cluster.desired, world, now_s, self._limits)
        self._cluster.forget(self._cluster.desired.lost(now_s, self._limits))
        await self._act(leadership, instructions)

    async def stop(self, node_id: NodeId, instance_id: InstanceId) -> None:
        """Ends an instance because somebody asked: the agent at once, the record behind it.

        Raises:
            Unavailable: another leads, or the agent does not answer.
            NotFound: neither a record nor a report has the instance on that node.
        """
        leadership = self._leading.require()
        record = self._find(node_id, instance_id)
        self._cluster.stop(record, "it was asked to stop", self._clock.monotonic_s())
        self._wake.set()
        address = self._cluster.address(node_id, self._records.nodes())
        if address is None:
            raise Unavailable(f"node {node_id} does not answer; instance {instance_id} is stopped when it does")
        try:
            await self._agents.stop(address, leadership.term, instance_id, STOP_BUDGET_S)
        except NotFound:
            # Its record is deleted all the same.
            return
        finally:
            self._wake.set()

    def _find(self, node_id: NodeId, instance_id: InstanceId) -> AssignmentRecord:
        assignment = self._cluster.desired.assignments.get(instance_id)
        record = assignment.record if assignment is not None else self._records.assignments().get(instance_id)
        shown = self._cluster.find(instance_id)
        if record is None and shown is not None:
            record = _adopting(shown, self._leading.require())
        if record is None or record.node_id != node_id:
            raise NotFound(f"instance {instance_id} on node {node_id}: neither assigned nor reported")
        return record

    def _recorded(self, now_s: float) -> Mapping[InstanceId, AssignmentRecord]:
        """What etcd holds: what the watch shows, corrected by own writes that it has not shown yet."""
        return self._ahead.over(self._records.assignments(), now_s)

    async def _end_idle(self) -> None:
        """Lets the policy propose stops, and vets each one. Nothing ends while etcd is away: its record could not be deleted."""
        self._cluster.note_usage(self._clock.monotonic_s())
        views = self._cluster.views(self._records.nodes(), {})
        proposals = [item for item in self._keep_alive.propose(views, self._cluster.usage.gaps) if self._may_end(item)]
        if not proposals or not await self._etcd_answers():
            return
        for proposal in proposals:
            # Looked at again, because the question above took its time.
            assignment = self._cluster.desired.assignments.get(proposal.instance_id)
            if assignment is not None and self._may_end(proposal):
                log.info("instance ends", instance=proposal.instance_id, node=proposal.node_id, reason=proposal.reason)
                self._cluster.stop(assignment.record, proposal.reason, self._clock.monotonic_s())
                self._meter.stopped(self._keep_alive.name)

    def _may_end(self, proposal: StopProposal) -> bool:
        if proposal.instance_id in self._starter.donors:
            return False  # a start is about to make another one of it
        shown = self._cluster.find(proposal.instance_id)
        assignment = self._cluster.desired.assignments.get(proposal.instance_id)
        return vet_stop(shown, assignment, self._starter.waited_for, shown is not None) is None

    async def _etcd_answers(self) -> bool:
        try:
            await require_etcd(self._coordinator)
        except TesseraError:
            return False
        return True

    async def _act(self, leadership: Leadership, instructions: Sequence[Instruction]) -> None:
        """etcd's part in order, then the agents' side by side. etcd away: the rest of its part waits for the next pass."""
        told: list[StopInstance | RenewProvisional] = []
        etcd_answers = True
        for instruction in instructions:
            if isinstance(instruction, StopInstance | RenewProvisional):
                told.append(instruction)
            elif isinstance(instruction, Adopted):
                record = instruction.record
                log.info("instance adopted", instance=record.instance_id, node=record.node_id, reason=instruction.reason)
            elif etcd_answers:
                etcd_answers = await self._write(leadership, instruction)
        async with asyncio.TaskGroup() as group:
            for instruction in told:
                group.create_task(self._tell(leadership, instruction))

    async def _write(self, leadership: Leadership, instruction: WriteRecord | DeleteRecord) -> bool:
        """One guarded transaction; whether etcd answered. Losing the guard means that another leads: the elector looks."""
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                if isinstance(instruction, WriteRecord):
                    record = replace(instruction.record, term=leadership.term)
                    key = keys.assignment(record.variant.trust_domain, record.node_id, record.instance_id)
                    await self._coordinator.transact([leadership.guard, ModRevisionIs(key, 0)], [Put(key, encode(record))])
                    self._ahead.wrote(record.instance_id, record, self._clock.monotonic_s())
                else:
                    key = keys.assignment(instruction.variant.trust_domain, instruction.node_id, instruction.instance_id)
                    await self._coordinator.transact([leadership.guard], [Delete(key)])
                    self._ahead.wrote(instruction.instance_id, None, self._clock.monotonic_s())
                    log.info("assignment deleted", instance=instruction.instance_id, node=instruction.node_id, reason=instruction.reason)
        except Conflict as error:
            log.info("write refused", reason=error.message)
            self._leading.doubt.set()
        except (TesseraError, TimeoutError) as error:
            log.info("etcd is away; written later", reason=str(error))
            return False
        return True

    async def _tell(self, leadership: Leadership, instruction: StopInstance | RenewProvisional) -> None:
        """One call to an agent. Not answered: the next passes try again."""
        about = instruction if isinstance(instruction, StopInstance) else instruction.record
        node_id, instance_id = about.node_id, about.instance_id
        stated = self._cluster.address if isinstance(instruction, StopInstance) else self._cluster.start_address
        address = stated(node_id, self._records.nodes())
        if address is None:
            return
        try:
            async with asyncio.timeout(STOP_BUDGET_S + 1.0):
                if isinstance(instruction, StopInstance):
                    await self._agents.stop(address, leadership.term, instance_id, STOP_BUDGET_S)
                else:
                    await self._agents.start(address, self._order(leadership, instruction.record))
        except StaleTerm:
            self._leading.doubt.set()
        except NotFound:
            return
        except (TesseraError, TimeoutError) as error:
            log.info("agent not told; tried again", instance=instance_id, node=node_id, what=type(instruction).__name__, reason=str(error))

    def _order(self, leadership: Leadership, record: AssignmentRecord) -> StartOrder:
        """The same start again: the agent answers for the instance that exists and keeps it for longer."""
        return StartOrder(
            term=leadership.term,
            node_id=record.node_id,
            instance_id=record.instance_id,
            generation=record.generation,
            variant=record.variant,
            artifact=record.artifact or None,
            start_path=record.start_path.again,
            expires_after_s=self._limits.provisional_s,
            budget_s=STOP_BUDGET_S,
            request_id=RequestId(""),
        )


def _adopting(item: ObservedInstance, leadership: Leadership) -> AssignmentRecord:
    artifact = item.artifact or Digest("")
    return AssignmentRecord(item.instance_id, item.node_id, item.variant, artifact, item.generation, item.start_path, leadership.term)
