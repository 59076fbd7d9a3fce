"""The grid, what is missing of it, what is measured where, and merging."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.errors import FailedPrecondition, VariantNotFound
from tessera.domain.ids import BuildClass, ProfileClass
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord, VariantState
from tessera.profiler.core.grid import RowGroup, covers, full_grid, missing, quick_grid
from tessera.profiler.core.merging import merge
from tessera.profiler.core.targets import targets
from tessera.testing.builders import BUILD_CLASS, PROFILE_CLASS, a_latency_row, a_load_cost, a_node, a_variant, a_variant_key

KEY = a_variant_key()


def record(*cells: tuple[int, int], quick: bool = False, load: tuple[LoadCost, ...] = ()) -> ProfileRecord:
    rows = tuple(a_latency_row(batch, threads) for batch, threads in cells)
    return ProfileRecord(KEY, PROFILE_CLASS, load, rows, 1.0, quick)


@pytest.mark.parametrize(
    ("max_batch", "cpu_count", "cells"),
    [
        (8, 2, {(b, t) for b in (1, 2, 4, 8) for t in (1, 2)}),
        (64, 16, {(b, t) for b in (1, 2, 4, 8) for t in (1, 2)}),
        (4, 1, {(1, 1), (2, 1), (4, 1)}),
        (3, 2, {(1, 1), (2, 1), (1, 2), (2, 2)}),
        (1, 1, {(1, 1)}),
    ],
)
def test_the_full_grid_is_bounded_by_batch_and_cores(max_batch: int, cpu_count: int, cells: set[tuple[int, int]]) -> None:
    assert set(full_grid(max_batch, cpu_count)) == cells
    assert len(full_grid(max_batch, cpu_count)) == len(cells)


def test_the_quick_grid_is_one_row_with_the_runtimes_threads() -> None:
    assert quick_grid(2) == ((1, 2),)


def test_missing_rows_are_grouped_by_threads() -> None:
    grid = full_grid(8, 2)
    assert missing(grid, None, again=False) == (RowGroup(1, (1, 2, 4, 8)), RowGroup(2, (1, 2, 4, 8)))
    assert missing(grid, record((1, 1), (4, 1), (1, 2)), again=False) == (RowGroup(1, (2, 8)), RowGroup(2, (2, 4, 8)))
    assert missing(grid, record(*grid), again=False) == ()
    assert missing(grid, record(*grid), again=True) == missing(grid, None, again=False)


cells_strategy = st.sets(st.tuples(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2])))


@given(cells_strategy, st.integers(1, 16), st.integers(1, 4))
def test_measuring_what_is_missing_completes_the_grid_and_nothing_twice(have: set[tuple[int, int]], max_batch: int, cpus: int) -> None:
    grid = full_grid(max_batch, cpus)
    known = record(*have)
    groups = missing(grid, known, again=False)
    measured = [(batch, group.threads) for group in groups for batch in group.batches]
    assert len(measured) == len(set(measured))
    assert not set(measured) & have
    done = merge(known, KEY, PROFILE_CLASS, [a_latency_row(b, t) for b, t in measured], [], 2.0, grid, replace_loads=False)
    assert covers(done, grid)
    assert not done.quick
    assert missing(grid, done, again=False) == ()
    assert {(row.batch, row.threads) for row in done.rows} == have | set(grid)


def test_rows_replace_rows_of_their_cell_and_the_rest_stays() -> None:
    old = record((1, 1), (2, 1))
    new = merge(old, KEY, PROFILE_CLASS, [a_latency_row(2, 1, p50_ms=99.0)], [], 5.0, full_grid(8, 2), replace_loads=False)
    assert (new.latency_ms(1, 1), new.latency_ms(2, 1), new.measured_unix_s) == (2.0, 99.0, 5.0)
    assert new.quick, "rows are missing still"


def load(path: StartPath, ms: float, fetch_ms: float = 0.0) -> LoadCost:
    return LoadCost(path, (StageTime(Stage.FETCH, fetch_ms), StageTime(Stage.LOAD, ms)), 100)


def test_the_cheaper_load_counts_without_its_fetch() -> None:
    old = record((1, 1), load=(load(StartPath.BIND, 5.0),))
    fetched = load(StartPath.BIND, 4.0, fetch_ms=500.0)
    both = merge(old, KEY, PROFILE_CLASS, [], [fetched, load(StartPath.FORK, 20.0)], 2.0, (), replace_loads=False)
    assert both.load == (fetched, load(StartPath.FORK, 20.0))
    worse = merge(old, KEY, PROFILE_CLASS, [], [load(StartPath.BIND, 9.0)], 2.0, (), replace_loads=False)
    assert worse.load == old.load
    again = merge(old, KEY, PROFILE_CLASS, [], [load(StartPath.BIND, 9.0)], 2.0, (), replace_loads=True)
    assert again.load == (load(StartPath.BIND, 9.0),)


def test_one_target_per_ready_variant_and_class_that_fits() -> None:
    other = ProfileClass("zen-profile")
    nodes = [
        a_node("n2"),
        a_node("n1"),
        a_node("n3", build_class=BuildClass("zen"), profile_class=other),
        a_node("n4", profile_class=ProfileClass("no-aten"), flavours=("ort",)),
    ]
    variants = [a_variant(), a_variant(variant="ort-fp32"), a_variant(variant="ort-half", state=VariantState.BUILDING)]
    found = targets("digits@1", variants, nodes)
    assert [(item.key.variant, item.profile_class, [node.node_id for node in item.nodes]) for item in found] == [
        ("aten-fp32", PROFILE_CLASS, ["n1", "n2"]),
        ("aten-fp32", other, ["n3"]),
        ("ort-fp32", "no-aten", ["n4"]),
        ("ort-fp32", PROFILE_CLASS, ["n1", "n2"]),
    ]
    only = targets("digits@1", variants, nodes, "ort-fp32", PROFILE_CLASS)
    assert [(item.key.variant, item.profile_class) for item in only] == [("ort-fp32", PROFILE_CLASS)]


def test_nothing_to_measure_says_why() -> None:
    with pytest.raises(VariantNotFound, match=r"variant 'digits@1/no' does not exist; there are aten-fp32"):
        targets("digits@1", [a_variant()], [a_node()], "no")
    with pytest.raises(FailedPrecondition, match="no node is registered"):
        targets("digits@1", [a_variant()], [])
    with pytest.raises(FailedPrecondition, match="no node of profile class 'x' is registered"):
        targets("digits@1", [a_variant()], [a_node()], profile_class="x")
    wrong = [
        a_variant(variant="ort-fp32", build_class=BuildClass("zen")),
        a_variant(variant="ort-bad", state=VariantState.FAILED, reason="op x"),
    ]
    with pytest.raises(FailedPrecondition, match=r"ort-bad is failed \(op x\); .*ort-fp32 needs build class zen and ort runtimes"):
        targets("digits@1", wrong, [a_node(build_class=BUILD_CLASS)])
    with pytest.raises(FailedPrecondition, match="it has no variants"):
        targets("digits@1", [], [a_node()])


def test_a_row_is_what_it_says() -> None:
    row: LatencyRow = a_latency_row(4, 2)
    assert covers(record((4, 2)), ((row.batch, row.threads),))
    assert a_load_cost().start_path is StartPath.BIND
