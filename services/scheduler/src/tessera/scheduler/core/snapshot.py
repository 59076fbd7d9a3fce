"""The world at one moment, as policies see it: etcd's records joined with the agents' reports. A frozen value."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tessera.domain.ids import InstanceId, NodeId
from tessera.domain.records import NodeRecord
from tessera.policy.view import NodeCondition, NodeView
from tessera.scheduler.core.observed import ObservedNode


def node_views(
    records: Mapping[NodeId, NodeRecord],
    observed: Mapping[NodeId, ObservedNode],
    starting: Mapping[NodeId, int],
    stopping: Collection[InstanceId] = (),
) -> tuple[NodeView, ...]:
    """Every node that has a lease or a live status stream, in the order of ids. Instances that are `stopping` are left out.

    A node with a stream and no lease is suspect; one with a lease and no stream is silent: its last report may be history.
    """
    views = []
    for node_id in sorted({*records, *(found for found, node in observed.items() if node.live)}):
        record, node = records.get(node_id), observed.get(node_id)
        if node is not None and node.live:
            condition = NodeCondition.USABLE if record is not None else NodeCondition.SUSPECT
            views.append(_reported(node_id, node, condition, starting.get(node_id, 0), stopping))
        elif record is not None:
            views.append(_silent(record, starting.get(node_id, 0)))
    return tuple(views)


def _reported(node_id: NodeId, node: ObservedNode, condition: NodeCondition, starting: int, stopping: Collection[InstanceId]) -> NodeView:
    report = node.report
    ends_here = bool(stopping) and any(item.instance_id in stopping for item in node.views)
    return NodeView(
        node_id=node_id,
        build_class=report.build_class,
        profile_class=report.profile_class,
        trust_domain=report.trust_domain,
        flavours=report.flavours,
        digests=node.digests,
        store_budget_bytes=report.store_budget_bytes,
        store_held_bytes=report.store_held_bytes,
        runtimes=report.runtimes,
        instances=tuple(item for item in node.views if item.instance_id not in stopping) if ends_here else node.views,
        starting=starting,
        condition=condition,
        ready=None if ends_here else node.ready,
    )


def _silent(record: NodeRecord, starting: int) -> NodeView:
    return NodeView(
        node_id=record.node_id,
        build_class=record.build_class,
        profile_class=record.profile_class,
        trust_domain=record.trust_domain,
        flavours=record.flavours,
        store_budget_bytes=record.store_budget_bytes,
        starting=starting,
        condition=NodeCondition.SILENT,
    )
