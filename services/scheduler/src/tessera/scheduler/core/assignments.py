"""Desired against recorded against reported: what the leader must write, delete, adopt or stop (docs/states/assignment.md).

`desired` is the leader's memory, `recorded` what etcd holds, `reported` what agents say. The leader acts by RPC first and writes
behind, so all three may differ at any moment; `reconcile` is called again and again with what is there and says what to do. It keeps
these promises: no instance gets a second record; nothing planned or active on a node that answers is deleted while its agent shows
it alive; what was stopped is never adopted again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tessera.domain.ids import BuildClass, Digest, InstanceId, NodeId, Term, VariantKey
from tessera.domain.instance import InstanceState
from tessera.domain.records import AssignmentRecord
from tessera.scheduler.core.observed import LIVE, ObservedInstance, ObservedNode


class Phase(StrEnum):
    PLANNED = "planned"
    ACTIVE = "active"
    STOPPING = "stopping"
    GONE = "gone"


_FORWARD = {
    Phase.PLANNED: frozenset({Phase.ACTIVE, Phase.STOPPING, Phase.GONE}),
    Phase.ACTIVE: frozenset({Phase.STOPPING, Phase.GONE}),
    Phase.STOPPING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset[Phase](),
}


@dataclass(frozen=True, slots=True)
class Assignment:
    """One instance that the leader wants on a node, or wants to be gone. Moments are monotonic seconds.

    `since_s`: when it entered its phase. `told_s`: when its agent was last told. `seen`: a report showed it alive.
    `absent_since_s`: since when live reports do not show it, None while they do.
    """

    record: AssignmentRecord
    phase: Phase
    since_s: float
    told_s: float
    seen: bool = False
    absent_since_s: float | None = None
    reason: str = ""

    def step(self, to: Phase, now_s: float, reason: str = "") -> Assignment:
        """The only way a phase changes. Raises: ValueError when `to` does not follow."""
        if to not in _FORWARD[self.phase]:
            raise ValueError(f"an assignment does not go from {self.phase} to {to}")
        return replace(self, phase=to, since_s=now_s, reason=reason)


@dataclass(frozen=True, slots=True)
class WriteRecord:
    record: AssignmentRecord


@dataclass(frozen=True, slots=True)
class RenewProvisional:
    """Tell the agent again: its record is not in etcd yet, and the agent must not take it for abandoned when etcd is back."""

    record: AssignmentRecord


@dataclass(frozen=True, slots=True)
class DeleteRecord:
    node_id: NodeId
    instance_id: InstanceId
    variant: VariantKey
    reason: str


@dataclass(frozen=True, slots=True)
class StopInstance:
    node_id: NodeId
    instance_id: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """For the log: an instance or a record of an earlier leader is this leader's now."""

    record: AssignmentRecord
    reason: str


Instruction = WriteRecord | RenewProvisional | DeleteRecord | StopInstance | Adopted


@dataclass(frozen=True, slots=True)
class Limits:
    """All in seconds. `provisional_s` is how long an agent keeps an instance that has no record and is not waited for."""

    provisional_s: float = 30.0
    absent_grace_s: float = 5.0
    node_lost_s: float = 30.0
    remember_gone_s: float = 600.0


@dataclass(frozen=True, slots=True)
class World:
    """What `reconcile` compares. `leading_since_s`: when this leader began; `term` goes into records that it makes."""

    recorded: Mapping[InstanceId, AssignmentRecord]
    reported: Mapping[NodeId, ObservedNode]
    leased: Collection[NodeId]
    term: Term
    leading_since_s: float


@dataclass(frozen=True, slots=True)
class Desired:
    """The leader's memory. `unowned` are reported instances that nobody assigned, with the moment they were first seen;
    `node_lost_since` are nodes with neither lease nor live stream, and since when."""

    assignments: Mapping[InstanceId, Assignment] = field(default_factory=dict)
    unowned: Mapping[InstanceId, float] = field(default_factory=dict)
    node_lost_since: Mapping[NodeId, float] = field(default_factory=dict)

    def stopping(self) -> frozenset[InstanceId]:
        """Instances that must not be chosen any more."""
        return frozenset(key for key, item in self.assignments.items() if item.phase in (Phase.STOPPING, Phase.GONE))

    def lost(self, now_s: float, limits: Limits) -> frozenset[NodeId]:
        """Nodes of which nothing was heard for so long that they stand for nothing any more."""
        return frozenset(name for name, since_s in self.node_lost_since.items() if now_s - since_s > limits.node_lost_s)


