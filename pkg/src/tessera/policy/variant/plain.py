"""The fastest at batch 1 among those that meet the objectives, active ones first; queues do not count.

Active candidates come before inactive ones, those with trouble after the others. Numbers decide only where every candidate has them (or
where a latency was asked for): otherwise the default order does, so that a variant is neither preferred nor punished for not having been
measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from tessera.policy.instance.base import InstancePolicy
from tessera.policy.variant.base import Candidate, Choice, Criteria, Ranking
from tessera.policy.variant.misses import closest
from tessera.policy.variant.ranking import latency


class PlainVariantPolicy:
    name = "plain"

    def key(self, candidate: Candidate, criteria: Criteria) -> float:
        return latency(candidate)

    def unit(self, candidate: Candidate, criteria: Criteria) -> str:
        return ""

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy, items: int) -> Choice | None:
        fitting = within(ranking.meeting, latency_ms, items)
        return (
            first_active(fitting, instances, items)
            or first_start(ranking, fitting, items)
            or troubled(fitting, instances, items)
            or closest(ranking, latency_ms, instances, items)
        )


def within(candidates: Sequence[Candidate], latency_ms: float | None, items: int) -> Sequence[Candidate]:
    """Those that take at most that for so many items; all where none was asked for."""
    if latency_ms is None:
        return candidates
    return [one for one in candidates if (expected_ms := one.expected_ms(items)) is not None and expected_ms <= latency_ms]


def first_active(candidates: Iterable[Candidate], instances: InstancePolicy, items: int) -> Choice | None:
    """The first active candidate that has no trouble."""
    for candidate in candidates:
        activity = candidate.activity
        if activity.instances and not activity.troubled:
            return Choice(candidate, instances.pick(activity.instances), candidate.expected_ms(items))
    return None


def troubled(candidates: Iterable[Candidate], instances: InstancePolicy, items: int) -> Choice | None:
    """The first active candidate, with trouble or without."""
    for candidate in candidates:
        if candidate.activity.instances:
            return Choice(candidate, instances.pick(candidate.activity.instances), candidate.expected_ms(items))
    return None


def first_start(ranking: Ranking, candidates: Iterable[Candidate], items: int) -> Choice | None:
    """The candidate to start: the first of `to_start`, without sorting them all."""
    first = best = None
    best_ms, measured = inf, True
    for one in candidates:
        if one.nowhere or one.activity.instances:
            continue
        started_ms = one.start_ms if items == 1 else one.started_ms(items)
        if started_ms is None:
            measured, started_ms = False, inf
        if best is None:
            first = best = one
            best_ms = started_ms
        elif started_ms < best_ms:
            best, best_ms = one, started_ms
    chosen = best if measured or _by_number(ranking) else first
    return Choice(chosen, None, chosen.started_ms(items)) if chosen is not None else None


def to_start(ranking: Ranking, candidates: Iterable[Candidate], items: int) -> list[Candidate]:
    """Those that can be started, the best first. One that is active is not: the scheduler would name the instance that is there. In the
    order in which they come where somebody of one model was not measured."""
    able = [one for one in candidates if not one.nowhere and not one.activity.instances]
    if any(one.start_ms is None for one in able) and not _by_number(ranking):
        return able
    return sorted(able, key=lambda one: inf if (started_ms := one.started_ms(items)) is None else started_ms)


def _by_number(ranking: Ranking) -> bool:
    """Whether numbers decide even though somebody has none."""
    return not ranking.one_model or ranking.criteria.timed
