"""The interface of node policies: one step per look at all nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import NodeId


@dataclass(frozen=True, slots=True)
class NodeUse:
    """A node that reports. `cpu_share`: of its cores, what its runtimes use, 0 to 1. `removable`: the provider made it.

    `overloaded`, `interfered`: instances in that load state, of `instances`.
    """

    node_id: NodeId
    cpu_share: float
    instances: int = 0
    overloaded: int = 0
    interfered: int = 0
    removable: bool = False


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a policy remembers from one look to the next. `rest`: looks until it may add again. `low`: looks in a row at which one node less
    would do."""

    rest: int = 0
    low: int = 0


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """`add`: one more node. `remove`: these may leave, the best first; the mechanism takes one."""

    state: PoolState
    add: bool = False
    remove: tuple[NodeId, ...] = ()
    reason: str = ""


class NodePolicy(Protocol):
    @property
    def name(self) -> str: ...

    def step(self, state: PoolState, nodes: Sequence[NodeUse]) -> PoolPlan:
        """Never adds and removes at once, and removes removable nodes alone. Does not depend on the order of the nodes."""
        ...
