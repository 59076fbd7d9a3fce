"""To the node with the fewest calls, among those with room: the busiest models first. Ties end in the node's id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tessera.domain.ids import NodeId
from tessera.policy.balance.base import Homes, Model, Node, check
from tessera.policy.balance.filling import Filling, filling_of


class LeastLoadedBalancer:
    name = "least-loaded"

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        check(models, nodes)
        filling, calls = Filling(nodes, models), Counter[NodeId]()
        found: dict[str, NodeId] = {}
        for model in sorted(models, key=lambda model: (-sum(model.demand), model.name)):
            home = _least(model, filling, calls)
            filling.put(home, model)
            calls[home.node_id] += sum(model.demand)
            found[model.name] = home.node_id
        return Homes(found)

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        check((model, *models), nodes)
        calls = Counter[NodeId]()
        for other in models:
            calls[homes.node_of.get(other.name, NodeId(""))] += sum(other.demand)
        return _least(model, filling_of(nodes, models, homes.node_of, model), calls).node_id


def _least(model: Model, filling: Filling, calls: Counter[NodeId]) -> Node:
    return filling.first_with_room(model, lambda node: calls[node.node_id])
