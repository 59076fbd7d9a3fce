"""What a request may ask for instead of naming a variant. Ordinary request parameters, so that every Open Inference client can say them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tessera.domain.errors import InvalidInput
from tessera.domain.ids import checked_name

MAX_LATENCY_MS = 24 * 3600 * 1000.0
MAX_COST_USD = 1e6
NAMES = ("latency_ms", "min_accuracy", "max_cost", "dataset", "strict")


@dataclass(frozen=True, slots=True)
class Objectives:
    """None or "" where nothing was asked.

    `latency_ms`: from the gateway's receipt to its reply. `min_accuracy`: 0 to 1. `max_cost`: USD per 1,000 requests. `dataset`: what the
    accuracy must have been measured on. `strict`: refuse what cannot be met instead of serving the closest.
    """

    latency_ms: float | None = None
    min_accuracy: float | None = None
    max_cost: float | None = None
    dataset: str = ""
    strict: bool = False

    @property
    def any(self) -> bool:
        return self != NO_OBJECTIVES


NO_OBJECTIVES = Objectives()


def objectives_of(parameters: Mapping[str, object]) -> Objectives:
    """The objectives among a request's parameters; every other name is left alone.

    Raises:
        InvalidInput: a value that is none: names the parameter, the value and the limit. Also `strict` without anything to be strict about.
    """
    latency_ms = _number(parameters, "latency_ms", MAX_LATENCY_MS, least_excluded=True)
    min_accuracy = _number(parameters, "min_accuracy", 1.0)
    max_cost = _number(parameters, "max_cost", MAX_COST_USD)
    dataset = parameters.get("dataset", "")
    if not isinstance(dataset, str):
        raise InvalidInput("parameter dataset", dataset, "must be a name")
    if dataset:
        checked_name("parameter dataset", dataset)
    strict = parameters.get("strict", False)
    if not isinstance(strict, bool):
        raise InvalidInput("parameter strict", strict, "must be true or false")
    if strict and latency_ms is None and min_accuracy is None and max_cost is None and not dataset:
        raise InvalidInput("parameter strict", strict, "needs an objective beside it: latency_ms, min_accuracy, max_cost or dataset")
    return Objectives(latency_ms, min_accuracy, max_cost, dataset, strict)


def _number(parameters: Mapping[str, object], name: str, most: float, least_excluded: bool = False) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    words = f"must be a number {'above' if least_excluded else 'from'} 0 {'and at most' if least_excluded else 'to'} {most:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"parameter {name}", value, words)
    if value < 0 or value > most or (least_excluded and value == 0):
        raise InvalidInput(f"parameter {name}", value, words)
    return float(value)
