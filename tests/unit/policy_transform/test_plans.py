"""Plans of many graphs: what is estimated, what is made and kept, and who stands for whom."""

from __future__ import annotations

import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transform_programs import a_program, nodes

from tessera.domain.errors import FailedPrecondition, InvalidInput, NotFound
from tessera.domain.ids import Digest
from tessera.domain.transformation import MetaOperator
from tessera.policy.transform import registry
from tessera.policy.transform.among import group_costs
from tessera.policy.transform.costs import CostLine, MetaCosts
from tessera.policy.transform.matrix import CostMatrix
from tessera.policy.transform.medoids import farthest_first, faster_pam
from tessera.policy.transform.plan import plan
from tessera.policy.transform.plans import PlanCache
from tessera.policy.transform.structure import Program, Structure

COSTS = MetaCosts(
    {
        (MetaOperator.REPLACE, ""): CostLine(1.0, 100.0),
        (MetaOperator.RESHAPE, ""): CostLine(2.0, 100.0, 300.0),
        (MetaOperator.RESHAPE, "aten.norm.default"): CostLine(3.0, 100.0),
        (MetaOperator.ADD, ""): CostLine(4.0, 100.0),
        (MetaOperator.REDUCE, ""): CostLine(0.5),
    }
)
GROUP = registry.make("group")
CHAINS = {
    Digest(f"{kind}{length}"): a_program([(kind, 0, 1, 0, 0)] * length).structure
    for kind in ("conv", "norm", "relu")
    for length in range(1, 9)
}
some_programs = st.lists(nodes, min_size=1, max_size=6)


def structures(rows: list[list[Any]]) -> dict[Digest, Structure]:
    return {Digest(f"{at:064x}"): a_program(each).structure for at, each in enumerate(rows)}


def a_cache(graphs: dict[Digest, Structure], **options: Any) -> PlanCache:
    cache = PlanCache(GROUP, COSTS, **options)
    for graph, structure in graphs.items():
        cache.add(graph, structure)
    return cache


def optimum_ms(source: Structure, target: Structure) -> float:
    matrix = CostMatrix(Program(source), Program(target), COSTS)
    return matrix.total_ms(registry.make("munkres").pairs(matrix))


@given(some_programs, some_programs)
def test_costs_of_many_are_those_of_each_group_plan(here: list[list[Any]], there: list[list[Any]]) -> None:
    sources, targets = list(structures(here).values()), list(structures(there).values())
    found = group_costs(sources, targets, COSTS)
    assert found.shape == (len(sources), len(targets))
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            assert found[row, column] == pytest.approx(plan(Program(source), Program(target), GROUP, COSTS).cost_ms)


