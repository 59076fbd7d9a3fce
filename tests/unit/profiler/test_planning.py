"""Which cell comes next: pruned sweeps, the worst line first, a budget that is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.records import LatencyRow
from tessera.profiler.core.grid import Cell, Sweep, cell_of, full_grid, sweep_of
from tessera.profiler.core.planning import Limits, Taken, next_cell, open_cells, row_seconds, settled
from tessera.testing.builders import a_latency_row

ONE_CORE = full_grid(64, 1)
TWO_CORES = full_grid(64, 2)


def row(cell: Cell, ms: float, **fields: object) -> LatencyRow:
    return a_latency_row(cell.batch, cell.threads, ms, mean_ms=ms, concurrency=cell.concurrency, **fields)


def run(
    grid: tuple[Cell, ...],
    ms: Callable[[Cell], float],
    limits: Limits = Limits(),  # noqa: B008 - a frozen value
    seconds: Callable[[Cell], float] = lambda cell: 0.1,
    spread: Callable[[Cell, int], float] = lambda cell, time: 0.0,
) -> list[Cell]:
    """A whole run by `next_cell`: the cells in the order in which they were measured."""
    rows: dict[Cell, LatencyRow] = {}
    taken: list[Taken] = []
    while (cell := next_cell(grid, rows.values(), taken, limits)) is not None:
        time = sum(each.cell == cell for each in taken)
        rows[cell] = row(cell, ms(cell), spread=spread(cell, time))
        taken.append(Taken(cell, seconds(cell)))
        assert len(taken) <= 2 * len(grid), "it must end"
    return [each.cell for each in taken]


def test_a_sweep_goes_from_small_to_large_and_each_cell_once() -> None:
    assert run(ONE_CORE, lambda cell: 3.0 + 2.0 * cell.batch) == list(ONE_CORE)


def test_a_sweep_ends_when_throughput_fell_twice_in_a_row() -> None:
    ms = {1: 1.0, 2: 1.5, 4: 4.0, 8: 5.0, 16: 12.0, 32: 30.0, 64: 61.0}
    # Items a second: 1000, 1333, 1000 (once, an awkward batch), 1600, 1333, 1067: over.
    assert [cell.batch for cell in run(ONE_CORE, lambda cell: ms[cell.batch])] == [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("limits", "fields", "batches"),
    [
        (Limits(latency_cap_ms=50.0), {}, [1, 2, 4]),  # 10, 20, 40; the line says 80 for the next
        (Limits(latency_cap_ms=5.0), {}, [1]),
        (Limits(private_cap_bytes=1 << 20), {"peak_private_bytes": (1 << 20) + 1}, [1]),
        (Limits(), {}, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_a_sweep_ends_at_the_caps(limits: Limits, fields: dict[str, int], batches: list[int]) -> None:
    rows: list[LatencyRow] = []
    taken: list[Taken] = []
    while (cell := next_cell(ONE_CORE, rows, taken, limits)) is not None:
        rows.append(row(cell, 10.0 * cell.batch, **fields))
        taken.append(Taken(cell, 0.1))
    assert [each.batch for each in rows] == batches
    assert open_cells(ONE_CORE, rows, limits) == {}
    assert settled(ONE_CORE, rows, limits) == len(ONE_CORE)


def test_every_sweep_gets_its_first_row_then_the_worst_line_goes_on() -> None:
    def ms(cell: Cell) -> float:
        if sweep_of(cell) == Sweep(2, 1):
            return 4.0 + 0.2 * cell.batch**1.7  # no line at all
        return 3.0 + 2.0 * cell.batch

    order = run(TWO_CORES, ms)
    assert order[:3] == [Cell(1, 1), Cell(1, 1, 2), Cell(1, 2)]
    # Once each has three rows, the bent one is taken to its end before the straight ones are looked at again.
    bent = [index for index, cell in enumerate(order) if sweep_of(cell) == Sweep(2, 1)]
    straight = [index for index, cell in enumerate(order) if sweep_of(cell) != Sweep(2, 1) and cell.batch >= 8]
    assert max(bent) < min(straight)


def test_the_budget_is_kept() -> None:
    limits = Limits(budget_s=10.0)
    order = run(TWO_CORES, lambda cell: 3.0 + 2.0 * cell.batch, limits, seconds=lambda cell: 3.0)
    assert len(order) == 4, "begun at 0, 3, 6, 9: what a row takes beyond its least is not known before"


def test_a_row_has_no_more_time_than_is_left() -> None:
    limits = Limits(budget_s=10.0, seconds_per_row=3.0)
    assert row_seconds((), limits) == 3.0
    assert row_seconds([Taken(Cell(1, 1), 8.5)], limits) == 1.5
    assert 0 < row_seconds([Taken(Cell(1, 1), 10.0)], limits) < 1


def test_a_row_that_the_budget_cannot_hold_is_not_begun() -> None:
    """One second a run: seven of them do not fit into what is left, and smaller ones of another sweep do."""
    limits = Limits(budget_s=12.0, latency_cap_ms=10_000.0)
    order = run(TWO_CORES, lambda cell: 250.0 * cell.batch / cell.threads, limits, seconds=lambda cell: 2.0 * cell.batch / cell.threads)
    spent = sum(2.0 * cell.batch / cell.threads for cell in order)
    assert spent <= limits.budget_s + 2.0
    assert Cell(1, 2) in order


def test_a_budget_however_small_yields_a_row() -> None:
    assert run(ONE_CORE, lambda cell: 500.0, Limits(budget_s=0.001), seconds=lambda cell: 4.0) == [Cell(1, 1)]


def test_uncertain_rows_are_measured_once_more_the_farthest_from_the_line_first() -> None:
    ms = {1: 5.0, 2: 7.0, 4: 22.0, 8: 19.0, 16: 50.0, 32: 67.0, 64: 131.0}  # 4 is far off, 16 a little
    restless = {4, 16, 32}

    def spread(cell: Cell, time: int) -> float:
        return 0.2 if cell.batch in restless and (time == 0 or cell.batch == 32) else 0.01

    order = run(ONE_CORE, lambda cell: ms[cell.batch], spread=spread)
    assert order[: len(ONE_CORE)] == list(ONE_CORE)
    assert [cell.batch for cell in order[len(ONE_CORE) :]] == [4, 16, 32], "each once more, however uncertain it stays"
    once = run(ONE_CORE, lambda cell: ms[cell.batch], Limits(repeats=False), spread=spread)
    assert once == list(ONE_CORE)


def test_a_run_that_finds_everything_measured_measures_nothing() -> None:
    rows = [row(cell, 5.0 + cell.batch, spread=0.5) for cell in TWO_CORES]
    assert next_cell(TWO_CORES, rows, (), Limits()) is None


@given(
    st.integers(1, 64),
    st.integers(1, 8),
    st.floats(0.0, 50.0),
    st.floats(0.01, 50.0),
    st.floats(0.5, 60.0),
    st.randoms(use_true_random=False),
)
def test_any_run_ends_within_its_budget_and_in_order(
    max_batch: int, cpus: int, intercept: float, slope: float, budget_s: float, random: object
) -> None:
    limits = Limits(budget_s=budget_s)
    grid = full_grid(max_batch, cpus)
    longest = 3.0 + 7 * (intercept + slope * 64) / 1e3

    def ms(cell: Cell) -> float:
        return (intercept + slope * cell.batch) * random.uniform(0.8, 1.3)  # type: ignore[attr-defined]

    def spread(cell: Cell, time: int) -> float:
        return random.uniform(0.0, 0.05)  # type: ignore[attr-defined]

    order = run(grid, ms, limits, lambda cell: random.uniform(0.3, 3.0), spread)  # type: ignore[attr-defined]
    assert set(order) <= set(grid)
    first: dict[Sweep, list[int]] = {}
    for cell in dict.fromkeys(order):
        first.setdefault(sweep_of(cell), []).append(cell.batch)
    assert all(batches == sorted(batches) for batches in first.values()), "small batches first, none left out in between"
    assert len(order) <= budget_s / 0.3 + 1 + longest


@given(st.sets(st.sampled_from(TWO_CORES)))
def test_what_a_run_left_is_what_the_next_one_measures(have: set[Cell]) -> None:
    rows = [row(cell, 3.0 + 2.0 * cell.batch) for cell in have]
    taken: list[Taken] = []
    while (cell := next_cell(TWO_CORES, rows, taken, Limits())) is not None:
        assert cell not in {cell_of(each) for each in rows}
        rows.append(row(cell, 3.0 + 2.0 * cell.batch))
        taken.append(Taken(cell, 0.0))
    assert {cell_of(each) for each in rows} == set(TWO_CORES)
    assert settled(TWO_CORES, rows, Limits()) == len(TWO_CORES)
