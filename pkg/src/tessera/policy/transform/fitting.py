"""Cost lines from what transformations took.

Least squares of the relative error, as the fits of latencies (`tessera.domain.fit`): a transformation of half a millisecond counts as much
as one of five, and one that waited for a processor for long hardly counts. No cost is below 0. `fit` begins with nothing, for the profiler;
`refit` begins with such lines and follows what starts take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from tessera.domain.errors import InvalidInput
from tessera.domain.transformation import MetaOperator, Observation
from tessera.policy.transform.costs import MIB, CostLine, MetaCosts

LEAST_OBSERVATIONS = 8
PULL = 0.3
"""What it weighs that a cost is twice what it is pulled to, or nothing: as much as that one observation is missed by 30 %."""
LEAST_MS = 1e-3
"""Whatever is divided by."""
BETTER = 0.9
"""Lines of more kinds predict better where the mean square of what they miss falls below this share."""
MOST_OWN = 128
"""Lines of kinds, those that most observations have."""
_WITH_WEIGHTS = (MetaOperator.REPLACE, MetaOperator.RESHAPE, MetaOperator.ADD)

Line = tuple[MetaOperator, str]
Numbers = npt.NDArray[np.float64]
_ALL_KINDS: tuple[Line, ...] = tuple((operator, "") for operator in MetaOperator)
_SHARED = 3
"""Costs that no line has to itself: the base, and what a byte takes of either kind."""


def fit(observations: Sequence[Observation]) -> MetaCosts:
    """A line per meta-operator that was seen, and lines of their own for kinds of operations that enough observations have, where these
    predict better what they were not fitted to: each half of the observations by the other one.

    Raises: InvalidInput: too few of them to say anything.
    """
    _check(observations)
    seen = Counter(line for one in observations for line in {(step.operator, step.kind) for step in one.steps})
    own = sorted(line for line, count in seen.most_common(MOST_OWN) if count >= LEAST_OBSERVATIONS)
    if own and _held_out(observations, own) < BETTER * _held_out(observations, ()):
        return _fitted(observations, own)
    return _fitted(observations, ())


def refit(costs: MetaCosts, observations: Sequence[Observation]) -> MetaCosts:
    """Costs that follow what transformations took: a factor on the base and one on all lines of each meta-operator. They are pulled to what
    is wrong with all of them alike (the median of taken over expected), so that few observations do not tear lines apart.

    Raises: InvalidInput: too few of them to say anything.
    """
    _check(observations)
    places = {operator: 1 + at for at, operator in enumerate(MetaOperator)}
    parts = np.zeros((len(observations), 1 + len(places)))
    parts[:, 0] = costs.base_ms
    for row, one in zip(parts, observations, strict=True):
        for step in one.steps:
            row[places[step.operator]] += costs.line(step.operator, step.kind).ms(step.new_bytes, step.changed_bytes, step.steps)
    took = _took(observations)
    together = float(np.median(took / np.maximum(parts.sum(axis=1), LEAST_MS)))
    factors = _solved(parts, took, np.full(parts.shape[1], together))
    lines = {(operator, ""): costs.line(operator, "") for operator in MetaOperator} | dict(costs.lines)
    return _judged(
        MetaCosts(
            {(operator, kind): line.times(float(factors[places[operator]])) for (operator, kind), line in lines.items()},
            costs.base_ms * float(factors[0]),
        ),
        observations,
    )


def relative_error(costs: MetaCosts, observations: Sequence[Observation]) -> float:
    """The median of |expected - taken| / taken."""
    return float(np.median(np.abs(_misses(costs, observations))))


def _check(observations: Sequence[Observation]) -> None:
    if len(observations) < LEAST_OBSERVATIONS:
        raise InvalidInput("observations", len(observations), f"at least {LEAST_OBSERVATIONS} transformations")


def _fitted(observations: Sequence[Observation], own: Sequence[Line]) -> MetaCosts:
    """With lines for `own`, which are pulled to those of all kinds. What was not seen has none."""
    took, names, pull = _took(observations), [*_ALL_KINDS, *own], None
    if own:
        of_all = dict(zip(_ALL_KINDS, _solved(_features(observations, _ALL_KINDS), took)[_SHARED:], strict=True))
        pull = np.array([0.0] * _SHARED + [max(float(of_all[operator, ""]), LEAST_MS) for operator, _ in names])
    found = [float(each) for each in _solved(_features(observations, names), took, pull)]
    base_ms, per_mib_ms, per_changed_mib_ms = found[:_SHARED]
    seen = {step.operator for one in observations for step in one.steps}
    lines = {
        (operator, kind): CostLine(
            fixed_ms,
            per_mib_ms if operator in _WITH_WEIGHTS else 0.0,
            per_changed_mib_ms if operator is MetaOperator.RESHAPE else 0.0,
        )
        for (operator, kind), fixed_ms in zip(names, found[_SHARED:], strict=True)
        if operator in seen
    }
    return _judged(MetaCosts(lines, base_ms), observations)


def _features(observations: Sequence[Observation], names: Sequence[Line]) -> Numbers:
    """Of each: 1, MiB of new weights, MiB by which shapes differ, and how many steps each line has; a step of a kind without one counts for
    all kinds."""
    places = {name: _SHARED + at for at, name in enumerate(names)}
    found = np.zeros((len(observations), _SHARED + len(names)))
    found[:, 0] = 1.0
    for row, one in zip(found, observations, strict=True):
        for step in one.steps:
            row[1] += step.new_bytes / MIB
            row[2] += step.changed_bytes / MIB
            row[places.get((step.operator, step.kind), places[step.operator, ""])] += step.steps
    return found


def _solved(features: Numbers, took: Numbers, pull: Numbers | None = None) -> Numbers:
    """What each feature costs, none below 0. `pull`: what a cost is pulled to; 0: that one is not."""
    rows, wanted = features / took[:, None], np.ones(len(took))
    if pull is not None:
        pulled = np.flatnonzero(pull)
        extra = np.zeros((len(pulled), len(pull)))
        extra[np.arange(len(pulled)), pulled] = PULL / pull[pulled]
        rows, wanted = np.vstack([rows, extra]), np.concatenate([wanted, np.full(len(pulled), PULL)])
    used = list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        some, *_ = np.linalg.lstsq(rows[:, used], wanted, rcond=None)
        worst = int(np.argmin(some))
        if some[worst] >= 0:
            found[used] = some
            break
        del used[worst]
    return found


def _held_out(observations: Sequence[Observation], own: Sequence[Line]) -> float:
    """The mean square of what each half is missed by with the other half's lines."""
    halves = (observations[::2], observations[1::2])
    return sum(float(np.mean(_misses(_fitted(here, own), there) ** 2)) for here, there in (halves, halves[::-1]))


def _took(observations: Sequence[Observation]) -> Numbers:
    return np.array([one.ms for one in observations])


def _misses(costs: MetaCosts, observations: Sequence[Observation]) -> Numbers:
    """(expected - taken) / taken of each."""
    return np.array([costs.ms(one.steps) for one in observations]) / _took(observations) - 1


def _judged(costs: MetaCosts, observations: Sequence[Observation]) -> MetaCosts:
    return replace(costs, error=float(np.sqrt(np.mean(_misses(costs, observations) ** 2))))
