"""Which rows a profile has, and which of them are missing."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.domain.records import LatencyRow, ProfileRecord

BATCHES = (1, 2, 4, 8)
THREADS = (1, 2)

Cell = tuple[int, int]
"""(batch, threads)."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What one `Measure` call measures: batches in ascending order at one thread count. The unit of resuming is still the row."""

    threads: int
    batches: tuple[int, ...]


def full_grid(max_batch: int, cpu_count: int) -> tuple[Cell, ...]:
    """Batches up to the variant's largest and thread counts up to the node's cores; batch 1 on one thread is always there."""
    threads = [count for count in THREADS if count <= max(1, cpu_count)]
    batches = [batch for batch in BATCHES if batch <= max(1, max_batch)]
    return tuple((batch, count) for count in threads for batch in batches)


def quick_grid(runtime_threads: int) -> tuple[Cell, ...]:
    """Batch 1 with the thread count that the node's runtimes have."""
    return ((1, max(1, runtime_threads)),)


def missing(grid: tuple[Cell, ...], record: ProfileRecord | None, again: bool) -> tuple[RowGroup, ...]:
    """The cells without a row (all of them where `again`), by thread count, fewest threads first."""
    have = set() if again or record is None else {_cell(row) for row in record.rows}
    cells = [cell for cell in grid if cell not in have]
    counts = sorted({threads for _, threads in cells})
    return tuple(RowGroup(count, tuple(sorted(batch for batch, threads in cells if threads == count))) for count in counts)


def _cell(row: LatencyRow) -> Cell:
    return (row.batch, row.threads)


def covers(record: ProfileRecord, grid: tuple[Cell, ...]) -> bool:
    return set(grid) <= {_cell(row) for row in record.rows}
