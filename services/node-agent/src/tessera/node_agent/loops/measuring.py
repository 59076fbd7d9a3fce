"""Measuring for the profiler: a row at a time, at low priority, in a runtime that serves nobody, and while the node answers no requests.

What requests disturb counts for nothing: its runtime is ended at once, which gives the cores back sooner than asking it would, and the
row is measured again, in half the time, when the node has been quiet for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from tessera.clock import Clock
from tessera.domain.errors import InvalidInput, TesseraError
from tessera.domain.ids import Digest, Generation, InstanceId, VariantKey
from tessera.domain.instance import Stage, StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder, holder_of
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.loops.traffic import Traffic
from tessera.node_agent.ports import RandomBytes, Runtime

QUIET_S = 1.0
"""The node has answered no request for so long before a row is begun."""
WATCH_S = 0.2
"""How soon a row is ended when a request comes."""
LEAST_S = 0.1
MAX_BATCH = 4096
MAX_THREADS = 256
MAX_CONCURRENCY = 256


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    """One row: `concurrency` instances with `threads` each, until its spread is at most `spread` or `seconds` are over."""

    variant: VariantKey
    artifact: Digest | None
    batch: int
    threads: int
    concurrency: int
    seconds: float
    min_repeats: int
    spread: float


Measured = LoadCost | LatencyRow


class Measurer:
    """Of one trust domain on one node."""

    def __init__(
        self,
        fleet: Fleet,
        larder: Larder,
        traffic: Traffic,
        load_timeout_s: float,
        random_bytes: RandomBytes,
        clock: Clock,
        turn: asyncio.Lock,
    ) -> None:
        """`turn`: whose turn it is among all jobs of the node; given back while requests are waited for to end."""
        self._fleet = fleet
        self._larder = larder
        self._traffic = traffic
        self._load_timeout_s = load_timeout_s
        self._random_bytes = random_bytes
        self._clock = clock
        self._turn = turn
        self._holders: set[InstanceId] = set()

    @property
    def holders(self) -> frozenset[str]:
        """Who holds blobs for rows under way."""
        return frozenset(map(holder_of, self._holders))

    async def measure(self, order: MeasureOrder) -> AsyncGenerator[str | Measured, None]:
        """The cost of a start by fork (or container) and by bind, then the row. Words of progress in between; the last words before a row
        stand for the moment in which it began.

        Raises:
            InvalidInput: a number out of range.
            TesseraError: the variant cannot be loaded or run; says why.
        """
        _check(order)
        holder = InstanceId(f"measure-{self._random_bytes(6).hex()}")
        self._holders.add(holder)
        try:
            artifact = self._larder.artifact_of(order.variant, order.artifact)
            load: Load | None = None
            measured: tuple[Measured, ...] = ()
            while not measured:
                if await self._traffic.quiet_s() < QUIET_S:
                    yield "waiting while the node answers requests"
                    await self._quiet()
                if self._turn.locked():
                    yield "waiting for another job of this node"
                async with self._turn:
                    load = load or self._larder.take(artifact, holder)
                    if load is None:
                        yield "fetching"
                        load, _ = await self._larder.fetch(artifact, holder)
                    yield f"measuring batch {order.batch} with {order.threads} threads, {order.concurrency} at a time"
                    measured = await self._undisturbed(order, load, holder)
                # The next try is shorter, so that it fits between requests that keep coming; the row's spread says what that costs.
                order = replace(order, seconds=max(LEAST_S, order.seconds / 2))
            for each in measured:
                yield each
        finally:
            self._larder.release(holder)
            self._holders.discard(holder)

    async def _quiet(self) -> None:
        while (quiet_s := await self._traffic.quiet_s()) < QUIET_S:
            await self._clock.sleep(max(WATCH_S, QUIET_S - quiet_s))

    async def _undisturbed(self, order: MeasureOrder, load: Load, holder: InstanceId) -> tuple[Measured, ...]:
        """Nothing when the node answered requests meanwhile. Raises: TesseraError."""
        begun_s = self._clock.monotonic_s()
        async with asyncio.TaskGroup() as group:
            working = group.create_task(self._outcome(order, load, holder))
            watching = group.create_task(self._watch(begun_s, working))
            working.add_done_callback(lambda _: watching.cancel())
        if working.cancelled() or await self._disturbed(begun_s):
            return ()
        outcome = working.result()
        if isinstance(outcome, TesseraError):
            raise outcome
        return outcome

    async def _watch(self, begun_s: float, working: asyncio.Task[object]) -> None:
        while not await self._disturbed(begun_s):
            await self._clock.sleep(WATCH_S)
        working.cancel()

    async def _disturbed(self, begun_s: float) -> bool:
        return await self._traffic.quiet_s() < self._clock.monotonic_s() - begun_s

    async def _outcome(self, order: MeasureOrder, load: Load, holder: InstanceId) -> tuple[Measured, ...] | TesseraError:
        """An error is an outcome, so that it does not arrive wrapped in a group."""
        try:
            return await self._row(order, load, holder)
        except TesseraError as error:
            return error

    async def _row(self, order: MeasureOrder, load: Load, holder: InstanceId) -> tuple[Measured, ...]:
        async with self._dedicated(load, order.threads) as (runtime, watch):
            new = await self._load(runtime, holder, order.variant, load, watch, self._fleet.start_path)
            await runtime.unload(holder, 0)
            watch = Stopwatch(self._clock)
            bound = await self._load(runtime, holder, order.variant, load, watch, StartPath.BIND)
            names = [holder, *(InstanceId(f"{holder}-{number}") for number in range(1, order.concurrency))]
            for name in names[1:]:
                await self._load(runtime, name, order.variant, load, watch, StartPath.BIND)
            row = await runtime.measure(names, order.batch, order.seconds, order.min_repeats, order.spread)
            return new, bound, row

    @asynccontextmanager
    async def _dedicated(self, load: Load, threads: int) -> AsyncIterator[tuple[Runtime, Stopwatch]]:
        """A runtime of its own, gone afterwards."""
        watch = Stopwatch(self._clock)
        with watch.stage(self._fleet.stage):
            runtime_id = await self._fleet.create(load.flavour, Purpose.MEASURE, threads)
        try:
            runtime = self._fleet.get(runtime_id)
            runtime.slow_down()
            self._fleet.pin(runtime_id, load.blobs)
            yield runtime, watch
        finally:
            self._fleet.discard(runtime_id)
            await self._fleet.kill(runtime_id)  # whoever gets the last answer finds nothing of it

    async def _load(
        self, runtime: Runtime, name: InstanceId, variant: VariantKey, load: Load, watch: Stopwatch, path: StartPath
    ) -> LoadCost:
        generation = Generation(int.from_bytes(self._random_bytes(8), "little") | 1)
        with watch.loading(Stage.LOAD if path is StartPath.BIND else self._fleet.stage) as loading:
            report = await runtime.load(name, generation, variant, load.artifact, False, self._load_timeout_s)
            loading.take(report.stages)
        return LoadCost(path, watch.stages(), report.private_bytes)


def _check(order: MeasureOrder) -> None:
    for field, value, most in (
        ("batch", order.batch, MAX_BATCH),
        ("threads", order.threads, MAX_THREADS),
        ("concurrency", order.concurrency, MAX_CONCURRENCY),
        ("min_repeats", order.min_repeats, 100_000),
    ):
        if not 1 <= value <= most:
            raise InvalidInput(field, value, f"must be from 1 to {most}")
    if not 0 < order.seconds <= 300:
        raise InvalidInput("seconds", order.seconds, "must be more than 0 and at most 300")
    if not 0 <= order.spread <= 1:
        raise InvalidInput("spread", order.spread, "must be from 0 to 1")