def reconcile(desired: Desired, world: World, now_s: float, limits: Limits) -> tuple[Desired, tuple[Instruction, ...]]:
    """One pass over everything: the leader's new memory, and what to do. Doing it twice does no harm."""
    instructions: list[Instruction] = []
    assignments = dict(desired.assignments)
    for instance_id, record in sorted(world.recorded.items()):
        if instance_id not in assignments:
            assignments[instance_id] = Assignment(record, Phase.ACTIVE, now_s, now_s)
            instructions.append(Adopted(record, "its record was there"))
    shown = {item.instance_id: item for node in world.reported.values() if node.live for item in node.instances}
    unowned = _adopt_reported(assignments, shown, desired.unowned, world, now_s, limits, instructions)
    lost_since = _lost_nodes(assignments, desired.node_lost_since, world, now_s)
    for instance_id, assignment in sorted(assignments.items()):
        seen = _look(assignment, shown.get(instance_id), world, now_s)
        kept = _step(seen, shown.get(instance_id), world, lost_since, now_s, limits, instructions)
        if kept is None:
            del assignments[instance_id]
        else:
            assignments[instance_id] = kept
    return Desired(assignments, unowned, lost_since), tuple(instructions)


def write_behind(
    desired: Desired, fresh: Collection[InstanceId], recorded: Mapping[InstanceId, AssignmentRecord]
) -> tuple[WriteRecord, ...]:
    """The records of instances that were just answered, without comparing everything else."""
    found = (desired.assignments.get(name) for name in sorted(fresh))
    return tuple(
        WriteRecord(item.record) for item in found if item and item.phase is Phase.ACTIVE and item.record.instance_id not in recorded
    )


def _adopt_reported(
    assignments: dict[InstanceId, Assignment],
    shown: Mapping[InstanceId, ObservedInstance],
    known: Mapping[InstanceId, float],
    world: World,
    now_s: float,
    limits: Limits,
    instructions: list[Instruction],
) -> dict[InstanceId, float]:
    """Takes in what agents report and nobody assigned: the first of a variant on a class is adopted, a second one is surplus."""
    unowned: dict[InstanceId, float] = {}
    orphans = [item for key, item in shown.items() if key not in assignments and item.state in LIVE]
    for item in sorted(orphans, key=lambda found: (found.state is not InstanceState.READY, found.instance_id)):
        build_class = world.reported[item.node_id].report.build_class
        if not _covered(assignments, item.variant, build_class, world):
            record = _record_of(item, world.term)
            assignments[item.instance_id] = Assignment(record, Phase.ACTIVE, now_s, now_s, seen=True)
            instructions.append(Adopted(record, "its agent reports it and no record names it"))
            continue
        since_s = known.get(item.instance_id, now_s)
        unowned[item.instance_id] = since_s
        if now_s - since_s > limits.provisional_s and item.state is InstanceState.READY and item.idle_s > 0:
            instructions.append(StopInstance(item.node_id, item.instance_id, f"surplus: another instance of {item.variant} is assigned"))
    return unowned


def _covered(assignments: Mapping[InstanceId, Assignment], variant: VariantKey, build_class: BuildClass, world: World) -> bool:
    """Whether the leader already wants an instance of the variant on a node of the class."""
    for assignment in assignments.values():
        if assignment.record.variant != variant or assignment.phase not in (Phase.PLANNED, Phase.ACTIVE):
            continue
        node = world.reported.get(assignment.record.node_id)
        if node is not None and node.report.build_class == build_class:
            return True
    return False


def _record_of(item: ObservedInstance, term: Term) -> AssignmentRecord:
    return AssignmentRecord(
        item.instance_id, item.node_id, item.variant, item.artifact or Digest(""), item.generation, item.start_path, term
    )


def _lost_nodes(
    assignments: Mapping[InstanceId, Assignment], known: Mapping[NodeId, float], world: World, now_s: float
) -> dict[NodeId, float]:
    """Of those with assignments and those that reported once. One of lease and live stream is enough not to be lost."""
    named = {item.record.node_id for item in assignments.values()} | world.reported.keys()
    live = {node_id for node_id, node in world.reported.items() if node.live}
    return {node_id: known.get(node_id, now_s) for node_id in sorted(named - live - set(world.leased))}


