"""A row put together from slices: what ran between requests, and how soon the next try begins and ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

LEAST_S = 0.1
"""Of a pause that is waited for, and of a slice."""
LEAST_SHARE = 0.1
"""Of the time limit of a row that is steady sooner, as in `tessera.runtime.measure`."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Runs that nothing disturbed. `quantiles_ms`: evenly spaced, from the least to the largest. `spread`: standard error of the mean over
    the mean; that of a single run says nothing."""

    repeats: int
    quantiles_ms: tuple[float, ...]
    mean_ms: float
    spread: float
    peak_private_bytes: int

    def quantile_ms(self, share: float) -> float:
        return self.quantiles_ms[round(share * (len(self.quantiles_ms) - 1))]

    def row_mean_ms(self, concurrency: int) -> float:
        """What a row says of its mean. One instance by itself does the same each time, and a run that took many times longer waited for
        others on the machine: the mean of the middle half of the runs. Of several the slow runs are part of what they do together."""
        if concurrency > 1:
            return self.mean_ms
        quarter = len(self.quantiles_ms) // 4
        middle = self.quantiles_ms[quarter : len(self.quantiles_ms) - quarter]
        return sum(middle) / len(middle)


@dataclass(frozen=True, slots=True)
class Pace:
    """`quiet_s`: for how long the node must have answered no request. `slice_s`: how long runs are repeated then; None: for a whole row."""

    quiet_s: float
    slice_s: float | None = None

    def hurried(self, seconds: float) -> Pace:
        """Sooner and shorter, for a row of `seconds` that requests have disturbed."""
        slice_s = seconds if self.slice_s is None else self.slice_s
        return replace(self.sooner(), slice_s=max(min(LEAST_S, seconds), slice_s / 2))

    def sooner(self) -> Pace:
        return replace(self, quiet_s=max(LEAST_S, self.quiet_s / 2))


def together(slices: Sequence[Slice]) -> Slice:
    """One that has all their runs, each slice with the weight of its own; at least one."""
    repeats = sum(each.repeats for each in slices)
    mean = sum(each.repeats * each.mean_ms for each in slices) / repeats
    squares = sum(each.repeats * ((each.repeats - 1) * (each.spread * each.mean_ms) ** 2 + (each.mean_ms - mean) ** 2) for each in slices)
    spread = math.sqrt(squares / (repeats - 1) / repeats) / mean if repeats > 1 and mean > 0 else 1.0
    return Slice(repeats, _quantiles(slices), mean, spread, max(each.peak_private_bytes for each in slices))


def enough(found: Slice, concurrency: int, seconds: float, min_repeats: int, spread: float) -> bool:
    """Whether the runs make a row, by the measure of `tessera.runtime.measure`."""
    ran_s = found.repeats * found.mean_ms / 1e3 / concurrency
    steady = spread > 0 and found.spread <= spread and ran_s >= LEAST_SHARE * seconds
    return found.repeats >= min_repeats and (steady or ran_s >= seconds)


def _quantiles(slices: Sequence[Slice]) -> tuple[float, ...]:
    """As many as the first has: those of the slices, weighted by the runs that each one stands for."""
    points = sorted((ms, each.repeats / len(each.quantiles_ms)) for each in slices for ms in each.quantiles_ms)
    count, total = len(slices[0].quantiles_ms), sum(each.repeats for each in slices)
    found, reached, at = [], points[0][1], 0
    for number in range(count):
        while reached < (number + 0.5) / count * total and at < len(points) - 1:
            at += 1
            reached += points[at][1]
        found.append(points[at][0])
    return tuple(found)
