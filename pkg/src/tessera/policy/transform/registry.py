"""Name -> factory. Adding a planner is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.base import Planner
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.munkres import MunkresPlanner

GROUP = "tessera.policies.transform"
PLANNERS: dict[str, Callable[[], Planner]] = {"group": GroupPlanner, "munkres": MunkresPlanner, "tessera": AlignedPlanner}


def make(name: str) -> Planner:
    """Raises: InvalidInput when no planner has this name; it lists those that exist. FailedPrecondition: one of a broken package."""
    return factory("planner", name, GROUP, PLANNERS)()
