"""Traces: when functions are called. A seeded generator of our own, and a reader of the Azure Functions traces where they lie.

The generator is Azure-like in what matters for keeping things (Shahrad et al., USENIX ATC'20, section 3): mean rates spread over five
orders of magnitude, a third of the functions called by a timer, the others by people (a day's rhythm) or by bursts between long pauses.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DAY_S = 86400.0
AZURE = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
MOST_PER_MINUTE = 20
"""More calls of one function within a minute change nothing for windows of a minute and more."""

TIMER_PERIODS_S = (60.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
TIMER_WEIGHTS = (0.1, 0.25, 0.15, 0.15, 0.15, 0.2)
MEDIAN_PER_HOUR = 3.0
DECADES = 1.0
"""Standard deviation of the rates' decimal logarithm."""


@dataclass(frozen=True)
class Trace:
    """`calls[i]` are the seconds at which function `i` is called, ascending."""

    name: str
    duration_s: float
    calls: tuple[tuple[float, ...], ...]


def generated(functions: int, hours: float, seed: int) -> Trace:
    draw = np.random.default_rng(seed)
    duration_s = hours * 3600.0
    kinds = draw.choice(3, size=functions, p=(0.3, 0.35, 0.35))
    makers = (_timer, _people, _bursts)
    calls = tuple(_thinned(makers[kind](draw, duration_s)) for kind in kinds)
    return Trace(f"generated-{seed}", duration_s, calls)


def _timer(draw: np.random.Generator, duration_s: float) -> np.ndarray:
    period_s = float(draw.choice(TIMER_PERIODS_S, p=TIMER_WEIGHTS))
    times = np.arange(draw.uniform(0, period_s), duration_s, period_s)
    return times + draw.uniform(0, 0.5, times.size)


def _rate(draw: np.random.Generator) -> float:
    """Calls per second on average: log-normal."""
    return min(1.0, float(MEDIAN_PER_HOUR / 3600.0 * 10.0 ** draw.normal(0.0, DECADES)))


def _people(draw: np.random.Generator, duration_s: float) -> np.ndarray:
    """Poisson whose rate follows the time of day; some functions hardly feel it."""
    rate, depth, noon_s = _rate(draw), draw.uniform(0.0, 1.0), draw.uniform(0.0, DAY_S)
    times = draw.uniform(0.0, duration_s, draw.poisson(rate * (1.0 + depth) * duration_s))
    level = (1.0 + depth * np.cos(2.0 * np.pi * (times - noon_s) / DAY_S)) / (1.0 + depth)
    return times[draw.uniform(size=times.size) < level]


def _bursts(draw: np.random.Generator, duration_s: float) -> np.ndarray:
    """On for a while, off for longer (Pareto both), and Poisson while on."""
    rate = _rate(draw)
    on_s, duty = 10.0 ** draw.uniform(1.5, 3.3), draw.uniform(0.02, 0.3)
    shape, at_s = 1.5, -draw.uniform(0.0, on_s / duty)
    pieces = []
    while at_s < duration_s:
        length_s = on_s * (draw.pareto(shape) + 1.0) * (shape - 1.0) / shape
        pieces.append(at_s + draw.uniform(0.0, length_s, draw.poisson(rate / duty * length_s)))
        at_s += length_s + on_s * (1.0 / duty - 1.0) * (draw.pareto(shape) + 1.0) * (shape - 1.0) / shape
    times = np.concatenate(pieces)
    return times[(times >= 0.0) & (times < duration_s)]


def _thinned(times: np.ndarray) -> tuple[float, ...]:
    """Ascending, at most `MOST_PER_MINUTE` a minute."""
    kept: list[float] = []
    in_minute: dict[int, int] = defaultdict(int)
    for at_s in np.sort(times).tolist():
        minute = int(at_s // 60.0)
        in_minute[minute] += 1
        if in_minute[minute] <= MOST_PER_MINUTE:
            kept.append(at_s)
    return tuple(kept)


def thinned(trace: Trace, most: int) -> Trace:
    """At most `most` functions of it, taken at equal distances."""
    count = len(trace.calls)
    if count <= most:
        return trace
    return Trace(f"{trace.name}/{most}", trace.duration_s, tuple(trace.calls[at * count // most] for at in range(most)))


def azure(folder: Path = AZURE) -> list[Trace]:
    """What of the Azure traces is there: the 2019 samples (calls a minute, spread evenly at random) and the 2021 excerpt."""
    found = [
        _azure_2019(path, f"azure-2019-{count}")
        for count in (100, 500)
        if (path := folder / "azure_functions_2019" / f"sample{count}_invocations.csv").exists()
    ]
    excerpt = folder / "azure_functions_2021" / "Azure2021_200.csv"
    return [*found, _azure_2021(excerpt)] if excerpt.exists() else found


def _azure_2019(path: Path, name: str) -> Trace:
    draw = np.random.default_rng(2019)
    with path.open() as file:
        minutes, *rows = csv.reader(file)
    calls = []
    for row in rows:
        counts = [min(MOST_PER_MINUTE, int(count)) for count in row[4:]]
        calls.append(tuple(sorted(60.0 * minute + draw.uniform(0.0, 60.0) for minute, count in enumerate(counts) for _ in range(count))))
    return Trace(name, 60.0 * (len(minutes) - 4), tuple(calls))


def _azure_2021(path: Path) -> Trace:
    calls: dict[str, list[float]] = defaultdict(list)
    with path.open() as file:
        for row in csv.DictReader(file):
            calls[row["app"] + row["func"]].append(float(row["end_timestamp"]) - float(row["duration"]))
    first_s = min(min(times) for times in calls.values())
    last_s = max(max(times) for times in calls.values())
    shifted = tuple(tuple(sorted(at_s - first_s for at_s in times)) for times in calls.values())
    return Trace("azure-2021-200", last_s - first_s, shifted)
