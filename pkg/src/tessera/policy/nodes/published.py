"""INFaaS's rules for its pool of virtual machines (USENIX ATC'21; figures of its released code for CPUs).

A node is added when (1) every node is busy beyond 80 %, (2) every node has something interfered with, or (3) more than 80 % of the nodes
have something overloaded; then nothing is added for 15 looks. One is removed after 15 looks in a row at which use was low: the least
used node below 5 %, or all together below 30 %, and nothing overloaded or interfered with anywhere. Ties end in the id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.policy.nodes.base import NodeUse, PoolPlan, PoolState

SHARE = 0.8
LOOKS = 15
LEAST_LOW_SHARE = 0.05
MEAN_LOW_SHARE = 0.30


@dataclass(frozen=True, slots=True)
class PublishedNodes:
    """`looks`: how many the pool rests after it grew, and how many in a row must be low before it shrinks."""

    looks: int = LOOKS

    @property
    def name(self) -> str:
        return "published"

    def step(self, state: PoolState, nodes: Sequence[NodeUse]) -> PoolPlan:
        rest = max(0, state.rest - 1)
        if not nodes:
            return PoolPlan(PoolState(rest, 0))
        why = _crowded(nodes)
        if why:
            if rest:
                return PoolPlan(PoolState(rest, 0), reason=f"{why}; {rest} more looks of rest")
            return PoolPlan(PoolState(self.looks, 0), add=True, reason=why)
        why = _low(nodes)
        if not why:
            return PoolPlan(PoolState(rest, 0))
        low = state.low + 1
        if low < self.looks:
            return PoolPlan(PoolState(rest, low))
        # An empty node first, then the least used; the newest of equals.
        free = sorted((node for node in nodes if node.removable), key=lambda node: node.node_id, reverse=True)
        free.sort(key=lambda node: (node.instances, node.cpu_share))
        return PoolPlan(PoolState(rest, 0), remove=tuple(node.node_id for node in free), reason=f"{why} at {low} looks in a row")


@dataclass(frozen=True, slots=True)
class FixedNodes:
    """The nodes are who they are."""

    @property
    def name(self) -> str:
        return "none"

    def step(self, state: PoolState, nodes: Sequence[NodeUse]) -> PoolPlan:
        return PoolPlan(state)


def _crowded(nodes: Sequence[NodeUse]) -> str:
    """Which of the three rules holds, in words; "" for none."""
    count = len(nodes)
    if all(node.cpu_share > SHARE for node in nodes):
        return f"all {count} nodes are busy beyond {SHARE:.0%}"
    if all(node.interfered for node in nodes):
        return f"all {count} nodes have something interfered with"
    overloaded = sum(node.overloaded > 0 for node in nodes)
    return f"{overloaded} of {count} nodes have something overloaded" if overloaded > SHARE * count else ""


def _low(nodes: Sequence[NodeUse]) -> str:
    if any(node.overloaded or node.interfered for node in nodes):
        return ""
    least, mean = min(node.cpu_share for node in nodes), sum(node.cpu_share for node in nodes) / len(nodes)
    if least <= LEAST_LOW_SHARE:
        return f"a node is busy to {least:.0%}"
    return f"nodes are busy to {mean:.0%}" if mean <= MEAN_LOW_SHARE else ""
