"""The comparison of autoscaling policies compares what it says."""

from __future__ import annotations

import random

import pytest

from benchmarks.autoscaling import a_case, cost_of, settled
from tessera.policy.autoscaling import registry
from tessera.policy.autoscaling.ilp import optimal_counts


@pytest.mark.parametrize("name", ["infaas", "tessera"])
def test_no_policy_is_cheaper_than_the_optimum_and_all_answer_the_load(name: str) -> None:
    compared = 0
    for seed in range(12):
        load = a_case(random.Random(seed))
        best = optimal_counts(load)
        if best is None:
            continue
        counts, _ = settled(load, registry.make(name))
        assert sum(kind.items_per_s * count for kind, count in counts.items()) >= load.needed_items_per_s - 1e-6
        assert cost_of(load, counts) >= cost_of(load, best) - 1e-6
        compared += 1
    assert compared >= 8
