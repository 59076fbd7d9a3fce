"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.placement.base import PlacementPolicy
from tessera.policy.start.base import StartPolicy
from tessera.policy.start.cheapest import CheapestStart
from tessera.policy.start.costs import CostModel

POLICIES: dict[str, Callable[[PlacementPolicy, CostModel], StartPolicy]] = {"cheapest": CheapestStart}


def make(name: str, placement: PlacementPolicy, costs: CostModel) -> StartPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist."""
    if name not in POLICIES:
        raise InvalidInput("start policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](placement, costs)
