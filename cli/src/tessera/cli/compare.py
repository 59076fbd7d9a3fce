"""Which configuration is best: measured rows, constraints that they must meet, objectives by which they are ranked.

In the words of Triton's Model Analyzer (docs/config.md there): metrics are named `perf_throughput`, `perf_latency_p99` and so on, a
constraint is a `min` or `max` of one, an objective has a weight. Where it measures a running server, Tessera looks at profiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.domain.errors import InvalidInput

Plain = Mapping[str, Any]

METRICS: dict[str, bool] = {
    "perf_throughput": True,
    "perf_latency_avg": False,
    "perf_latency_p50": False,
    "perf_latency_p99": False,
    "cpu_used_ram": False,
    "accuracy": True,
    "usd_per_1000": False,
    "load_time": False,
}
"""Metric -> whether more of it is better. Items/s; ms; MB of private memory; 0 to 1; USD per 1,000 items; ms of the cheapest start."""
DEFAULT_OBJECTIVES = {"perf_throughput": 10.0}
"""Model Analyzer's."""
BOUNDS = ("min", "max")


@dataclass(frozen=True, slots=True)
class Wish:
    """`objectives`: metric -> weight. `constraints`: metric -> {"min" | "max": limit}."""

    objectives: Mapping[str, float]
    constraints: Mapping[str, Mapping[str, float]]


def wish_of(objectives: Any, constraints: Any) -> Wish:
    """Objectives as a list of metrics (weight 1 each) or as metric -> weight; constraints as metric -> {min, max}. Nothing: the default.

    Raises:
        InvalidInput: names the field, the value and what there is.
    """
    if objectives is not None and not isinstance(objectives, list | dict):
        raise InvalidInput("objectives", objectives, "must be a list of metrics, or weights by metric")
    if constraints is not None and not isinstance(constraints, dict):
        raise InvalidInput("constraints", constraints, "must be limits by metric")
    weights = dict.fromkeys(objectives, 1.0) if isinstance(objectives, list) else dict(objectives or {})
    for metric, weight in weights.items():
        _check_metric("objectives", metric)
        weights[metric] = _number(f"objectives.{metric}", weight)
        if weights[metric] <= 0:
            raise InvalidInput(f"objectives.{metric}", weight, "must be more than 0")
    limits: dict[str, dict[str, float]] = {}
    for metric, bounds in (constraints or {}).items():
        _check_metric("constraints", metric)
        if not isinstance(bounds, dict) or not bounds or not set(bounds) <= set(BOUNDS):
            raise InvalidInput(f"constraints.{metric}", bounds, "must have min, max or both")
        limits[metric] = {bound: _number(f"constraints.{metric}.{bound}", limit) for bound, limit in bounds.items()}
    return Wish(weights or DEFAULT_OBJECTIVES, limits)


def parse_objective(text: str) -> tuple[str, float]:
    """METRIC or METRIC=WEIGHT. Raises: InvalidInput."""
    metric, has_weight, weight = text.partition("=")
    return metric, _number(f"objective {metric}", weight) if has_weight else 1.0


