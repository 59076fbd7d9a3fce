"""The interface of keep-alive policies: they propose stops, the scheduler's mechanism vets each one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import InstanceId, NodeId, VariantKey
from tessera.domain.instance import InstanceState
from tessera.policy.scaling.gaps import GapHistogram
from tessera.policy.view import NodeView

DEFAULT_KEEP_ALIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class StopProposal:
    """An instance that may end, and why."""

    node_id: NodeId
    instance_id: InstanceId
    reason: str


@dataclass(frozen=True, slots=True)
class Window:
    """How long an idle instance stays, and where the figure comes from."""

    keep_alive_s: float
    reason: str = ""


class KeepAlivePolicy(Protocol):
    @property
    def name(self) -> str: ...

    def window(self, gaps: GapHistogram) -> Window:
        """For a variant whose uses lie apart like this."""
        ...

    def propose(self, nodes: Sequence[NodeView], gaps: Mapping[VariantKey, GapHistogram]) -> tuple[StopProposal, ...]:
        """Proposals in an order that does not depend on the order of the nodes. Only ready instances are proposed; a variant that
        `gaps` does not have was never seen to be used again."""
        ...


def idle_beyond(nodes: Sequence[NodeView], window_of: Callable[[VariantKey], Window]) -> tuple[StopProposal, ...]:
    """Ready instances that are idle longer than their variant's window, the longest idle one first; exactly the window still stays."""
    idle = [
        (item.idle_s, node.node_id, item.instance_id, window)
        for node in nodes
        for item in node.instances
        if item.state is InstanceState.READY and item.idle_s > (window := window_of(item.variant)).keep_alive_s
    ]
    idle.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return tuple(
        StopProposal(node_id, instance_id, f"idle for {idle_s:.0f} s, keep-alive is {window.keep_alive_s:.0f} s{window.reason}")
        for idle_s, node_id, instance_id, window in idle
    )
