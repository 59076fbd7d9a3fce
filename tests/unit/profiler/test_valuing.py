"""What a profile is worth: prices and nodes of its own class alone, and how well its variant answers."""

from __future__ import annotations

import pytest

from tessera.domain.accuracy import AccuracySource, Agreement
from tessera.domain.cost import usd_per_1000
from tessera.domain.ids import ProfileClass
from tessera.profiler.core.valuing import valued
from tessera.testing.builders import a_latency_row, a_model, a_node, a_profile, a_variant, a_variant_key

OTHER = ProfileClass("other")


def test_a_profile_is_priced_by_the_nodes_of_its_class_alone() -> None:
    here, there = a_profile(), a_profile(profile_class=OTHER)
    nodes = [a_node("n1", usd_per_hour=0.1, cpu_count=2), a_node("n2", usd_per_hour=0.3, cpu_count=2), a_node("n3")]
    free, priced = valued([here, there], [a_variant()], nodes, None)
    assert (priced.record, priced.usd_per_hour) == (here, 0.3)
    assert priced.usd_per_1000 == pytest.approx(usd_per_1000(here, 0.3, 2))
    assert (free.record, free.usd_per_hour, free.usd_per_1000) == (there, 0.0, None)


def test_a_request_that_is_joined_with_nobody_costs_what_batch_1_does() -> None:
    profile = a_profile(rows=(a_latency_row(1, 1, 10.0), a_latency_row(8, 1, 16.0)))
    costs = [valued([profile], [a_variant(joins=joins)], [a_node(usd_per_hour=0.1)], None)[0].usd_per_1000 for joins in (True, False)]
    assert costs[1] == pytest.approx(5 * costs[0])


def test_the_variants_accuracy_and_whether_it_is_offered() -> None:
    lossy = a_variant(agreement=Agreement(0.2, 0.97, 8), withheld="loses 3 points")
    (found,) = valued([a_profile()], [lossy], [], a_model(accuracy=0.9))
    assert found.accuracy is not None
    assert (found.accuracy.value, found.accuracy.source) == (pytest.approx(0.9 * 0.97), AccuracySource.STATED)
    assert found.withheld == "loses 3 points"
    (gone,) = valued([a_profile(a_variant_key(variant="gone"))], [lossy], [], None)
    assert gone.accuracy is None
