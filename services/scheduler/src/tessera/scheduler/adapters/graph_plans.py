"""Plans of transformations between flat programs, made ahead of the starts that need them: nothing is planned while somebody waits.

Graphs are read from the repository when their variants become ready, and planned to and from the medoids of all graphs alone (`PlanCache`).
Whole plans are made of a graph with itself, which is what all its siblings share, and with the medoids while there is room; of whatever
other pair is asked for, behind. Until a pair has a whole plan, nothing is made of it. Bounded and best effort.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from tessera.clock import Clock
from tessera.domain.errors import TesseraError, Unsupported
from tessera.domain.ids import Digest
from tessera.domain.transformation import StepSum
from tessera.policy.transform.by_size import planner_for
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.matrix import Costs
from tessera.policy.transform.medoids import farthest_first
from tessera.policy.transform.plans import PlanCache
from tessera.policy.transform.structure import Structure, structure_of
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

QUEUE_LENGTH = 1024
KEPT_PLANS = 1024
"""Of pairs of graphs; tens of KB each."""
IN_USE_S = 600.0
"""A plan that a decision looked at so shortly ago gives its place to no other one: where more pairs are asked for in turn than there is
room for, each would take the place of one that is asked for next, and planning would never end."""
KEPT_GRAPHS = 1024
"""Those that were needed last; some 80 KB each. With all plans 128 MiB at most, however many models there are (docs/performance.md)."""
FAILED_S = 60.0
"""How long a pair of which no plan could be made is not tried again: its graphs may have been out of reach."""
MOST_DELTA_BYTES = 512 << 10
"""What goes with the order of a start, which takes 1 MiB. Some 40 KB are usual."""

Pair = tuple[Digest, Digest]
Subject = TypeVar("Subject")
Result = TypeVar("Result")


@dataclass(slots=True)
class Planned:
    """`looked_s`: when a decision looked at it last, or it was made."""

    steps: tuple[StepSum, ...]
    delta: bytes
    looked_s: float


@dataclass(frozen=True, slots=True)
class NoPlan:
    """When it turned out that there is none, and why."""

    at_s: float
    words: str


class GraphPlans:
    """Implements `ports.Plans`. Belongs to one loop; `edits_ms` alone is for other threads."""

    def __init__(self, read: Callable[[Digest], bytes], clock: Clock, turn: Callable[[], Awaitable[None]]) -> None:
        """`read`: a blob of the repository; blocks, and raises TesseraError or OSError. `turn`: returns when it may read and plan. All
        nodes have one plan of a pair, made with assumed costs."""
        self._read = read
        self._clock = clock
        self._turn = turn
        self._costs = MetaCosts()
        # Without a library that is under the GPL: its medoids are a little better, and nobody depends on them here.
        self._cache = PlanCache(GroupPlanner(), self._costs, clustering=farthest_first)
        self._cached = threading.Lock()
        self._last_needed: OrderedDict[Digest, None] = OrderedDict()
        self._plans: OrderedDict[Pair, Planned] = OrderedDict()
        self._coming: OrderedDict[Digest, None] = OrderedDict()
        self._wanted: OrderedDict[Pair, None] = OrderedDict()
        self._failed: OrderedDict[Pair, NoPlan] = OrderedDict()
        """Pairs of which no plan could be made: decisions ask for them again and again."""
        self._more = asyncio.Event()

    @property
    def graphs(self) -> int:
        """How many are read and planned to and from the medoids."""
        return len(self._cache)

    def steps(self, source: Digest, target: Digest) -> tuple[StepSum, ...] | None:
        """See `Plans`."""
        found = self._plans.get((source, target))
        if found is None:
            self._want((source, target))
            return None
        found.looked_s = self._clock.monotonic_s()
        self._plans.move_to_end((source, target))
        return found.steps

    def why_not(self, source: Digest, target: Digest) -> str:
        """See `Plans`."""
        failed = self._failed.get((source, target))
        if failed is not None:
            return f"no plan could be made: {failed.words}"
        return "there is no plan yet" if self._has_room else f"there is no room for its plan: {KEPT_PLANS} are in use"

    def delta(self, source: Digest, target: Digest) -> bytes | None:
        """See `Plans`."""
        found = self._plans.get((source, target))
        return found.delta if found is not None else None

    def learn(self, graph: Digest) -> None:
        """A variant has it. It is read and planned when it is this scheduler's turn; the latest ones, where too many wait."""
        self._coming[graph] = None
        if len(self._coming) > KEPT_GRAPHS:
            self._coming.popitem(last=False)
        self._more.set()

    def edits_ms(self, sources: Sequence[Digest], targets: Sequence[Digest]) -> Costs:
        """What plans are estimated to cost, a row for each source. A graph that is not read yet, or is no flat program, is as far from all
        others as the farthest of those that are."""
        found = np.full((len(sources), len(targets)), np.nan)
        with self._cached:
            rows, columns = [[at for at, graph in enumerate(some) if graph in self._cache] for some in (sources, targets)]
            found[np.ix_(rows, columns)] = self._cache.estimates_ms([sources[at] for at in rows], [targets[at] for at in columns])
        found[np.isnan(found)] = np.nanmax(found, initial=0.0)
        for at, graph in enumerate(sources):
            found[at, [place for place, other in enumerate(targets) if other == graph]] = 0.0
        return found

    def _want(self, pair: Pair) -> None:
        failed = self._failed.get(pair)
        again = failed is None or self._clock.monotonic_s() - failed.at_s >= FAILED_S
        if pair not in self._plans and again and len(self._wanted) < QUEUE_LENGTH and self._has_room:
            self._wanted[pair] = None
            self._more.set()

    @property
    def _has_room(self) -> bool:
        """For one more that is asked for: what waits already takes the places that are free, and those of the plans that are not in use."""
        before = len(self._plans) + len(self._wanted) - KEPT_PLANS
        if before < 0:
            return True
        next_one = next(itertools.islice(self._plans.values(), before, None), None)
        return next_one is not None and next_one.looked_s <= self._clock.monotonic_s() - IN_USE_S

    async def run(self) -> None:
        """Plans pairs that somebody asked for, then learns graphs that came: one piece at a time, in a thread. After each it rests for as
        long as that took. (A thread of low priority would hold the interpreter while it waits for a processor.)"""
        while True:
            await self._turn()
            self._more.clear()
            began_s = self._clock.monotonic_s()
            if self._wanted:
                pair = next(iter(self._wanted))
                await self._plan(pair)
                del self._wanted[pair]
            elif self._coming:
                graph = next(iter(self._coming))
                await self._learn(graph)
                self._coming.pop(graph, None)
            else:
                await self._more.wait()
                continue
            await self._clock.sleep(self._clock.monotonic_s() - began_s)

    async def _plan(self, pair: Pair) -> None:
        made = await self._aside(self._made, pair)
        if isinstance(made, NoPlan):
            self._failed[pair] = made
        else:
            self._plans[pair] = made
            self._failed.pop(pair, None)
        for kept in (self._plans, self._failed):
            if len(kept) > KEPT_PLANS:
                kept.popitem(last=False)

    async def _learn(self, graph: Digest) -> None:
        others = await self._aside(self._medoids_with, graph)
        for other in () if isinstance(others, NoPlan) else others:
            if len(self._plans) + len(self._wanted) < KEPT_PLANS:
                self._want((graph, other))
                self._want((other, graph))

    async def _aside(self, what: Callable[[Subject], Result], subject: Subject) -> Result | NoPlan:
        try:
            return await asyncio.to_thread(what, subject)
        except (TesseraError, OSError) as error:
            log.info("no plan of graphs", subject=subject, reason=str(error))
            words = str(error)
        except Exception as error:
            log.exception("a plan of graphs failed", subject=subject)
            words = f"{type(error).__name__}: {error}"
        return NoPlan(self._clock.monotonic_s(), words)

    def _made(self, pair: Pair) -> Planned:
        source, target = [self._structure(graph) for graph in pair]
        return self._planned(source, target, pair)

    def _medoids_with(self, graph: Digest) -> tuple[Digest, ...]:
        """The graph itself, and the medoids."""
        self._structure(graph)
        with self._cached:
            if self._cache.due:
                self._cache.adopt(self._cache.clustered())
            return (graph, *(other for other in self._cache.medoids if other != graph and other in self._cache))

    def _structure(self, graph: Digest) -> Structure:
        if graph not in self._cache:
            read = structure_of(self._read(graph))
            with self._cached:
                self._cache.add(graph, read)
        self._last_needed[graph] = None
        self._last_needed.move_to_end(graph)
        if len(self._last_needed) > KEPT_GRAPHS:
            with self._cached:
                self._cache.remove(self._last_needed.popitem(last=False)[0])
        return self._cache.structure(graph)

    def _planned(self, source: Structure, target: Structure, pair: Pair) -> Planned:
        made, delta = planned(source, target, planner_for(source, target), self._costs, pair)
        if len(delta) > MOST_DELTA_BYTES:
            raise Unsupported(f"a delta of {len(delta)} bytes: a start takes {MOST_DELTA_BYTES}")
        return Planned(made.sums(), delta, self._clock.monotonic_s())
