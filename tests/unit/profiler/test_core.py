"""The grid, what is measured where, and merging."""

from __future__ import annotations

import pytest

from tessera.domain.errors import FailedPrecondition, VariantNotFound
from tessera.domain.ids import BuildClass, ProfileClass
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import LoadCost, ProfileRecord, VariantState
from tessera.profiler.core.grid import Cell, Sweep, full_grid, quick_grid, sweeps
from tessera.profiler.core.merging import merge, steadier
from tessera.profiler.core.targets import targets
from tessera.testing.builders import BUILD_CLASS, PROFILE_CLASS, a_latency_row, a_node, a_variant, a_variant_key

KEY = a_variant_key()


def record(*cells: Cell, quick: bool = False, load: tuple[LoadCost, ...] = ()) -> ProfileRecord:
    rows = tuple(a_latency_row(cell.batch, cell.threads, concurrency=cell.concurrency) for cell in cells)
    return ProfileRecord(KEY, PROFILE_CLASS, load, rows, 1.0, quick)


@pytest.mark.parametrize(
    ("max_batch", "cpu_count", "batches", "found"),
    [
        (8, 2, (1, 2, 4, 8), {(1, 1), (1, 2), (2, 1)}),
        (100, 1, (1, 2, 4, 8, 16, 32, 64), {(1, 1)}),
        (3, 4, (1, 2), {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}),
        (1, 6, (1,), {(1, 1), (1, 2), (1, 4), (1, 6), (2, 1), (2, 2), (2, 3), (4, 1), (6, 1)}),
    ],
)
def test_the_full_grid_is_bounded_by_batch_and_cores(
    max_batch: int, cpu_count: int, batches: tuple[int, ...], found: set[tuple[int, int]]
) -> None:
    grid = full_grid(max_batch, cpu_count)
    assert len(set(grid)) == len(grid) == len(batches) * len(found)
    by_sweep = sweeps(grid)
    assert set(by_sweep) == {Sweep(*each) for each in found}
    assert all(tuple(cell.batch for cell in cells) == batches for cells in by_sweep.values())
    assert all(cell.threads * cell.concurrency <= cpu_count for cell in grid)


def test_the_quick_grid_is_one_row_with_the_runtimes_threads() -> None:
    assert quick_grid(2) == (Cell(1, 2),)


def test_rows_replace_rows_of_their_cell_and_the_rest_stays() -> None:
    old = record(Cell(1, 1), Cell(2, 1), Cell(2, 1, 2))
    new = merge(old, KEY, PROFILE_CLASS, [a_latency_row(2, 1, p50_ms=99.0)], [], 5.0, complete=False, replace_loads=False)
    assert (new.latency_ms(1, 1), new.latency_ms(2, 1), new.measured_unix_s) == (2.0, 99.0, 5.0)
    assert [(row.batch, row.concurrency) for row in new.rows] == [(1, 1), (2, 1), (2, 2)]


def test_a_record_is_quick_until_a_full_run_has_ended_on_it() -> None:
    def merged(known: ProfileRecord | None, complete: bool) -> bool:
        return merge(known, KEY, PROFILE_CLASS, [a_latency_row()], [], 5.0, complete=complete, replace_loads=False).quick

    assert merged(None, complete=False)
    assert merged(record(Cell(1, 1), quick=True), complete=False)
    assert not merged(record(Cell(1, 1), quick=True), complete=True)
    assert not merged(record(Cell(1, 1)), complete=False), "a later quick run does not make it less"


def test_of_two_rows_of_a_run_the_steadier_stays() -> None:
    restless, steady = a_latency_row(spread=0.1), a_latency_row(spread=0.01)
    assert steadier(None, restless) is restless
    assert steadier(restless, steady) is steady
    assert steadier(steady, restless) is steady


def load(path: StartPath, ms: float, fetch_ms: float = 0.0) -> LoadCost:
    return LoadCost(path, (StageTime(Stage.FETCH, fetch_ms), StageTime(Stage.LOAD, ms)), 100)


def test_the_cheaper_load_counts_without_its_fetch() -> None:
    old = record(Cell(1, 1), load=(load(StartPath.BIND, 5.0),))
    fetched = load(StartPath.BIND, 4.0, fetch_ms=500.0)
    both = merge(old, KEY, PROFILE_CLASS, [], [fetched, load(StartPath.FORK, 20.0)], 2.0, complete=False, replace_loads=False)
    assert both.load == (fetched, load(StartPath.FORK, 20.0))
    worse = merge(old, KEY, PROFILE_CLASS, [], [load(StartPath.BIND, 9.0)], 2.0, complete=False, replace_loads=False)
    assert worse.load == old.load
    again = merge(old, KEY, PROFILE_CLASS, [], [load(StartPath.BIND, 9.0)], 2.0, complete=False, replace_loads=True)
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
