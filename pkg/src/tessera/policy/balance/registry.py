"""Name -> factory. Adding a balancer is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.balance.base import Balancer
from tessera.policy.balance.bytes_shared import BytesSharedBalancer
from tessera.policy.balance.hashed import HashBalancer
from tessera.policy.balance.k_medoids import Edits, KMedoidsBalancer
from tessera.policy.balance.least_loaded import LeastLoadedBalancer
from tessera.policy.transform.medoids import library


def _k_medoids(edits: Edits) -> Balancer:
    library()
    return KMedoidsBalancer(edits)


GROUP = "tessera.policies.balance"
BALANCERS: dict[str, Callable[[Edits], Balancer]] = {
    "hash": lambda edits: HashBalancer(),
    "least-loaded": lambda edits: LeastLoadedBalancer(),
    "bytes-shared": lambda edits: BytesSharedBalancer(),
    "k-medoids": _k_medoids,
}


def make(name: str, edits: Edits) -> Balancer:
    """Raises: InvalidInput when no balancer has this name; it lists those that exist. FailedPrecondition: one of a broken package, or one
    that needs a library which is not installed."""
    return factory("balancer", name, GROUP, BALANCERS)(edits)
