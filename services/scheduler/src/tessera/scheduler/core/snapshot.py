"""The world at one moment, as policies see it: etcd's records joined with the agents' reports. A frozen value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tessera.domain.ids import Digest, InstanceId, NodeId, TrustDomain
from tessera.domain.records import NodeRecord
from tessera.policy.view import NodeCondition, NodeView, StoreView
from tessera.scheduler.core.observed import ObservedNode

NodeRecords = Mapping[NodeId, tuple[NodeRecord, ...]]
"""Of each node at least one record: one for each trust domain that it serves."""


def node_views(
    records: NodeRecords,
    observed: Mapping[NodeId, ObservedNode],
    starting: Mapping[NodeId, int],
    stopping: Collection[InstanceId] = (),
) -> tuple[NodeView, ...]:
    """Every node that has a lease or a live status stream, in the order of ids. Instances that are `stopping` are left out.

    A node with a stream and no lease is suspect; one with a lease and no stream is silent: its last report may be history.
    """
    views = []
    for node_id in sorted({*records, *(found for found, node in observed.items() if node.live)}):
        found, node = records.get(node_id), observed.get(node_id)
        if node is not None and node.live:
            condition = NodeCondition.USABLE if found is not None else NodeCondition.SUSPECT
            views.append(_reported(node_id, node, condition, starting.get(node_id, 0), stopping))
        elif found is not None:
            views.append(_silent(found, starting.get(node_id, 0)))
    return tuple(views)


def with_coming(views: Sequence[NodeView], coming: Mapping[tuple[NodeId, TrustDomain], Collection[Digest]]) -> tuple[NodeView, ...]:
    """`coming`: digests that somebody is fetching into a node's store."""
    fetching = {node_id for node_id, _ in coming}
    return tuple(_fetching(node, coming) if node.node_id in fetching else node for node in views)


def _fetching(node: NodeView, coming: Mapping[tuple[NodeId, TrustDomain], Collection[Digest]]) -> NodeView:
    stores = {
        domain: replace(store, coming=frozenset(coming.get((node.node_id, domain), ())) - store.digests)
        for domain, store in node.stores.items()
    }
    return replace(node, stores=stores)


def _reported(node_id: NodeId, node: ObservedNode, condition: NodeCondition, starting: int, stopping: Collection[InstanceId]) -> NodeView:
    report = node.report
    ends_here = bool(stopping) and any(item.instance_id in stopping for item in node.views)
    return NodeView(
        node_id=node_id,
        build_class=report.build_class,
        profile_class=report.profile_class,
        stores=node.stores,
        flavours=report.flavours,
        runtimes=report.runtimes,
        instances=tuple(item for item in node.views if item.instance_id not in stopping) if ends_here else node.views,
        starting=starting,
        condition=condition,
        ready=None if ends_here else node.ready,
        new_runtime=report.new_runtime,
        cpu_count=report.cpu_count,
        cpu_cores=report.cpu_cores,
    )


def _silent(records: tuple[NodeRecord, ...], starting: int) -> NodeView:
    record = records[0]
    return NodeView(
        node_id=record.node_id,
        build_class=record.build_class,
        profile_class=record.profile_class,
        stores={each.trust_domain: StoreView(each.store_budget_bytes) for each in records},
        flavours=record.flavours,
        starting=starting,
        condition=NodeCondition.SILENT,
        cpu_count=record.cpu_count,
    )
