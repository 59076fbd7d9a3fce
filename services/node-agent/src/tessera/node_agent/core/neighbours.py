"""Other nodes, of which nobody said what their stores have."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.domain.ids import NodeId
from tessera.domain.records import NodeRecord
from tessera.domain.source import Source


def neighbours_of(own: NodeId, nodes: Iterable[NodeRecord]) -> tuple[Source, ...]:
    """All but this one that give blobs, by name, beginning behind its own: nodes that look for the same blob at the same time do not all
    turn to the same one."""
    others = sorted((node.node_id, node.peer_address) for node in nodes if node.node_id != own and node.peer_address)
    ring = [each for each in others if each[0] > own] + [each for each in others if each[0] < own]
    return tuple(Source(node_id, address) for node_id, address in ring)
