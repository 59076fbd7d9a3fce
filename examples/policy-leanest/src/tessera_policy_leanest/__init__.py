"""For machines short of memory: of the variants that are fast enough, the one with the fewest bytes that it shares with nobody."""

from __future__ import annotations

from tessera.policy.instance.base import InstancePolicy
from tessera.policy.variant.base import Candidate, Choice, Criteria, Ranking
from tessera.policy.variant.misses import closest


class LeanestVariantPolicy:
    name = "leanest"

    def key(self, candidate: Candidate, criteria: Criteria) -> float:
        record = candidate.record
        return float(record.tensor_bytes - record.tensor_bytes_shared)

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy) -> Choice | None:
        for candidate in ranking.meeting:
            active = candidate.activity.instances
            if latency_ms is not None and (candidate.latency_ms is None or candidate.latency_ms > latency_ms):
                continue
            if active:
                return Choice(candidate, instances.pick(active), candidate.latency_ms)
            if not candidate.nowhere:
                return Choice(candidate, None, candidate.start_ms)
        return closest(ranking, latency_ms, instances)
