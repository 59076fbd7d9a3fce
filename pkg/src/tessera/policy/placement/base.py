"""The interface of placement policies, and the values that they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.ids import NodeId
from tessera.policy.view import Candidate, NodeView


@dataclass(frozen=True, slots=True)
class Placement:
    """What it takes to put a candidate on a node.

    `exact` is False where the candidate's blob list was not known and the bytes were estimated from its record's sizes. `bytes_coming`:
    of those to fetch, what another start is fetching there already. `away_ms`: what it costs that the candidate lives elsewhere; no
    instance that is ready pays it.
    """

    node_id: NodeId
    bytes_present: int
    bytes_to_fetch: int
    load: int
    exact: bool = True
    bytes_coming: int = 0
    away_ms: float = 0.0

    @property
    def bytes_to_wait_for(self) -> float:
        """What is being fetched counts half: nobody knows how much of it is there."""
        return self.bytes_to_fetch - self.bytes_coming / 2


class PlacementPolicy(Protocol):
    """Ranks nodes for one candidate. Feasibility is not its business: `filters.py` refuses, whatever the policy is."""

    @property
    def name(self) -> str: ...

    def rank(self, candidate: Candidate, nodes: Sequence[NodeView]) -> tuple[Placement, ...]:
        """One placement per node, the best first; the order never depends on the order of `nodes`."""
        ...
