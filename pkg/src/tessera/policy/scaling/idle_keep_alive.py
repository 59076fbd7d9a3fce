"""An instance ends when it has been idle longer than the keep-alive window, the longest idle one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.domain.instance import InstanceState
from tessera.policy.scaling.base import StopProposal
from tessera.policy.view import NodeView

DEFAULT_KEEP_ALIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class IdleKeepAlive:
    """`keep_alive_s` 0 keeps nothing; an instance idle for exactly the window still stays."""

    keep_alive_s: float = DEFAULT_KEEP_ALIVE_S

    @property
    def name(self) -> str:
        return "idle-keep-alive"

    def propose(self, nodes: Sequence[NodeView]) -> tuple[StopProposal, ...]:
        idle = [
            (item.idle_s, node.node_id, item.instance_id)
            for node in nodes
            for item in node.instances
            if item.state is InstanceState.READY and item.idle_s > self.keep_alive_s
        ]
        idle.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
        return tuple(
            StopProposal(node_id, instance_id, f"idle for {idle_s:.0f} s, keep-alive is {self.keep_alive_s:.0f} s")
            for idle_s, node_id, instance_id in idle
        )
