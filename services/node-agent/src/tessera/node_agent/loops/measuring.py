"""Measuring for the profiler: a row at a time, at low priority, in a runtime that serves nobody, and while the node answers no requests.

What requests disturb counts for nothing: its runtime is ended at once, which gives the cores back sooner than asking it would. What ran
undisturbed counts: the row goes on in slices. Each try that has none is followed by one that begins sooner after a request and is shorter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from tessera.domain.errors import InvalidInput, ResourceExhausted, TesseraError
from tessera.domain.ids import Digest, Generation, InstanceId, VariantKey
from tessera.domain.instance import Stage, StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.slices import LEAST_S, Pace, Slice, enough, together
from tessera.node_agent.loops.place import MeasuringPlace
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.ports import Runtime

QUIET_S = 1.0
"""The node has answered no request for so long before a row is begun."""
PATIENCE_S = 3.0
"""After so long without that, half of it is enough, and so on."""
DISTURBED_TRIES = 20
"""In a row without a slice: what is to run takes longer than the requests leave."""
WATCH_S = 0.2
"""How soon a row is ended when a request comes."""
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


@dataclass(slots=True)
class _Kept:
    """What ran undisturbed so far, of all tries."""

    loads: tuple[LoadCost, ...] = ()
    slices: list[Slice] = field(default_factory=list)
    complete: bool = False


@dataclass(slots=True)
class _Try:
    """In a runtime of its own. `begun_s`: since when nothing may have disturbed it. `starting`: requests do not end it yet. How long the
    start of a hurried try takes does not matter, and may be longer than they leave."""

    order: MeasureOrder
    pace: Pace
    load: Load
    holder: InstanceId
    kept: _Kept
    begun_s: float
    starting: bool


class Measurer:
    """Of one trust domain on one node."""

    def __init__(self, place: MeasuringPlace) -> None:
        self._place = place
        self._fleet = place.fleet
        self._larder = place.larder
        self._traffic = place.traffic
        self._clock = place.clock

    async def measure(self, order: MeasureOrder) -> AsyncGenerator[str | Measured, None]:
        """The cost of a start by fork (or container) and by bind, then the row. Words of progress in between; the last words before a row
        stand for the moment in which its last slices began.

        Raises:
            InvalidInput: a number out of range.
            ResourceExhausted: requests leave no time for it.
            TesseraError: the variant cannot be loaded or run; says why.
        """
        _check(order)
        with self._place.holder("measure") as holder:
            artifact = self._larder.artifact_of(order.variant, order.artifact)
            load: Load | None = None
            kept, pace, vain = _Kept(), Pace(QUIET_S), 0
            while not kept.complete:
                if await self._traffic.quiet_s() < pace.quiet_s:
                    yield "waiting while the node answers requests"
                    pace = await self._quiet(pace)
                if self._place.turn.locked():
                    yield "waiting for another job of this node"
                async with self._place.turn:
                    load = load or self._larder.take(artifact, holder)
                    if load is None:
                        yield "fetching"
                        load, _ = await self._larder.fetch(artifact, holder)
                    yield f"measuring batch {order.batch} with {order.threads} threads, {order.concurrency} at a time"
                    before = len(kept.slices)
                    await self._undisturbed(order, pace, load, holder, kept)
                if len(kept.slices) > before:
                    vain = 0
                    continue
                vain, pace = vain + 1, pace.hurried(order.seconds)
                if vain == DISTURBED_TRIES:
                    raise ResourceExhausted(f"requests leave no time to run batch {order.batch}: they disturbed {vain} tries in a row")
            for cost in kept.loads:
                yield cost
            yield _row(order, together(kept.slices))

    async def _quiet(self, pace: Pace) -> Pace:
        """Waits for the pause that `pace` asks for, and for ever shorter ones where it does not come; says for which in the end."""
        while not await self._pause(pace.quiet_s):
            pace = pace.sooner()
        return pace

    async def _pause(self, wanted_s: float) -> bool:
        """Whether the node is quiet for so long before patience ends."""
        patient_s = self._clock.monotonic_s() + PATIENCE_S
        while (quiet_s := await self._traffic.quiet_s()) < wanted_s:
            if self._clock.monotonic_s() >= patient_s:
                return False
            await self._clock.sleep(max(LEAST_S / 2, wanted_s - quiet_s))
        return True

    async def _undisturbed(self, order: MeasureOrder, pace: Pace, load: Load, holder: InstanceId, kept: _Kept) -> None:
        """One try: adds to `kept` until the row is complete or a request comes. Raises: TesseraError."""
        this = _Try(order, pace, load, holder, kept, self._clock.monotonic_s(), starting=pace.slice_s is not None)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(self._outcome(this))
            watching = group.create_task(self._watch(this, working))
            working.add_done_callback(lambda _: watching.cancel())
        if not working.cancelled() and (error := working.result()) is not None and not await self._disturbed(this):
            raise error

    async def _watch(self, this: _Try, working: asyncio.Task[object]) -> None:
        while this.starting or not await self._disturbed(this):
            await self._clock.sleep(WATCH_S)
        working.cancel()

    async def _disturbed(self, this: _Try) -> bool:
        return await self._traffic.quiet_s() < self._clock.monotonic_s() - this.begun_s

    async def _outcome(self, this: _Try) -> TesseraError | None:
        """An error is an outcome, so that it does not arrive wrapped in a group."""
        try:
            await self._run(this)
        except TesseraError as error:
            return error
        return None

    async def _run(self, this: _Try) -> None:
        """What was disturbed is not kept, and ends the try."""
        order, pace, kept = this.order, this.pace, this.kept
        watch = Stopwatch(self._clock)
        async with self._place.runtime(this.load.flavour, this.load.blobs, watch, order.threads) as runtime:
            runtime.slow_down()
            new = await self._load(runtime, this.holder, order.variant, this.load, watch, self._fleet.start_path)
            await runtime.unload(this.holder, 0)
            watch = Stopwatch(self._clock)
            bound = await self._load(runtime, this.holder, order.variant, this.load, watch, StartPath.BIND)
            if not await self._disturbed(this):
                kept.loads = kept.loads or (new, bound)
            names = [this.holder, *(InstanceId(f"{this.holder}-{number}") for number in range(1, order.concurrency))]
            for name in names[1:]:
                await self._load(runtime, name, order.variant, this.load, watch, StartPath.BIND)
            if this.starting and await self._disturbed(this):
                if not await self._pause(pace.quiet_s):
                    return
                this.begun_s = self._clock.monotonic_s()
            this.starting = False
            seconds, least, spread = (order.seconds, order.min_repeats, order.spread) if pace.slice_s is None else (pace.slice_s, 1, 0.0)
            while not kept.complete:
                found = await runtime.measure(names, order.batch, seconds, least, spread)
                if await self._disturbed(this):
                    return
                kept.slices.append(found)
                limits = order.concurrency, order.seconds, order.min_repeats, order.spread
                kept.complete = pace.slice_s is None or enough(together(kept.slices), *limits)

    async def _load(
        self, runtime: Runtime, name: InstanceId, variant: VariantKey, load: Load, watch: Stopwatch, path: StartPath
    ) -> LoadCost:
        generation = Generation(int.from_bytes(self._place.random_bytes(8), "little") | 1)
        with watch.loading(Stage.LOAD if path is StartPath.BIND else self._fleet.stage) as loading:
            report = await runtime.load(name, generation, variant, load.artifact, False, self._place.load_timeout_s)
            loading.take(report.stages)
        return LoadCost(path, watch.stages(), report.private_bytes)


def _row(order: MeasureOrder, found: Slice) -> LatencyRow:
    return LatencyRow(
        order.batch,
        order.threads,
        found.repeats,
        found.quantile_ms(0.5),
        found.quantile_ms(0.99),
        found.row_mean_ms(order.concurrency),
        found.peak_private_bytes,
        order.concurrency,
        found.spread,
    )


def _check(order: MeasureOrder) -> None:
    for name, value, most in (
        ("batch", order.batch, MAX_BATCH),
        ("threads", order.threads, MAX_THREADS),
        ("concurrency", order.concurrency, MAX_CONCURRENCY),
        ("min_repeats", order.min_repeats, 100_000),
    ):
        if not 1 <= value <= most:
            raise InvalidInput(name, value, f"must be from 1 to {most}")
    if not 0 < order.seconds <= 300:
        raise InvalidInput("seconds", order.seconds, "must be more than 0 and at most 300")
    if not 0 <= order.spread <= 1:
        raise InvalidInput("spread", order.spread, "must be from 0 to 1")
