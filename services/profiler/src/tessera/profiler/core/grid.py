"""Which rows a profile may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tessera.domain.records import LatencyRow

BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Cell(NamedTuple):
    """Where a row stands in the grid: `concurrency` instances at a time, each with `threads`."""

    batch: int
    threads: int
    concurrency: int = 1

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        beside = "" if self.concurrency == 1 else f", {self.concurrency} at a time"
        return f"batch {self.batch}, {threads}{beside}"


class Sweep(NamedTuple):
    """The cells of one thread count and concurrency, which are measured smallest batch first."""

    threads: int
    concurrency: int


def cell_of(row: LatencyRow) -> Cell:
    return Cell(row.batch, row.threads, row.concurrency)


def sweep_of(cell: Cell) -> Sweep:
    return Sweep(cell.threads, cell.concurrency)


def full_grid(max_batch: int, cpu_count: int) -> tuple[Cell, ...]:
    """Batches up to the variant's largest, thread counts up to the node's cores, and so many instances at a time that no two threads
    share a core; batch 1 of one instance on one thread is always there."""
    batches = [batch for batch in BATCHES if batch <= max(1, max_batch)]
    return tuple(
        Cell(batch, threads, concurrency)
        for threads in _counts(cpu_count)
        for concurrency in _counts(cpu_count // threads)
        for batch in batches
    )


def quick_grid(runtime_threads: int) -> tuple[Cell, ...]:
    """Batch 1 of one instance with the thread count that the node's runtimes have."""
    return (Cell(1, max(1, runtime_threads)),)


def sweeps(grid: Iterable[Cell]) -> dict[Sweep, tuple[Cell, ...]]:
    """The grid's cells by sweep, smallest batch first."""
    found: dict[Sweep, list[Cell]] = {}
    for cell in sorted(grid):
        found.setdefault(sweep_of(cell), []).append(cell)
    return {sweep: tuple(found[sweep]) for sweep in sorted(found)}


def below(grid: Iterable[Cell], cell: Cell) -> tuple[Cell, ...]:
    """The grid without this cell and the larger batches of its sweep."""
    return tuple(each for each in grid if sweep_of(each) != sweep_of(cell) or each.batch < cell.batch)


def _counts(most: int) -> list[int]:
    """Powers of two up to `most`, and `most` itself."""
    powers = [1 << exponent for exponent in range(max(1, most).bit_length())]
    return sorted({*powers, max(1, most)})
