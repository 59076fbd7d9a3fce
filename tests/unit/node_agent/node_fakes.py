"""Stand-ins for what a node agent reaches outside: its runtimes, its part of etcd, the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace

from tessera.domain.errors import DataCorrupted, NotFound, TesseraError, Unavailable
from tessera.domain.ids import (
    Digest,
    Generation,
    InstanceId,
    RuntimeId,
    TrustDomain,
    VariantKey,
)
from tessera.domain.instance import Stage, StageTime, StartPath
from tessera.domain.records import AssignmentRecord, InstanceRecord
from tessera.node_agent.core.fsck import Declaration
from tessera.node_agent.core.pressure import MemoryReading
from tessera.node_agent.core.slices import Slice
from tessera.node_agent.ports import (
    Becoming,
    HeldInstance,
    Hello,
    InstanceActivity,
    LoadReport,
    MachineUse,
    Runtime,
    RuntimeActivity,
)
from tessera.program import Stop
from tessera.tensorstore.artifact import decode, digest_of
from tessera.tensorstore.local import LocalTensorStore
from tessera.testing import VirtualClock


class FakeRuntime:
    """Implements `Runtime`. Reads the store as a real one would; `fault` is what its next load does: "corrupt" (looks at the bytes
    and refuses those that differ), "die", "hang", or an error. Where a start may be told early, that happens while the world's `opening`
    gate is closed, or then."""

    def __init__(self, world: FakeRuntimes, runtime_id: RuntimeId, flavour: str, threads: int) -> None:
        self._world = world
        self._hello = Hello(runtime_id, 4_000_000 + len(world.all), flavour, threads, frozenset(), ())
        self.alive = True
        self.loaded: dict[InstanceId, HeldInstance] = {}
        self.opening: set[InstanceId] = set()
        self.mapped: dict[InstanceId, frozenset[Digest]] = {}
        self.unloads: list[tuple[InstanceId, int]] = []
        self.deltas: list[bytes] = []
        self.slow = False
        self.kept: frozenset[Digest] = frozenset()
        self.trims: list[Collection[Digest] | None] = []
        self.container_id = ""
        self.ended_by = ""

    @property
    def hello(self) -> Hello:
        holds = frozenset().union(*self.mapped.values()) if self.mapped else frozenset()
        return replace(self._hello, holds=holds, instances=tuple(self.loaded.values()))

    def _require(self) -> None:
        if not self.alive:
            raise Unavailable(f"runtime {self._hello.runtime_id} has ended")

    async def load(
        self,
        instance_id: InstanceId,
        generation: Generation,
        variant: VariantKey,
        artifact: Digest | None,
        verify: bool,
        timeout_s: float,
        mapped: Callable[[LoadReport], None] | None = None,
        becoming: Becoming | None = None,
    ) -> LoadReport:
        self._require()
        assert artifact is not None
        if becoming is not None and becoming.donor not in self.loaded:
            raise NotFound(f"instance {becoming.donor}")
        self._world.early.append(mapped is not None)
        fault = self._world.fault(variant)
        await self._world.gate.wait()
        if mapped is not None:
            mapped(LoadReport((StageTime(Stage.MAP, 0.0),), 100, 0))
            self.opening.add(instance_id)
            await self._world.opening.wait()
            self.opening.discard(instance_id)
        if fault == "die":
            self.kill()
            raise Unavailable("lost")
        if fault == "hang":
            raise Unavailable("no answer within the time")
        if isinstance(fault, TesseraError):
            raise fault
        content = decode(self._world.store.path(artifact).read_bytes())
        blobs = frozenset(blob.digest for blob in content.blobs())
        pinned = self._world.store.holders().get(self._hello.runtime_id, frozenset())
        assert blobs <= pinned, "told to load what the store has not pinned for it"
        if verify:
            for digest in sorted(blobs):
                if digest_of(self._world.store.path(digest).read_bytes()) != digest:
                    raise DataCorrupted(f"blob {digest}")
        self.mapped[instance_id] = blobs
        self.loaded[instance_id] = HeldInstance(instance_id, generation, artifact, str(variant))
        if becoming is not None:
            self.deltas.append(becoming.delta)
            del self.loaded[becoming.donor], self.mapped[becoming.donor]
        stage = Stage.LOAD if becoming is None else Stage.TRANSFORM
        return LoadReport((StageTime(Stage.MAP, 0.0), StageTime(stage, 0.0)), 100, 1000)

    async def unload(self, instance_id: InstanceId, drain_ms: int) -> frozenset[Digest]:
        self._require()
        self.unloads.append((instance_id, drain_ms))
        if instance_id in self.opening:
            raise Unavailable("no answer within the time: it is opened first")
        if instance_id not in self.loaded:
            raise NotFound(f"instance {instance_id}")
        del self.loaded[instance_id]
        return self.mapped.pop(instance_id)

    async def declare(self) -> Declaration:
        self._require()
        return Declaration(self.hello.holds, self.hello.holds | self.kept)

    async def trim(self, digests: Collection[Digest] | None = None) -> None:
        self._require()
        self.trims.append(digests)
        self.kept = frozenset() if digests is None else self.kept.difference(digests)

    async def measure(self, instance_ids: Sequence[InstanceId], batch: int, seconds: float, min_repeats: int, spread: float) -> Slice:
        self._require()
        assert set(instance_ids) <= self.loaded.keys()
        self._world.measuring[self._hello.runtime_id] = seconds
        await self._world.measure_gate.wait()
        return await self._world.runs(seconds, min_repeats, spread)

    async def activity(self, window_s: float, memory_age_s: float) -> RuntimeActivity:
        self._require()
        instances = tuple(InstanceActivity(name, 0, 0, 7, self._world.idle_s) for name in self.loaded)
        return RuntimeActivity(instances, 5000, 4000, 3000, self.cpu_s)

    cpu_s = 0.0

    def mappings(self) -> int:
        return 500

    def slow_down(self) -> None:
        self.slow = True

    async def end(self, drain_ms: int) -> None:
        self.kill()

    async def cause(self) -> str:
        return self.ended_by

    def kill(self) -> None:
        """As the kernel tells: later, through the loop."""
        if self.alive:
            self.alive = False
            asyncio.get_running_loop().call_soon(self._world.ended, self._hello.runtime_id)


async def at_once(seconds: float, min_repeats: int, spread: float) -> Slice:
    """Runs of about a millisecond, in no time."""
    return Slice(max(min_repeats, round(1000 * seconds)), (1.0, 2.0), 1.1, spread, 10)


class FakeRuntimes:
    """Implements `Runtimes`. `gate` closed holds every load up, `opening` closed what was told early; `faults` are queued per variant."""

    def __init__(self, store: LocalTensorStore) -> None:
        self.store = store
        self.all: dict[RuntimeId, FakeRuntime] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.opening = asyncio.Event()
        self.opening.set()
        self.early: list[bool] = []
        """For each load whether it was to be told early."""
        self.measure_gate = asyncio.Event()
        self.measure_gate.set()
        self.measuring: dict[RuntimeId, float] = {}
        """The time limit of each runtime's last slice."""
        self.runs: Callable[[float, int, float], Awaitable[Slice]] = at_once
        self.fork_gate = asyncio.Event()
        self.fork_gate.set()
        self.fork_error: TesseraError | None = None
        self.faults: dict[str, list[str | TesseraError]] = {}
        self.idle_s = 1.5
        self.prepared: set[str] = set()
        self.start_path = StartPath.FORK
        self._lost: Callable[[RuntimeId], None] = lambda runtime_id: None

    @property
    def live(self) -> list[FakeRuntime]:
        return [runtime for runtime in self.all.values() if runtime.alive]

    def fault(self, variant: VariantKey) -> str | TesseraError:
        queued = self.faults.get(variant.model, [])
        return queued.pop(0) if queued else ""

    def on_lost(self, callback: Callable[[RuntimeId], None]) -> None:
        self._lost = callback

    def ended(self, runtime_id: RuntimeId) -> None:
        self._lost(runtime_id)

    async def adopt(self) -> tuple[Runtime, ...]:
        return tuple(self.live)

    async def prepare(self, flavours: Iterable[str]) -> None:
        self.prepared |= set(flavours)

    async def create(self, flavour: str, runtime_id: RuntimeId, threads: int) -> Runtime:
        await self.fork_gate.wait()
        if self.fork_error is not None:
            raise self.fork_error
        self.all[runtime_id] = FakeRuntime(self, runtime_id, flavour, threads)
        return self.all[runtime_id]

    async def end(self) -> None:
        pass

    async def leave(self) -> None:
        pass


