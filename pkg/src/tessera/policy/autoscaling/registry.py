"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.autoscaling.base import AutoscalingPolicy
from tessera.policy.autoscaling.cheapest import CheapestAutoscaling
from tessera.policy.autoscaling.ilp import IlpAutoscaling
from tessera.policy.autoscaling.infaas import InfaasAutoscaling
from tessera.policy.autoscaling.none import NoAutoscaling

GROUP = "tessera.policies.autoscaling"
POLICIES: dict[str, Callable[[], AutoscalingPolicy]] = {
    "none": NoAutoscaling,
    "infaas": InfaasAutoscaling,
    "ilp": IlpAutoscaling,
    "tessera": CheapestAutoscaling,
}


def make(name: str) -> AutoscalingPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("autoscaling policy", name, GROUP, POLICIES)()
