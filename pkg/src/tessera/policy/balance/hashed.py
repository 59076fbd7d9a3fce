"""By the model's name alone: rendezvous hashing (Thaler and Ravishankar, 1996). Of a node that goes or comes only its own models move.

It knows neither rooms nor bytes nor demand: what most serverless front ends do.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from tessera.domain.ids import NodeId
from tessera.policy.balance.base import Homes, Model, Node, check


class HashBalancer:
    name = "hash"

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        check(models, nodes)
        return Homes({model.name: _home(model, nodes) for model in models})

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        check((model, *models), nodes)
        return _home(model, nodes)


def hashed(*words: str) -> bytes:
    return blake2b("\0".join(words).encode(), digest_size=8).digest()


def _home(model: Model, nodes: Sequence[Node]) -> NodeId:
    return max((node.node_id for node in nodes), key=lambda node_id: (hashed(node_id, model.name), node_id))
