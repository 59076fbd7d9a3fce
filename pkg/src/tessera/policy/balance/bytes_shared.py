"""To the node that has most of the model's bytes, held or needed by models whose home it is: the largest models first.

TETRIS (ATC'22) places an instance so, by the union of what is there as Tessera's placement counts it. Only nodes with room are
looked at. Ties: whoever is filled least, then the node's id.
"""

from __future__ import annotations

from collections.abc import Sequence

from tessera.domain.ids import NodeId
from tessera.policy.balance.base import Homes, Model, Node, check
from tessera.policy.balance.filling import Filling, filling_of


class BytesSharedBalancer:
    name = "bytes-shared"

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        check(models, nodes)
        filling = Filling(nodes, models)
        found: dict[str, NodeId] = {}
        for model in sorted(models, key=lambda model: (-sum(blob.size_bytes for blob in model.blobs), model.name)):
            home = _nearest(model, filling)
            filling.put(home, model)
            found[model.name] = home.node_id
        return Homes(found)

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        check((model, *models), nodes)
        return _nearest(model, filling_of(nodes, models, homes.node_of, model)).node_id


def _nearest(model: Model, filling: Filling) -> Node:
    return filling.first_with_room(model, lambda node: (filling.lacked_bytes(node, model), filling.filled(node, model)))
