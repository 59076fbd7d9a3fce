"""What transformations are expected to take, by profile class and backend: what the profiler measured there (or what is assumed), corrected
by what starts took. In memory: a new leader begins with the records, since what a node has to do beside changes more often than leaders do.
"""

from __future__ import annotations

from collections import deque

from tessera.domain.ids import Digest, ProfileClass, TrustDomain
from tessera.domain.records import MetaCostRecord
from tessera.domain.transformation import MetaOperator, Observation, StepSum
from tessera.policy.transform.costs import REPLACED, MetaCosts, costs_of
from tessera.policy.transform.fitting import LEAST_OBSERVATIONS, refit
from tessera.scheduler.core.start_times import FORGET_S

WINDOW = 64
"""The last transformations of a class, from which its costs are corrected."""
KEPT_SUMS = 4096
"""Of pairs of graphs, on each class."""

NOT_MEASURED = MetaCosts({(MetaOperator.REPLACE, recipe): line for recipe, line in REPLACED.items()})
"""What is assumed. A step that gives all of a session other weights has its recipe for a kind."""

Pair = tuple[Digest, Digest]
Place = tuple[TrustDomain, ProfileClass, str]
"""The last one: a backend."""


class TransformCosts:
    def __init__(self) -> None:
        self._classes: dict[Place, _ClassCosts] = {}

    def ms(self, place: Place, record: MetaCostRecord | None, pair: Pair, steps: tuple[StepSum, ...]) -> float:
        """Of a plan between two graphs."""
        return self._of(place, record).ms(pair, steps)

    def note(self, place: Place, record: MetaCostRecord | None, steps: tuple[StepSum, ...], took_ms: float, now_s: float) -> None:
        """`took_ms` more than 0."""
        self._of(place, record).note(Observation(steps, took_ms), now_s)

    def forget(self, now_s: float) -> None:
        """What was seen of classes on which nothing has been transformed for long."""
        for known in self._classes.values():
            known.forget(now_s)

    def _of(self, place: Place, record: MetaCostRecord | None) -> _ClassCosts:
        known = self._classes.get(place)
        if known is None:
            known = self._classes[place] = _ClassCosts(record)
        elif known.record is not record:
            known.measured(record)
        return known


class _ClassCosts:
    def __init__(self, record: MetaCostRecord | None) -> None:
        self._seen: deque[Observation] = deque(maxlen=WINDOW)
        self._seen_s = 0.0
        self._sums: dict[Pair, float] = {}
        self.measured(record)

    def measured(self, record: MetaCostRecord | None) -> None:
        """Measured anew; what starts took counts as before."""
        self.record = record
        self._corrected()

    def ms(self, pair: Pair, steps: tuple[StepSum, ...]) -> float:
        found = self._sums.get(pair)
        if found is None:
            if len(self._sums) >= KEPT_SUMS:
                self._sums.clear()
            found = self._sums[pair] = self._costs.ms(steps)
        return found

    def note(self, seen: Observation, now_s: float) -> None:
        self._seen.append(seen)
        self._seen_s = now_s
        self._corrected()

    def forget(self, now_s: float) -> None:
        if self._seen and self._seen_s + FORGET_S <= now_s:
            self._seen.clear()
            self._corrected()

    def _corrected(self) -> None:
        base = NOT_MEASURED if self.record is None else costs_of(self.record)
        self._costs = refit(base, self._seen) if len(self._seen) >= LEAST_OBSERVATIONS else base
        self._sums.clear()
