"""The configurations that no other one beats in everything."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.cli.compare import METRICS, Candidate

AXES = ("perf_latency_p50", "accuracy", "usd_per_1000")


def front(found: Sequence[Candidate], axes: Sequence[str] = AXES) -> list[bool]:
    """For each candidate whether it is on the Pareto front of those `axes` of which anything is known. What is not known of one counts as
    the worst."""
    known = [axis for axis in axes if any(axis in candidate.metrics for candidate in found)]
    points = [tuple(_cost(candidate, axis) for axis in known) for candidate in found]
    return [not any(_beats(other, point) for other in points) for point in points]


def _cost(candidate: Candidate, axis: str) -> float:
    """Less is better."""
    value = candidate.metrics.get(axis)
    return float("inf") if value is None else -value if METRICS[axis] else value


def _beats(other: tuple[float, ...], point: tuple[float, ...]) -> bool:
    return other != point and all(theirs <= mine for theirs, mine in zip(other, point, strict=True))
