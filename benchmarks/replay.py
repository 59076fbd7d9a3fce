"""Replays traces in virtual time through the policies that node agents and schedulers use.

First the instances (which calls find one alive, by keep-alive policy), then the store under a budget (which starts find their bytes, by
reclaim policy). When instances live does not depend on the store, so that every reclaim policy gets the same starts.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.population import Population
from benchmarks.traces import Trace
from tessera.domain.ids import Digest
from tessera.policy.fading import FadingCount
from tessera.policy.reclaim.base import ReclaimCandidate, ReclaimPolicy
from tessera.policy.reclaim.shared_cost import ASSUMED_BLOB_MS, ASSUMED_MS_PER_BYTE, USES_APART_S, USES_HORIZON_S
from tessera.policy.scaling.base import KeepAlivePolicy
from tessera.policy.scaling.gaps import GapHistogram

BIND_MS = 8.0
"""A start whose bytes are all there (docs/performance.md)."""
EXPIRY_S = 10.0
"""How often the store asks what has expired."""


@dataclass(frozen=True, order=True)
class Life:
    """An instance of function `function`: from its start until it has been idle for its window."""

    start_s: float
    end_s: float
    function: int


@dataclass
class Lives:
    lives: list[Life] = field(default_factory=list)
    calls: int = 0
    idle_s: float = 0.0
    """Seconds for which instances were alive without a call, over all functions."""


def live(trace: Trace, policy: KeepAlivePolicy) -> Lives:
    """One instance a function at a time; a call takes no time. A window is what the policy says after the calls before."""
    found = Lives()
    for function, calls in enumerate(trace.calls):
        gaps = GapHistogram()
        start_s = end_s = previous_s = float("-inf")
        for at_s in calls:
            found.calls += 1
            if at_s > end_s:
                if start_s >= 0.0:
                    found.lives.append(Life(start_s, end_s, function))
                start_s = at_s
            if previous_s >= 0.0:
                gaps = gaps.add(at_s - previous_s)
                found.idle_s += min(at_s, end_s) - previous_s
            previous_s, end_s = at_s, at_s + policy.window(gaps).keep_alive_s
        if start_s >= 0.0:
            found.idle_s += min(end_s, trace.duration_s) - previous_s
            found.lives.append(Life(start_s, min(end_s, trace.duration_s), function))
    found.lives.sort()
    return found


def refetch_ms(size_bytes: int) -> float:
    return ASSUMED_BLOB_MS + size_bytes * ASSUMED_MS_PER_BYTE


@dataclass
class Outcome:
    """`refetched_bytes` leaves out what every policy must fetch once. `held_byte_s` is the store's size over time."""

    starts: int = 0
    complete: int = 0
    refused: int = 0
    needed_bytes: int = 0
    fetched_bytes: int = 0
    refetched_bytes: int = 0
    held_byte_s: float = 0.0
    start_ms: list[float] = field(default_factory=list)


