"""What autoscaling policies decide, and what none of them ever does."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scaling_cases import (
    CPU,
    LARGE,
    OTHER,
    SLOW,
    SMALL,
    a_random_load,
    capacity_after,
    counts_after,
    kind,
    load,
    objective,
    running,
)

from tessera.domain.errors import InvalidInput
from tessera.policy.autoscaling import registry
from tessera.policy.autoscaling.base import NOTHING, AutoscalingPolicy, ModelLoad
from tessera.policy.autoscaling.cheapest import cheapest_counts
from tessera.policy.autoscaling.ilp import optimal_counts
from tessera.policy.autoscaling.infaas import InfaasAutoscaling

ALL = [registry.make(name) for name in sorted(registry.POLICIES)]
ACTIVE = [policy for policy in ALL if policy.name != "none"]


def shape(given: ModelLoad) -> tuple[dict[str, int], float]:
    """What INFaaS's heuristic makes of it: counts by variant, and how long it waits."""
    plan = InfaasAutoscaling().plan(given)
    counts: Counter[str] = Counter()
    for of, count in counts_after(given, plan).items():
        counts[of.variant.variant] += count
    return {name: count for name, count in counts.items() if count}, plan.patience_s


@pytest.mark.parametrize(
    ("given", "counts", "patience_s"),
    [
        (load(95.0, running(SMALL)), {"small": 1}, 0.0),
        (load(96.0, running(SMALL), SMALL), {"small": 2}, 0.0),
        (load(250.0, running(SMALL), SMALL), {"small": 3}, 0.0),
        (load(250.0, running(SMALL), SMALL, LARGE), {"small": 3}, 0.0),
        (load(280.0, running(SLOW), SLOW, SMALL), {"slow": 8}, 0.0),
        (load(280.0, running(SLOW), SLOW, kind("good", 300.0, cost=2.0)), {"good": 1}, 0.0),
        (load(900.0, running(SMALL), SMALL, room=3.0), {"small": 4}, 0.0),
        (load(900.0, running(SMALL), SMALL, room=0.0), {"small": 1}, 0.0),
        (load(250.0, running(SMALL), SMALL, kind("small", 100.0, at=OTHER), room=0.0, elsewhere=8.0), {"small": 3}, 0.0),
    ],
    ids=["enough", "below the headroom", "two more", "cheaper than upgrading", "no upgrade under the factor", "an upgrade beyond it",
         "as many as fit", "no room", "on other nodes"],
)  # fmt: skip
def test_growing(given: ModelLoad, counts: dict[str, int], patience_s: float) -> None:
    assert shape(given) == (counts, patience_s)


@pytest.mark.parametrize(
    ("given", "counts", "patience_s"),
    [
        (load(190.0, running(SMALL, 3), SMALL), {"small": 2}, 10.0),
        (load(191.0, running(SMALL, 3), SMALL), {"small": 3}, 0.0),
        (load(0.0, running(SMALL, 1), SMALL), {"small": 1}, 0.0),
        (load(0.0, running(SMALL, 1), SMALL, SLOW), {"slow": 1}, 10.0),
        (load(30.0, running(LARGE), LARGE, SMALL, SLOW), {"slow": 1}, 10.0),
        (load(60.0, running(replace(LARGE, load_s=42.0)), SMALL), {"small": 1}, 42.0),
        (load(60.0, running(LARGE), LARGE, SMALL, room=0.0), {"large": 1}, 0.0),
    ],
    ids=["one less", "headroom kept", "never to zero", "a cheaper variant", "the cheapest that will do", "after the load latency",
         "no room to start first"],
)  # fmt: skip
def test_shrinking(given: ModelLoad, counts: dict[str, int], patience_s: float) -> None:
    assert shape(given) == (counts, patience_s)


def test_what_answers_less_than_its_profile_says_counts_for_that() -> None:
    given = load(190.0, running(SMALL, 3, items_per_s=60.0), SMALL)
    assert shape(given)[0] == {"small": 4}


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.name)
def test_nothing_starts_by_itself(policy: AutoscalingPolicy) -> None:
    """From zero to one is a request's doing, from one to zero keep-alive's."""
    assert policy.plan(load(0.0, ())) == NOTHING
    assert not policy.plan(load(0.0, running(SMALL), SMALL)).remove


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_what_no_policy_does(seed: int) -> None:
    draw = random.Random(seed)
    found = a_random_load(draw)
    mixed = replace(found, running=tuple(reversed(found.running)), kinds=tuple(reversed(found.kinds)))
    for policy in ALL:
        if policy.name == "ilp":
            continue
        plan = policy.plan(found)
        assert plan == policy.plan(mixed), "the order of the input decides nothing"
        ids = {one.instance_id for one in found.running}
        assert set(plan.remove) <= ids
        assert sum(counts_after(found, plan).values()) >= 1, "the last one never goes without another"
        for of, count in plan.add:
            assert count <= found.fits(of)
        for profile_class, cores in found.room.items():
            assert sum(of.cores * count for of, count in plan.add if of.profile_class == profile_class) <= cores + 1e-6
        short = found.capacity_items_per_s < found.needed_items_per_s
        after = capacity_after(found, plan)
        if plan.patience_s or not short:
            assert after >= found.needed_items_per_s - 1e-6, "what shrinks keeps the headroom"
        else:
            assert after >= found.capacity_items_per_s - 1e-6, "what is short gets no shorter"
            most = max((of.items_per_s * found.fits(of) for of in found.kinds), default=0.0)
            if policy.name != "none" and found.capacity_items_per_s + most >= found.needed_items_per_s:
                assert after >= found.needed_items_per_s - 1e-6 or policy.name == "infaas"


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None)
def test_the_heuristic_reaches_the_headroom_where_one_of_its_kinds_has_room(seed: int) -> None:
    found = a_random_load(random.Random(seed))
    mine = {one.kind for one in found.running}
    missing = found.needed_items_per_s - found.capacity_items_per_s
    if missing > 0 and any(of.items_per_s * found.fits(of) >= missing for of in mine):
        assert capacity_after(found, InfaasAutoscaling().plan(found)) >= found.needed_items_per_s - 1e-6


@pytest.mark.parametrize("seed", range(25))
def test_the_search_finds_what_the_solver_finds(seed: int) -> None:
    found = a_random_load(random.Random(seed))
    solved = optimal_counts(found)
    counts = cheapest_counts(found)
    if solved is None:
        after = sum(of.items_per_s * count for of, count in counts.items())
        assert after >= found.capacity_items_per_s - 1e-6
    else:
        assert objective(found, counts) == pytest.approx(objective(found, solved), rel=1e-6)


def test_the_solver_as_a_policy() -> None:
    (plan,) = [policy.plan(load(250.0, running(SMALL), SMALL, LARGE)) for policy in ALL if policy.name == "ilp"]
    assert sum(of.items_per_s * count for of, count in plan.add) + 100.0 >= 250.0 * 1.05
    (plan,) = [policy.plan(load(10.0, running(SMALL, 3), SMALL)) for policy in ALL if policy.name == "ilp"]
    assert (len(plan.remove), plan.patience_s) == (2, 10.0)


def test_mixtures_are_cheaper_than_one_kind() -> None:
    given = load(390.0, running(SMALL), SMALL, LARGE, room=8.0)
    assert Counter(cheapest_counts(given)) == {LARGE: 1, SMALL: 2}
    assert registry.make("tessera").plan(given).add == ((LARGE, 1), (SMALL, 1))
    assert given.room[CPU] == 8.0


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="autoscaling policy 'more': one of ilp, infaas, none, tessera"):
        registry.make("more")