class FakeRecords:
    """Implements `Records`. `away`: etcd does not answer."""

    def __init__(self) -> None:
        self.desired: dict[InstanceId, AssignmentRecord] | None = {}
        self.away = False
        self.published: dict[InstanceId, InstanceRecord] = {}

    def assignments(self) -> dict[InstanceId, AssignmentRecord] | None:
        return self.desired

    async def read_assignments(self) -> dict[InstanceId, AssignmentRecord]:
        if self.away:
            raise Unavailable("etcd is away")
        return dict(self.desired or {})

    def publish(self, record: InstanceRecord) -> None:
        self.published[record.instance_id] = record

    def withdraw(self, trust_domain: TrustDomain, instance_id: InstanceId) -> None:
        record = self.published.pop(instance_id, None)
        assert record is None or record.variant.trust_domain == trust_domain


class FakeVariants:
    """Implements `Variants`. `tell` is what etcd would."""

    def __init__(self) -> None:
        self.synced = False
        self.tell: Callable[[str, Digest | None], None] = lambda key, artifact: None

    def on_change(self, callback: Callable[[str, Digest | None], None]) -> None:
        self.tell = callback

    async def watch(self, stop: Stop) -> None:
        await stop.wait()


class FakeMemory:
    """Implements `Memory`: plenty."""

    def read(self) -> MemoryReading:
        return MemoryReading(0.0, 1 << 40)


class FakeMachine:
    """Implements `Machine`: one and a half cores are always busy."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def use(self) -> MachineUse:
        return MachineUse(1.5 * self._clock.monotonic_s(), 16 << 30, 12 << 30, 0.25)
