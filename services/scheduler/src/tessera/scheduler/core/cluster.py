"""The leader's memory: what agents report, what it wants, what is in flight. Every change is one synchronous step.

A standby keeps the reports of nobody (agents stream to the leader alone); a new leader's memory fills within one report of each node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tessera.domain.ids import InstanceId, NodeId, TrustDomain
from tessera.domain.records import AssignmentRecord, NodeRecord
from tessera.policy.load.base import Load
from tessera.policy.view import NodeView
from tessera.scheduler.core import observed as seen
from tessera.scheduler.core.assignments import Assignment, Desired, Phase, plan
from tessera.scheduler.core.observed import NodeReport, ObservedInstance, ObservedNode
from tessera.scheduler.core.snapshot import NodeRecords, node_views
from tessera.scheduler.core.sources import Holding
from tessera.scheduler.core.usage import Usage, observe


class Cluster:
    def __init__(self) -> None:
        self.observed: dict[NodeId, ObservedNode] = {}
        self._desired = Desired()
        self._stopping: frozenset[InstanceId] = frozenset()
        self._fresh: set[InstanceId] = set()
        self.usage = Usage()
        self.loads: Mapping[InstanceId, Load] = {}
        self.closed: frozenset[NodeId] = frozenset()
        """Nodes that are about to leave: nothing starts there any more."""

    @property
    def desired(self) -> Desired:
        return self._desired

    @desired.setter
    def desired(self, desired: Desired) -> None:
        self._desired = desired
        self._stopping = desired.stopping()

    def reset(self) -> None:
        """Forgets everything: another leads, and what it does is not known here."""
        self.observed.clear()
        self._fresh.clear()
        self.desired = Desired()
        self.usage = Usage()
        self.loads = {}
        self.closed = frozenset()

    def report(self, report: NodeReport, stream: int, now_s: float) -> None:
        """Raises: FailedPrecondition when a stream does not begin with a full status."""
        self.observed[report.node_id] = seen.fold(self.observed.get(report.node_id), report, stream, now_s)

    def stream_ended(self, node_id: NodeId, stream: int) -> None:
        node = self.observed.get(node_id)
        if node is not None:
            self.observed[node_id] = seen.ended(node, stream)

    def forget(self, lost: Iterable[NodeId]) -> None:
        """What the last reports of these nodes said of instances and their load is over."""
        for node_id in lost:
            self.observed.pop(node_id, None)

    def note_usage(self, now_s: float) -> None:
        """Learns from the reports at hand which variants were used."""
        self.usage = observe(self.usage, self.observed.values(), now_s)

    def planned(self, record: AssignmentRecord, now_s: float) -> None:
        """A start is about to be told to an agent. An assignment that is there already stays as it is (a start taken up again)."""
        if record.instance_id not in self.desired.assignments:
            self._put(plan(record, now_s))

    def answered(self, instance: ObservedInstance, now_s: float) -> None:
        """The agent says that the instance is ready."""
        assignment = self.desired.assignments.get(instance.instance_id)
        if assignment is not None and assignment.phase is Phase.PLANNED:
            self._put(replace(assignment.step(Phase.ACTIVE, now_s), seen=True))
            self._fresh.add(instance.instance_id)
        node = self.observed.get(instance.node_id)
        if node is not None:
            self.observed[instance.node_id] = seen.answered(node, instance, now_s)

    def take_fresh(self) -> frozenset[InstanceId]:
        """Instances that became ready since this was asked last."""
        fresh, self._fresh = frozenset(self._fresh), set()
        return fresh

    def failed(self, instance_id: InstanceId) -> None:
        """The start came to nothing, as far as is known; should the instance appear in a report, it is adopted or surplus."""
        assignment = self.desired.assignments.get(instance_id)
        if assignment is not None and assignment.phase is Phase.PLANNED:
            rest = {key: item for key, item in self._desired.assignments.items() if key != instance_id}
            self._desired = replace(self._desired, assignments=rest)

    def refused(self, node_id: NodeId, instance_id: InstanceId) -> None:
        """The agent itself says that the start failed."""
        node = self.observed.get(node_id)
        if node is not None:
            self.observed[node_id] = seen.refused(node, instance_id)

    def stop(self, record: AssignmentRecord, reason: str, now_s: float) -> None:
        """Somebody or a policy wants the instance gone. What is stopping or gone already stays so."""
        assignment = self.desired.assignments.get(record.instance_id) or Assignment(record, Phase.ACTIVE, now_s, now_s)
        if assignment.phase in (Phase.PLANNED, Phase.ACTIVE):
            self._put(assignment.step(Phase.STOPPING, now_s, reason))

    def find(self, instance_id: InstanceId) -> ObservedInstance | None:
        """The instance as reports show it, on a node that answers."""
        shown = (item for node in self.observed.values() if node.live for item in node.instances)
        return next((item for item in shown if item.instance_id == instance_id), None)

    def views(
        self, records: NodeRecords, starting: Mapping[NodeId, int], also: frozenset[InstanceId] = frozenset()
    ) -> tuple[NodeView, ...]:
        """Without what is stopping, and `also` without these."""
        views = node_views(records, self.observed, starting, self._stopping | also)
        return tuple(node for node in views if node.node_id not in self.closed) if self.closed else views

    def holdings(self, trust_domain: TrustDomain, starting: Mapping[NodeId, int]) -> list[Holding]:
        """What the nodes that answer have of a trust domain."""
        return [
            Holding(node_id, node.report.peer_address, node.stores[trust_domain].digests, len(node.views) + starting.get(node_id, 0))
            for node_id, node in self.observed.items()
            if node.live and trust_domain in node.stores
        ]

    def address(self, node_id: NodeId, records: NodeRecords) -> str | None:
        """Where the node's agent answers: as it reports, else as its record says."""
        return self._stated(node_id, records, lambda said: said.agent_address)

    def start_address(self, node_id: NodeId, records: NodeRecords) -> str | None:
        """Where the node's agent takes starts: as it reports, else as its record says."""
        return self._stated(node_id, records, lambda said: said.start_address)

    def _stated(self, node_id: NodeId, records: NodeRecords, what: Callable[[NodeReport | NodeRecord], str]) -> str | None:
        node, found = self.observed.get(node_id), records.get(node_id)
        reported = what(node.report) if node is not None else ""
        return reported or (what(found[0]) if found is not None else None)

    def _put(self, assignment: Assignment) -> None:
        name = assignment.record.instance_id
        self._desired = replace(self._desired, assignments={**self._desired.assignments, name: assignment})
        if assignment.phase in (Phase.STOPPING, Phase.GONE):
            self._stopping |= {name}
