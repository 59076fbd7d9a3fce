"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.placement.base import PlacementPolicy
from tessera.policy.placement.bytes_present import BytesPresentPlacement

POLICIES: dict[str, Callable[[], PlacementPolicy]] = {"bytes-present": BytesPresentPlacement}


def make(name: str) -> PlacementPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist."""
    if name not in POLICIES:
        raise InvalidInput("placement policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
