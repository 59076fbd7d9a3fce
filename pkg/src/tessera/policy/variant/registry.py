"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.variant.base import VariantPolicy
from tessera.policy.variant.plain import PlainVariantPolicy

POLICIES: dict[str, Callable[[], VariantPolicy]] = {"plain": PlainVariantPolicy}


def make(name: str) -> VariantPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist."""
    if name not in POLICIES:
        raise InvalidInput("variant policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
