"""What a node does for others beside serving: baking for the registry, measuring for the profiler. One job at a time, at low priority,
and none of it in a runtime that serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tessera.clock import Clock
from tessera.domain.accuracy import Agreement
from tessera.domain.artifact import Blob
from tessera.domain.errors import InvalidInput
from tessera.domain.ids import BuildClass, Digest, Generation, InstanceId, RuntimeId, VariantKey
from tessera.domain.instance import Stage, StartPath
from tessera.domain.records import LatencyRow, LoadCost
from tessera.node_agent.core.artifacts import Load
from tessera.node_agent.core.runtimes import Purpose
from tessera.node_agent.loops.fleet import Fleet
from tessera.node_agent.loops.larder import Larder, holder_of
from tessera.node_agent.loops.stopwatch import Stopwatch
from tessera.node_agent.ports import RandomBytes, Runtime

CHUNK_BYTES = 1 << 20
MAX_THREADS = 256


@dataclass(frozen=True, slots=True)
class BakeOrder:
    """What the registry wants: a variant of `export` by `recipe`. Sets are `.npz` blobs of the repository."""

    export: Digest
    max_batch: int
    recipe: str
    evaluation: Blob | None = None
    metric: str = ""
    calibration: Blob | None = None

    @property
    def sets(self) -> tuple[Blob, ...]:
        return tuple(blob for blob in (self.evaluation, self.calibration) if blob is not None)


@dataclass(frozen=True, slots=True)
class BakeFiles:
    """The order with everything that it names lying in the store: the export's artifact, the sets, and where to write."""

    source: Path
    out: Path
    max_batch: int
    recipe: str
    evaluation: Path | None = None
    metric: str = ""
    calibration: Path | None = None


@dataclass(frozen=True, slots=True)
class BakedBlob:
    digest: Digest
    size_bytes: int
    path: Path


@dataclass(frozen=True, slots=True)
class Baked:
    artifact: Digest
    build_class: BuildClass
    blobs: tuple[BakedBlob, ...]
    agreement: Agreement
    notes: str = ""


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """At most 1 MiB of a blob of `size_bytes`, from `offset` on."""

    digest: Digest
    offset: int
    data: bytes
    size_bytes: int


class Baker(Protocol):
    def bake(self, files: BakeFiles) -> AsyncGenerator[str | Baked, None]:
        """Words of progress, then the result; closing it early ends the baking. Raises: TesseraError, why it could not be baked."""
        ...


@dataclass(frozen=True, slots=True)
class MeasureOrder:
    variant: VariantKey
    artifact: Digest | None
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    seconds_per_row: float
    min_repeats: int


