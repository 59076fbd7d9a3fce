"""Desired against observed: what the records in etcd want, what is here, what follows.

Level-triggered: every pass decides from everything. A provisional assignment (told by RPC, its record still on the way) is neither
reaped before its expiry nor does a missing record mean 'stop' before then. While etcd is away (`desired` None) everything is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tessera.domain.ids import Generation, InstanceId, RuntimeId
from tessera.domain.instance import InstanceState
from tessera.domain.records import AssignmentRecord
from tessera.node_agent.core.runtimes import RuntimeLimits, RuntimeView, plan_pool
from tessera.node_agent.core.table import Instance
from tessera.policy.pool.base import PoolDemand


@dataclass(frozen=True, slots=True)
class StartAssigned:
    assignment: AssignmentRecord


@dataclass(frozen=True, slots=True)
class StopInstance:
    instance_id: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Instructions, in the order in which they are carried out."""

    confirm: tuple[InstanceId, ...] = ()
    """A record stands behind these now; they are no longer provisional."""
    stop: tuple[StopInstance, ...] = ()
    start: tuple[StartAssigned, ...] = ()
    forget: tuple[InstanceId, ...] = ()
    fork: tuple[str, ...] = ()
    retire: tuple[RuntimeId, ...] = ()
    refused: tuple[str, ...] = ()
    """Assignments that cannot be carried out, in words."""


@dataclass(frozen=True, slots=True)
class Observed:
    """`forking`: warm runtimes on their way, by flavour. `starting`: starts in flight; the pool is not refilled beside them. `demands`:
    what is asked of the pools."""

    instances: tuple[Instance, ...]
    runtimes: tuple[RuntimeView, ...]
    forking: Mapping[str, int]
    starting: int = 0
    demands: tuple[PoolDemand, ...] = ()


def reconcile(
    desired: Mapping[InstanceId, AssignmentRecord] | None,
    observed: Observed,
    flavours: Iterable[str],
    limits: RuntimeLimits,
    tombstone_s: float,
    now_s: float,
) -> Plan:
    """One pass. `desired` None: the records cannot be read. A terminal instance is remembered for `tombstone_s` and as long as its
    assignment stands, so that the same generation is never loaded twice."""
    pool = plan_pool(observed.runtimes, observed.forking, flavours, limits, now_s, observed.demands)
    fork = pool.fork if observed.starting == 0 else ()
    if desired is None:
        return Plan(fork=fork, retire=pool.retire)
    confirm: list[InstanceId] = []
    stop: list[StopInstance] = []
    forget: list[InstanceId] = []
    for instance in observed.instances:
        record = desired.get(instance.instance_id)
        if not instance.alive:
            if record is None and now_s - instance.since_s >= tombstone_s:
                forget.append(instance.instance_id)
        elif record is None:
            reason = _reason_to_stop(instance, now_s)
            if reason:
                stop.append(StopInstance(instance.instance_id, reason))
        elif record.generation != instance.generation:
            if instance.state is not InstanceState.DRAINING:
                words = f"its record names generation {record.generation:016x}, it is {instance.generation:016x}"
                stop.append(StopInstance(instance.instance_id, words))
        elif instance.provisional:
            confirm.append(instance.instance_id)
    start, refused = _starts(desired, observed.instances)
    return Plan(tuple(confirm), tuple(stop), start, tuple(forget), fork, pool.retire, refused)


def _reason_to_stop(instance: Instance, now_s: float) -> str:
    if instance.state is InstanceState.DRAINING:
        return ""
    if instance.expires_at_s is None:
        return "its assignment was removed"
    if now_s < instance.expires_at_s:
        return ""
    return "its provisional assignment expired without a record"


def _starts(
    desired: Mapping[InstanceId, AssignmentRecord], instances: tuple[Instance, ...]
) -> tuple[tuple[StartAssigned, ...], tuple[str, ...]]:
    known = {instance.instance_id for instance in instances}
    holders: dict[Generation, InstanceId] = {instance.generation: instance.instance_id for instance in instances}
    start: list[StartAssigned] = []
    refused: list[str] = []
    for instance_id, record in sorted(desired.items()):
        if instance_id in known:
            continue
        holder = holders.setdefault(record.generation, instance_id)
        if holder == instance_id:
            start.append(StartAssigned(record))
        else:
            refused.append(f"assignment {instance_id}: generation {record.generation:016x} belongs to {holder}")
    return tuple(start), tuple(refused)