class Store:
    """A tensor store of sizes alone; room is made as `LocalTensorStore` makes it: the policy's order, and only what nobody holds."""

    def __init__(self, population: Population, budget_bytes: int, policy: ReclaimPolicy) -> None:
        self._population = population
        self._budget_bytes = budget_bytes
        self._policy = policy
        self._last_used_s: dict[Digest, float] = {}
        self._holds: dict[Digest, int] = defaultdict(int)
        self._uses: dict[Digest, FadingCount] = {}
        self._used_bytes = 0
        self._now_s = 0.0
        self.outcome = Outcome()

    def advance(self, to_s: float, expires: bool) -> None:
        while expires and self._now_s + EXPIRY_S < to_s:
            self._pass(self._now_s + EXPIRY_S)
            for digest in self._policy.expired(self._candidates(), self._now_s):
                self._drop(digest)
        self._pass(to_s)

    def start(self, function: int) -> bool:
        """Whether it fitted."""
        sizes, needed = self._population.sizes, self._population.needs[function]
        missing = [digest for digest in needed if digest not in self._last_used_s]
        missing_bytes = sum(sizes[digest] for digest in missing)
        for digest in needed:
            self._holds[digest] += 1
        if not self._make_room(missing_bytes):
            self._release(needed)
            self.outcome.refused += 1
            return False
        self.outcome.starts += 1
        self.outcome.complete += not missing
        self.outcome.needed_bytes += sum(sizes[digest] for digest in needed)
        self.outcome.fetched_bytes += missing_bytes
        self.outcome.refetched_bytes += sum(sizes[digest] for digest in missing if digest in self._uses)
        self.outcome.start_ms.append(BIND_MS + sum(refetch_ms(sizes[digest]) for digest in missing))
        self._used_bytes += missing_bytes
        for digest in needed:
            self._last_used_s[digest] = self._now_s
            self._uses[digest] = self._uses.get(digest, FadingCount(USES_HORIZON_S, self._now_s)).again(self._now_s, USES_APART_S)
        return True

    def end(self, function: int) -> None:
        needed = self._population.needs[function]
        self._release(needed)
        for digest in needed:
            self._last_used_s[digest] = self._now_s

    def _pass(self, to_s: float) -> None:
        self.outcome.held_byte_s += self._used_bytes * (to_s - self._now_s)
        self._now_s = to_s

    def _release(self, digests: Sequence[Digest]) -> None:
        for digest in digests:
            self._holds[digest] -= 1

    def _candidates(self) -> list[ReclaimCandidate]:
        sizes, sharing, found = self._population.sizes, self._population.sharing, []
        for digest, at_s in self._last_used_s.items():
            if not self._holds[digest]:
                seen = self._uses[digest].faded(self._now_s)
                size = sizes[digest]
                found.append(ReclaimCandidate(digest, size, at_s, sharing[digest], refetch_ms(size), seen.count, seen.watched_s))
        return found

    def _make_room(self, bytes_needed: int) -> bool:
        excess = self._used_bytes + bytes_needed - self._budget_bytes
        if excess <= 0:
            return True
        going = []
        for digest in self._policy.order(self._candidates(), self._now_s):
            if excess <= 0:
                break
            going.append(digest)
            excess -= self._population.sizes[digest]
        if excess > 0:
            return False
        for digest in going:
            self._drop(digest)
        return True

    def _drop(self, digest: Digest) -> None:
        del self._last_used_s[digest]
        self._used_bytes -= self._population.sizes[digest]


def replay(lives: Lives, population: Population, budget_bytes: int, policy: ReclaimPolicy, duration_s: float, expires: bool) -> Outcome:
    """Ends before starts where both fall on one moment."""
    store = Store(population, budget_bytes, policy)
    begun = [(life.start_s, 1, life.function, life) for life in lives.lives]
    turns = sorted(begun + [(life.end_s, 0, life.function, life) for life in lives.lives])
    refused: set[Life] = set()
    for at_s, starts, function, life in turns:
        store.advance(at_s, expires)
        if starts:
            if not store.start(function):
                refused.add(life)
        elif life not in refused:
            store.end(function)
    store.advance(duration_s, expires)
    return store.outcome


class FarthestNextUse:
    """Belady's rule by blobs: knows the future, and gives up what is needed again last. A yardstick, no bound for unequal sizes."""

    name = "offline"
    expires = False

    def __init__(self, lives: Lives, population: Population) -> None:
        starts: dict[Digest, list[float]] = defaultdict(list)
        for life in lives.lives:
            for digest in population.needs[life.function]:
                starts[digest].append(life.start_s)
        self._starts = starts

    def _next_s(self, digest: Digest, now_s: float) -> float:
        starts = self._starts[digest]
        at = bisect.bisect_right(starts, now_s)
        return starts[at] if at < len(starts) else float("inf")

    def order(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        ranked = sorted(candidates, key=lambda found: (-self._next_s(found.digest, now_s), -found.size_bytes, found.digest))
        return [found.digest for found in ranked]

    def expired(self, candidates: Sequence[ReclaimCandidate], now_s: float) -> list[Digest]:
        return []
