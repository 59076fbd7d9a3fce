"""Tessera's own: by when an answer is expected, with the queue as it is now, the batch that the request would join, and what a start takes.

Without a latency asked for: the active candidate that is expected to answer first; none of them: the one that is ready first, load and
latency together. Starting is never chosen only to pass a queue by: the autoscaler makes room, and one more variant takes the same cores.

With one: of the active candidates expected to answer in time the one that takes the least work per item (`ranking.work`);
none: the one with the least work among those that would be in time if they were started now, and that takes less than every active one that
would be in time by itself; none: the active one expected soonest. A queue, or neighbours that slow it down, mean that cores are busy:
whatever takes more work from them makes all answers later. Room elsewhere is found by autoscaling and by moving what is slowed down.

Those with trouble come after the other active ones. Ties end in the order of the candidates.
"""

from __future__ import annotations

from math import inf

from tessera.policy.instance.base import InstancePolicy, completion_ms
from tessera.policy.variant.base import Candidate, Choice, Criteria, Looked, Ranking
from tessera.policy.variant.misses import closest
from tessera.policy.variant.plain import first_start, within
from tessera.policy.variant.ranking import latency, work, work_unit

LOOK_AT = 32
"""Active candidates that one decision looks at. They come in a good order: who is not among the first is not expected to win."""


class CompletionVariantPolicy:
    name = "tessera"

    def key(self, candidate: Candidate, criteria: Criteria) -> float:
        return work(candidate) if criteria.timed else latency(candidate)

    def unit(self, candidate: Candidate, criteria: Criteria) -> str:
        return work_unit(candidate) if criteria.timed else ""

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        found = _soonest(ranking, instances, items) if latency_ms is None else _in_time(ranking, latency_ms, instances, items)
        return found or closest(ranking, latency_ms, instances, items)


def _soonest(ranking: Ranking, instances: InstancePolicy, items: int) -> Choice | None:
    """Candidates come by their latency at batch 1, which neither a queue nor more items make less: the first one that cannot be sooner ends
    it."""
    best: Looked | None = None
    best_ms, best_troubled, by_number = inf, True, ranking.by_number
    looked: list[Looked] = []
    for candidate in ranking.meeting:
        activity = candidate.activity
        available = activity.instances
        if not available:
            continue
        least_ms = candidate.latency_ms
        if best is not None and not best_troubled and by_number and (least_ms is None or least_ms >= best_ms):
            break
        instance = available[0] if len(available) == 1 else instances.pick(available)
        expected_ms = completion_ms(instance, items)
        seen = Looked(candidate, instance, instance.in_flight, expected_ms)
        looked.append(seen)
        troubled = activity.troubled
        sooner = inf if expected_ms is None else expected_ms
        if best is None or (best_troubled and not troubled) or (best_troubled == troubled and sooner < best_ms):
            best, best_ms, best_troubled = seen, sooner, troubled
        if len(looked) >= LOOK_AT:
            break
    if best is None:
        return first_start(ranking, ranking.meeting, items)
    if not by_number and any(one.expected_ms is None for one in looked):
        best = next((one for one in looked if not one.candidate.activity.troubled), looked[0])
    return Choice(best.candidate, best.instance, best.expected_ms, looked)


def _in_time(ranking: Ranking, latency_ms: float, instances: InstancePolicy, items: int) -> Choice | None:
    """Candidates come by the work that they take: the first one in time wins, an active one before one that would have to be started."""
    late: Looked | None = None
    start: Candidate | None = None
    queued = False
    looked: list[Looked] = []
    for candidate in ranking.meeting:
        least_ms = candidate.latency_ms if items == 1 else candidate.expected_ms(items)
        if least_ms is None or least_ms > latency_ms:
            continue
        activity = candidate.activity
        available = activity.instances
        if not available:
            if (
                start is None
                and not queued
                and not candidate.nowhere
                and (started_ms := candidate.started_ms(items)) is not None
                and started_ms <= latency_ms
            ):
                start = candidate
            continue
        if len(looked) >= LOOK_AT:
            continue
        instance = available[0] if len(available) == 1 else instances.pick(available)
        expected_ms = completion_ms(instance, items)
        seen = Looked(candidate, instance, instance.in_flight, expected_ms)
        looked.append(seen)
        if expected_ms is not None and expected_ms <= latency_ms and not activity.troubled:
            return Choice(candidate, instance, expected_ms, looked)
        if late is None or _sooner(seen, late):
            late = seen
        queued = True
    if start is not None:
        return Choice(start, None, start.started_ms(items), looked)
    if late is not None:
        return Choice(late.candidate, late.instance, late.expected_ms, looked)
    return first_start(ranking, within(ranking.meeting, latency_ms, items), items)


def _sooner(one: Looked, other: Looked) -> bool:
    """Those with trouble are never sooner than the others: what they will take is what nobody knows."""
    return (one.candidate.activity.troubled, _ms(one)) < (other.candidate.activity.troubled, _ms(other))


def _ms(one: Looked) -> float:
    return inf if one.expected_ms is None else one.expected_ms
