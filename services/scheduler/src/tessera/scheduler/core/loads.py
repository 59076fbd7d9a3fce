"""Load states from the agents' reports (docs/states/load.md): one step of the policy per report of an instance, and what etcd must say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from tessera.domain.ids import InstanceId, NodeId, VariantKey
from tessera.domain.instance import InstanceState
from tessera.domain.records import LoadRecord, LoadState
from tessera.policy.load.base import Expected, Load, LoadPolicy, Observation
from tessera.scheduler.core.observed import ObservedInstance, ObservedNode

LEAST_INTERVAL_S = 0.5
"""Reports that follow each other faster say what instances there are; their figures are those of the last interval still."""

ADOPTED_VOTES = 2

ExpectedOf = Callable[[VariantKey, NodeId], Expected | None]
"""What the profile of the node's class says. Raises: KeyError where the node has no record, so that nothing is known of it."""


def judge(
    known: Mapping[InstanceId, Load],
    nodes: Iterable[ObservedNode],
    recorded: Mapping[InstanceId, LoadRecord],
    policy: LoadPolicy,
    expected_of: ExpectedOf,
) -> dict[InstanceId, Load]:
    """The load of every ready instance, after what was reported since. A node that does not report, or has no record, proves nothing."""
    loads: dict[InstanceId, Load] = {}
    for node in nodes:
        ready = [item for item in node.instances if item.state is InstanceState.READY]
        replicas = Counter(item.variant for item in ready)
        for item in ready:
            before = known.get(item.instance_id) or _adopted(recorded.get(item.instance_id), item, node.reported_at_s)
            seen = observation(item, replicas[item.variant])
            if not node.live or (before is not None and not _news(before, seen, node.reported_at_s)):
                if before is not None:
                    loads[item.instance_id] = before
                continue
            try:
                expected = expected_of(item.variant, item.node_id)
            except KeyError:
                if before is not None:
                    loads[item.instance_id] = before
                continue
            loads[item.instance_id] = policy.step(before, seen, expected, node.reported_at_s)
    return loads


def observation(item: ObservedInstance, replicas: int) -> Observation:
    return Observation(item.served, item.in_flight, item.requests_per_s, item.items_per_s, item.run_ms, item.run_items, replicas)


def _news(before: Load, seen: Observation, reported_at_s: float) -> bool:
    """Whether the report says anything new: figures that are equal to the last digit were measured once."""
    return reported_at_s - before.at_s >= LEAST_INTERVAL_S and not (seen == before.seen and seen.run_ms > 0)


def _adopted(record: LoadRecord | None, item: ObservedInstance, at_s: float) -> Load | None:
    """What an earlier leader said of it goes on until reports say otherwise."""
    if record is None:
        return None
    over, slow = (ADOPTED_VOTES if record.state is state else 0 for state in (LoadState.OVERLOADED, LoadState.INTERFERED))
    return Load(record.state, at_s, at_s - LEAST_INTERVAL_S, observation(item, 1), record.reason, over, slow, at_s)


def differences(
    loads: Mapping[InstanceId, Load],
    nodes: Iterable[ObservedNode],
    leased: Collection[NodeId],
    recorded: Mapping[InstanceId, LoadRecord],
    unix_s: float,
) -> tuple[list[LoadRecord], list[LoadRecord]]:
    """(records to put, records to delete): an instance that is active, or gone, has none; a reason that changed alone is not written.

    Nothing is deleted for a node that has a lease and does not report: a new leader has not heard of anybody yet.
    """
    wanted: dict[InstanceId, LoadRecord] = {}
    found = list(nodes)
    silent = set(leased) - {node.report.node_id for node in found if node.live}
    for item in (item for node in found for item in node.instances):
        load = loads.get(item.instance_id)
        if load is not None and load.flagged:
            wanted[item.instance_id] = LoadRecord(item.instance_id, item.node_id, item.variant, load.state, unix_s, load.reason)
    put = [record for name, record in sorted(wanted.items()) if name not in recorded or recorded[name].state is not record.state]
    return put, [record for name, record in sorted(recorded.items()) if name not in wanted and record.node_id not in silent]
