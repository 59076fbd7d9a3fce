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

    def unit(self, candidate: Candidate, criteria: Criteria) -> str:
        return "bytes of its own"

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        for candidate in ranking.meeting:
            active = candidate.activity.instances
            expected_ms = candidate.expected_ms(items)
            if latency_ms is not None and (expected_ms is None or expected_ms > latency_ms):
                continue
            if active:
                return Choice(candidate, instances.pick(active), expected_ms)
            if not candidate.nowhere:
                return Choice(candidate, None, candidate.started_ms(items))
        return closest(ranking, latency_ms, instances, items)
