"""Cost lines from what transformations took.

Least squares of the relative error, as the fits of latencies (`tessera.domain.fit`): a transformation of half a millisecond counts as much
as one of five. No cost is below 0. What a step takes is one line per meta-operator; a kind of operation gets lines of its own only where
somebody measures it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tessera.domain.errors import InvalidInput
from tessera.domain.transformation import MetaOperator, TransformationPlan
from tessera.policy.transform.costs import MIB, CostLine, MetaCosts

LEAST_OBSERVATIONS = 8
_WITH_WEIGHTS = (MetaOperator.REPLACE, MetaOperator.RESHAPE, MetaOperator.ADD)


@dataclass(frozen=True, slots=True)
class Observation:
    """A plan that was carried out, and the milliseconds that it took, more than 0."""

    plan: TransformationPlan
    ms: float


def fit(observations: Sequence[Observation]) -> MetaCosts:
    """Raises: InvalidInput: too few of them to say anything."""
    if len(observations) < LEAST_OBSERVATIONS:
        raise InvalidInput("observations", len(observations), f"at least {LEAST_OBSERVATIONS} transformations")
    features = np.array([_features(one.plan) for one in observations])
    took = np.array([one.ms for one in observations])
    scaled = features / took[:, None]
    used = list(range(features.shape[1]))
    found = np.zeros(features.shape[1])
    while used:
        some, *_ = np.linalg.lstsq(scaled[:, used], np.ones(len(took)), rcond=None)
        worst = int(np.argmin(some))
        if some[worst] >= 0:
            found[used] = some
            break
        del used[worst]
    error = float(np.sqrt(np.mean((scaled @ found - 1) ** 2)))
    base_ms, per_mib_ms, *fixed = (float(each) for each in found)
    lines = {
        (operator, ""): CostLine(fixed_ms, per_mib_ms if operator in _WITH_WEIGHTS else 0.0, error=error)
        for operator, fixed_ms in zip(MetaOperator, fixed, strict=True)
    }
    return MetaCosts(lines, base_ms)


def expected_ms(costs: MetaCosts, plan: TransformationPlan) -> float:
    """What the plan takes by these costs, whatever costs it was made with."""
    total = costs.base_ms
    for step in plan.steps:
        total += costs.line(step.operator, step.kind).ms(step.new_bytes)
    return total


def relative_error(costs: MetaCosts, observations: Sequence[Observation]) -> float:
    """The median of |expected - taken| / taken."""
    return float(np.median([abs(expected_ms(costs, one.plan) / one.ms - 1) for one in observations]))


def _features(plan: TransformationPlan) -> list[float]:
    """1, MiB of new weights, and how many steps of each meta-operator."""
    return [1.0, sum(step.new_bytes for step in plan.steps) / MIB, *(float(plan.count(operator)) for operator in MetaOperator)]
