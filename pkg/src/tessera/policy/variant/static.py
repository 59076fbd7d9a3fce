"""One variant for a model, whatever happens: the fastest at batch 1 that meets the objectives. The baseline that Clipper and SageMaker are.

It changes when records or profiles change, never with load or with what is active.
"""

from __future__ import annotations

from tessera.policy.instance.base import InstancePolicy
from tessera.policy.variant.base import Choice, Ranking
from tessera.policy.variant.misses import closest
from tessera.policy.variant.plain import PlainVariantPolicy, within


class StaticVariantPolicy(PlainVariantPolicy):
    name = "static"

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        for candidate in within(ranking.meeting, latency_ms, items):
            if candidate.activity.instances:
                return Choice(candidate, instances.pick(candidate.activity.instances), candidate.expected_ms(items))
            if not candidate.nowhere:
                return Choice(candidate, None, candidate.started_ms(items))
        return closest(ranking, latency_ms, instances, items)
