"""Costs that are fitted to what transformations took say what they take, and follow it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from transform_programs import KINDS, a_program

from tessera.domain.errors import InvalidInput
from tessera.domain.transformation import MetaOperator, Observation, StepSum
from tessera.policy.transform import registry
from tessera.policy.transform.costs import ASSUMED, CostLine, MetaCosts
from tessera.policy.transform.fitting import LEAST_OBSERVATIONS, fit, refit, relative_error
from tessera.policy.transform.plan import plan

REDUCE, REPLACE, RESHAPE, ADD, EDGE = MetaOperator
TRUE = MetaCosts(
    {
        (REPLACE, ""): CostLine(0.10, 5.0),
        (RESHAPE, ""): CostLine(0.30, 5.0, 20.0),
        (ADD, ""): CostLine(0.20, 5.0),
        (REDUCE, ""): CostLine(0.05),
        (EDGE, ""): CostLine(0.02),
    },
    base_ms=0.7,
)
CONV = "aten.conv.default"
BY_KIND = MetaCosts({**TRUE.lines, (ADD, CONV): CostLine(0.8, 5.0), (RESHAPE, CONV): CostLine(0.9, 5.0, 20.0)}, base_ms=0.7)


def observations(count: int, noise: float = 0.0, true: MetaCosts = TRUE, seed: int = 4) -> list[Observation]:
    draw = random.Random(seed)
    planner = registry.make("group")
    found = []
    for _ in range(count):
        programs = [
            a_program([(draw.choice(KINDS), *(draw.randrange(low, 4) for low in (0, 1, 0, 0))) for _ in range(draw.randrange(1, 12))])
            for _ in range(2)
        ]
        steps = plan(*programs, planner, MetaCosts()).sums()
        found.append(Observation(steps, true.ms(steps) * (1 + draw.uniform(-noise, noise))))
    return found


def test_the_lines_that_made_the_times_are_found_again() -> None:
    found = fit(observations(200))
    assert found.base_ms == pytest.approx(TRUE.base_ms, rel=0.02)
    for operator in MetaOperator:
        assert found.line(operator, "").fixed_ms == pytest.approx(TRUE.line(operator, "").fixed_ms, rel=0.05)
    assert found.line(ADD, CONV).per_mib_ms == pytest.approx(5.0, rel=0.2)
    assert found.line(RESHAPE, CONV).per_changed_mib_ms == pytest.approx(20.0, rel=0.2)
    assert found.error == pytest.approx(0.0, abs=1e-6)


def of_one_kind(one: Observation) -> Observation:
    return replace(one, steps=tuple(replace(step, kind="any") for step in one.steps))


def test_a_kind_that_takes_more_gets_lines_of_its_own_and_others_share_theirs() -> None:
    seen = observations(200, noise=0.05, true=BY_KIND)
    found, alike = fit(seen), fit(list(map(of_one_kind, seen)))
    assert found.line(ADD, CONV).fixed_ms > 2 * found.line(ADD, "").fixed_ms
    assert found.line(ADD, "aten.relu.default").fixed_ms == pytest.approx(0.2, rel=0.1)
    fresh = observations(100, true=BY_KIND, seed=5)
    assert relative_error(found, fresh) < 0.5 * relative_error(alike, list(map(of_one_kind, fresh)))


def test_where_kinds_do_not_differ_nothing_is_said_of_them() -> None:
    """Noise is no reason: the halves must predict each other."""
    found = fit(observations(24, noise=0.5))
    assert {kind for _, kind in found.lines} == {""}


def test_what_was_not_seen_is_assumed_still() -> None:
    found = fit([Observation((StepSum(REPLACE, "aten.relu.default", count),), 1.0 + 0.1 * count) for count in range(1, 12)])
    assert found.line(REPLACE, "").fixed_ms == pytest.approx(0.1, rel=0.01)
    assert found.line(ADD, "") == ASSUMED[ADD]


def test_noise_is_said_and_no_cost_is_below_nothing() -> None:
    seen = observations(60, noise=0.3)
    found = fit(seen)
    assert found.error is not None
    assert 0.1 < found.error < 0.3
    assert relative_error(found, seen) < 0.3
    assert min(found.base_ms, *(line.fixed_ms for line in found.lines.values())) >= 0


@pytest.mark.parametrize("count", [0, LEAST_OBSERVATIONS - 1])
def test_a_handful_says_nothing(count: int) -> None:
    with pytest.raises(InvalidInput, match=rf"observations {count}: at least 8 transformations"):
        fit(observations(count))
    with pytest.raises(InvalidInput, match="at least 8 transformations"):
        refit(TRUE, observations(count))


def test_the_same_number_of_the_same_steps_again_and_again_tears_nothing_apart() -> None:
    """One plan that takes twice what was expected: nobody knows which of its steps do."""
    steps = observations(1)[0].steps
    found = refit(TRUE, [Observation(steps, 2 * TRUE.ms(steps))] * 20)
    assert found.ms(steps) == pytest.approx(2 * TRUE.ms(steps))
    assert found.base_ms == pytest.approx(2 * TRUE.base_ms)
    assert found.line(EDGE, CONV).fixed_ms == pytest.approx(2 * TRUE.line(EDGE, CONV).fixed_ms)


def test_kinds_keep_their_proportion_and_what_is_assumed_follows_too() -> None:
    found = refit(BY_KIND, observations(40, true=MetaCosts({name: line.times(3.0) for name, line in BY_KIND.lines.items()}, 0.7)))
    assert found.line(ADD, CONV).fixed_ms / found.line(ADD, "").fixed_ms == pytest.approx(4.0)
    assert found.line(ADD, CONV).fixed_ms == pytest.approx(2.4, rel=0.1)
    assert refit(MetaCosts(), observations(40)).line(RESHAPE, "").fixed_ms > ASSUMED[RESHAPE].fixed_ms


def test_one_that_waited_for_a_processor_says_little() -> None:
    seen = observations(16)
    late = [*seen[:-1], Observation(seen[-1].steps, 100 * seen[-1].ms)]
    assert relative_error(refit(TRUE, late), seen) < 0.05


def one_factor(seen: list[Observation], costs: MetaCosts) -> Iterator[float]:
    """What lines and a single factor expect of each in turn, which moves an eighth of the way, on a scale of doublings."""
    factor = 1.0
    for one in seen:
        expected = costs.ms(one.steps) * factor
        yield expected
        factor *= min(max(one.ms / expected, 0.5), 2.0) ** (1 / 8)


def refitted(seen: list[Observation], costs: MetaCosts, window: int = 64) -> Iterator[float]:
    found = costs
    for at, one in enumerate(seen):
        yield found.ms(one.steps)
        if at + 1 >= LEAST_OBSERVATIONS:
            found = refit(costs, seen[max(0, at + 1 - window) : at + 1])


@pytest.mark.parametrize("seed", range(4))
def test_refitted_lines_expect_the_next_ones_better_than_one_factor_would(seed: int) -> None:
    """A node that is slower at everything, and most at adding; now and then somebody waits. What comes is predicted from what came."""
    draw = random.Random(seed)
    lines = {name: line.times({ADD: 4.0, RESHAPE: 3.0}.get(name[0], 1.5)) for name, line in TRUE.lines.items()}
    seen = [
        Observation(one.steps, one.ms * (draw.uniform(2, 20) if draw.random() < 0.05 else 1.0))
        for one in observations(120, noise=0.2, true=MetaCosts(lines, 1.0), seed=seed)
    ]

    def error(expected: Iterator[float]) -> float:
        misses = sorted(abs(ms / one.ms - 1) for ms, one in zip(expected, seen, strict=True))
        return misses[len(misses) // 2]

    assert error(refitted(seen, TRUE)) < error(one_factor(seen, TRUE))
