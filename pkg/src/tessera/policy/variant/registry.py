"""Name -> factory. Adding a policy is one file and one entry, or a package with an entry point (docs/checklists/new-policy.md)."""

from __future__ import annotations

from collections.abc import Callable

from tessera.plugins import factory
from tessera.policy.variant.base import VariantPolicy
from tessera.policy.variant.completion import CompletionVariantPolicy
from tessera.policy.variant.infaas import InfaasVariantPolicy
from tessera.policy.variant.infaas_released import InfaasReleasedVariantPolicy
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.policy.variant.static import StaticVariantPolicy

GROUP = "tessera.policies.variant"
POLICIES: dict[str, Callable[[], VariantPolicy]] = {
    "infaas": InfaasVariantPolicy,
    "infaas-released": InfaasReleasedVariantPolicy,
    "plain": PlainVariantPolicy,
    "static": StaticVariantPolicy,
    "tessera": CompletionVariantPolicy,
}


def make(name: str) -> VariantPolicy:
    """Raises: InvalidInput when no policy has this name; it lists those that exist. FailedPrecondition: one of a package that is broken."""
    return factory("variant policy", name, GROUP, POLICIES)()
