"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.pool.base import PoolPolicy
from tessera.policy.pool.constant import ConstantPool
from tessera.policy.pool.poisson import PoissonPool

GROUP = "tessera.policies.pool"
POLICIES: dict[str, Callable[[int], PoolPolicy]] = {"constant": lambda memory_bytes: ConstantPool(), "poisson": PoissonPool}


def make(name: str, memory_bytes: int) -> PoolPolicy:
    """`memory_bytes` is what a policy that follows demand may take.

    Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken.
    """
    return factory("pool policy", name, GROUP, POLICIES)(memory_bytes)
