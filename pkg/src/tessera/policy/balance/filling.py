"""What nodes get while models are given homes: each digest counts once on a node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from tessera.domain.ids import Digest, NodeId
from tessera.policy.balance.base import Model, Node

SPARE = 1.05
"""Of a node's share, where rooms are too small for everything: so that the last models need not go wherever a gap is. Ours, assumed."""


class Filling:
    def __init__(self, nodes: Sequence[Node], models: Iterable[Model]) -> None:
        """`models`: all that will ever be put, for the size of a share."""
        self.nodes = sorted(nodes, key=lambda node: node.node_id)
        distinct = {blob.digest: blob.size_bytes for model in models for blob in model.blobs}
        room = sum(node.room_bytes for node in nodes)
        scale = max(1.0, SPARE * sum(distinct.values()) / room) if room else 1.0
        self._limits = {node.node_id: node.room_bytes * scale for node in nodes}
        self._put: dict[NodeId, set[Digest]] = {node.node_id: set() for node in nodes}
        self._bytes = dict.fromkeys(self._put, 0)

    def put(self, node: Node, model: Model) -> None:
        self._bytes[node.node_id] = self._after(node, model)
        self._put[node.node_id].update(blob.digest for blob in model.blobs)

    def lacked_bytes(self, node: Node, model: Model) -> int:
        """Of the model's, those that the node neither holds nor gets for another one."""
        return _bytes(model, self._put[node.node_id], node.digests)

    def first_with_room(self, model: Model, order: Callable[[Node], Any]) -> Node:
        """The first node in this order (ties by id) that has room for it; where none has, the one that is filled least then."""
        for node in sorted(self.nodes, key=order):
            if self._after(node, model) <= self._limits[node.node_id]:
                return node
        return min(self.nodes, key=lambda node: self.filled(node, model))

    def filled(self, node: Node, model: Model) -> float:
        """Its bytes with this model over its room."""
        return self._after(node, model) / max(1, node.room_bytes)

    def _after(self, node: Node, model: Model) -> int:
        return self._bytes[node.node_id] + _bytes(model, self._put[node.node_id])


def _bytes(model: Model, *without: Set[Digest]) -> int:
    """Each digest once, but for those in any of the sets."""
    return sum({blob.digest: blob.size_bytes for blob in model.blobs if not any(blob.digest in some for some in without)}.values())


def filling_of(nodes: Sequence[Node], models: Sequence[Model], homes: Mapping[str, NodeId], new: Model) -> Filling:
    """As it is when `models` have their homes and `new` comes. A model whose home is gone is nowhere."""
    found = Filling(nodes, (*models, new))
    by_id = {node.node_id: node for node in nodes}
    for model in models:
        home = by_id.get(homes.get(model.name, NodeId("")))
        if home is not None:
            found.put(home, model)
    return found
