"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.placement.base import PlacementPolicy
from tessera.policy.start.base import StartPolicy
from tessera.policy.start.cheapest import CheapestStart
from tessera.policy.start.costs import CostModel

GROUP = "tessera.policies.start"
POLICIES: dict[str, Callable[[PlacementPolicy, CostModel], StartPolicy]] = {"cheapest": CheapestStart}


def make(name: str, placement: PlacementPolicy, costs: CostModel) -> StartPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("start policy", name, GROUP, POLICIES)(placement, costs)