def _look(assignment: Assignment, shown: ObservedInstance | None, world: World, now_s: float) -> Assignment:
    """Notes whether the reports show it. A silent node says nothing, so nothing is concluded from it."""
    if shown is not None and shown.state in LIVE:
        same = assignment.seen and assignment.absent_since_s is None
        return assignment if same else replace(assignment, seen=True, absent_since_s=None)
    node = world.reported.get(assignment.record.node_id)
    if node is None or not node.live:
        return assignment if assignment.absent_since_s is None else replace(assignment, absent_since_s=None)
    return replace(assignment, absent_since_s=now_s) if assignment.absent_since_s is None else assignment


def _step(
    assignment: Assignment,
    shown: ObservedInstance | None,
    world: World,
    lost_since: Mapping[NodeId, float],
    now_s: float,
    limits: Limits,
    instructions: list[Instruction],
) -> Assignment | None:
    """What becomes of one assignment; None when it can be forgotten."""
    record = assignment.record
    written = record.instance_id in world.recorded
    if assignment.phase is Phase.PLANNED:
        return assignment
    if assignment.phase is Phase.ACTIVE:
        why = _why_lost(assignment, lost_since, now_s, limits)
        if why is None:
            if written:
                return assignment
            instructions.append(WriteRecord(record))
            if now_s - assignment.told_s < limits.provisional_s / 2:
                return assignment
            instructions.append(RenewProvisional(record))
            return replace(assignment, told_s=now_s)
        if written:
            instructions.append(DeleteRecord(record.node_id, record.instance_id, record.variant, why))
            return assignment
        return None
    alive = shown is not None and shown.state in LIVE
    if written:
        instructions.append(DeleteRecord(record.node_id, record.instance_id, record.variant, assignment.reason))
        return assignment
    if alive:
        instructions.append(StopInstance(record.node_id, record.instance_id, assignment.reason))
        return assignment
    if assignment.phase is Phase.STOPPING:
        return assignment.step(Phase.GONE, now_s, assignment.reason)
    return assignment if now_s - assignment.since_s < limits.remember_gone_s else None


def _why_lost(assignment: Assignment, lost_since: Mapping[NodeId, float], now_s: float, limits: Limits) -> str | None:
    """Why an active assignment stands for nothing any more, or None."""
    since_s = lost_since.get(assignment.record.node_id)
    if since_s is not None and now_s - since_s > limits.node_lost_s:
        return f"node {assignment.record.node_id} has had neither lease nor status stream for {now_s - since_s:.0f} s"
    if assignment.absent_since_s is None:
        return None
    absent_s = now_s - assignment.absent_since_s
    grace_s = limits.absent_grace_s if assignment.seen else limits.provisional_s
    return f"its agent has not reported it for {absent_s:.0f} s" if absent_s > grace_s else None


def vet_stop(
    instance: ObservedInstance | None, assignment: Assignment | None, wanted: Collection[VariantKey], node_live: bool
) -> str | None:
    """Why a proposed stop of an idle instance must not happen, or None. Safety lives here, whatever a policy proposes."""
    if instance is None or not node_live:
        return "its agent does not report"
    if assignment is None or assignment.phase is not Phase.ACTIVE:
        return "it is not an active assignment"
    if instance.state is not InstanceState.READY:
        return f"it is {instance.state}"
    if instance.idle_s <= 0:
        return "it is executing"
    if instance.variant in wanted:
        return "requests wait for its model"
    return None


def vet_drain(instance: ObservedInstance | None, assignment: Assignment | None, successor: ObservedInstance | None) -> str | None:
    """Why an instance must not be drained in favour of another, or None. It may execute: draining lets what it has end."""
    if successor is None or successor.state is not InstanceState.READY:
        return "its successor is not ready"
    if instance is None:
        return "its agent does not report"
    if assignment is None or assignment.phase is not Phase.ACTIVE:
        return "it is not an active assignment"
    return None


def plan(record: AssignmentRecord, now_s: float) -> Assignment:
    return Assignment(record, Phase.PLANNED, now_s, now_s)
