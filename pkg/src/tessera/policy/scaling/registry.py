"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.scaling.base import KeepAlivePolicy
from tessera.policy.scaling.fixed import FixedKeepAlive
from tessera.policy.scaling.histogram import HistogramKeepAlive

POLICIES: dict[str, Callable[[float], KeepAlivePolicy]] = {"fixed": FixedKeepAlive, "histogram": HistogramKeepAlive}


def make(name: str, keep_alive_s: float) -> KeepAlivePolicy:
    """`keep_alive_s` is the fixed window, also where another policy has nothing better.

    Raises: InvalidInput when no policy has this name; it lists those that exist.
    """
    if name not in POLICIES:
        raise InvalidInput("keep-alive policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](keep_alive_s)
