"""Which row is measured next: the grid pruned where it is not worth measuring, and a budget spent where the line fits worst.

A sweep goes from small batches to large and ends where throughput only falls, or where latency or memory pass what anybody would use.
Among sweeps the one goes on whose line missed its last row by most; of those that have no row yet each gets its first. What is left of
the budget goes to rows that are still uncertain, first those that lie farthest from their sweep's line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tessera.domain.fit import fit_rows
from tessera.domain.records import LatencyRow
from tessera.profiler.core.grid import Cell, Sweep, cell_of, sweep_of, sweeps

WARM_RUNS = 2
"""What a node runs before the repeats of a row."""
FALLS = 2
"""So often in a row throughput may fall before the sweep ends: once may be an awkward batch."""
LEAST_ROW_S = 0.1
MOST_TIMES = 2
"""So often a row is measured in one run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """A row: repeated until its `spread`, or for `seconds_per_row`, and `min_repeats` times at least. A sweep: up to `latency_cap_ms` and
    `private_cap_bytes`. A variant on a class: `budget_s` of measuring in one run; what measures again (`repeats`) is in it."""

    budget_s: float = 60.0
    seconds_per_row: float = 3.0
    min_repeats: int = 5
    spread: float = 0.02
    latency_cap_ms: float = 2000.0
    private_cap_bytes: int = 2 << 30
    repeats: bool = True


@dataclass(frozen=True, slots=True)
class Taken:
    """A row that this run has measured, and how long that took."""

    cell: Cell
    seconds: float


def next_cell(grid: Sequence[Cell], rows: Iterable[LatencyRow], taken: Sequence[Taken], limits: Limits) -> Cell | None:
    """The cell to measure next; None: there is nothing to measure, or the budget is spent. A run's first row is measured whatever it may
    take; any other one only when what the line predicts for it is left of the budget."""
    known = {cell_of(row): row for row in rows}
    left_s = _left_s(taken, limits)

    def affordable(cell: Cell) -> bool:
        return not taken or _least_s(_sweep_rows(cell, grid, known), cell, limits) <= left_s

    fresh = [cell for cell in open_cells(grid, known.values(), limits).values() if affordable(cell)]
    if fresh:
        return min(fresh, key=lambda cell: (-_misfit(_sweep_rows(cell, grid, known)), sweep_of(cell)))
    if not limits.repeats or not taken:
        return None
    times = Counter(each.cell for each in taken)
    uncertain = [
        cell for cell in grid if cell in known and known[cell].spread > limits.spread and times[cell] < MOST_TIMES and affordable(cell)
    ]
    return max(uncertain, key=lambda cell: (_residual(known[cell], _sweep_rows(cell, grid, known)), known[cell].spread), default=None)


def row_seconds(taken: Sequence[Taken], limits: Limits) -> float:
    """The time limit of the next row: no more than is left of the budget, and a moment in any case."""
    return max(LEAST_ROW_S, min(limits.seconds_per_row, _left_s(taken, limits)))


def _left_s(taken: Sequence[Taken], limits: Limits) -> float:
    return limits.budget_s - sum(each.seconds for each in taken)


def open_cells(grid: Sequence[Cell], rows: Iterable[LatencyRow], limits: Limits) -> dict[Sweep, Cell]:
    """Per sweep that is not at its end the smallest batch that has no row."""
    known = {cell_of(row): row for row in rows}
    found: dict[Sweep, Cell] = {}
    for sweep, cells in sweeps(grid).items():
        cell = next((cell for cell in cells if cell not in known), None)
        if cell is not None and not _ended([known[smaller] for smaller in cells if smaller < cell], cell, limits):
            found[sweep] = cell
    return found


def settled(grid: Sequence[Cell], rows: Sequence[LatencyRow], limits: Limits) -> int:
    """How many cells have a row or will have none."""
    known = {cell_of(row) for row in rows}
    unfinished = open_cells(grid, rows, limits)
    return sum(cell in known or sweep_of(cell) not in unfinished for cell in grid)


def _ended(rows: Sequence[LatencyRow], cell: Cell, limits: Limits) -> bool:
    """Whether `cell`, which follows `rows`, is not worth measuring."""
    if not rows:
        return False
    if rows[-1].p50_ms > limits.latency_cap_ms or rows[-1].peak_private_bytes > limits.private_cap_bytes:
        return True
    fit = fit_rows(rows)
    if fit is not None and fit.ms(cell.batch) > limits.latency_cap_ms:
        return True
    rates = [row.items_per_s for row in rows[-FALLS - 1 :]]
    return len(rates) > FALLS and all(later < earlier for earlier, later in pairwise(rates))


def _sweep_rows(cell: Cell, grid: Sequence[Cell], known: Mapping[Cell, LatencyRow]) -> list[LatencyRow]:
    return [known[each] for each in sorted(grid) if each in known and sweep_of(each) == sweep_of(cell)]


def _expected_ms(rows: Sequence[LatencyRow], batch: int) -> float:
    """What the line says, else in proportion to the last row; 0 where there is none."""
    fit = fit_rows(rows)
    if fit is not None:
        return fit.ms(batch)
    return rows[-1].p50_ms * batch / rows[-1].batch if rows else 0.0


def _least_s(rows: Sequence[LatencyRow], cell: Cell, limits: Limits) -> float:
    """Seconds that a row of this cell takes at least: its fewest repeats, and what a row may be steady after."""
    return (WARM_RUNS + limits.min_repeats / cell.concurrency) * _expected_ms(rows, cell.batch) / 1e3


def _misfit(rows: Sequence[LatencyRow]) -> float:
    """How wrong the next row of a sweep may be predicted: as wrong as its last one was by those before, or as the line is now. Infinite
    without a row; 1 with one, of which nothing is known but itself."""
    if len(rows) < 2:
        return 1.0 if rows else math.inf
    fit = fit_rows(rows)
    last = rows[-1]
    return max(fit.error if fit is not None else 0.0, abs(_expected_ms(rows[:-1], last.batch) / last.p50_ms - 1) if last.p50_ms else 0.0)


def _residual(row: LatencyRow, rows: Sequence[LatencyRow]) -> float:
    fit = fit_rows(rows)
    return abs(fit.ms(row.batch) / row.p50_ms - 1) if fit is not None and row.p50_ms > 0 else 0.0
