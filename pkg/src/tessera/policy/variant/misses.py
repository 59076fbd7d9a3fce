"""By how much a candidate misses what was asked, and which one misses it least."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from tessera.domain.objectives import Objectives
from tessera.policy.instance.base import InstancePolicy, completion_ms
from tessera.policy.variant.base import Candidate, Choice, Ranking
from tessera.policy.variant.ranking import ROUNDING

UNKNOWN_SHARE = 1e6


@dataclass(frozen=True, slots=True)
class Miss:
    """`by` is in the objective's unit, None where it is not known; `share` is `by` as a part of what was asked."""

    objective: str
    by: float | None
    share: float
    words: str

    def __str__(self) -> str:
        return f"{self.objective} {self.words}"


def misses(objectives: Objectives, candidate: Candidate, expected_ms: float | None) -> tuple[Miss, ...]:
    """What the candidate misses when it answers after `expected_ms` (None: nobody knows); () when it meets everything."""
    found = []
    if objectives.latency_ms is not None and (expected_ms is None or expected_ms > objectives.latency_ms):
        found.append(_beyond("latency_ms", objectives.latency_ms, expected_ms))
    if objectives.min_accuracy is not None and candidate.accuracy.value < objectives.min_accuracy - ROUNDING:
        found.append(_beyond("min_accuracy", objectives.min_accuracy, candidate.accuracy.value))
    if objectives.max_cost is not None and (candidate.usd_per_1000 is None or candidate.usd_per_1000 > objectives.max_cost):
        found.append(_beyond("max_cost", objectives.max_cost, candidate.usd_per_1000))
    if objectives.dataset and candidate.dataset != objectives.dataset:
        measured = f"measured on {candidate.dataset}" if candidate.dataset else "measured on no dataset"
        found.append(Miss("dataset", None, 1.0, f"({measured})"))
    return tuple(found)


def words(found: tuple[Miss, ...]) -> str:
    """As replies state it: "latency_ms by 3.1, min_accuracy by 0.02"."""
    return ", ".join(map(str, found))


def closest(ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
    """The candidate that misses the objectives least, all shares together, if it answered such a request by itself; an unknown is further
    than any miss. Of equals the first that is active, then the first."""
    criteria = ranking.criteria
    least, most, dataset = criteria.min_accuracy, criteria.max_cost, criteria.dataset
    best, best_share, best_active = None, inf, False
    for one in ranking.slate:
        share = 0.0
        if latency_ms is not None:
            if one.latency_ms is None:
                share = UNKNOWN_SHARE
            elif one.latency_ms > latency_ms:
                share = one.latency_ms / latency_ms - 1
            if share > best_share:
                break  # they come by their latency at batch 1, and more items take no less
            expected_ms = one.expected_ms(items)
            if expected_ms is not None and expected_ms > latency_ms:
                share = expected_ms / latency_ms - 1
        if least is not None and one.accuracy.value < least:
            share += (least - one.accuracy.value) / least
        if most is not None:
            if one.usd_per_1000 is None:
                share += UNKNOWN_SHARE
            elif one.usd_per_1000 > most:
                share += one.usd_per_1000 / most - 1 if most else one.usd_per_1000
        if dataset and one.dataset != dataset:
            share += 1
        if share > best_share:
            continue
        active = bool(one.activity.instances) and not one.activity.troubled
        better = best is None or share < best_share or (active and not best_active)
        if better and (one.activity.instances or not one.nowhere):
            best, best_share, best_active = one, share, active
    if best is None:
        return None
    if not best.activity.instances:
        return Choice(best, None, best.started_ms(items))
    instance = instances.pick(best.activity.instances)
    return Choice(best, instance, completion_ms(instance, items))


def _beyond(name: str, asked: float, value: float | None) -> Miss:
    if value is None:
        return Miss(name, None, 1.0, "(not measured)")
    by = abs(value - asked)
    return Miss(name, by, by / asked if asked else by, f"by {by:.3g}")
