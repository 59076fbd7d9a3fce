"""Placement by homes: where a balancer says that the candidate lives, then wherever another policy puts it.

A home is a wish: it loses to a node where the start is ready that much sooner, and to any where it refuses. Whoever has no home yet, or one
that is not among the nodes, is placed by the other policy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tessera.domain.ids import NodeId, VariantKey
from tessera.policy.placement.base import Placement, PlacementPolicy
from tessera.policy.view import Candidate, NodeView

ASSUMED_AWAY_MS = 1000.0
"""How much sooner a start must be ready elsewhere. As much as a place in the gateway's order counts: the instance serves long after."""


@dataclass(frozen=True, slots=True)
class HomesPlacement:
    others: PlacementPolicy
    home: Callable[[VariantKey], NodeId | None]
    away_ms: float = ASSUMED_AWAY_MS

    @property
    def name(self) -> str:
        return f"homes({self.others.name})"

    def rank(self, candidate: Candidate, nodes: Sequence[NodeView]) -> tuple[Placement, ...]:
        found = self.others.rank(candidate, nodes)
        home = self.home(candidate.key)
        there = tuple(each for each in found if each.node_id == home)
        return (*there, *(replace(each, away_ms=self.away_ms) for each in found if each.node_id != home)) if there else found
