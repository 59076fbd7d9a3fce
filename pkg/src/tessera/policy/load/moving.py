"""Where the load of an interfered instance shall go: its variant on the least busy other node, else another variant of its model there.

INFaaS (USENIX ATC'21) looks for idle hardware on the same worker first. Cores are all the hardware that an instance here has, and its
neighbours share them, so that the search begins with other nodes. Overload is no reason to move: the autoscaler adds to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tessera.domain.ids import InstanceId, NodeId, VariantKey
from tessera.domain.instance import InstanceState
from tessera.policy.placement.bytes_present import place
from tessera.policy.placement.filters import refusal
from tessera.policy.view import Candidate, InstanceView, NodeView


@dataclass(frozen=True, slots=True)
class Interfered:
    """`candidates`: what may serve instead of it, its own variant first."""

    node_id: NodeId
    instance: InstanceView
    candidates: tuple[Candidate, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class MoveProposal:
    """Start `variant` on `target`, then end the instance."""

    node_id: NodeId
    instance_id: InstanceId
    variant: VariantKey
    target: NodeId
    reason: str


def propose_moves(
    interfered: Sequence[Interfered], nodes: Sequence[NodeView], troubled: Collection[NodeId] = ()
) -> tuple[MoveProposal, ...]:
    """One proposal at most for each, in the order of ids. A target gets one at a time, so that the load of a node does not fall on one
    other node at once. None for an instance whose variant has another one that is ready and not interfered: requests go there already.

    `troubled`: further nodes that have something interfered with, and take nothing.
    """
    closed = {*troubled, *(item.node_id for item in interfered)}
    names = {item.instance.instance_id for item in interfered}
    served = {one.variant for node in nodes for one in node.instances if one.state is InstanceState.READY and one.instance_id not in names}
    taken: set[NodeId] = set()
    moves: list[MoveProposal] = []
    for item in sorted(interfered, key=lambda found: found.instance.instance_id):
        if item.instance.variant in served:
            continue
        move = _move(item, [node for node in nodes if node.node_id not in closed | taken])
        if move is not None:
            taken.add(move.target)
            served.add(move.variant)
            moves.append(move)
    return tuple(moves)


def _move(item: Interfered, nodes: Sequence[NodeView]) -> MoveProposal | None:
    for candidate in item.candidates:
        open_nodes = [
            (node.cpu_share, placement.bytes_to_fetch, node.node_id)
            for node in nodes
            if refusal(candidate, node, placement := place(candidate, node)) is None
        ]
        if open_nodes:
            share, _, target = min(open_nodes)
            words = f"{item.reason}; {target} is busy to {share:.0%}"
            return MoveProposal(item.node_id, item.instance.instance_id, candidate.key, target, words)
    return None
