"""INFaaS, Algorithm 1 (ATC'21): active variants that meet the requirements first, then inactive ones, then the closest.

1. An active variant that meets accuracy, cost and latency (its profiled latency at batch 1), on its least loaded instance. Active in the
paper's sense: neither overloaded nor interfered with. Where several do, the paper does not say which: the fastest here.
2. Of the inactive ones that meet them, the one with the least load and inference latency together.
3. Those that are overloaded or interfered with, which the paper leaves to its autoscaler. 4. The closest, as a suggestion.
"""

from __future__ import annotations

from tessera.policy.instance.base import InstancePolicy
from tessera.policy.instance.least_in_flight import LeastInFlight
from tessera.policy.variant.base import Choice, Ranking
from tessera.policy.variant.plain import PlainVariantPolicy

_LEAST_LOADED = LeastInFlight()


class InfaasVariantPolicy(PlainVariantPolicy):
    name = "infaas"

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        return super().choose(ranking, latency_ms, _LEAST_LOADED, items)
