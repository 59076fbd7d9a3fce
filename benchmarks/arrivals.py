"""When requests come: Poisson arrivals whose rate follows one of the published shapes (INFaaS, USENIX ATC'21), seeded.

A shape says, over its length (0 to 1), which multiple of a capacity is asked for; a rate is that capacity in requests a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WAVES = 3
"""Of the fluctuating shape, however long it is."""


@dataclass(frozen=True)
class Shape:
    """`peak` is the largest multiple, `mean` the average one."""

    name: str
    multiple: Callable[[float], float]
    peak: float
    mean: float


def _wave(at: float) -> float:
    return 0.1 + 1.9 * (1.0 - math.cos(2.0 * math.pi * WAVES * at)) / 2.0


FLAT = Shape("flat", lambda at: 0.3, 0.3, 0.3)
RISE = Shape("rise", lambda at: 0.5 + at, 1.5, 1.0)
FLUCTUATING = Shape("fluctuating", _wave, 2.0, 1.05)
STEADY = Shape("mixed", lambda at: 1.0, 1.0, 1.0)
"""Of the mixed workload: what changes there is who is asked."""


@dataclass(frozen=True)
class Arrival:
    """`form` counts the forms of requests that there are."""

    at_s: float
    form: int


def arrivals(shape: Shape, rate_per_s: float, duration_s: float, weights: Sequence[float], seed: int) -> list[Arrival]:
    """Ascending. `rate_per_s`: of the multiple 1. `weights`: how often each form is asked, in any unit."""
    draw = np.random.default_rng(seed)
    most_per_s = shape.peak * rate_per_s
    times = np.sort(draw.uniform(0.0, duration_s, draw.poisson(most_per_s * duration_s)))
    kept = [at_s for at_s in times.tolist() if draw.uniform() * shape.peak < shape.multiple(at_s / duration_s)]
    share = np.asarray(weights, dtype=float)
    forms = draw.choice(len(share), size=len(kept), p=share / share.sum())
    return [Arrival(at_s, form) for at_s, form in zip(kept, forms.tolist(), strict=True)]
