"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.pool.base import PoolPolicy
from tessera.policy.pool.constant import ConstantPool
from tessera.policy.pool.poisson import PoissonPool

POLICIES: dict[str, Callable[[int], PoolPolicy]] = {"constant": lambda memory_bytes: ConstantPool(), "poisson": PoissonPool}


def make(name: str, memory_bytes: int) -> PoolPolicy:
    """`memory_bytes` is what a policy that follows demand may take.

    Raises: InvalidInput when no policy has this name; it lists those that exist.
    """
    if name not in POLICIES:
        raise InvalidInput("pool policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](memory_bytes)
