"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.scaling.base import KeepAlivePolicy
from tessera.policy.scaling.fixed import FixedKeepAlive
from tessera.policy.scaling.histogram import HistogramKeepAlive

GROUP = "tessera.policies.scaling"
POLICIES: dict[str, Callable[[float], KeepAlivePolicy]] = {"fixed": FixedKeepAlive, "histogram": HistogramKeepAlive}


def make(name: str, keep_alive_s: float) -> KeepAlivePolicy:
    """`keep_alive_s` is the fixed window, also where another policy has nothing better.

    Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken.
    """
    return factory("keep-alive policy", name, GROUP, POLICIES)(keep_alive_s)