def parse_constraint(text: str) -> tuple[str, str, float]:
    """METRIC:min=NUMBER or METRIC:max=NUMBER. Raises: InvalidInput."""
    metric, _, rest = text.partition(":")
    bound, has_limit, limit = rest.partition("=")
    if bound not in BOUNDS or not has_limit:
        raise InvalidInput("constraint", text, "must be METRIC:min=NUMBER or METRIC:max=NUMBER")
    return metric, bound, _number(f"constraint {metric}:{bound}", limit)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of one profile. A metric that is not known is not among `metrics`."""

    variant: str
    profile_class: str
    batch: int
    threads: int
    concurrency: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ranked:
    """`score`: each objective's value as a share of the best one's, weighted; 1 is the best there can be. `reason`: why it is out."""

    candidate: Candidate
    score: float = 0.0
    reason: str = ""


def candidates(profiles: Iterable[Plain]) -> list[Candidate]:
    """From profiles as `views.profile` gives them."""
    found = []
    for profile in profiles:
        load_ms = min((cost["ms"]["total"] for cost in profile["load"]), default=None)
        for row in profile["latency"]:
            metrics = {
                "perf_throughput": row["items_per_s"],
                "perf_latency_avg": row["mean_ms"],
                "perf_latency_p50": row["p50_ms"],
                "perf_latency_p99": row["p99_ms"],
                "cpu_used_ram": row["peak_private_bytes"] / 1e6,
                "accuracy": profile["accuracy"],
                "usd_per_1000": row["usd_per_1000"],
                "load_time": load_ms,
            }
            known = {metric: value for metric, value in metrics.items() if value is not None}
            place = (row["batch"], row["threads"], row["concurrency"])
            found.append(Candidate(profile["variant"], profile["profile_class"], *place, known))
    return found


def plain(ranked: Ranked) -> dict[str, Any]:
    """As `tessera profile compare` prints it; metrics that are not known are None."""
    candidate = ranked.candidate
    return {
        "variant": candidate.variant,
        "profile_class": candidate.profile_class,
        "batch": candidate.batch,
        "threads": candidate.threads,
        "concurrency": candidate.concurrency,
        "score": round(ranked.score, 4),
        **{metric: candidate.metrics.get(metric) for metric in METRICS},
        "reason": ranked.reason,
    }


def rank(found: Sequence[Candidate], wish: Wish) -> list[Ranked]:
    """The best row of each variant and class, best first; after them those of which no row meets the constraints, each by the row that
    misses them least, with the reason."""
    met = [candidate for candidate in found if not _misses(candidate, wish)]
    best = {metric: _best(metric, met) for metric in wish.objectives}
    groups: dict[tuple[str, str], Ranked] = {}
    for candidate in found:
        place = (candidate.variant, candidate.profile_class)
        misses = _misses(candidate, wish)
        ranked = Ranked(candidate, -sum(misses.values()), "; ".join(misses)) if misses else Ranked(candidate, _score(candidate, wish, best))
        known = groups.get(place)
        if known is None or (not ranked.reason, ranked.score) > (not known.reason, known.score):
            groups[place] = ranked
    order = sorted(groups.values(), key=lambda ranked: (bool(ranked.reason), -ranked.score, ranked.candidate.variant))
    return [Ranked(ranked.candidate, 0.0, ranked.reason) if ranked.reason else ranked for ranked in order]


def _misses(candidate: Candidate, wish: Wish) -> dict[str, float]:
    """What it misses, in words, and by which share of the limit."""
    found: dict[str, float] = {}
    for metric, bounds in wish.constraints.items():
        value = candidate.metrics.get(metric)
        for bound, limit in bounds.items():
            if value is None:
                found[f"{metric} is not known"] = float("inf")
            elif (value < limit) if bound == "min" else (value > limit):
                found[f"{metric} {value:.4g} is {'below min' if bound == 'min' else 'above max'} {limit:g}"] = abs(value - limit) / abs(
                    limit or 1.0
                )
    return found


def _best(metric: str, found: Iterable[Candidate]) -> float | None:
    values = [candidate.metrics[metric] for candidate in found if metric in candidate.metrics]
    return (max if METRICS[metric] else min)(values, default=None)


def _score(candidate: Candidate, wish: Wish, best: Mapping[str, float | None]) -> float:
    total = sum(wish.objectives.values())
    return sum(weight * _share(metric, candidate, best[metric]) for metric, weight in wish.objectives.items()) / total


def _share(metric: str, candidate: Candidate, best: float | None) -> float:
    value = candidate.metrics.get(metric)
    if value is None or best is None:
        return 0.0
    larger, smaller = (best, value) if METRICS[metric] else (value, best)
    return smaller / larger if larger > 0 else 1.0


def _check_metric(field: str, metric: object) -> None:
    if metric not in METRICS:
        raise InvalidInput(field, metric, f"there are {', '.join(METRICS)}")


def _number(field: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) < float("inf"):
        raise InvalidInput(field, value, "must be a finite number")
    return number
