"""Costs that are fitted to what transformations took say what they take."""

from __future__ import annotations

import random

import pytest
from transform_programs import KINDS, a_program

from tessera.domain.errors import InvalidInput
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform import registry
from tessera.policy.transform.costs import CostLine, MetaCosts
from tessera.policy.transform.fitting import Observation, expected_ms, fit, relative_error
from tessera.policy.transform.plan import plan

TRUE = MetaCosts(
    {
        (MetaOperator.REPLACE, ""): CostLine(0.10, 5.0),
        (MetaOperator.RESHAPE, ""): CostLine(0.30, 5.0),
        (MetaOperator.ADD, ""): CostLine(0.20, 5.0),
        (MetaOperator.REDUCE, ""): CostLine(0.05),
        (MetaOperator.EDGE, ""): CostLine(0.02),
    },
    base_ms=0.7,
)


def observations(count: int, noise: float = 0.0) -> list[Observation]:
    draw = random.Random(4)
    planner = registry.make("group")
    found = []
    for _ in range(count):
        programs = [
            a_program([(draw.choice(KINDS), *(draw.randrange(low, 4) for low in (0, 1, 0, 0))) for _ in range(draw.randrange(1, 12))])
            for _ in range(2)
        ]
        made = plan(*programs, planner, MetaCosts())
        found.append(Observation(made, expected_ms(TRUE, made) * (1 + draw.uniform(-noise, noise))))
    return found


def test_the_lines_that_made_the_times_are_found_again() -> None:
    found = fit(observations(200))
    assert found.base_ms == pytest.approx(TRUE.base_ms, rel=0.02)
    for operator in MetaOperator:
        assert found.line(operator, "").fixed_ms == pytest.approx(TRUE.line(operator, "").fixed_ms, rel=0.05)
    assert found.line(MetaOperator.ADD, "aten.conv.default").per_mib_ms == pytest.approx(5.0, rel=0.2)
    assert found.line(MetaOperator.REDUCE, "").error == pytest.approx(0.0, abs=1e-6)


def test_noise_is_said_and_no_cost_is_below_nothing() -> None:
    seen = observations(60, noise=0.3)
    found = fit(seen)
    error = found.line(MetaOperator.EDGE, "").error
    assert error is not None
    assert 0.1 < error < 0.3
    assert relative_error(found, seen) < 0.3
    assert min(found.base_ms, *(found.line(operator, "").fixed_ms for operator in MetaOperator)) >= 0


def test_a_handful_says_nothing() -> None:
    with pytest.raises(InvalidInput, match="at least 8 transformations"):
        fit(observations(7))
