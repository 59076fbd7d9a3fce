"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.reclaim.base import ReclaimPolicy
from tessera.policy.reclaim.keep_alive import KeepAliveReclaimPolicy
from tessera.policy.reclaim.lru import LruReclaimPolicy
from tessera.policy.reclaim.shared_cost import SharedCostReclaimPolicy

GROUP = "tessera.policies.reclaim"
POLICIES: dict[str, Callable[[float], ReclaimPolicy]] = {
    "keep-alive": KeepAliveReclaimPolicy,
    "lru": lambda keep_alive_s: LruReclaimPolicy(),
    "shared-cost": lambda keep_alive_s: SharedCostReclaimPolicy(),
}


def make(name: str, keep_alive_s: float) -> ReclaimPolicy:
    """`keep_alive_s` is the window of a policy that has one.

    Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken.
    """
    return factory("reclaim policy", name, GROUP, POLICIES)(keep_alive_s)
