"""What transformations between flat programs cost: graphs are read from the repository ahead of the starts that need them, and planned.

A pair that was never asked for has an estimate (`PlanCache`); its whole plan is made behind, in a thread, and holds from then on. Bounded
and best effort: where a graph is not there yet, nothing is made of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from tessera.domain.errors import TesseraError
from tessera.domain.ids import Digest
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.medoids import farthest_first
from tessera.policy.transform.plan import plan
from tessera.policy.transform.plans import PlanCache
from tessera.policy.transform.structure import Program, Structure, structure_of
from tessera.telemetry import get_logger

log = get_logger("tessera.scheduler")

QUEUE_LENGTH = 1024
KEPT_PAIRS = 65536
MOST_GRAPHS = 4096

Pair = tuple[Digest, Digest]


class GraphPlans:
    """Belongs to one loop."""

    def __init__(self, read: Callable[[Digest], bytes], costs: MetaCosts | None = None) -> None:
        """`read`: a blob of the repository; blocks, and raises TesseraError or OSError."""
        self._read = read
        self._costs = costs or MetaCosts()
        self._planner = AlignedPlanner()
        # not FasterPAM: `kmedoids` is in no image (docs/dependencies.md), and an estimate holds until the pair has been planned
        self._cache = PlanCache(self._planner, self._costs, clustering=farthest_first)
        self._structures: OrderedDict[Digest, Structure] = OrderedDict()
        self._exact: OrderedDict[Pair, float] = OrderedDict()
        self._wanted: asyncio.Queue[Pair] = asyncio.Queue(QUEUE_LENGTH)
        self._asked: set[Pair] = set()

    def transform_ms(self, source: Digest, target: Digest) -> float | None:
        """See `Plans`."""
        pair = (source, target)
        found = self._exact.get(pair)
        if found is None:
            self._want(pair)
            if pair[0] not in self._cache or pair[1] not in self._cache:
                return None
            found = self._cache.estimate_ms(*pair)
        return self._costs.base_ms + found

    def learn(self, graph: Digest) -> None:
        """A variant has it: read ahead, so that whatever is asked of it has an estimate. Siblings share the plan between two of them."""
        if (graph, graph) not in self._exact:
            self._want((graph, graph))

    def _want(self, pair: Pair) -> None:
        if pair not in self._asked and not self._wanted.full():
            self._asked.add(pair)
            self._wanted.put_nowait(pair)

    async def run(self) -> None:
        """Reads and plans what is wanted, one pair at a time."""
        while True:
            pair = await self._wanted.get()
            try:
                source, target = [await self._structure(graph) for graph in pair]
                made = await asyncio.to_thread(plan, Program(source), Program(target), self._planner, self._costs)
                self._exact[pair] = made.expected_ms
                if len(self._exact) > KEPT_PAIRS:
                    self._exact.popitem(last=False)
            except (TesseraError, OSError) as error:
                log.info("no plan between graphs", source=pair[0], target=pair[1], reason=str(error))
            finally:
                self._asked.discard(pair)

    async def _structure(self, graph: Digest) -> Structure:
        found = self._structures.get(graph)
        if found is not None:
            self._structures.move_to_end(graph)
            return found
        found = self._structures[graph] = structure_of(await asyncio.to_thread(self._read, graph))
        if len(self._structures) > MOST_GRAPHS:
            gone, _ = self._structures.popitem(last=False)
            self._cache.remove(gone)
        self._cache.add(graph, found)
        if self._cache.due:
            self._cache.adopt(await asyncio.to_thread(self._cache.clustered))
        return found