class Jobs:
    """Baking and measuring for one trust domain on one node."""

    def __init__(
        self,
        fleet: Fleet,
        larder: Larder,
        baker: Baker,
        repository_has: Callable[[Digest], bool],
        scratch: Callable[[], Path],
        remove: Callable[[Path], None],
        blob_path: Callable[[Digest], Path],
        load_timeout_s: float,
        random_bytes: RandomBytes,
        clock: Clock,
        turn: asyncio.Lock,
    ) -> None:
        """`turn`: whose turn it is among all jobs of the node."""
        self._fleet = fleet
        self._larder = larder
        self._baker = baker
        self._repository_has = repository_has
        self._scratch = scratch
        self._remove = remove
        self._blob_path = blob_path
        self._load_timeout_s = load_timeout_s
        self._random_bytes = random_bytes
        self._clock = clock
        self._turn = turn
        self._holder: InstanceId | None = None

    @property
    def holders(self) -> frozenset[str]:
        """Who holds blobs for the job under way."""
        return frozenset() if self._holder is None else frozenset({holder_of(self._holder)})

    async def bake(self, order: BakeOrder) -> AsyncGenerator[str | BlobChunk | Baked, None]:
        """Progress, then chunks of the blobs that the repository lacks, then the result.

        Raises:
            NotFound, DataCorrupted, ResourceExhausted: the export or a set cannot be brought in.
            TesseraError: why it could not be baked.
        """
        if self._turn.locked():
            yield "waiting for another job of this node"
        async with self._turn:
            holder = self._holder = InstanceId(f"bake-{self._random_bytes(6).hex()}")
            out = self._scratch()
            try:
                yield "fetching the export"
                await self._larder.bring(order.export, holder, order.sets)
                async with aclosing(self._baker.bake(self._files(order, out))) as steps:
                    async for step in steps:
                        if isinstance(step, str):
                            yield step
                            continue
                        for blob in step.blobs:
                            if not await asyncio.to_thread(self._repository_has, blob.digest):
                                async for chunk in _chunks(blob):
                                    yield chunk
                        yield step
            finally:
                self._larder.release(holder)
                self._holder = None
                self._remove(out)

    def _files(self, order: BakeOrder, out: Path) -> BakeFiles:
        evaluation, calibration = (None if blob is None else self._blob_path(blob.digest) for blob in (order.evaluation, order.calibration))
        return BakeFiles(self._blob_path(order.export), out, order.max_batch, order.recipe, evaluation, order.metric, calibration)

    async def measure(self, order: MeasureOrder) -> AsyncGenerator[str | LoadCost | LatencyRow, None]:
        """For each thread count: the cost of a start by fork and by bind, then a row per batch.

        Raises:
            InvalidInput: no batches or threads, or a number out of range.
            TesseraError: the variant cannot be loaded or run; says why.
        """
        _check(order)
        if self._turn.locked():
            yield "waiting for another job of this node"
        async with self._turn:
            holder = self._holder = InstanceId(f"measure-{self._random_bytes(6).hex()}")
            try:
                artifact = self._larder.artifact_of(order.variant, order.artifact)
                load = self._larder.take(artifact, holder)
                if load is None:
                    yield "fetching"
                    load, _ = await self._larder.fetch(artifact, holder)
                for threads in order.threads:
                    yield f"measuring with {threads} threads"
                    async with self._dedicated(load, threads) as (runtime_id, runtime, watch):
                        yield await self._load(runtime_id, runtime, holder, order.variant, load, watch, self._fleet.start_path)
                        await runtime.unload(holder, 0)
                        watch = Stopwatch(self._clock)
                        yield await self._load(runtime_id, runtime, holder, order.variant, load, watch, StartPath.BIND)
                        for batch in order.batches:
                            yield await runtime.measure(holder, batch, order.seconds_per_row, order.min_repeats)
            finally:
                self._larder.release(holder)
                self._holder = None

    @asynccontextmanager
    async def _dedicated(self, load: Load, threads: int) -> AsyncIterator[tuple[RuntimeId, Runtime, Stopwatch]]:
        """A runtime of its own, gone afterwards."""
        watch = Stopwatch(self._clock)
        with watch.stage(self._fleet.stage):
            runtime_id = await self._fleet.create(load.flavour, Purpose.MEASURE, threads)
        try:
            runtime = self._fleet.get(runtime_id)
            runtime.slow_down()
            self._fleet.pin(runtime_id, load.blobs)
            yield runtime_id, runtime, watch
        finally:
            self._fleet.discard(runtime_id)
            await self._fleet.kill(runtime_id)  # whoever gets the last answer finds nothing of it

    async def _load(
        self, runtime_id: RuntimeId, runtime: Runtime, name: InstanceId, variant: VariantKey, load: Load, watch: Stopwatch, path: StartPath
    ) -> LoadCost:
        generation = Generation(int.from_bytes(self._random_bytes(8), "little") | 1)
        with watch.loading(Stage.LOAD if path is StartPath.BIND else self._fleet.stage) as loading:
            report = await runtime.load(name, generation, variant, load.artifact, False, self._load_timeout_s)
            loading.take(report.stages)
        return LoadCost(path, watch.stages(), report.private_bytes)


async def _chunks(blob: BakedBlob) -> AsyncIterator[BlobChunk]:
    """Read in a thread, a chunk at a time."""
    offset = 0
    while offset < blob.size_bytes or offset == 0:
        data = await asyncio.to_thread(_read, blob.path, offset)
        yield BlobChunk(blob.digest, offset, data, blob.size_bytes)
        if not data:
            return
        offset += len(data)


def _read(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(CHUNK_BYTES)


def _check(order: MeasureOrder) -> None:
    for field, values, most in (("batches", order.batches, 4096), ("threads", order.threads, MAX_THREADS)):
        _check_counts(field, values, most)
    if not 0 < order.seconds_per_row <= 600:
        raise InvalidInput("seconds_per_row", order.seconds_per_row, "must be more than 0 and at most 600")
    if not 1 <= order.min_repeats <= 100_000:
        raise InvalidInput("min_repeats", order.min_repeats, "must be from 1 to 100000")


def _check_counts(field: str, values: Collection[int], most: int) -> None:
    if not values:
        raise InvalidInput(field, None, "must name at least one")
    for value in values:
        if not 1 <= value <= most:
            raise InvalidInput(field, value, f"must be from 1 to {most}")
