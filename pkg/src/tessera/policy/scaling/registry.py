"""Name -> factory. Adding a policy is one file and one entry (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.domain.errors import InvalidInput
from tessera.policy.scaling.base import KeepAlivePolicy
from tessera.policy.scaling.idle_keep_alive import IdleKeepAlive

POLICIES: dict[str, Callable[[float], KeepAlivePolicy]] = {"idle-keep-alive": IdleKeepAlive}


def make(name: str, keep_alive_s: float) -> KeepAlivePolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist."""
    if name not in POLICIES:
        raise InvalidInput("keep-alive policy", name, f"one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](keep_alive_s)
