"""The interface of balancers, and the values that they take and return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import Digest, NodeId


@dataclass(frozen=True, slots=True)
class Model:
    """`demand`: calls per slot, the oldest first, of the same slots for all models."""

    name: str
    graph: Digest
    blobs: tuple[Blob, ...]
    demand: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """`room_bytes`: what its models may take. `digests`: what it holds now."""

    node_id: NodeId
    room_bytes: int
    digests: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True)
class Homes:
    """`node_of`: every model's home, by its name. `medoids`: who stands for a node's models, where the balancer has such."""

    node_of: Mapping[str, NodeId]
    medoids: Mapping[NodeId, str] = field(default_factory=dict)


class Balancer(Protocol):
    """A home is a wish. Where the rooms together are too small for all models, a node's share of all bytes counts as its room: what fits
    into memory at a time is the stores' business."""

    @property
    def name(self) -> str: ...

    def assign(self, models: Sequence[Model], nodes: Sequence[Node]) -> Homes:
        """A home for each model; the order of neither matters. Raises: InvalidInput, as `check`."""
        ...

    def add(self, model: Model, models: Sequence[Model], nodes: Sequence[Node], homes: Homes) -> NodeId:
        """A home for one more; nobody else moves. `models`: those that have homes. Raises: InvalidInput, as `check`."""
        ...


def check(models: Sequence[Model], nodes: Sequence[Node]) -> None:
    """Raises: InvalidInput: there is no node, two models or nodes have one name, or histories differ in length."""
    if not nodes:
        raise InvalidInput("nodes", 0, "at least 1")
    _named_once("models", [model.name for model in models])
    _named_once("nodes", [node.node_id for node in nodes])
    slots = {len(model.demand) for model in models}
    if len(slots) > 1:
        odd = next(model for model in models if len(model.demand) != len(models[0].demand))
        raise InvalidInput(f"demand of {odd.name}", len(odd.demand), f"as many slots as that of {models[0].name}: {len(models[0].demand)}")


def _named_once(field_name: str, names: Sequence[str]) -> None:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise InvalidInput(field_name, name, "named once each")
