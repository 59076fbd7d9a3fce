"""Plans of transformations between flat programs, made ahead of the starts that need them: nothing is planned while somebody waits.

Graphs are read from the repository when their variants become ready; each is planned to and from the few that came last, and whatever other
pair is asked for is planned behind. Until a pair has a plan, nothing is made of it. Bounded and best effort.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest
from tessera.domain.transformation import StepSum
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.base import Planner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.group import GroupPlanner
from tessera.policy.transform.structure import Structure, structure_of
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

QUEUE_LENGTH = 1024
KEPT_PLANS = 1024
"""Of pairs of graphs; tens of KB each."""
KEPT_GRAPHS = 512
AMONG = 16
"""Graphs that a new one is planned to and from."""
MOST_OPERATIONS = 300
"""Of a program that is planned by the planner that looks at every pair of operations: some ten milliseconds of this process. Beyond it the
published one plans, which is linear."""

Pair = tuple[Digest, Digest]


@dataclass(frozen=True, slots=True)
class Planned:
    steps: tuple[StepSum, ...]
    delta: bytes


class GraphPlans:
    """Implements `ports.Plans`. Belongs to one loop."""

    def __init__(self, read: Callable[[Digest], bytes]) -> None:
        """`read`: a blob of the repository; blocks, and raises TesseraError or OSError. All nodes have one plan of a
        pair, made with assumed costs."""
        self._read = read
        self._costs = MetaCosts()
        self._structures: OrderedDict[Digest, Structure] = OrderedDict()
        self._plans: OrderedDict[Pair, Planned] = OrderedDict()
        self._wanted: asyncio.Queue[Pair] = asyncio.Queue(QUEUE_LENGTH)
        self._asked: set[Pair] = set()

    def steps(self, source: Digest, target: Digest) -> tuple[StepSum, ...] | None:
        """See `Plans`."""
        found = self._plans.get((source, target))
        if found is None:
            self._want((source, target))
            return None
        self._plans.move_to_end((source, target))
        return found.steps

    def delta(self, source: Digest, target: Digest) -> bytes | None:
        """See `Plans`."""
        found = self._plans.get((source, target))
        return found.delta if found is not None else None

    def learn(self, graph: Digest) -> None:
        """A variant has it."""
        others = [other for other in reversed(self._structures) if other != graph][: AMONG - 1]
        self._want((graph, graph))
        for other in others:
            self._want((graph, other))
            self._want((other, graph))
        self._keep(graph, self._structures.get(graph, EMPTY))

    def _want(self, pair: Pair) -> None:
        if pair not in self._plans and pair not in self._asked and not self._wanted.full():
            self._asked.add(pair)
            self._wanted.put_nowait(pair)

    async def run(self) -> None:
        """Reads and plans what is wanted, one pair at a time."""
        while True:
            pair = await self._wanted.get()
            try:
                source, target = [await self._structure(graph) for graph in pair]
                self._plans[pair] = await asyncio.to_thread(self._planned, source, target, pair)
                if len(self._plans) > KEPT_PLANS:
                    self._plans.popitem(last=False)
            except (TesseraError, OSError) as error:
                log.info("no plan between graphs", source=pair[0], target=pair[1], reason=str(error))
            finally:
                self._asked.discard(pair)

    async def _structure(self, graph: Digest) -> Structure:
        found = self._structures.get(graph, EMPTY)
        if found is EMPTY:
            found = structure_of(await asyncio.to_thread(self._read, graph))
            self._keep(graph, found)
        return found

    def _keep(self, graph: Digest, structure: Structure) -> None:
        self._structures[graph] = structure
        self._structures.move_to_end(graph)
        if len(self._structures) > KEPT_GRAPHS:
            self._structures.popitem(last=False)

    def _planned(self, source: Structure, target: Structure, pair: Pair) -> Planned:
        many = max(len(source.operations), len(target.operations)) > MOST_OPERATIONS
        planner: Planner = GroupPlanner() if many else AlignedPlanner()
        made, delta = planned(source, target, planner, self._costs, pair)
        return Planned(made.sums(), delta)


EMPTY = Structure((), (), (), ())
"""Of a graph that is known and not read yet."""
