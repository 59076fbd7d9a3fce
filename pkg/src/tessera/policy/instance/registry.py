"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.instance.base import Draw, InstancePolicy
from tessera.policy.instance.bin_packing import BinPacking
from tessera.policy.instance.least_in_flight import LeastInFlight
from tessera.policy.instance.two_choices import TwoChoices

GROUP = "tessera.policies.instance"
POLICIES: dict[str, Callable[[Draw], InstancePolicy]] = {
    "bin-packing": lambda draw: BinPacking(),
    "least-in-flight": lambda draw: LeastInFlight(),
    "two-choices": TwoChoices,
}


def make(name: str, draw: Draw) -> InstancePolicy:
    """`draw` is for a policy that chooses at random.

    Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken.
    """
    return factory("instance policy", name, GROUP, POLICIES)(draw)
