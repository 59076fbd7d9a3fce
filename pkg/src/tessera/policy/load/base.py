"""The interface of load policies: one step per report, for one instance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tessera.domain.fit import fit_of, predict_ms, saturation_items_per_s
from tessera.domain.records import LoadState, ProfileRecord


@dataclass(frozen=True, slots=True)
class Expected:
    """What a profile says of one instance: `run_ms(batch) = slope_ms * batch + intercept_ms`, and the most items that it answers a
    second."""

    slope_ms: float
    intercept_ms: float
    peak_items_per_s: float

    def run_ms(self, batch: float) -> float:
        return self.slope_ms * batch + self.intercept_ms


def expected_of(profile: ProfileRecord | None, threads: int) -> Expected | None:
    """From the rows of one instance with that many threads. Where one batch alone was measured its latency stands for all. None where
    nothing was: then nothing is expected, and no instance is judged by a guess."""
    if profile is None:
        return None
    peak = saturation_items_per_s(profile, threads)
    if peak is None:
        return None
    fit = fit_of(profile, threads)
    if fit is not None:
        return Expected(fit.slope_ms, fit.intercept_ms, peak)
    alone = next((ms for row in profile.rows if (ms := predict_ms(profile, row.batch, threads)) is not None), None)
    return Expected(0.0, alone, peak) if alone else None


@dataclass(frozen=True, slots=True)
class Observation:
    """What an agent reported of an instance: figures of its last report interval. `in_flight`: requests that wait or execute, now.

    `run_ms`: median of the runs that ended in the interval, `batch` their mean items; both 0 when none ended. `served`: requests since
    it was loaded. `replicas`: ready instances of its variant on its node, itself among them.
    """

    served: int
    in_flight: int
    requests_per_s: float
    items_per_s: float
    run_ms: float
    batch: float
    replicas: int = 1

    @property
    def items_per_request(self) -> float:
        return max(1.0, self.items_per_s / self.requests_per_s) if self.requests_per_s > 0 else max(1.0, self.batch)

    @property
    def in_flight_items(self) -> float:
        return self.in_flight * self.items_per_request


@dataclass(frozen=True, slots=True)
class Load:
    """An instance's load state as of `at_s`; moments are monotonic seconds. `since_s`: when it entered the state.

    `over` and `slow` are votes: how far overload and slowness have shown themselves lately. `heard_s`: when it last executed.
    `offered_items_per_s`: answered, and what came to wait beside it. `average_ms`: latency as of then, for policies that go on from it.
    """

    state: LoadState
    since_s: float
    at_s: float
    seen: Observation
    reason: str = ""
    over: int = 0
    slow: int = 0
    heard_s: float = 0.0
    offered_items_per_s: float = 0.0
    average_ms: float = 0.0

    @property
    def flagged(self) -> bool:
        return self.state in FLAGGED


FLAGGED = frozenset({LoadState.OVERLOADED, LoadState.INTERFERED})


class LoadPolicy(Protocol):
    @property
    def name(self) -> str: ...

    def step(self, previous: Load | None, seen: Observation, expected: Expected | None, now_s: float) -> Load:
        """The state after one more report. Without `expected` it is active, and the reason says that it was not judged."""
        ...


def offered_items_per_s(previous: Load | None, seen: Observation, now_s: float) -> float:
    """What was answered in the interval, and what came to wait beside it."""
    if previous is None or now_s <= previous.at_s:
        return seen.items_per_s
    return seen.items_per_s + max(0.0, seen.in_flight_items - previous.seen.in_flight_items) / (now_s - previous.at_s)


def slowest_ms(previous: Load | None, seen: Observation, now_s: float) -> float:
    """How long runs take: the median of those that ended; where none ended although something was executing all the time, at least as
    long as that has lasted. 0 when there is nothing to go by."""
    if seen.run_ms > 0:
        return seen.run_ms
    if previous is None or not seen.in_flight or not previous.seen.in_flight or seen.served != previous.seen.served:
        return 0.0
    return (now_s - previous.at_s) * 1e3 + (0.0 if previous.seen.run_ms > 0 else previous.average_ms)


def state_of_variant(instances: Iterable[LoadState]) -> LoadState:
    """A variant's: inactive without an instance, active while one of its instances is, else what most of them are (overloaded of two)."""
    found = list(instances)
    if not found:
        return LoadState.INACTIVE
    if LoadState.ACTIVE in found:
        return LoadState.ACTIVE
    interfered = sum(state is LoadState.INTERFERED for state in found)
    return LoadState.INTERFERED if 2 * interfered > len(found) else LoadState.OVERLOADED
