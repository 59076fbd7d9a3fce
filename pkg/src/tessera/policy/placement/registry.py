"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.placement.base import PlacementPolicy
from tessera.policy.placement.bytes_present import BytesPresentPlacement

GROUP = "tessera.policies.placement"
POLICIES: dict[str, Callable[[], PlacementPolicy]] = {"bytes-present": BytesPresentPlacement}


def make(name: str) -> PlacementPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("placement policy", name, GROUP, POLICIES)()
