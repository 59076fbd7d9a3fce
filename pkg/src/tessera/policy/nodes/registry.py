"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.nodes.base import NodePolicy
from tessera.policy.nodes.published import FixedNodes, PublishedNodes

GROUP = "tessera.policies.nodes"
POLICIES: dict[str, Callable[[], NodePolicy]] = {"none": FixedNodes, "published": PublishedNodes}


def make(name: str) -> NodePolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("node policy", name, GROUP, POLICIES)()