@given(st.lists(nodes, min_size=2, max_size=5), st.integers(1, 3), st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_no_estimate_is_below_the_optimum(rows: list[list[Any]], medoids: int, late: int) -> None:
    graphs = structures(rows)
    cache = a_cache(dict(list(graphs.items())[late:]), medoids=medoids)
    cache.adopt(cache.clustered())
    for graph, structure in graphs.items():
        cache.add(graph, structure)
    estimates = cache.estimates_ms(list(graphs), list(graphs))
    for row, source in enumerate(graphs.values()):
        for column, target in enumerate(graphs.values()):
            assert estimates[row, column] >= optimum_ms(source, target) - 1e-9


def test_what_goes_through_a_medoid_is_no_dearer_than_its_own_plan() -> None:
    cache = a_cache(CHAINS, medoids=len(CHAINS))
    cache.adopt(cache.clustered())
    for source, target in combinations(CHAINS, 2):
        assert cache.estimate_ms(source, target) <= cache.plan(source, target).cost_ms + 1e-9


def test_medoids_make_estimates_closer_and_before_them_everything_is_made_anew() -> None:
    cache = a_cache(CHAINS, medoids=3)
    graphs = list(CHAINS)
    true = group_costs(list(CHAINS.values()), list(CHAINS.values()), COSTS)
    anew = cache.estimates_ms(graphs, graphs)
    one, other = Program(CHAINS[graphs[0]]), Program(CHAINS[graphs[1]])
    assert anew[0, 1] == pytest.approx(CostMatrix(one, other, COSTS).total_ms(()))
    cache.adopt(cache.clustered())
    found = cache.estimates_ms(graphs, graphs)
    assert (found <= anew + 1e-9).all()
    assert np.abs(found - true).sum() < np.abs(anew - true).sum() / 4


def test_medoids_are_due_when_there_are_twice_as_many() -> None:
    cache = PlanCache(GROUP, COSTS)
    assert not cache.due
    for at, (graph, structure) in enumerate(CHAINS.items(), 1):
        cache.add(graph, structure)
        cache.add(graph, structure)
        assert cache.due == (at in (1, 2, 4, 8, 16))
        if cache.due:
            cache.adopt(cache.clustered())
    assert len(cache) == len(CHAINS)


def test_what_comes_and_goes_while_medoids_are_sought_is_not_lost() -> None:
    first, gone, late, *others = CHAINS
    cache = a_cache({graph: CHAINS[graph] for graph in (first, gone, *others)}, medoids=2)
    sought = cache.clustered()
    cache.remove(gone)
    cache.add(late, CHAINS[late])
    cache.adopt(sought)
    assert (gone in cache, late in cache) == (False, True)
    assert cache.estimate_ms(first, late) >= optimum_ms(CHAINS[first], CHAINS[late]) - 1e-9
    with pytest.raises(NotFound, match=gone):
        cache.estimate_ms(first, gone)
    with pytest.raises(NotFound, match=gone):
        cache.plan(gone, first)
    with pytest.raises(NotFound, match=gone):
        cache.remove(gone)
    assert cache.estimates_ms([], [first]).shape == (0, 1)


def test_whole_plans_are_made_once_and_those_not_asked_for_longest_go() -> None:
    asked: list[None] = []

    class Counting:
        name = "group"

        def pairs(self, matrix: CostMatrix) -> Any:
            asked.append(None)
            return GROUP.pairs(matrix)

    first, second, third, *_ = CHAINS
    cache = PlanCache(Counting(), COSTS, plans=2)
    for graph in (first, second, third):
        cache.add(graph, CHAINS[graph])
    assert not asked
    found = cache.plan(first, second)
    assert found == plan(Program(CHAINS[first]), Program(CHAINS[second]), GROUP, COSTS)
    cache.plan(second, first)
    assert cache.plan(first, second) is found
    cache.plan(first, third)
    assert (cache.plan(first, second) is found, len(asked)) == (True, 3)
    cache.plan(second, first)
    assert len(asked) == 4
    cache.remove(second)
    cache.add(second, CHAINS[second])
    assert cache.plan(first, second) is not found


@pytest.mark.parametrize("field", ["medoids", "plans"])
def test_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(InvalidInput, match=rf"{field}.*0.*at least 1"):
        PlanCache(GROUP, COSTS, **{field: 0})  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12, unique=True), st.data())
def test_medoids_are_some_of_those_there(at: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(at)))
    distances = np.abs(np.subtract.outer(at, at))
    loss = {}
    for clustering in (farthest_first, faster_pam):
        found = clustering(distances, count)
        assert (len(found), found) == (count, sorted({*found}))
        assert found == clustering(distances, count)
        loss[clustering] = distances[:, found].min(axis=1).sum()
    assert loss[faster_pam] <= loss[farthest_first] + 1e-9


def test_three_heaps_have_a_medoid_each() -> None:
    at = np.array([0.0, 1.0, 2.0, 50.0, 51.0, 52.0, 90.0, 91.0, 92.0])
    assert faster_pam(np.abs(np.subtract.outer(at, at)), 3) == [1, 4, 7]


def test_where_the_library_is_not_installed_this_is_said_and_another_clustering_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kmedoids", None)
    with pytest.raises(FailedPrecondition, match=r"tessera-pkg\[kmedoids\]"):
        a_cache(CHAINS, medoids=2).clustered()
    cache = a_cache(CHAINS, medoids=2, clustering=farthest_first)
    cache.adopt(cache.clustered())
    assert cache.estimate_ms(*list(CHAINS)[:2]) > 0
