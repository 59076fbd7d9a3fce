"""The instances of a runtime: loading, serving, measuring, unloading. Lives on the event loop; two kinds of threads work for it.

The loader (one thread) maps, opens and closes, so that a start never waits behind a running batch. Workers run batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from tessera import failpoint
from tessera.clock import Clock
from tessera.domain.artifact import Artifact
from tessera.domain.errors import (
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidInput,
    NotFound,
    ResourceExhausted,
    TesseraError,
    Unsupported,
    WrongGeneration,
)
from tessera.domain.ids import Digest, InstanceId, parse_reference
from tessera.frames.codec import Buffer, FrameResponse, RequestHeader
from tessera.frames.openinference import parse_request
from tessera.runtime import backends, classes, memory
from tessera.runtime.backends.interface import Backend, BackendConfig, Donor, Loaded, TransformingBackend
from tessera.runtime.blobs import ArtifactBlobs, read_blob
from tessera.runtime.holds import Holds
from tessera.runtime.housekeeping import Housekeeping
from tessera.runtime.identity import BatchLimits, InstanceIdentity, InstancePhase
from tessera.runtime.instance import Instance
from tessera.runtime.kept import KeptArtifacts
from tessera.runtime.loads import Becoming, LoadAnswer, LoadRequest, Opening
from tessera.runtime.measure import Measurement, RowLimits, measure
from tessera.runtime.parking import Parking
from tessera.tensorstore import artifact as artifacts
from tessera.tensorstore.mapping import BlobMap

WARM_AFTER_S = 0.05
"""A runtime that was forked for a start has its load by then."""
_KNOWN_ARTIFACTS = 32
_KNOWN_GRAPHS = 32


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """One runtime. `private`: sharing off, tensors are copied. `workers`: batches that may run at a time, of different instances.
    `idle_after_s`: an instance without requests for that long is parked; 0: none is."""

    runtime_id: str
    flavour: str
    trust_domain: str
    store: Path
    run_folder: Path
    threads: int = 1
    workers: int = 1
    private: bool = False
    orphan_s: float = 600.0
    idle_after_s: float = 0.0

    @property
    def folder(self) -> Path:
        return self.run_folder / self.runtime_id


@dataclass(slots=True)
class _Held:
    """`sound`: what it maps may be kept for the next load."""

    instance: Instance
    blobs: ArtifactBlobs
    sound: bool = True


class InstanceManager:
    """Make it inside a running loop, after the fork; then `start`."""

    def __init__(self, config: RuntimeConfig, clock: Clock) -> None:
        self.config = config
        self.holds = Holds()
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._workers = ThreadPoolExecutor(config.workers, thread_name_prefix="worker")
        self._maps = BlobMap()
        self._kept = KeptArtifacts()
        self._backends: dict[str, Backend] = {}
        self._held: dict[InstanceId, _Held] = {}
        self._loading: dict[InstanceId, asyncio.Future[None]] = {}
        self._by_generation: dict[int, Instance] = {}
        self._build_class = classes.build_class()
        self._artifact = lru_cache(_KNOWN_ARTIFACTS)(partial(_read_artifact, config.store))
        self._graph = lru_cache(_KNOWN_GRAPHS)(read_blob)
        self._house = Housekeeping(self._kept, lambda: list(self._backends.values()), self._loader, clock)
        self._parking = Parking(
            config.idle_after_s, lambda: [(held.instance, held.blobs) for held in self._held.values()], self._loader, self._house.tidy_later
        )
        self.on_released: Callable[[list[Digest]], None] | None = None

    def start(self) -> Awaitable[None]:
        """Makes the backends, on the loader thread: loads that come meanwhile wait for it."""
        return self._loop.run_in_executor(self._loader, self._make_backends)

    def _make_backends(self) -> None:
        config = BackendConfig(self.config.threads, self.config.folder)
        for name in backends.names(self.config.flavour):
            self._backends[name] = backends.create(name, config)

    async def warm(self) -> None:
        """Runs something tiny on each backend, unless a load has come first: that one has warmed its own, and must not wait for this."""
        await self._clock.sleep(WARM_AFTER_S)
        if not self._held and not self._loading:
            await self._loop.run_in_executor(self._loader, self._warm_backends)

    def _warm_backends(self) -> None:
        for backend in self._backends.values():
            backend.warm()

    @property
    def backend_names(self) -> tuple[str, ...]:
        return backends.names(self.config.flavour)

    @property
    def instances(self) -> list[Instance]:
        return [held.instance for held in self._held.values()]

    def infer(self, header: RequestHeader, body: Buffer) -> asyncio.Future[FrameResponse]:
        """The handler of the data socket.

        Raises:
            WrongGeneration: no instance of that generation is here.
            InvalidInput, ResourceExhausted: see `Instance.submit`.
        """
        instance = self._by_generation.get(header.generation)
        if instance is None:
            raise WrongGeneration(f"runtime {self.config.runtime_id} has no instance of generation {header.generation:016x}")
        return instance.submit(header, parse_request(body))

    async def load(self, request: LoadRequest, mapped: Callable[[LoadAnswer], None] | None = None) -> LoadAnswer:
        """Makes an instance. Its blobs are held from here on, before anything is mapped. Once they are mapped it takes requests, which wait
        until it is open: `mapped` is told then, of what is known by then. When it cannot be opened, whoever waits in it gets the error.

        With a donor it is made of that one, which ends with it. Whatever goes wrong leaves the donor as it was, unless it was spent by
        then: it is gone too. Requests to the donor wait meanwhile, and are sent on at its end.

        Raises:
            AlreadyExists: the instance id or generation is taken.
            FailedPrecondition: the artifact was baked for another build class.
            Conflict: the donor is not idle.
            NotFound, DataCorrupted: a blob is not there, or is not what its digest says.
            Unsupported: another flavour's artifact, or a graph that the backend cannot do, or a donor of another backend or one that cannot
                transform.
        """
        if request.instance_id in self._held or request.instance_id in self._loading:
            raise AlreadyExists(f"instance {request.instance_id} is here already")
        if request.generation in self._by_generation:
            raise AlreadyExists(f"generation {request.generation:016x} is here already")
        version = parse_reference(request.variant).version
        identity = InstanceIdentity(request.instance_id, request.generation, request.variant, str(version or ""), request.artifact)
        over = self._loading[request.instance_id] = self._loop.create_future()
        try:
            return await self._load(request, identity, mapped)
        finally:
            del self._loading[request.instance_id]
            over.set_result(None)

    async def _load(self, request: LoadRequest, identity: InstanceIdentity, mapped: Callable[[LoadAnswer], None] | None) -> LoadAnswer:
        donor = self._donor(request.donor) if request.donor is not None else None
        source = Donor(donor.instance.artifact, donor.blobs, donor.instance.loaded) if donor is not None else None
        try:
            artifact, digests = self._artifact(request.artifact)
            self.holds.use(request.instance_id, digests)
            opening = await self._loop.run_in_executor(self._loader, self._map, request, artifact)
            instance = self._add(identity, artifact, BatchLimits(artifact.max_batch, request.max_delay_us), opening.blobs)
            if mapped is not None:
                mapped(opening.answer)
            await instance.open(self._loop.run_in_executor(self._loader, self._open, request, artifact, opening, source))
        except BaseException as error:
            await self._drop(request.instance_id)
            if donor is not None and source is not None:
                await self._leave(donor, source.spent)
            if isinstance(error, TesseraError) or not isinstance(error, Exception):
                raise
            raise Internal(f"artifact {request.artifact} cannot be loaded: {type(error).__name__}: {error}") from error
        if donor is not None and donor.instance.hand_over():
            await self._take_out(donor)
        self._parking.watch()
        return opening.answer

    async def _leave(self, donor: _Held, spent: bool) -> None:
        """A donor of which nothing was made: it goes on, or is gone."""
        if not spent:
            donor.instance.release(used=False)
        elif donor.instance.hand_over():
            await self._take_out(donor)

    def _donor(self, becoming: Becoming) -> _Held:
        """An idle instance, reserved. Raises: NotFound; Conflict: it is not idle."""
        self._serving(becoming.instance_id).reserve(becoming.idle_s)
        return self._held[becoming.instance_id]

    @property
    def loading(self) -> list[InstanceId]:
        """What `settled` would wait for."""
        return list(self._loading)

    async def settled(self) -> None:
        """Waits for the loads under way: an agent that asks what is here would hear later neither of a failure nor of a donor's end."""
        if self._loading:
            await asyncio.wait(set(self._loading.values()))

    def _add(self, identity: InstanceIdentity, artifact: Artifact, limits: BatchLimits, blobs: ArtifactBlobs) -> Instance:
        submit = partial(self._loop.run_in_executor, self._workers)
        reopen = partial(self._loop.run_in_executor, self._loader, self._reopen, identity, artifact, blobs)
        instance = Instance(identity, artifact, None, limits, self._clock, submit, reopen)
        self._held[identity.instance_id] = _Held(instance, blobs)
        self._by_generation[identity.generation] = instance
        return instance

    async def _drop(self, instance_id: InstanceId) -> None:
        """After a load that failed. Where the instance is being unloaded already, that goes on with what there is."""
        held = self._held.get(instance_id)
        if held is not None:
            held.sound = False
            if held.instance.phase is not InstancePhase.SERVING:
                return
            held.instance.phase = InstancePhase.GONE
            del self._held[instance_id], self._by_generation[held.instance.identity.generation]
            await self._loop.run_in_executor(self._loader, held.blobs.close)
        self._note_released(self.holds.end(instance_id))
        self._house.tidy_later()

    def _map(self, request: LoadRequest, artifact: Artifact) -> Opening:
        """On the loader thread."""
        started = self._clock.monotonic_s()
        private_before = memory.anonymous_bytes()
        self._backend_for(artifact)
        blobs = None if request.verify else self._kept.take(request.artifact)
        if blobs is None:
            read = read_blob if request.verify else self._graph
            blobs = ArtifactBlobs(self.config.store, artifact, self._maps, self.config.private, request.verify, read)
        grown = max(0, memory.anonymous_bytes() - private_before)
        return Opening(blobs, (self._clock.monotonic_s() - started) * 1e3, grown)

    def _open(self, request: LoadRequest, artifact: Artifact, opening: Opening, donor: Donor | None) -> Loaded:
        """On the loader thread."""
        failpoint.hit("runtime.open")
        started = self._clock.monotonic_s()
        private_before = memory.anonymous_bytes()
        backend = self._backend_for(artifact)
        if donor is None or request.donor is None:
            loaded = backend.load(artifact, request.artifact, opening.blobs)
        else:
            there = donor.artifact.backend
            if not isinstance(backend, TransformingBackend) or there != artifact.backend:
                raise Unsupported(f"an instance of backend {there} cannot become one of backend {artifact.backend}")
            loaded = backend.transform(donor, request.donor.delta, artifact, request.artifact, opening.blobs)
        opening.load_ms = (self._clock.monotonic_s() - started) * 1e3
        opening.grown_bytes += max(0, memory.anonymous_bytes() - private_before)
        return loaded

    def _reopen(self, identity: InstanceIdentity, artifact: Artifact, blobs: ArtifactBlobs) -> Loaded:
        """On the loader thread. Raises TesseraError: why a parked instance cannot be opened again."""
        failpoint.hit("runtime.reopen")
        try:
            loaded = self._backend_for(artifact).load(artifact, identity.artifact_digest, blobs)
        except MemoryError as error:
            raise ResourceExhausted(f"no memory to open instance {identity.instance_id} of {identity.variant} again") from error
        self._loop.call_soon_threadsafe(self._parking.watch)
        return loaded

    def _backend_for(self, artifact: Artifact) -> Backend:
        backend = self._backends.get(artifact.backend)
        if backend is None and backends.others().get(artifact.backend) == self.config.flavour:
            backend = backends.create(artifact.backend, BackendConfig(self.config.threads, self.config.folder))
            self._backends[artifact.backend] = backend
        if backend is None:
            has = ", ".join(self.backend_names)
            raise Unsupported(f"backend {artifact.backend!r}: a runtime of flavour {self.config.flavour} has {has}")
        if artifact.build_class is not None and artifact.build_class != self._build_class:
            raise FailedPrecondition(f"the artifact was baked for build class {artifact.build_class}; this machine is {self._build_class}")
        return backend

    async def unload(self, instance_id: InstanceId, drain_s: float) -> list[Digest]:
        """Ends an instance and its mappings. Returns the digests that this runtime no longer holds.

        Free heap goes back to the system a little later, at once for all unloads of a second: a load that follows finds it warm.

        Raises:
            NotFound: there is no such instance, or its end has begun.
        """
        held = self._held.get(instance_id)
        if held is None or held.instance.phase is not InstancePhase.SERVING:
            raise NotFound(f"instance {instance_id} is not loaded in runtime {self.config.runtime_id}")
        await held.instance.drain(drain_s)
        return await self._take_out(held)

    async def _take_out(self, held: _Held) -> list[Digest]:
        """What is left of an instance that takes nothing more. Returns the digests that this runtime no longer holds."""
        instance_id = held.instance.identity.instance_id
        del self._by_generation[held.instance.identity.generation]
        try:
            await self._loop.run_in_executor(self._loader, self._end, held)
        finally:
            del self._held[instance_id]
            self._house.tidy_later()
            self._house.forget_later()
        released = self.holds.end(instance_id)
        self._note_released(released)
        return released

    async def measure(self, instance_ids: Sequence[InstanceId], batch: int, limits: RowLimits) -> Measurement:
        """Runs instances of one artifact at the same time with made-up inputs, one run of each at a time; requests to them wait meanwhile.

        Raises:
            NotFound: there is no such instance.
            InvalidInput: the batch is beyond the instances' limit; they are of several artifacts, or one is named twice.
            FailedPrecondition: one is being measured already, or another one is made of it.
        """
        instances = [self._serving(instance_id) for instance_id in instance_ids]
        first = instances[0]
        if len({id(instance) for instance in instances}) < len(instances):
            raise InvalidInput("instances", ", ".join(instance_ids), "must name each once")
        if any(instance.identity.artifact_digest != first.identity.artifact_digest for instance in instances):
            raise InvalidInput("instances", ", ".join(instance_ids), "must be of one artifact")
        limit = first.limits.max_batch if first.artifact.signature.batched else 1
        if not 1 <= batch <= limit:
            raise InvalidInput("batch", batch, f"must be 1 to {limit}")
        async with AsyncExitStack() as stack:
            for instance in instances:
                await instance.exclusively()
                stack.callback(instance.release)
            loaded = [instance.loaded for instance in instances if instance.loaded is not None]
            call = partial(measure, loaded, first.artifact.signature, batch, limits, self._clock)
            return await self._loop.run_in_executor(self._workers, call)

    def _serving(self, instance_id: InstanceId) -> Instance:
        held = self._held.get(instance_id)
        if held is None or held.instance.phase is not InstancePhase.SERVING:
            raise NotFound(f"instance {instance_id} is not loaded in runtime {self.config.runtime_id}")
        return held.instance

    async def close(self, drain_s: float) -> None:
        """Ends every instance, then the threads."""

        async def unload(instance_id: InstanceId) -> None:
            with suppress(NotFound):  # its end has begun since
                await self.unload(instance_id, drain_s)

        serving = [held.instance.identity.instance_id for held in self._held.values() if held.instance.phase is InstancePhase.SERVING]
        async with asyncio.TaskGroup() as tasks:
            for instance_id in serving:
                tasks.create_task(unload(instance_id))
        self._parking.stop()
        self._house.stop()
        self._workers.shutdown(wait=False)
        self._loader.shutdown(wait=False)

    def _end(self, held: _Held) -> None:
        """On the loader thread: first what points into the mappings; those stay for a while, unless they could not be opened."""
        if held.instance.loaded is not None:
            held.instance.loaded.close()
        if not held.sound:
            held.blobs.close()
            return
        self._kept.keep(held.instance.identity.artifact_digest, held.blobs, self._clock.monotonic_s())

    def mapped(self) -> list[Digest]:
        """Every blob that this process maps, for an instance or kept."""
        return sorted(self._maps.digests())

    async def trim(self, digests: Collection[Digest] | None = None) -> int:
        """See `Housekeeping.trim`."""
        return await self._house.trim(digests)

    def _note_released(self, digests: list[Digest]) -> None:
        if digests and self.on_released is not None:
            self.on_released(digests)


def _read_artifact(store: Path, digest: Digest) -> tuple[Artifact, tuple[Digest, ...]]:
    """An artifact of the store and the digests of its blobs."""
    artifact = artifacts.decode(read_blob(store, digest))
    return artifact, tuple(blob.digest for blob in artifact.blobs())
