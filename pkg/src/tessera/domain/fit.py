"""What a profile says about batches that were not measured: the line `latency = slope * batch + intercept` (INFaaS, USENIX ATC'21), and
the most that an instance answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera.domain.records import LatencyRow, ProfileRecord


@dataclass(frozen=True, slots=True)
class Fit:
    """`error`: root of the mean square of (line - measured) / measured, over the rows it was fitted to. Neither slope nor intercept is
    below 0: a batch costs no less than a smaller one, and nothing answers before it was asked."""

    slope_ms: float
    intercept_ms: float
    error: float

    def ms(self, batch: int) -> float:
        return self.slope_ms * batch + self.intercept_ms


def rows_of(profile: ProfileRecord, threads: int, concurrency: int = 1) -> tuple[LatencyRow, ...]:
    """The rows of one thread count and concurrency, smallest batch first."""
    rows = (row for row in profile.rows if row.threads == threads and row.concurrency == concurrency)
    return tuple(sorted(rows, key=lambda row: row.batch))


def fit_of(profile: ProfileRecord, threads: int) -> Fit | None:
    """The line through the medians of one instance with that many threads. None where fewer than two batches were measured."""
    return fit_rows(rows_of(profile, threads))


def fit_rows(rows: Sequence[LatencyRow]) -> Fit | None:
    """The line through rows of one thread count and concurrency, by least squares of the *relative* error: a small batch that takes a
    millisecond counts as much as a large one that takes a hundred. None for fewer than two batches."""
    points = [(row.batch, row.p50_ms) for row in rows if row.p50_ms > 0]
    if len({batch for batch, _ in points}) < 2:
        return None
    # Minimise sum((slope * b / y + intercept / y - 1)^2): linear in u = b/y and v = 1/y.
    uu = sum((batch / ms) ** 2 for batch, ms in points)
    uv = sum(batch / ms**2 for batch, ms in points)
    vv = sum(1 / ms**2 for _, ms in points)
    u, v = sum(batch / ms for batch, ms in points), sum(1 / ms for _, ms in points)
    determinant = uu * vv - uv * uv
    slope, intercept = (u * vv - v * uv) / determinant, (v * uu - u * uv) / determinant
    # The best admissible line lies on the edge when the best line is not admissible: the sum is convex.
    if slope < 0:
        slope, intercept = 0.0, v / vv
    elif intercept < 0:
        slope, intercept = u / uu, 0.0
    error = math.sqrt(sum(((slope * batch + intercept) / ms - 1) ** 2 for batch, ms in points) / len(points))
    return Fit(slope, intercept, error)


def predict_ms(profile: ProfileRecord, batch: int, threads: int) -> float | None:
    """Median latency of a batch: the measured row, else the line's. None where neither is known.

    A profile holds on its own profile class alone; which one applies is the caller's to see to (`ProfileRecord.profile_class`).
    """
    measured = profile.latency_ms(batch, threads)
    if measured is not None:
        return measured
    fit = fit_of(profile, threads)
    return fit.ms(batch) if fit is not None else None


def of_singles(profile: ProfileRecord, joins: bool) -> ProfileRecord:
    """What it says of requests of one item each: all of it where they are joined to batches, else its rows of batch 1."""
    return profile if joins else replace(profile, rows=tuple(row for row in profile.rows if row.batch == 1))


def saturation_items_per_s(profile: ProfileRecord, threads: int, concurrency: int = 1) -> float | None:
    """The most batch items a second of `concurrency` instances with that many threads each, together. None where it was not measured."""
    rates = [row.items_per_s for row in rows_of(profile, threads, concurrency)]
    return max(rates, default=0.0) or None
