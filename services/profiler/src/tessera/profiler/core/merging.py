"""Measurements into the record of a variant on a class: rows replace rows of the same cell, the rest stays."""

from __future__ import annotations

from collections.abc import Iterable

from tessera.domain.ids import ProfileClass, VariantKey
from tessera.domain.instance import StartPath, without_fetch_ms
from tessera.domain.records import LatencyRow, LoadCost, ProfileRecord
from tessera.profiler.core.grid import cell_of


def merge(
    record: ProfileRecord | None,
    variant: VariantKey,
    profile_class: ProfileClass,
    rows: Iterable[LatencyRow],
    loads: Iterable[LoadCost],
    now_unix_s: float,
    *,
    complete: bool,
    replace_loads: bool,
) -> ProfileRecord:
    """The record with what this run has measured so far. It stays `quick` until a run over the full grid is `complete`.

    Per start path the cheaper load counts (the first in a process pays for what later ones find warm); with `replace_loads` those of
    this run alone.
    """
    by_cell = {cell_of(row): row for row in (record.rows if record is not None else ())}
    by_cell.update({cell_of(row): row for row in rows})
    run_loads = cheapest(loads)
    kept = record.load if record is not None else ()
    merged_loads = cheapest([*kept, *run_loads.values()])
    if replace_loads:
        merged_loads |= run_loads
    return ProfileRecord(
        variant=variant,
        profile_class=profile_class,
        load=tuple(merged_loads[path] for path in sorted(merged_loads)),
        rows=tuple(by_cell[cell] for cell in sorted(by_cell, key=lambda cell: (cell.threads, cell.concurrency, cell.batch))),
        measured_unix_s=now_unix_s,
        quick=not complete and (record is None or record.quick),
    )


def steadier(known: LatencyRow | None, row: LatencyRow) -> LatencyRow:
    """Of two rows of one cell that a run measured, the one with the smaller spread."""
    return known if known is not None and known.spread < row.spread else row


def cheapest(loads: Iterable[LoadCost]) -> dict[StartPath, LoadCost]:
    """Per start path the load with the least time; fetching is left out, it depends on what the node had."""
    found: dict[StartPath, LoadCost] = {}
    for load in loads:
        known = found.get(load.start_path)
        if known is None or without_fetch_ms(load.stages) < without_fetch_ms(known.stages):
            found[load.start_path] = load
    return found
