"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.load.base import LoadPolicy
from tessera.policy.load.published import PublishedLoad, ReleasedLoad

GROUP = "tessera.policies.load"
POLICIES: dict[str, Callable[[], LoadPolicy]] = {"published": PublishedLoad, "released": ReleasedLoad}


def make(name: str) -> LoadPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("load policy", name, GROUP, POLICIES)()
