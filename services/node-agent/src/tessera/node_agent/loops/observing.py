"""Measuring transformations for the profiler: specimens become each other in a runtime that serves nobody, while the node answers no
requests.

What requests disturb counts for nothing; the next one waits until they are over. At the priority that starts have, since it tells of those,
a few milliseconds at a time. Nothing is kept between two calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import permutations
from statistics import median

from tessera.domain.errors import InvalidInput, ResourceExhausted
from tessera.domain.ids import Generation, InstanceId, ModelName, VariantKey, VariantName, VersionNumber
from tessera.domain.instance import Stage
from tessera.domain.transformation import ATEN, Observation, StepSum
from tessera.node_agent.core.specimens import Specimen, specimens
from tessera.node_agent.loops.place import MeasuringPlace
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.ports import Becoming, Runtime
from tessera.policy.transform.aligned import AlignedPlanner
from tessera.policy.transform.base import Planner
from tessera.policy.transform.costs import MetaCosts
from tessera.policy.transform.delta import planned
from tessera.policy.transform.group import GroupPlanner

QUIET_S = 0.1
"""The node has answered no request for so long before one is begun; each takes milliseconds."""
MOST_SECONDS = 60.0
REPEATS = 3
"""Of each way; the median counts: any may have waited for a processor."""


class Observer:
    """Of one trust domain on one node."""

    def __init__(self, place: MeasuringPlace) -> None:
        self._place = place

    async def observe(self, seconds: float) -> AsyncGenerator[str | Observation, None]:
        """Words of progress, then what each transformation took, for `seconds` at most beside what making specimens and plans takes.

        Raises:
            InvalidInput: a number out of range.
            ResourceExhausted: no room for the specimens, or requests leave no time for any.
            TesseraError: there is no runtime for it, or it was lost.
        """
        if not 0 < seconds <= MOST_SECONDS:
            raise InvalidInput("seconds", seconds, f"must be more than 0 and at most {MOST_SECONDS:.0f}")
        place = self._place
        with place.holder("specimens") as holder:
            if place.turn.locked():
                yield "waiting for another job of this node"
            async with place.turn:
                yield "making specimens"
                made = await asyncio.to_thread(specimens)
                await place.larder.put({digest: data for each in made for digest, data in each.blobs.items()}, holder)
                ways = await asyncio.to_thread(_ways, made)
                yield f"observing {len(ways)} transformations, {REPEATS} times each"
                count = 0
                async with aclosing(self._observed(ways, holder, seconds)) as observed:
                    async for seen in observed:
                        count += 1
                        yield seen
                if not count:
                    raise ResourceExhausted(f"requests leave no time to observe a transformation: none within {seconds:.0f} s")

    async def _observed(self, ways: Sequence[_Way], holder: InstanceId, seconds: float) -> AsyncGenerator[Observation, None]:
        blobs = {digest for way in ways for digest in way.source.blobs}
        async with self._place.runtime(ATEN, blobs, Stopwatch(self._place.clock), self._place.fleet.threads) as runtime:
            until_s = self._place.clock.monotonic_s() + seconds
            for way in ways:
                took: list[float] = []
                while len(took) < REPEATS:
                    if not await self._quiet(until_s):
                        return
                    ms = await self._transformed(runtime, way, holder)
                    took += [] if ms is None else [ms]
                yield Observation(way.steps, median(took))

    async def _quiet(self, until_s: float) -> bool:
        """Waits until the node has been quiet for long enough; False: it was not before `until_s`."""
        while self._place.clock.monotonic_s() < until_s:
            quiet_s = await self._place.traffic.quiet_s()
            if quiet_s >= QUIET_S:
                return True
            await self._place.clock.sleep(QUIET_S - quiet_s)
        return False

    async def _transformed(self, runtime: Runtime, way: _Way, holder: InstanceId) -> float | None:
        """Milliseconds, with nothing of the target mapped before; None: a request came meanwhile."""
        begun_s = self._place.clock.monotonic_s()
        donor, name = InstanceId(f"{holder}-donor"), InstanceId(f"{holder}-target")
        await self._load(runtime, donor, way.source, Stage.LOAD)
        ms = await self._load(runtime, name, way.target, Stage.TRANSFORM, Becoming(donor, way.delta))
        await runtime.unload(name, 0)
        await runtime.trim()
        return None if await self._place.traffic.quiet_s() < self._place.clock.monotonic_s() - begun_s else ms

    async def _load(self, runtime: Runtime, name: InstanceId, what: Specimen, rest: Stage, becoming: Becoming | None = None) -> float:
        watch = Stopwatch(self._place.clock)
        generation = Generation(int.from_bytes(self._place.random_bytes(8), "little") | 1)
        variant = VariantKey(self._place.fleet.trust_domain, ModelName("specimen"), VersionNumber(1), VariantName("aten-fp32"))
        with watch.loading(rest) as loading:
            report = await runtime.load(name, generation, variant, what.artifact, False, self._place.load_timeout_s, None, becoming)
            loading.take(report.stages)
        return sum(stage.ms for stage in watch.stages())


@dataclass(frozen=True, slots=True)
class _Way:
    """A plan from one specimen to another."""

    source: Specimen
    target: Specimen
    steps: tuple[StepSum, ...]
    delta: bytes


def _ways(made: Sequence[Specimen]) -> list[_Way]:
    """From each to each other one, far ones and near ones in turn, so that time which ends early has seen some of each; by two planners in
    turn: what one never does, the other one may."""
    pairs = sorted(permutations(range(len(made)), 2), key=lambda pair: (sum(pair) * 5 % 7, pair))
    planners: tuple[Planner, ...] = (AlignedPlanner(), GroupPlanner())
    return [_way(made[source], made[target], planners[(source + target) % 2]) for source, target in pairs]


def _way(source: Specimen, target: Specimen, planner: Planner) -> _Way:
    plan, delta = planned(source.structure, target.structure, planner, MetaCosts(), (source.graph, target.graph))
    return _Way(source, target, plan.sums(), delta)
