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

    def choose(self, ranking: Ranking, latency_ms: float | None, instances: InstancePolicy) -> Choice | None:
        fitting = within(ranking.meeting, latency_ms)
        return (
            first_active(fitting, instances)
            or first_start(ranking, fitting)
            or troubled(fitting, instances)
            or closest(ranking, latency_ms, instances)
        )


def within(candidates: Sequence[Candidate], latency_ms: float | None) -> Sequence[Candidate]:
    """Those whose latency at batch 1 is at most that; all where none was asked for."""
    if latency_ms is None:
        return candidates
    return [one for one in candidates if one.latency_ms is not None and one.latency_ms <= latency_ms]


def first_active(candidates: Iterable[Candidate], instances: InstancePolicy) -> Choice | None:
    """The first active candidate that has no trouble."""
    for candidate in candidates:
        activity = candidate.activity
        if activity.instances and not activity.troubled:
            return Choice(candidate, instances.pick(activity.instances), candidate.latency_ms)
    return None


def troubled(candidates: Iterable[Candidate], instances: InstancePolicy) -> Choice | None:
    """The first active candidate, with trouble or without."""
    for candidate in candidates:
        if candidate.activity.instances:
            return Choice(candidate, instances.pick(candidate.activity.instances), candidate.latency_ms)
    return None


def first_start(ranking: Ranking, candidates: Iterable[Candidate]) -> Choice | None:
    """The candidate to start: the first of `to_start`, without sorting them all."""
    first = best = None
    best_ms, measured = inf, True
    for one in candidates:
        if one.nowhere or one.activity.instances:
            continue
        start_ms = one.start_ms
        if start_ms is None:
            measured, start_ms = False, inf
        if best is None:
            first = best = one
            best_ms = start_ms
        elif start_ms < best_ms:
            best, best_ms = one, start_ms
    chosen = best if measured or _by_number(ranking) else first
    return Choice(chosen, None, chosen.start_ms) if chosen is not None else None


def to_start(ranking: Ranking, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that can be started, the best first. One that is active is not: the scheduler would name the instance that is there. In the
    order in which they come where somebody of one model was not measured."""
    able = [one for one in candidates if not one.nowhere and not one.activity.instances]
    if any(one.start_ms is None for one in able) and not _by_number(ranking):
        return able
    return sorted(able, key=lambda one: inf if one.start_ms is None else one.start_ms)


def _by_number(ranking: Ranking) -> bool:
    """Whether numbers decide even though somebody has none."""
    return not ranking.one_model or ranking.criteria.timed
