"""The interface of keep-alive policies: they propose stops, the scheduler's mechanism vets each one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import InstanceId, NodeId
from tessera.policy.view import NodeView


@dataclass(frozen=True, slots=True)
class StopProposal:
    """An instance that may end, and why."""

    node_id: NodeId
    instance_id: InstanceId
    reason: str


class KeepAlivePolicy(Protocol):
    @property
    def name(self) -> str: ...

    def propose(self, nodes: Sequence[NodeView]) -> tuple[StopProposal, ...]:
        """Proposals in an order that does not depend on the order of the nodes. Only ready instances are proposed."""
        ...
